"""Events as a structure of arrays: the one form in which events travel through the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError

# Names and types of the arrays, in the order of the constructor.
FIELDS: dict[str, np.dtype[Any]] = {
    "t": np.dtype(np.int64),
    "x": np.dtype(np.uint16),
    "y": np.dtype(np.uint16),
    "p": np.dtype(np.uint8),
}


class Extent(NamedTuple):
    """What some events reach over: earliest and latest time in microseconds, largest column and row; whether they are
    sorted by time."""

    t_min: int
    t_max: int
    x_max: int
    y_max: int
    is_sorted: bool


@dataclass(frozen=True, eq=False)
class Events:
    """N brightness changes of an event camera, in stream order.

    t  int64  [N]  microseconds on the sensor's clock, unwrapped
    x  uint16 [N]  column, 0 at the left
    y  uint16 [N]  row, 0 at the top
    p  uint8  [N]  polarity, 1 brighter, 0 darker

    The arrays are contiguous and read-only, so that slices can be handed out without copying. The constructor keeps a
    view of contiguous input (whoever passes an array in must not write to it afterwards) and never converts types:
    another dtype, shape or length is an InputError (reason ``bad_events``).
    """

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]

    def __post_init__(self) -> None:
        length = len(self.t)
        for name, dtype in FIELDS.items():
            array = np.ascontiguousarray(getattr(self, name)).view()
            if array.dtype != dtype or array.shape != (length,):
                raise InputError(
                    f"events.{name} is {array.dtype}{array.shape}, expected {dtype}({length},): convert it before",
                    reason="bad_events",
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def adopt(cls, t: NDArray[Any], x: NDArray[Any], y: NDArray[Any], p: NDArray[Any]) -> Events:
        """Events of arrays that are known to be right and that nobody else holds: unchecked, made read-only in place.

        A fifth of the constructor's time, which counts at a thousand packets per second.
        """
        t.flags.writeable = x.flags.writeable = y.flags.writeable = p.flags.writeable = False
        events = object.__new__(cls)
        events.__dict__.update(t=t, x=x, y=y, p=p)
        return events

    @classmethod
    def empty(cls) -> Events:
        """No events."""
        return cls(*(np.empty(0, dtype) for dtype in FIELDS.values()))

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: slice | NDArray) -> Events:
        """Events of a slice (a view where the step is 1), of a boolean mask or of an index array (copies)."""
        if isinstance(index, slice) and index.step in (None, 1):
            return Events.adopt(self.t[index], self.x[index], self.y[index], self.p[index])
        return Events(self.t[index], self.x[index], self.y[index], self.p[index])

    def extent(self) -> Extent:
        """What the events reach over, of which there must be one at least."""
        return Extent(*_extent(self.t, self.x, self.y))

    @property
    def nbytes(self) -> int:
        """Bytes of the four arrays: 13 per event."""
        return self.t.nbytes + self.x.nbytes + self.y.nbytes + self.p.nbytes


@dataclass(frozen=True, eq=False)
class Triggers:
    """N edges at the camera's trigger inputs: ``t`` int64 microseconds as those of `Events`, ``id`` uint8 number of the
    input, ``p`` uint8 1 rising, 0 falling. The arrays are read-only."""

    t: NDArray[np.int64]
    id: NDArray[np.uint8]
    p: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for name, dtype in (("t", np.int64), ("id", np.uint8), ("p", np.uint8)):
            array = np.ascontiguousarray(getattr(self, name)).view()
            if array.dtype != dtype or array.shape != (len(self.t),):
                raise InputError(
                    f"triggers.{name} is {array.dtype}{array.shape}, expected {np.dtype(dtype)}({len(self.t)},)",
                    reason="bad_triggers",
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def empty(cls) -> Triggers:
        """No edges."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8))

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: slice | NDArray) -> Triggers:
        """Edges of a slice, a boolean mask or an index array."""
        return Triggers(self.t[index], self.id[index], self.p[index])


def concatenate(parts: Sequence[Events]) -> Events:
    """All events of ``parts`` one after another, in the given order; a single part is returned as it is."""
    if not parts:
        return Events.empty()
    if len(parts) == 1:
        return parts[0]
    return Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))


@njit(cache=True, nogil=True)
def _extent(t, x, y):  # type: ignore[no-untyped-def]
    # Loops without an early exit, and split by the types that they look at: so the compiler compares several at once.
    steps_back = 0
    for i in range(1, t.size):
        steps_back += t[i] < t[i - 1]
    first, last = t[0], t[-1]
    if steps_back:
        for i in range(t.size):
            first, last = min(first, t[i]), max(last, t[i])
    right, bottom = np.uint16(0), np.uint16(0)
    for i in range(x.size):
        right, bottom = max(right, x[i]), max(bottom, y[i])
    return first, last, right, bottom, steps_back == 0
