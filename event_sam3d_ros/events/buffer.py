"""The last events of a stream, sorted by time."""

from __future__ import annotations

import numpy as np

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError
from event_sam3d_ros.events.events import FIELDS, Events, concatenate

_BYTES_PER_EVENT = sum(dtype.itemsize for dtype in FIELDS.values())


class EventBuffer:
    """Events sorted by time (those of equal time in stream order), bounded in duration, number and memory.

    max_duration_us  events older than the newest one by more than this are dropped
    max_events       of more events than this the oldest are dropped
    max_bytes        memory of the arrays, a second limit on the number of events (26 bytes for each)

    The events are one stretch of arrays twice as long as the limit: appending writes behind the stretch, and what is
    left moves to the front only when the arrays are full. So appending and finding a window are both cheap.

    ``capacity`` is the limit on the number of events; ``dropped_until`` is the time
    of the newest event that was dropped for a limit, None if none was.

    ``counters``: ``overflow_events`` dropped for number or memory although young enough, ``reordered_packets`` that
    were not sorted or began before the end of the packet before.

    Not thread-safe; a window is a copy and can be handed to another thread.
    """

    def __init__(
        self, max_duration_us: int = 1_000_000, max_events: int = 8_000_000, max_bytes: int = 256_000_000
    ) -> None:
        capacity = min(int(max_events), int(max_bytes) // (2 * _BYTES_PER_EVENT))
        if capacity < 1 or max_duration_us < 1:
            raise ConfigurationError(
                f"event buffer of {max_duration_us} us, {max_events} events and {max_bytes} bytes holds no event",
                reason="bad_buffer",
            )
        self.capacity = capacity
        self._max_duration_us = int(max_duration_us)
        self._store = {name: np.empty(2 * capacity, dtype) for name, dtype in FIELDS.items()}
        self._start = self._stop = 0
        self.dropped_until: int | None = None
        self.counters = {"overflow_events": 0, "reordered_packets": 0}

    def append(self, events: Events) -> None:
        """Take in one packet's events.

        Events may be out of order, within the packet and against earlier ones, by up to BACKWARD_TOLERANCE_US: they are
        sorted in. If one is older still than an event before it, BackwardTimeError is raised and nothing is changed.
        """
        if len(events) == 0:
            return
        newest = np.maximum.accumulate(events.t)
        if len(self):
            newest = np.maximum(newest, self._store["t"][self._stop - 1])
        late = newest - events.t
        worst = int(late.argmax())
        if late[worst] > BACKWARD_TOLERANCE_US:
            raise BackwardTimeError("event time", int(newest[worst]), int(events.t[worst]))
        if late[worst] > 0:
            events = self._merge_tail(events)
            self.counters["reordered_packets"] += 1
        self._write(events)

    def window(self, t0_us: int, t1_us: int) -> Events:
        """Copy of the events with t0_us <= t < t1_us, sorted by time; what is no longer or not yet here is missing."""
        times = self._store["t"][self._start : self._stop]
        first, last = self._start + np.searchsorted(times, (t0_us, t1_us))
        return Events(*(array[first:last].copy() for array in self._store.values()))

    def clear(self) -> None:
        """Drop all events; the counters stay."""
        self._start = self._stop = 0
        self.dropped_until = None

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def t_first(self) -> int | None:
        """Time of the oldest event in microseconds, None if there is none."""
        return int(self._store["t"][self._start]) if len(self) else None

    @property
    def t_last(self) -> int | None:
        """Time of the newest event in microseconds, None if there is none."""
        return int(self._store["t"][self._stop - 1]) if len(self) else None

    def _merge_tail(self, events: Events) -> Events:
        """Take the stored events that are newer than the oldest of ``events`` out, and sort both together."""
        times = self._store["t"][self._start : self._stop]
        cut = self._start + int(np.searchsorted(times, events.t.min(), side="right"))
        tail = Events(*(array[cut : self._stop] for array in self._store.values()))
        self._stop = cut
        both = concatenate([tail, events])
        return both[np.argsort(both.t, kind="stable")]

    def _write(self, events: Events) -> None:
        """Append sorted events that begin no earlier than the stored ones end, and drop what is over the limits."""
        oldest = int(events.t[-1]) - self._max_duration_us
        incoming, start = events, self._start
        events = events[np.searchsorted(events.t, oldest) :]
        self._start += int(np.searchsorted(self._store["t"][self._start : self._stop], oldest))
        excess = len(self) + len(events) - self.capacity
        if excess > 0:
            self.counters["overflow_events"] += excess
            from_store = min(excess, len(self))
            self._start += from_store
            events = events[excess - from_store :]
        if len(events) < len(incoming):
            self.dropped_until = int(incoming.t[len(incoming) - len(events) - 1])
        elif self._start > start:
            self.dropped_until = int(self._store["t"][self._start - 1])
        if self._stop + len(events) > 2 * self.capacity:
            kept = len(self)
            for array in self._store.values():
                array[:kept] = array[self._start : self._stop]
            self._start, self._stop = 0, kept
        stop = self._stop + len(events)
        for name, array in self._store.items():
            array[self._stop : stop] = getattr(events, name)
        self._stop = stop
