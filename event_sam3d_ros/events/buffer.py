"""The last events of a stream, sorted by time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError
from event_sam3d_ros.events.events import FIELDS, Events, concatenate

_BYTES_PER_EVENT = sum(dtype.itemsize for dtype in FIELDS.values())
_FIRST_RING = 1 << 16


class EventBuffer:
    """Events sorted by time (those of equal time in stream order), bounded in duration, number and memory.

    max_duration_us  events older than the newest one by more than this are dropped
    max_events       of more events than this the oldest are dropped
    max_bytes        memory of the arrays, a second limit on the number of events (13 bytes for each)

    The events lie in a ring, which begins small and doubles until the limit is reached. Its arrays are as long as the
    limit from the start, but the operating system gives memory only to what has been written to.

    ``capacity`` is the limit on the number of events; ``dropped_until`` is the time
    of the newest event that was dropped for a limit, None if none was.

    ``counters``: ``overflow_events`` dropped for number or memory although young enough, ``reordered_packets`` that
    were not sorted or began before the end of the packet before.

    Not thread-safe; a window is a copy and can be handed to another thread.
    """

    def __init__(
        self, max_duration_us: int = 1_000_000, max_events: int = 8_000_000, max_bytes: int = 128_000_000
    ) -> None:
        capacity = min(int(max_events), int(max_bytes) // _BYTES_PER_EVENT)
        if capacity < 1 or max_duration_us < 1:
            raise ConfigurationError(
                f"event buffer of {max_duration_us} us, {max_events} events and {max_bytes} bytes holds no event",
                reason="bad_buffer",
            )
        self.capacity = capacity
        self._max_duration_us = int(max_duration_us)
        self._store = {name: np.empty(capacity, dtype) for name, dtype in FIELDS.items()}
        self._ring = min(capacity, _FIRST_RING)
        self._start = self._size = 0
        self.dropped_until: int | None = None
        self.counters = {"overflow_events": 0, "reordered_packets": 0}

    def append(self, events: Events) -> None:
        """Take in one packet's events.

        Events may be out of order, within the packet and against earlier ones, by up to BACKWARD_TOLERANCE_US: they are
        sorted in. If one is older still than an event before it, BackwardTimeError is raised and nothing is changed.
        """
        if len(events) == 0:
            return
        late_us, before_us = _worst_lateness(events.t, self._time(self._size - 1) if self._size else int(events.t[0]))
        if late_us > BACKWARD_TOLERANCE_US:
            raise BackwardTimeError("event time", before_us, before_us - late_us)
        if late_us > 0:
            events = self._merge_tail(events)
            self.counters["reordered_packets"] += 1
        self._write(events)

    def window(self, t0_us: int, t1_us: int) -> Events:
        """Copy of the events with t0_us <= t < t1_us, sorted by time; what is no longer or not yet here is missing."""
        first = self._place(t0_us)
        return self._copy(first, max(0, self._place(t1_us) - first))

    def following(self, t_us: int, skip: int, count: int) -> Events | None:
        """Copy of ``count`` events, from the one on that comes ``skip`` places after the first with t >= t_us.

        None while there are fewer.
        """
        first = self._place(t_us) + skip
        return self._copy(first, count) if first + count <= self._size else None

    def clear(self) -> None:
        """Drop all events; the counters stay."""
        self._start = self._size = 0
        self.dropped_until = None

    def __len__(self) -> int:
        return self._size

    @property
    def t_first(self) -> int | None:
        """Time of the oldest event in microseconds, None if there is none."""
        return self._time(0) if self._size else None

    @property
    def t_last(self) -> int | None:
        """Time of the newest event in microseconds, None if there is none."""
        return self._time(self._size - 1) if self._size else None

    # Places count from the oldest event.

    def _time(self, place: int) -> int:
        return int(self._store["t"][(self._start + place) % self._ring])

    def _place(self, t_us: int) -> int:
        """Of the first event with t >= t_us; the number of events if there is none."""
        return int(_search(self._store["t"], self._start, self._size, self._ring, t_us))

    def _pieces(self, first: int, count: int) -> Iterator[tuple[slice, slice]]:
        """Where ``count`` places from ``first`` on lie in the ring's arrays, and in arrays of their own."""
        begin = (self._start + first) % self._ring
        until_end = min(count, self._ring - begin)
        yield slice(begin, begin + until_end), slice(0, until_end)
        if until_end < count:
            yield slice(0, count - until_end), slice(until_end, count)

    def _copy(self, first: int, count: int) -> Events:
        arrays = [np.empty(count, dtype) for dtype in FIELDS.values()]
        for here, there in self._pieces(first, count):
            for array, stored in zip(arrays, self._store.values(), strict=True):
                array[there] = stored[here]
        return Events.adopt(*arrays)

    def _merge_tail(self, events: Events) -> Events:
        """Take the stored events that are newer than the oldest of ``events`` out, and sort both together."""
        cut = self._place(int(events.t.min()) + 1)
        tail = self._copy(cut, self._size - cut)
        self._size = cut
        both = concatenate([tail, events])
        return both[np.argsort(both.t, kind="stable")]

    def _write(self, events: Events) -> None:
        """Append sorted events that begin no earlier than the stored ones end, and drop what is over the limits."""
        oldest = int(events.t[-1]) - self._max_duration_us
        too_old = self._place(oldest) if self._size and self._time(0) < oldest else 0
        too_old_incoming = int(np.searchsorted(events.t, oldest)) if events.t[0] < oldest else 0
        excess = max(0, self._size - too_old + len(events) - too_old_incoming - self.capacity)
        self.counters["overflow_events"] += excess
        from_store = min(too_old + excess, self._size)
        from_incoming = too_old_incoming + too_old + excess - from_store
        if from_incoming:
            self.dropped_until = int(events.t[from_incoming - 1])
            events = events[from_incoming:]
        elif from_store:
            self.dropped_until = self._time(from_store - 1)
        self._start = (self._start + from_store) % self._ring
        self._size -= from_store
        self._grow(self._size + len(events))
        begin = (self._start + self._size) % self._ring
        t, x, y, p = self._store.values()
        _put(t, x, y, p, begin, self._ring, events.t, events.x, events.y, events.p)
        self._size += len(events)

    def _grow(self, size: int) -> None:
        """Make the ring long enough for ``size`` events, which is at most the capacity."""
        if size <= self._ring:
            return
        before, self._ring = self._ring, min(self.capacity, max(size, 2 * self._ring))
        wrapped = max(0, self._start + self._size - before)
        moved = min(wrapped, self._ring - before)
        for stored in self._store.values():
            stored[before : before + moved] = stored[:moved]
            stored[: wrapped - moved] = stored[moved:wrapped]


