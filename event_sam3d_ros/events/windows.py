"""From serialized event messages and the stamps of frames to event images: what event_image_node does, without ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.filters import FilterSettings
from event_sam3d_ros.events.plausibility import PLAUSIBLE_NS
from event_sam3d_ros.events.representations import tencode, tencode_reference
from event_sam3d_ros.events.stream import EventStream

_MAX_PENDING = 64


@dataclass
class WindowSettings:
    """Which windows are cut; see the node's parameters of the same names. Lengths in nanoseconds, waiting in seconds.

    mode         frame: one for the stamp of each frame. continuous: windows of one length, back to back. count: windows
                 of ``events`` successive events each.
    alignment    Where the stamp lies. centre, end: of a window of ``length_ns``. exposure: in the centre of the frame's
                 exposure, which is the window; ``exposure_ns`` is that of frames that do not bring their own.
    frame_clock  What the frames' stamps count from. host: as the packets' stamps. sensor: as the events' own times.
    representation  tencode, or tencode_reference on white or on black, see representations.py.
    """

    mode: Literal["frame", "continuous", "count"] = "frame"
    length_ns: int = 50_000_000
    events: int = 50_000
    alignment: Literal["centre", "end", "exposure"] = "centre"
    exposure_ns: int = 0
    exposure_offset_ns: int = 0
    max_wait_s: float = 0.1
    frame_clock: Literal["host", "sensor"] = "host"
    representation: Literal["tencode", "reference_white", "reference_black"] = "tencode"

    def bounds(self, stamp_ns: int, exposure_ns: int = 0) -> tuple[int, int]:
        """Half-open window that belongs to a stamp, on the stamp's clock; ``exposure_ns``: the frame's own, or 0."""
        length_ns = (exposure_ns or self.exposure_ns) if self.alignment == "exposure" else self.length_ns
        end_ns = stamp_ns + self.exposure_offset_ns + (0 if self.alignment == "end" else length_ns // 2)
        return end_ns - length_ns, end_ns

    def stamp(self, start_ns: int, end_ns: int) -> int:
        """The stamp of a window without a frame."""
        return (end_ns if self.alignment == "end" else (start_ns + end_ns) // 2) - self.exposure_offset_ns


@dataclass(frozen=True)
class EventWindow:
    """One window: bounds on the clock of its stamp, number of events, Tencode image [H,W,3] uint8, stamp and frame that
    it belongs to. ``ros_ns`` is the stamp in ROS time, which differs where frames are stamped with sensor time."""

    stamp_ns: int
    frame_id: str
    start_ns: int
    end_ns: int
    ros_ns: int
    event_count: int
    image: NDArray[np.uint8]


@dataclass
class _Pending:
    stamp_ns: int
    frame_id: str
    arrived_s: float
    exposure_ns: int


class Placed(Protocol):
    """Events in another grid: one appears once for each pixel that it covers, and some were dropped."""

    @property
    def events(self) -> Events: ...

    @property
    def dropped(self) -> int: ...


class Grid(Protocol):
    """The grid of the event images where it is not the event camera's own: camera/alignment.py."""

    def is_ready(self, stamp_ns: int) -> bool:
        """Whether nothing that would serve a frame of this stamp better is still to come."""

    def place(self, events: Events, stamp_ns: int, width: int, height: int) -> tuple[Placed, int, int]:
        """The events of a sensor of width x height pixels in the grid, and its size; raises EventSam3dError."""


