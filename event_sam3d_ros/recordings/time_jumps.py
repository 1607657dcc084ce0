"""Short runs of events whose times are damaged: they jump away from those before, and what follows goes on as if they
were not there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US

_JUMP_US = 1_000_000
# A damaged bit of TIME_HIGH lasts until the next TIME_HIGH, one of an event for that event. What goes on for longer is
# a camera that was started again, a pause, or another recording that was appended.
_SHORT_US = BACKWARD_TOLERANCE_US


def excursions(t: NDArray[np.int64], before_us: int | None) -> Iterator[tuple[int, int, int]]:
    """Runs of the times (N,), microseconds in a file's order, that are damaged: begin, end, and the time before.

    A run begins where the times jump by more than a second. It is damaged if it lasts less than 0.1 s and the next run
    goes on within a second behind the one before it. ``before_us``: the last time before these, None at the begin of
    the file. The last run of ``t`` has no next one, and can't be judged.
    """
    begins = np.flatnonzero(np.abs(np.diff(t, prepend=t[:1] if before_us is None else before_us)) > _JUMP_US)
    if len(begins) < 2:
        return
    is_short = np.maximum.reduceat(t, begins) - np.minimum.reduceat(t, begins) < _SHORT_US
    level = int(t[begins[0] - 1]) if before_us is None or begins[0] else before_us
    for (begin, end), short in zip(itertools.pairwise(begins.tolist()), is_short[:-1].tolist(), strict=True):
        if short and level <= t[end] <= level + _JUMP_US:
            yield begin, end, level
        else:
            level = int(t[end - 1])
