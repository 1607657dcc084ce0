"""Tencode against its definition, pixel by pixel and in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode

WIDTH, HEIGHT = 4, 3


def make(rows: list[tuple[int, int, int, int]]) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def reference(rows, t0, t1):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            here = [(t, i, p) for i, (t, x, y, p) in enumerate(rows) if (x, y) == (column, row) and t0 <= t < t1]
            if here:
                t, _, p = max(here)
                green = round(255 * (1 - Fraction(t - t0, t1 - t0)))
                image[row, column] = (255, green, 0) if p else (0, green, 255)
    return image


EVENT = st.tuples(st.integers(-5, 70), st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, 1))


@given(
    st.lists(EVENT, max_size=80), st.integers(-5, 20), st.integers(1, 70), st.sampled_from([0, 1_700_000_000_000_000])
)
def test_equals_the_definition_for_any_order(rows, t0, span, epoch):
    """Unsorted times, events outside window and image, equal times, windows of all lengths, times since 1970."""
    rows = [(t + epoch, x, y, p) for t, x, y, p in rows]
    t0 += epoch
    image = tencode(make(rows), t0, t0 + span, WIDTH, HEIGHT)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, reference(rows, t0, t0 + span))


def test_halves_are_rounded_to_even():
    # 255 * (1 - 1/2) = 127.5 -> 128, 255 * (1 - 3/10) = 178.5 -> 178
    assert tencode(make([(1, 0, 0, 1)]), 0, 2, 1, 1)[0, 0].tolist() == [255, 128, 0]
    assert tencode(make([(3, 0, 0, 0)]), 0, 10, 1, 1)[0, 0].tolist() == [0, 178, 255]


def test_later_in_the_stream_wins_ties():
    assert tencode(make([(5, 0, 0, 1), (5, 0, 0, 0)]), 0, 10, 1, 1)[0, 0].tolist() == [0, 128, 255]


def test_window_is_half_open():
    image = tencode(make([(10, 0, 0, 1), (20, 1, 0, 1), (9, 2, 0, 1)]), 10, 20, 3, 1)
    assert image[0].tolist() == [[255, 255, 0], [0, 0, 0], [0, 0, 0]]


def test_no_events_give_a_black_image():
    assert not tencode(Events.empty(), 0, 1, WIDTH, HEIGHT).any()


@pytest.mark.parametrize(("t0", "t1"), [(5, 5), (6, 5)])
def test_window_without_duration_is_refused(t0, t1):
    with pytest.raises(InputError, match="no duration") as error:
        tencode(Events.empty(), t0, t1, WIDTH, HEIGHT)
    assert error.value.reason == "bad_window"


@pytest.mark.parametrize(("width", "height"), [(0, 3), (4, -1)])
def test_image_without_pixels_is_refused(width, height):
    with pytest.raises(InputError, match="no pixels") as error:
        tencode(Events.empty(), 0, 1, width, height)
    assert error.value.reason == "bad_geometry"