class EventWindows:
    """The windows that are cut out of one event stream.

    ``grid``, if given, is where the events of frames' windows are shown; ``filters``: see EventStream.

    ``report(reason, sentence)`` gets everything that is lost or unusual.
    """

    def __init__(
        self,
        message_type: str,
        settings: WindowSettings,
        buffer: EventBuffer,
        report: Callable[[str, str], None],
        grid: Grid | None = None,
        filters: FilterSettings | None = None,
    ) -> None:
        self.settings, self._grid = settings, grid
        self.stream = EventStream(message_type, buffer, report, filters)
        self._buffer, self._report = buffer, report
        self._pending: deque[_Pending] = deque()
        # Where the next window without a frame begins: sensor time, and events of that very time to skip.
        self._next: tuple[int, int] | None = None

    # Packets in

    def add_packet(self, cdr: bytes) -> None:
        """Take in one serialized event message. Raises DecodeError or InputError for one that can't be used."""
        starts = self.stream.starts
        self.stream.add_message(cdr)
        if self.stream.starts > starts:
            self._next = None
            self._drop_frames_of_old_stream()

    def _drop_frames_of_old_stream(self) -> None:
        """A new stream has begun: frames far from it would wait in vain."""
        t_last = self.stream.t_last
        if t_last is None:
            return
        kept = deque(f for f in self._pending if abs(self._sensor_us(f.stamp_ns) - t_last) * 1000 < PLAUSIBLE_NS)
        for _ in range(len(self._pending) - len(kept)):
            self._report("incomplete_window", "a frame waited for events of a stream that has ended")
        self._pending = kept

    # Windows out

    def add_frame(self, stamp_ns: int, frame_id: str, now_s: float, exposure_ns: int = 0) -> None:
        """Ask for the window of a frame; ``now_s`` comes from any steady clock, ``exposure_ns`` is 0 where it is not
        known of this frame."""
        if stamp_ns <= 0:
            raise InputError("frame without a stamp was dropped: fill header.stamp", reason="zero_stamp")
        if len(self._pending) >= _MAX_PENDING:
            self._report("too_many_frames", f"more than {_MAX_PENDING} frames wait for events: the oldest was dropped")
            self._pending.popleft()
        self._pending.append(_Pending(stamp_ns, frame_id, now_s, exposure_ns))

    def ready(self, now_s: float) -> list[EventWindow]:
        """The windows that are complete or have waited long enough, in the order of their frames."""
        if self.settings.mode == "continuous":
            return self._back_to_back()
        if self.settings.mode == "count":
            return self._of_equal_count()
        return self._of_frames(now_s)

    def _of_frames(self, now_s: float) -> list[EventWindow]:
        windows = []
        while self._pending:
            frame = self._pending[0]
            start_ns, end_ns = self.settings.bounds(frame.stamp_ns, frame.exposure_ns)
            complete = self.stream.t_last is not None and self.stream.t_last >= self._sensor_us(end_ns)
            ready = complete and (self._grid is None or self._grid.is_ready(frame.stamp_ns))
            if not ready and now_s - frame.arrived_s < self.settings.max_wait_s:
                break
            self._pending.popleft()
            if self.stream.newest is None:
                self._report("no_events_yet", "a frame came before any event packet: it gets no event image")
                continue
            if not complete:
                self._report("incomplete_window", self._why_incomplete(end_ns))
            elif self._lost_since(self._sensor_us(start_ns)):
                self._report(
                    "incomplete_window",
                    self._why_no_longer_kept("at the start of a frame's window", "send frames sooner"),
                )
            try:
                windows.append(self._of_frame(frame, start_ns, end_ns))
            except EventSam3dError as error:  # the grid lacks something: this frame has no event image
                self._report(error.reason, str(error))
        return windows

    def _of_frame(self, frame: _Pending, start_ns: int, end_ns: int) -> EventWindow:
        ros_ns = frame.stamp_ns
        t0_us, t1_us, events = 0, 1, Events.empty()
        if self.stream.t_last is not None:
            t0_us, t1_us = self._sensor_us(start_ns), self._sensor_us(end_ns)
            events = self._buffer.window(t0_us, t1_us)
            if self.settings.frame_clock == "sensor":
                ros_ns = self.stream.clock.to_ros_ns(frame.stamp_ns // 1000)
        return self._window(frame.stamp_ns, frame.frame_id, (start_ns, end_ns), ros_ns, events, (t0_us, t1_us))

    def _sensor_us(self, ns: int) -> int:
        """Sensor time of a time on the frames' clock."""
        return ns // 1000 if self.settings.frame_clock == "sensor" else self.stream.clock.to_sensor_us(ns)

    def _why_incomplete(self, end_ns: int) -> str:
        sentence = "no events reached the end of a frame's window within max_wait_ms"
        t_last = self.stream.t_last
        if t_last is None:
            return sentence
        ahead_s = (self._sensor_us(end_ns) - t_last) / 1e6
        advice = ": check both drivers' clocks, and frame_clock" if ahead_s > PLAUSIBLE_NS / 1e9 else ""
        return f"{sentence}; it lies {ahead_s:.3f} s after the newest event{advice}"

    def _why_no_longer_kept(self, which: str, other_advice: str) -> str:
        newest, t_last = self.stream.newest, self.stream.t_last
        assert newest is not None and t_last is not None
        ahead_us = t_last - self.stream.clock.to_sensor_us(newest.stamp_ns)
        if ahead_us > BACKWARD_TOLERANCE_US:
            return (
                f"events whose times lie {ahead_us / 1e6:.3f} s ahead of their packet's stamp pushed those {which} out "
                "of the buffer: packets are damaged or longer than buffer_ms, or the driver's stamps are old"
            )
        advice = f"raise buffer_ms, buffer_max_events or buffer_max_mb, or {other_advice}"
        return f"events {which} were no longer kept: {advice}"

    def _lost_since(self, t_us: int) -> bool:
        dropped = self._buffer.dropped_until
        return dropped is not None and dropped >= t_us

    # In sensor time, so that every event is in one window even while the clock is being fitted.

    def _back_to_back(self) -> list[EventWindow]:
        windows: list[EventWindow] = []
        t_first, t_last = self._buffer.t_first, self.stream.t_last
        if t_first is None or t_last is None:
            return windows
        length_us = self.settings.length_ns // 1000
        if self._next is None or self._next[0] + length_us <= t_first:
            self._next = t_first, 0
        while t_last >= self._next[0] + length_us:
            t0_us = self._next[0]
            self._next = t0_us + length_us, 0
            events = self._buffer.window(t0_us, t0_us + length_us)
            windows.append(self._without_frame(events, t0_us, t0_us + length_us))
        return windows

    def _of_equal_count(self) -> list[EventWindow]:
        windows: list[EventWindow] = []
        t_first = self._buffer.t_first
        if t_first is None:
            return windows
        if self._next is None:
            self._next = t_first, 0
        elif self._lost_since(self._next[0] + 1):
            self._report(
                "incomplete_window",
                self._why_no_longer_kept("of a window that was not yet full", "lower window_events"),
            )
            self._next = t_first, 0
        while (events := self._buffer.following(*self._next, self.settings.events)) is not None:
            t0_us, last_us = int(events.t[0]), int(events.t[-1])
            given = len(events) - int(np.searchsorted(events.t, last_us))
            self._next = last_us, given + (self._next[1] if self._next[0] == last_us else 0)
            windows.append(self._without_frame(events, t0_us, last_us + 1))
        return windows

    def _without_frame(self, events: Events, t0_us: int, t1_us: int) -> EventWindow:
        assert self.stream.newest is not None
        start_ns = self.stream.clock.to_ros_ns(t0_us)
        end_ns = start_ns + 1000 * (t1_us - t0_us)
        stamp_ns = self.settings.stamp(start_ns, end_ns)
        frame_id = self.stream.newest.frame_id
        return self._window(stamp_ns, frame_id, (start_ns, end_ns), stamp_ns, events, (t0_us, t1_us))

    def _window(
        self,
        stamp_ns: int,
        frame_id: str,
        bounds_ns: tuple[int, int],
        ros_ns: int,
        events: Events,
        bounds_us: tuple[int, int],
    ) -> EventWindow:
        assert self.stream.newest is not None
        width, height = self.stream.newest.width, self.stream.newest.height
        count = len(events)
        if self._grid is not None:
            placed, width, height = self._grid.place(events, stamp_ns, width, height)
            events, count = placed.events, count - placed.dropped
        if self.settings.representation == "tencode":
            image = tencode(events, *bounds_us, width, height)
        else:
            image = tencode_reference(events, width, height, self.settings.representation == "reference_white")
        return EventWindow(stamp_ns, frame_id, *bounds_ns, ros_ns, count, image)
