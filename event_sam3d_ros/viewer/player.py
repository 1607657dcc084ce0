"""Which frame is shown when: play, pause, step, seek, speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from event_sam3d_ros.viewer.frames import Frames, ViewFrame

_POLL_S = 0.05  # how often a source is asked for new frames
_LONGEST_STEP_S = 1.0  # a pause in a recording is not waited out

Show = Callable[[int, ViewFrame], None]


class Player:
    """Shows frames at the pace of their stamps, no frame left out; of a live source the newest. `run` works until
    `stop`; everything else may be called from any thread. ``speed``: 2 is twice as fast as recorded. ``idle`` is called
    often while there is no other frame to show."""

    def __init__(self, frames: Frames, show: Show, *, playing: bool, idle: Callable[[], None] = lambda: None) -> None:
        self._frames, self._show, self._idle = frames, show, idle
        self._changed = threading.Condition()
        self._index, self._stamp_ns, self._due_s = -1, 0, 0.0
        self._wanted: int | None = None
        self._stopped = False
        self.playing, self.loop, self.speed = playing, True, 1.0

    @property
    def index(self) -> int:
        """Number of the frame that is shown; -1 before the first."""
        return self._index

    def play(self, playing: bool) -> None:
        """Goes on, or pauses. From the last frame of a recording it begins anew."""
        with self._changed:
            first, behind = self._frames.span()
            if playing and self._frames.complete() and self._index == behind - 1:
                self._wanted = first
            self.playing = playing
            self._changed.notify()

    def step(self, count: int) -> None:
        """Pauses, and goes on by frames, back where ``count`` is negative."""
        with self._changed:
            self.playing = False
            self._wanted = (self._index if self._wanted is None else self._wanted) + count
            self._changed.notify()

    def seek(self, index: int) -> None:
        """Goes to a frame, or to the nearest that there is."""
        with self._changed:
            self._wanted = index
            self._changed.notify()

    def refresh(self) -> None:
        """Shows the frame again, as where what is shown of it has changed."""
        with self._changed:
            if self._wanted is None and self._index >= 0:
                self._wanted = self._index
            self._changed.notify()

    def stop(self) -> None:
        """Ends `run`."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Shows frames until it is stopped."""
        while not self._stopped:
            with self._changed:
                index = self._next()
                if index is None:
                    self._changed.wait(self._pause_s())
                else:
                    self._wanted = None
            if index is None:
                self._idle()
                continue
            frame = self._frames.frame(index)
            if frame is not None:
                self._pace(index, frame)
                self._show(index, frame)

    def _pause_s(self) -> float:
        if self.playing and not self._frames.live:
            return min(max(self._due_s - time.monotonic(), 0.001), _POLL_S)
        return _POLL_S

    def _next(self) -> int | None:
        """The frame to show now, if another one than is shown."""
        first, behind = self._frames.span()
        if first == behind:
            return None
        if self._wanted is not None:
            return min(max(self._wanted, first), behind - 1)
        if self._index < 0:
            return first
        if not self.playing:
            return None
        if self._frames.live:
            return behind - 1 if behind - 1 != self._index else None
        if time.monotonic() < self._due_s:
            return None
        if self._index + 1 < behind:
            return max(self._index + 1, first)
        if self._frames.complete():
            if self.loop and first < behind - 1:
                return first
            self.playing = False
        return None

    def _pace(self, index: int, frame: ViewFrame) -> None:
        """Sets when the frame after this one is due: by the distance of the two latest stamps."""
        now, step_s = time.monotonic(), (frame.stamp_ns - self._stamp_ns) / 1e9
        if index != self._index + 1 or not 0 < step_s <= _LONGEST_STEP_S:
            step_s = 0.0
        with self._changed:
            # A frame late is made up for, more is not: there is no use in a burst.
            self._due_s = max(self._due_s, now - step_s) + step_s / self.speed
            self._index, self._stamp_ns = index, frame.stamp_ns
