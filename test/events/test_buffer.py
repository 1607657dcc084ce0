"""EventBuffer against a plain sorted list with the same limits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError
from event_sam3d_ros.events.events import Events

MANY = 1 << 40


def make(times, first_id=0) -> Events:
    """Events that can be told apart by x + 2**16 * y."""
    ids = np.arange(first_id, first_id + len(times))
    return Events(
        np.array(times, np.int64), (ids % 2**16).astype("u2"), (ids >> 16).astype("u2"), (ids % 2).astype("u1")
    )


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True))


class Reference:
    def __init__(self, max_duration_us, max_events):
        self.max_duration_us, self.max_events = max_duration_us, max_events
        self.rows, self.overflow, self.reordered = [], 0, 0

    def append(self, events):
        """False where time runs backwards."""
        newest, out_of_order = self.rows[-1][0] if self.rows else -MANY, False
        for row in rows_of(events):
            if row[0] < newest - BACKWARD_TOLERANCE_US:
                return False
            out_of_order |= row[0] < newest
            newest = max(newest, row[0])
        self.rows = sorted(self.rows + rows_of(events), key=lambda row: row[0])
        self.rows = [row for row in self.rows if row[0] >= newest - self.max_duration_us]
        self.overflow += max(0, len(self.rows) - self.max_events)
        self.rows = self.rows[-self.max_events :]
        self.reordered += out_of_order
        return True


STEP = st.sampled_from([0, 0, 1, 5, 40_000, -3, -30_000, -99_999, 300_000]) | st.integers(-150_000, 200_000)
PACKETS = st.lists(st.lists(STEP, max_size=12), max_size=12)
WINDOWS = st.lists(st.tuples(st.integers(-1_000_000, 3_000_000), st.integers(0, 2_000_000)), max_size=4)


@given(
    PACKETS, WINDOWS, st.sampled_from([1, 10, 100_000, 10**7]), st.integers(1, 30), st.sampled_from([1, 2, 5, 1 << 16])
)
def test_equals_a_sorted_list(packets, windows, max_duration_us, max_events, first_ring):
    """Sorted and unsorted packets, overlaps, limits, a ring that grows; where time runs backwards nothing changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("event_sam3d_ros.events.buffer._FIRST_RING", first_ring)
        check_equal(packets, windows, max_duration_us, max_events)


def check_equal(packets, windows, max_duration_us, max_events):
    buffer, reference = EventBuffer(max_duration_us, max_events, MANY), Reference(max_duration_us, max_events)
    time, count = 0, 0
    for steps in packets:
        start = time
        events = make(start + np.cumsum(np.array(steps, np.int64)), count)
        count += len(events)
        if reference.append(events):
            buffer.append(events)
            time = int(events.t[-1]) if len(events) else time
        else:
            with pytest.raises(BackwardTimeError):
                buffer.append(events)
        assert len(buffer) == len(reference.rows)
        assert buffer.t_first == (reference.rows[0][0] if reference.rows else None)
        assert buffer.t_last == (reference.rows[-1][0] if reference.rows else None)
    for t0, duration in [*windows, (-MANY, 2 * MANY)]:
        expected = [row for row in reference.rows if t0 <= row[0] < t0 + duration]
        assert rows_of(buffer.window(t0, t0 + duration)) == expected
        later = [row for row in reference.rows if row[0] >= t0][2:]
        for count in (1, len(later)):
            following = buffer.following(t0, 2, count) if count else None
            assert following is None or rows_of(following) == later[:count]
            assert (following is None) == (count == 0 or len(later) < count)
    assert buffer.counters == {"overflow_events": reference.overflow, "reordered_packets": reference.reordered}


def test_memory_bounds_the_number_of_events():
    buffer = EventBuffer(MANY, MANY, 13 * 100 + 12)
    buffer.append(make(range(1000)))
    buffer.append(make(range(1000, 1030)))
    assert len(buffer) == 100
    assert (buffer.t_first, buffer.t_last) == (930, 1029)
    assert buffer.counters["overflow_events"] == 930


def test_windows_are_copies():
    buffer = EventBuffer(MANY, 4, MANY)
    buffer.append(make([1, 2, 3]))
    window = buffer.window(0, 10)
    for t in range(4, 20):
        buffer.append(make([t]))
    assert window.t.tolist() == [1, 2, 3]


def test_clear_forgets_the_events_and_takes_older_ones():
    buffer = EventBuffer(MANY, 10, MANY)
    buffer.append(make([10**9]))
    with pytest.raises(BackwardTimeError, match="event time ran backwards from 1000.000000 s to 0.000005 s"):
        buffer.append(make([5]))
    assert buffer.t_last == 10**9
    buffer.clear()
    assert (len(buffer), buffer.t_first, buffer.t_last) == (0, None, None)
    buffer.append(make([5]))
    assert buffer.t_last == 5


def test_the_tolerance_itself_is_still_sorted_in():
    buffer = EventBuffer(MANY, 10, MANY)
    buffer.append(make([BACKWARD_TOLERANCE_US]))
    buffer.append(make([0]))
    assert buffer.window(0, MANY).t.tolist() == [0, BACKWARD_TOLERANCE_US]
    with pytest.raises(BackwardTimeError):
        buffer.append(make([-1]))


@pytest.mark.parametrize("limits", [(0, 1, 13), (1, 0, 13), (1, 1, 12)])
def test_a_buffer_without_room_is_refused(limits):
    with pytest.raises(ConfigurationError, match="holds no event"):
        EventBuffer(*limits)


MEASURE = """
import subprocess
import sys

import numpy as np
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.events import Events

def resident_mb():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 1e6

def packet(t):
    return Events(np.full(50_000, t), np.zeros(50_000, "u2"), np.zeros(50_000, "u2"), np.zeros(50_000, "u1"))

small = EventBuffer(10, 10, 1000)
small.append(packet(0))
small.window(0, 1)
before = resident_mb()
buffer = EventBuffer(1 << 40, 1 << 40, 130_000_000)
print(resident_mb() - before)
for t in range(20):
    buffer.append(packet(t))
print(resident_mb() - before)
for t in range(20, 1000):
    buffer.append(packet(t))
print(resident_mb() - before)
"""


def test_memory_is_taken_only_as_events_come_and_never_more_than_the_bound():
    """Resident size of a process of its own, whose buffer may take 130 MB: empty, with 1 of 10 million events, full."""
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True, timeout=120)
    empty, tenth, full = map(float, done.stdout.split())
    assert empty < 3
    assert 10 < tenth < 30
    assert 120 < full < 140
