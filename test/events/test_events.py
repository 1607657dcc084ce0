"""Events: what the constructor accepts, slicing, joining."""

from __future__ import annotations

import numpy as np
import pytest

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events, concatenate


def make(times: list[int]) -> Events:
    n = len(times)
    return Events(
        np.array(times, np.int64), np.arange(n, dtype=np.uint16), np.arange(n, dtype=np.uint16), np.ones(n, np.uint8)
    )


def test_empty_has_no_events_and_no_bytes():
    assert len(Events.empty()) == 0
    assert Events.empty().nbytes == 0


def test_thirteen_bytes_per_event():
    assert make([1, 2, 3]).nbytes == 39


def test_slices_are_views_and_masks_select():
    events = make([1, 2, 3, 4])
    assert events[1:3].t.tolist() == [2, 3]
    assert np.shares_memory(events[1:3].x, events.x)
    assert events[events.t > 3].x.tolist() == [3]
    assert events[::2].t.tolist() == [1, 3]
    assert events[::2].t.flags.c_contiguous


def test_arrays_are_read_only_but_the_callers_stay_writable():
    times = np.zeros(2, np.int64)
    events = Events(times, np.zeros(2, np.uint16), np.zeros(2, np.uint16), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        events.t[0] = 1
    times[0] = 1


def test_concatenate_keeps_the_order():
    joined = concatenate([make([3, 4]), Events.empty(), make([1])])
    assert joined.t.tolist() == [3, 4, 1]
    assert joined.x.tolist() == [0, 1, 0]
    assert len(concatenate([])) == 0


@pytest.mark.parametrize(
    ("field", "array"),
    [
        ("t", np.zeros(2, np.float64)),
        ("x", np.zeros(2, np.int64)),
        ("y", np.zeros(3, np.uint16)),
        ("p", np.zeros((2, 1), np.uint8)),
    ],
)
def test_wrong_types_and_lengths_are_named(field, array):
    fields = {"t": np.zeros(2, np.int64), "x": np.zeros(2, np.uint16), "y": np.zeros(2, np.uint16)}
    fields |= {"p": np.zeros(2, np.uint8), field: array}
    with pytest.raises(InputError, match=f"events.{field}") as error:
        Events(**fields)
    assert error.value.reason == "bad_events"
