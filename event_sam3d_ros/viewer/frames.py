"""What the viewer shows, wherever it comes from: frames, one after the other, and numbers over time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SCENE_POINTS = 8_000  # shown of a frame's depth, evenly chosen
PLOT_POINTS = 512  # of a plot's line
PLOT_LINES = 24  # the objects seen last
_HISTORY_KEPT = 20_000  # frames
_MEMORY = 512 << 20  # bytes of frames that a store keeps

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Values = Mapping[str, float]


@dataclass(frozen=True)
class ViewObject:
    """A reconstruction or, with ``score`` None, a true object. ``name``: unique in its frame; ``id``: track, for the
    colour; ``pose``: (4, 4) object frame (centre, z up) to world; ``size``: (3,) metres; ``points``: (N, 3) float32 in
    the object frame; ``colors``: (N, 3) uint8 RGB; ``values``: more numbers for the history; ``aside``: it is one of
    several results for the same thing and is shown only when asked for."""

    name: str
    id: int
    pose: NDArray[np.float64]
    size: NDArray[np.float64]
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    score: float | None = None
    metric: bool = True
    values: Values = field(default_factory=dict)
    aside: bool = False


@dataclass(frozen=True)
class ViewFrame:
    """One frame. Images (h, w, 3) uint8 RGB or None; ``tracks``: (h, w), the mask by ids, 0 nothing; ``K``: (3, 3) or
    None; ``camera_to_world``: (4, 4), the identity where it is not known; ``scene_points``: (N, 3) float32 in the
    camera's frame; ``milliseconds``: what the frame took, by stage."""

    stamp_ns: int
    rgb: NDArray[np.uint8] | None = None
    event_image: NDArray[np.uint8] | None = None
    tracks: NDArray[np.integer] | None = None
    K: NDArray[np.float64] | None = None
    camera_to_world: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    pose_known: bool = False
    scene_points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    scene_colors: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    objects: tuple[ViewObject, ...] = ()
    truths: tuple[ViewObject, ...] = ()
    milliseconds: Values = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """About as many as the frame holds in memory."""
        arrays = [self.rgb, self.event_image, self.tracks, self.scene_points, self.scene_colors]
        arrays += [part for item in self.objects for part in (item.points, item.colors)]  # truths share their points
        return sum(array.nbytes for array in arrays if array is not None)


class Frames(Protocol):
    """A source of frames, numbered from 0."""

    title: str
    live: bool  # shown as they come, the newest first; otherwise one after the other
    history: History

    def span(self) -> tuple[int, int]:
        """First frame that can be had, and the one behind the last."""

    def frame(self, index: int) -> ViewFrame | None:
        """A frame; None where it can't be had any more."""

    def complete(self) -> bool:
        """Whether no more frames will come."""

    def status(self) -> str:
        """What the user should know about the source now; mostly empty."""

    def close(self) -> None:
        """Ends it."""


@dataclass(frozen=True)
class _Row:
    stamp_ns: int
    objects: Mapping[str, Values]
    milliseconds: Values
    camera: Floats | None