@njit(cache=True, nogil=True)
def _put(t, x, y, p, begin, ring, new_t, new_x, new_y, new_p):  # type: ignore[no-untyped-def]
    """Write events to the ring from ``begin`` on."""
    _put_field(t, begin, ring, new_t)
    _put_field(x, begin, ring, new_x)
    _put_field(y, begin, ring, new_y)
    _put_field(p, begin, ring, new_p)


@njit(cache=True, nogil=True)
def _put_field(stored, begin, ring, new):  # type: ignore[no-untyped-def]
    before_end = min(new.size, ring - begin)
    stored[begin : begin + before_end] = new[:before_end]
    stored[: new.size - before_end] = new[before_end:]


@njit(cache=True, nogil=True)
def _worst_lateness(t, newest):  # type: ignore[no-untyped-def]
    """How much older than an event before it an event is at most (0 if sorted), and the time of that event before."""
    worst, before = np.int64(0), newest
    for i in range(t.size):
        if t[i] >= newest:
            newest = t[i]
        elif newest - t[i] > worst:
            worst, before = newest - t[i], newest
    return worst, before


@njit(cache=True, nogil=True)
def _search(t, start, size, ring, time):  # type: ignore[no-untyped-def]
    low, high = 0, size
    while low < high:
        middle = (low + high) >> 1
        place = start + middle
        if t[place - ring if place >= ring else place] < time:
            low = middle + 1
        else:
            high = middle
    return low
