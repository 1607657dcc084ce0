"""From serialized event messages and the stamps of frames to event images: what event_image_node does, without ROS."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import DecodeError, EventSam3dError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock
from event_sam3d_ros.events.codecs import (
    Decoder,
    EventPacketView,
    decode_dvs_event_array_cdr,
    make_decoder,
    parse_event_packet_cdr,
    parse_header_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode

# A sensor's clock and its packets' stamps agree to a few ms; further apart they are not of one stream.
_PLAUSIBLE_NS = 1_000_000_000
_MAX_PENDING = 64
_MAX_SIDE = 8192  # pixels; several times the largest event sensor
_DVS = "dvs_msgs/msg/EventArray"


@dataclass
class WindowSettings:
    """Windows in time: see the parameters of the same names; lengths in nanoseconds, waiting in seconds."""

    length_ns: int = 50_000_000
    at_end: bool = False
    exposure_offset_ns: int = 0
    max_wait_s: float = 0.1

    def bounds(self, stamp_ns: int) -> tuple[int, int]:
        """Half-open window in ROS time that belongs to a stamp."""
        end = stamp_ns + self.exposure_offset_ns + (0 if self.at_end else self.length_ns // 2)
        return end - self.length_ns, end

    def stamp(self, start_ns: int) -> int:
        """The stamp whose window begins at ``start_ns``."""
        return 2 * start_ns - self.bounds(start_ns)[0]


@dataclass(frozen=True)
class EventWindow:
    """One window: bounds in ROS time, number of events, Tencode image [H,W,3] uint8, stamp and frame it belongs to."""

    stamp_ns: int
    frame_id: str
    start_ns: int
    end_ns: int
    event_count: int
    image: NDArray[np.uint8]


@dataclass
class _Packet:
    view: EventPacketView
    events: Events | None  # of messages that need no decoder


@dataclass
class _Pending:
    stamp_ns: int
    frame_id: str
    arrived_s: float


class EventWindows:
    """One event stream and the windows that are cut out of it.

    A packet that does not continue the stream (another geometry or encoding, a stamp or sensor time far before or after
    what is expected) is set aside. If the next packet continues the stream, the odd one is dropped; if not, a new
    stream has begun, as when a bag loops, and both start it. Either way it is one report.

    ``report(reason, sentence)`` gets everything that is lost or unusual.
    """

    def __init__(
        self,
        message_type: str,
        settings: WindowSettings,
        buffer: EventBuffer,
        report: Callable[[str, str], None],
        continuous: bool = False,
    ) -> None:
        self.settings = settings
        self.lost_packets = 0
        self._message_type, self._buffer, self._report, self._continuous = message_type, buffer, report, continuous
        self._clock = SensorClock()
        self._pending: deque[_Pending] = deque()
        self._held: tuple[_Packet, EventSam3dError] | None = None
        self._forget_stream()

    def _forget_stream(self) -> None:
        self._stream: EventPacketView | None = None  # the newest packet that was taken
        self._newest_ns = 0  # stamp of the newest one with events: that of an empty packet can't be checked
        self._decoder: Decoder | None = None
        self._clock.reset()
        self._buffer.clear()
        self._next_start_ns: int | None = None

    @property
    def values(self) -> dict[str, str]:
        """Key-values for diagnostics."""
        counters = self._buffer.counters | (self._decoder.counters if self._decoder else {})
        return {"events/buffered": str(len(self._buffer)), "lost_packets": str(self.lost_packets)} | {
            f"events/{name}": str(count) for name, count in counters.items()
        }

    # Packets in

    def add_packet(self, cdr: bytes) -> None:
        """Take in one serialized event message. Raises DecodeError or InputError for one that can't be used."""
        packet = self._read(cdr)
        problem = self._take(packet)
        if problem is None:
            if self._held is not None:
                self._report(self._held[1].reason, f"one event packet was dropped: {self._held[1]}")
                self._held = None
        elif self._held is None:
            self._held = packet, problem
        else:
            self._report(problem.reason, f"the event stream starts anew: {self._held[1]}")
            first, self._held = self._held[0], None
            self._forget_stream()
            self._pending = deque(
                frame for frame in self._pending if abs(frame.stamp_ns - first.view.stamp_ns) < _PLAUSIBLE_NS
            )
            if first.view.stamp_ns <= packet.view.stamp_ns and _shape(first.view) == _shape(packet.view):
                self._take(first)
            self._take(packet)

    def _read(self, cdr: bytes) -> _Packet:
        if self._message_type != _DVS:
            view = parse_event_packet_cdr(cdr)
            _check_geometry(view.width, view.height)
            if view.stamp_ns <= 0:
                raise InputError("event packet without a stamp was dropped: fill header.stamp", reason="zero_stamp")
            return _Packet(view, None)
        stamp_ns, width, height, events = decode_dvs_event_array_cdr(cdr)
        _check_geometry(width, height)
        if len(events):
            # These events carry ROS time: their packet counts as stamped when its first event happened.
            stamp_ns = int(events.t[0]) * 1000
        frame_id = parse_header_cdr(cdr)[1]
        return _Packet(EventPacketView(stamp_ns, frame_id, width, height, 0, 0, _DVS, False, memoryview(b"")), events)

    def _take(self, packet: _Packet) -> EventSam3dError | None:
        """Decode and store a packet; the reason if it does not continue the stream, and then nothing is changed."""
        view = packet.view
        problem = self._breaks_stream(view)
        if problem is not None:
            return problem
        decoder = copy.deepcopy(self._decoder)
        if decoder is None and packet.events is None:
            decoder = make_decoder(view.encoding, view.width, view.height, view.is_bigendian)
        lost = self._lost_before(view) if packet.events is None else 0
        if decoder is not None and lost:
            decoder.resynchronise()
        events = packet.events
        if events is None:
            assert decoder is not None
            events = decoder.decode(view.payload, view.time_base)
        if len(events):
            problem = self._implausible(view, events)
            if problem is not None:
                return problem
            try:
                self._buffer.append(events)
            except BackwardTimeError as error:
                return error
            self._clock.update(view.stamp_ns, int(events.t[0]))
            self._newest_ns = view.stamp_ns
        self._decoder, self._stream = decoder, view
        if lost:
            self.lost_packets += lost
            self._report("sequence_gap", f"{lost} event packets were lost on the way (seq jumps to {view.seq})")
        return None

    def _breaks_stream(self, view: EventPacketView) -> EventSam3dError | None:
        if self._stream is None:
            return None
        if _shape(view) != _shape(self._stream):
            return DecodeError(
                f"event packet is {_shape(view)}, the stream was {_shape(self._stream)}", reason="stream_changed"
            )
        if self._newest_ns - view.stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            return BackwardTimeError("stamp of the event packets", self._newest_ns // 1000, view.stamp_ns // 1000)
        return None

    def _lost_before(self, view: EventPacketView) -> int:
        return 0 if self._stream is None else max(0, view.seq - self._stream.seq - 1)

    def _implausible(self, view: EventPacketView, events: Events) -> EventSam3dError | None:
        if self._stream is None or len(self._buffer) == 0:
            return None
        ahead_ns = self._clock.to_ros_ns(int(events.t[-1])) - view.stamp_ns
        if abs(ahead_ns) < _PLAUSIBLE_NS:
            return None
        return DecodeError(
            f"sensor time and stamp of an event packet have moved apart by {ahead_ns / 1e9:.3f} s", reason="time_jump"
        )

    # Windows out

    def add_frame(self, stamp_ns: int, frame_id: str, now_s: float) -> None:
        """Ask for the window of a frame; ``now_s`` comes from any steady clock."""
        if stamp_ns <= 0:
            raise InputError("frame without a stamp was dropped: fill header.stamp", reason="zero_stamp")
        if len(self._pending) >= _MAX_PENDING:
            self._report("too_many_frames", f"more than {_MAX_PENDING} frames wait for events: the oldest was dropped")
            self._pending.popleft()
        self._pending.append(_Pending(stamp_ns, frame_id, now_s))

    def ready(self, now_s: float) -> list[EventWindow]:
        """The windows that are complete or have waited long enough, in the order of their frames."""
        if self._continuous:
            return self._back_to_back()
        windows = []
        while self._pending:
            frame = self._pending[0]
            start_ns, end_ns = self.settings.bounds(frame.stamp_ns)
            complete = self._has_events_until(end_ns)
            if not complete and now_s - frame.arrived_s < self.settings.max_wait_s:
                break
            self._pending.popleft()
            if self._stream is None:
                self._report("no_events_yet", "a frame came before any event packet: it gets no event image")
                continue
            if not complete:
                self._report("incomplete_window", "no events reached the end of a frame's window within max_wait_ms")
            elif self._lost_since(start_ns):
                self._report(
                    "incomplete_window",
                    "events at the start of a frame's window were no longer kept: raise buffer_ms, buffer_max_events "
                    "or buffer_max_mb, or send frames sooner",
                )
            windows.append(self._window(frame.stamp_ns, frame.frame_id, start_ns, end_ns))
        return windows

    def _has_events_until(self, end_ns: int) -> bool:
        return self._buffer.t_last is not None and self._buffer.t_last >= self._clock.to_sensor_us(end_ns)

    def _lost_since(self, start_ns: int) -> bool:
        dropped = self._buffer.dropped_until
        return dropped is not None and dropped >= self._clock.to_sensor_us(start_ns)

    def _back_to_back(self) -> list[EventWindow]:
        windows: list[EventWindow] = []
        if self._buffer.t_first is None or self._stream is None:
            return windows
        oldest_ns = self._clock.to_ros_ns(self._buffer.t_first)
        if self._next_start_ns is None or self._next_start_ns + self.settings.length_ns <= oldest_ns:
            self._next_start_ns = oldest_ns
        while self._has_events_until(self._next_start_ns + self.settings.length_ns):
            start_ns, self._next_start_ns = self._next_start_ns, self._next_start_ns + self.settings.length_ns
            stamp_ns = self.settings.stamp(start_ns)
            windows.append(self._window(stamp_ns, self._stream.frame_id, start_ns, self._next_start_ns))
        return windows

    def _window(self, stamp_ns: int, frame_id: str, start_ns: int, end_ns: int) -> EventWindow:
        assert self._stream is not None
        if len(self._buffer) == 0:
            image = np.zeros((self._stream.height, self._stream.width, 3), np.uint8)
            return EventWindow(stamp_ns, frame_id, start_ns, end_ns, 0, image)
        t0_us, t1_us = self._clock.to_sensor_us(start_ns), self._clock.to_sensor_us(end_ns)
        events = self._buffer.window(t0_us, t1_us)
        image = tencode(events, t0_us, t1_us, self._stream.width, self._stream.height)
        return EventWindow(stamp_ns, frame_id, start_ns, end_ns, len(events), image)


def _check_geometry(width: int, height: int) -> None:
    """Refuse a sensor without pixels, or one whose images would take all memory."""
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise DecodeError(
            f"event message says its sensor has {width}x{height} pixels; sides from 1 to {_MAX_SIDE} are possible: "
            "check the driver",
            reason="bad_geometry",
        )


def _shape(view: EventPacketView) -> str:
    return f"{view.width}x{view.height} {view.encoding}{' big-endian' if view.is_bigendian else ''}"