class History:
    """Numbers of each frame, for plots: of objects by name and quantity, milliseconds by stage, and the camera's way.
    Of the latest 20,000 frames; for several threads."""

    def __init__(self) -> None:
        self._rows: deque[_Row] = deque(maxlen=_HISTORY_KEPT)
        self._lock = threading.Lock()
        self._first_ns: int | None = None
        self.added = 0  # frames ever, those that were dropped included

    def add(
        self, stamp_ns: int, objects: Mapping[str, Values], milliseconds: Values, camera: Floats | None = None
    ) -> None:
        """One more frame; ``camera``: its place (3,) in the world, where that is known. What is not before it goes:
        time has jumped back, or its result came after newer pictures."""
        with self._lock:
            while self._rows and self._rows[-1].stamp_ns >= stamp_ns:
                self._rows.pop()
            self._first_ns = self._first_ns if self._rows else stamp_ns
            self._rows.append(_Row(stamp_ns, objects, milliseconds, camera))
            self.added += 1

    def seconds(self, stamp_ns: int) -> float:
        """Time since the first frame."""
        return (stamp_ns - (stamp_ns if self._first_ns is None else self._first_ns)) / 1e9

    def quantities(self) -> list[str]:
        """What is known of objects, in the order of appearance."""
        names = (name for row in self._chosen() for values in row.objects.values() for name in values)
        return list(dict.fromkeys(names))

    def objects(self, quantity: str) -> tuple[Doubles, dict[str, Doubles]]:
        """Seconds and, for each of the 24 objects that were seen last, as many numbers, NaN where there is none; at
        most 512, evenly chosen."""
        rows = self._chosen()
        latest_first = dict.fromkeys(name for row in reversed(rows) for name in row.objects)
        return self._times(rows), {
            name: np.array([row.objects.get(name, {}).get(quantity, np.nan) for row in rows])
            for name in sorted(islice(latest_first, PLOT_LINES))
        }

    def milliseconds(self) -> tuple[Doubles, dict[str, Doubles]]:
        """The same by stage."""
        rows = self._chosen()
        stages = dict.fromkeys(stage for row in rows for stage in row.milliseconds)
        lines = {stage: np.array([row.milliseconds.get(stage, np.nan) for row in rows]) for stage in stages}
        return self._times(rows), lines

    def camera_path(self) -> Floats:
        """Places (N, 3) of the camera in the world; at most 512, evenly chosen."""
        return np.array([row.camera for row in self._chosen() if row.camera is not None]).reshape(-1, 3)

    def _times(self, rows: list[_Row]) -> Doubles:
        return np.array([self.seconds(row.stamp_ns) for row in rows])

    def _chosen(self) -> list[_Row]:
        with self._lock:
            rows = list(self._rows)
        return [rows[i] for i in evenly(len(rows), PLOT_POINTS)]


def object_values(item: ViewObject, camera_to_world: NDArray[np.float64]) -> dict[str, float]:
    """The numbers of an object for the history."""
    x, y, z = (float(value) for value in item.pose[:3, 3])
    distance = float(np.linalg.norm(item.pose[:3, 3] - camera_to_world[:3, 3]))
    score = {} if item.score is None else {"score": item.score}
    return {**score, "distance, m": distance, "size, m": float(np.max(item.size)), "x, m": x, "y, m": y, "z, m": z} | {
        name: float(value) for name, value in item.values.items()
    }


class FrameStore:
    """Frames that come one by one: the newest of them, up to 512 MiB. For several threads.

    Where they are read faster than they are shown, `append` waits rather than lose what was not shown yet; a ``live``
    store never waits.
    """

    def __init__(self, title: str, live: bool = False, memory: int = _MEMORY) -> None:
        self.title, self.live, self.history = title, live, History()
        self._memory, self._used = memory, 0
        self._frames: deque[ViewFrame] = deque()
        self._first = self._shown = 0
        self._changed = threading.Condition()
        self._complete = self._closed = False
        self._status = ""

    def append(self, frame: ViewFrame) -> bool:
        """One more frame; False if nobody wants them any more."""
        values = {item.name: object_values(item, frame.camera_to_world) for item in frame.objects}
        with self._changed:
            while not self.live and not self._closed and self._is_full() and self._shown <= self._first:
                self._changed.wait()
            if self._closed:
                return False
            while self._frames and self._is_full():
                self._used -= self._frames.popleft().bytes
                self._first += 1
            self._frames.append(frame)
            self._used += frame.bytes
        camera = frame.camera_to_world[:3, 3] if frame.pose_known else None
        self.history.add(frame.stamp_ns, values, frame.milliseconds, camera)
        return True

    def _is_full(self) -> bool:
        return self._used >= self._memory

    def tell(self, status: str, complete: bool = False) -> None:
        """What the user should know, and whether no more frames will come."""
        with self._changed:
            self._status, self._complete = status, complete

    def span(self) -> tuple[int, int]:
        """See `Frames`."""
        with self._changed:
            return self._first, self._first + len(self._frames)

    def frame(self, index: int) -> ViewFrame | None:
        """See `Frames`."""
        with self._changed:
            if not 0 <= index - self._first < len(self._frames):
                return None
            self._shown = max(self._shown, index)
            self._changed.notify_all()
            return self._frames[index - self._first]

    def complete(self) -> bool:
        """See `Frames`."""
        return self._complete

    def status(self) -> str:
        """See `Frames`."""
        return self._status

    def close(self) -> None:
        """See `Frames`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def evenly(count: int, limit: int) -> NDArray[np.intp]:
    """Indices of at most ``limit`` of ``count`` things, evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, limit)).round().astype(np.intp)
