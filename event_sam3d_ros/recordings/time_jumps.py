"""Pieces of a file whose times are damaged: they jump away from those before, and come back."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US
from event_sam3d_ros.events.events import Events

_JUMP_US = 1_000_000
# A damaged bit of TIME_HIGH lasts until the next TIME_HIGH, one of an event for that event. What goes on for longer is
# a camera that was started again, a pause, or another recording that was appended.
_LASTS_US = BACKWARD_TOLERANCE_US
_LASTS_EVENTS = 1 << 16


class TimeJumps:
    """Takes a file's events in its order, and gives them without those whose times jump by more than a second and come
    back within 0.1 s. ``leave_out`` gets a part of a sentence for each such piece."""

    def __init__(self, leave_out: Callable[[str], None]) -> None:
        self._leave_out = leave_out
        self._level: int | None = None  # time of the last event that was given
        # What came since the times jumped away, the last of it, and the first one behind the latest jump.
        self._away: list[Events] = []
        self._newest = self._begin = 0

    def __call__(self, events: Events, first_us: int, last_us: int) -> list[Events]:
        """Events that may be given now; ``first_us``, ``last_us``: least and greatest time of those that come."""
        if self._level is None:
            self._level = self._newest = int(events.t[0])
        is_steady = last_us - first_us <= _JUMP_US and abs(int(events.t[0]) - self._newest) <= _JUMP_US
        if is_steady and not self._away:
            self._level = self._newest = int(events.t[-1])
            return [events]
        jumps = set(np.flatnonzero(np.abs(np.diff(events.t, prepend=self._newest)) > _JUMP_US).tolist())
        bounds = sorted({0, *jumps, len(events)})
        return [
            part for begin, end in itertools.pairwise(bounds) for part in self._take(events[begin:end], begin in jumps)
        ]

    def rest(self) -> list[Events]:
        """The end of the file: what has not come back can't be told from a camera that was started again."""
        away, self._away = self._away, []
        return away

    def _take(self, part: Events, jumps: bool) -> list[Events]:
        """The same for a part in which no time jumps, but perhaps to its first."""
        assert self._level is not None
        first, self._newest = int(part.t[0]), int(part.t[-1])
        if jumps:
            self._begin = first
        comes_back = self._level - BACKWARD_TOLERANCE_US <= first <= self._level + _JUMP_US
        if self._away and jumps and comes_back:
            count = sum(map(len, self._away))
            self._leave_out(
                f"is damaged: its times jump from {self._level} us to {self._away[0].t[0]} us and back to {first} us, "
                f"for {count} event{'s' if count > 1 else ''}"
            )
            self._away = []
        elif self._away or jumps:
            self._away.append(part)
            lasts_us = int(part.t.max()) - self._begin
            if lasts_us <= _LASTS_US and sum(map(len, self._away)) <= _LASTS_EVENTS:
                return []
            self._level = self._newest
            return self.rest()
        self._level = self._newest
        return [part]
