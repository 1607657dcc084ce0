"""From serialized event messages to sorted events and the sensor's clock: the half of event_image_node that listens."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from event_sam3d_ros.errors import DecodeError, EventSam3dError, InputError, excerpt
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock
from event_sam3d_ros.events.codecs import (
    ARRAY_TYPES,
    Decoder,
    EventPacketView,
    decode_dvs_event_array_cdr,
    make_decoder,
    parse_event_packet_cdr,
    parse_header_cdr,
)
from event_sam3d_ros.events.events import FIELDS, Events
from event_sam3d_ros.events.filters import EventFilter, FilterSettings
from event_sam3d_ros.events.packet_numbers import PacketNumbers
from event_sam3d_ros.events.plausibility import time_jump

MAX_SIDE = 8192  # pixels; several times the largest event sensor
MAX_LOST = 100_000  # packets: more than a minute of them
_REMEMBERED = 16  # packets, to know one that comes twice


@dataclass
class _Packet:
    view: EventPacketView
    events: Events | None  # of messages that need no decoder

    @property
    def key(self) -> tuple[int, int, int]:
        """What two packets rarely have in common."""
        return self.view.seq, self.view.stamp_ns, len(self.view.payload)

    def equals(self, view: EventPacketView, events: Events) -> bool:
        """Whether the content is the same, and there is any; ``events`` are those of ``view``."""
        if self.events is None:
            return len(self.view.payload) > 0 and self.view.payload == view.payload
        return 0 < len(self.events) == len(events) and all(
            np.array_equal(getattr(self.events, name), getattr(events, name)) for name in FIELDS
        )


class EventStream:
    """One event stream: its newest events in ``buffer``, its clock in ``clock``.

    A packet that does not continue the stream (another geometry or encoding, a stamp, number or sensor time far before
    or after what is expected) is set aside. If the next packet continues the stream, the odd one is dropped; if not, a
    new stream has begun, as when a bag loops or a camera is started again, and both start it. Either way it is one
    report.

    A packet that came before is dropped. One that comes after its successors, by at most BACKWARD_TOLERANCE_US, is
    sorted in where its encoding keeps nothing from packet to packet, and left out where it does.

    ``report(reason, sentence)`` gets everything that is lost or unusual. ``filters`` stand before the buffer; clock,
    checks and totals see all events.

    ``newest``        the newest packet that was taken: size, frame_id and encoding of the stream; None before the first
    ``newest_events``  its events, before the filters
    ``t_last``        sensor time up to which events have come, whether they were kept or not; None before the first
    ``starts``        how often a stream has begun after another
    ``packets``, ``events``, ``duplicate_packets``, ``lost_packets``  totals over all streams
    """

    def __init__(
        self,
        message_type: str,
        buffer: EventBuffer,
        report: Callable[[str, str], None],
        filters: FilterSettings | None = None,
    ) -> None:
        self.buffer, self.clock = buffer, SensorClock()
        self.starts = self.packets = self.events = self.duplicate_packets = 0
        self._numbers = PacketNumbers(report)
        self._counted: Counter[str] = Counter()  # by the decoders and filters of earlier streams
        self._is_array, self._report = message_type in ARRAY_TYPES, report
        self._filter_settings = filters or FilterSettings()
        self._held: tuple[_Packet, EventSam3dError] | None = None
        self._warned: set[str] = set()
        self._recent: deque[tuple[int, int, int]] = deque(maxlen=_REMEMBERED)
        self._decoder: Decoder | None = None
        self._filters: list[EventFilter] | None = None  # made when the sensor's size is known
        self._forget()

    def _forget(self) -> None:
        self._counted = self._counters
        self._numbers.end()
        self._recent.clear()
        self.newest: EventPacketView | None = None
        self.newest_events = Events.empty()
        self.t_last: int | None = None
        self._newest_ns = 0  # stamp of the newest one with events: that of an empty packet can't be checked
        self._decoder = self._filters = None
        self.clock.reset()
        self.buffer.clear()

    @property
    def lost_packets(self) -> int:
        """Packets that never came, by the gaps of seq that are over; `end` ends all of them."""
        return self._numbers.lost

    def end(self) -> None:
        """No more packets will come."""
        self._numbers.end()

    @property
    def _counters(self) -> Counter[str]:
        """Of all decoders and filters so far."""
        counters = self._counted.copy()
        for source in (self._decoder, *(self._filters or ())):
            if source is not None:
                counters.update(source.counters)
        return counters

    @property
    def values(self) -> dict[str, str]:
        """Key-values for diagnostics: all counters are totals over all streams."""
        counters = {**self.buffer.counters, **self._counters}
        t_first, t_last = self.buffer.t_first, self.buffer.t_last
        span_us = 0 if t_first is None or t_last is None else t_last - t_first
        values = {
            "lost_packets": str(self.lost_packets),
            "events/packets": str(self.packets),
            "events/duplicate_packets": str(self.duplicate_packets),
            "events/total": str(self.events),
            "events/buffered": str(len(self.buffer)),
            "buffer/fill_percent": f"{100 * len(self.buffer) / self.buffer.capacity:.1f}",
            "buffer/span_ms": f"{span_us / 1000:.1f}",
        }
        if self.newest is not None and self._newest_ns:
            values["clock/offset_ms"] = f"{self.clock.offset_ns / 1e6:.3f}"
            values["clock/drift_ppm"] = f"{self.clock.drift_ppm:.2f}"
        return values | {f"events/{name}": str(count) for name, count in counters.items()}

    def add_message(self, cdr: bytes) -> None:
        """Take in one serialized event message. Raises DecodeError or InputError for one that can't be used."""
        try:
            self._add(self._read_array(cdr) if self._is_array else self._read_packet(cdr))
        except EventSam3dError:
            self._numbers.refuse()
            raise

    def add_events(self, stamp_ns: int, frame_id: str, width: int, height: int, events: Events) -> None:
        """Take in events that are decoded already, with the stamp of their packet."""
        check_geometry(width, height)
        view = EventPacketView(stamp_ns, frame_id, width, height, 0, 0, "decoded", False, memoryview(b""))
        self._add(_Packet(view, events))

    def _read_packet(self, cdr: bytes) -> _Packet:
        view = parse_event_packet_cdr(cdr)
        check_geometry(view.width, view.height)
        if view.stamp_ns <= 0:
            raise InputError("event packet without a stamp was dropped: fill header.stamp", reason="zero_stamp")
        return _Packet(view, None)

    def _read_array(self, cdr: bytes) -> _Packet:
        stamp_ns, width, height, events = decode_dvs_event_array_cdr(cdr)
        check_geometry(width, height)
        if len(events):
            # These events carry ROS time: their packet counts as stamped when its first event happened.
            stamp_ns = int(events.t[0]) * 1000
        frame_id = parse_header_cdr(cdr)[1]
        view = EventPacketView(stamp_ns, frame_id, width, height, 0, 0, "event array", False, memoryview(b""))
        return _Packet(view, events)

    def _add(self, packet: _Packet) -> None:
        if self._came_before(packet):
            self.duplicate_packets += 1
            self._report("duplicate_packet", "event packets come twice: see that only one publishes them; one is used")
            return
        problem = self._take(packet)
        if problem is None:
            if self._held is not None:
                self._report(self._held[1].reason, f"one event packet was dropped: {self._held[1]}")
                self._held = None
        elif self._held is None:
            self._held = packet, problem
            self._numbers.refuse()
        else:
            (first, why), self._held = self._held, None
            self._report(why.reason, f"the event stream starts anew: {why}")
            self._forget()
            self.starts += 1
            both = first.view.stamp_ns <= packet.view.stamp_ns and _shape(first.view) == _shape(packet.view)
            for one in (first, packet) if both else (packet,):
                problem = self._take(one)
                if problem is not None:
                    self._report(problem.reason, f"one event packet was dropped: {problem}")

    def _came_before(self, packet: _Packet) -> bool:
        newest = self.newest
        if newest is not None and packet.view.seq <= newest.seq and packet.key in self._recent:
            # Drivers that do not count give all packets one number: only the content tells them apart.
            if packet.view.seq < newest.seq or packet.equals(newest, self.newest_events):
                return True
        held = self._held[0] if self._held else None
        return held is not None and held.key == packet.key and packet.equals(held.view, held.events or Events.empty())

    def _take(self, packet: _Packet) -> EventSam3dError | None:
        """Decode and store a packet; the reason if it does not continue the stream, and then nothing is changed."""
        view = packet.view
        problem = self._breaks_stream(view)
        if problem is not None:
            return problem
        late = self._is_late(view)
        if late and self._decoder is not None and self._decoder.STATE.names:
            self._count_late(packet, f"their events are left out, for {view.encoding} has to be decoded in order")
            return None
        skips = self.newest is not None and view.seq > self.newest.seq + 1
        decoder, events = None, packet.events
        if events is None:
            # A copy, because whether the events continue the stream is known only when they are decoded.
            decoder = self._decoder.copy() if self._decoder else make_decoder(*_shape(view))
            if skips:
                decoder.resynchronise()
            events = decoder.decode(view.payload, view.time_base)
        if len(events):
            problem = self._implausible(view, events)
            if problem is not None:
                return problem
            try:
                self.buffer.append(self._filtered(view, events))
            except BackwardTimeError as error:
                return error
            self._set_clock(view.stamp_ns, int(events.t[0]))
            self._newest_ns = max(self._newest_ns, view.stamp_ns) if late else view.stamp_ns
            self.t_last = int(events.t[-1]) if self.t_last is None else max(self.t_last, int(events.t[-1]))
        self.packets, self.events = self.packets + 1, self.events + len(events)
        if late:
            self._count_late(packet, "their events are sorted in")
        else:
            self._recent.append(packet.key)
            if self.newest is not None:
                self._numbers.advance(self.newest.seq, view.seq)
            self.newest = view
        self._decoder, self.newest_events = decoder, events
        if decoder is not None and decoder.warnings:
            self._warn(decoder.warnings)
        return None

    def _is_late(self, view: EventPacketView) -> bool:
        return self.newest is not None and view.seq < self.newest.seq

    def _count_late(self, packet: _Packet, consequence: str) -> None:
        assert self.newest is not None
        number = packet.view.seq
        self._recent.append(packet.key)
        self._numbers.come_late(number)
        self._report(
            "late_packet",
            f"event packets arrive out of order (number {number} after {self.newest.seq}): {consequence}",
        )

    def _filtered(self, view: EventPacketView, events: Events) -> Events:
        if self._filters is None:
            self._filters = self._filter_settings.make(view.width, view.height)
        for keep in self._filters:
            events = keep(events)
        return events

    def _set_clock(self, stamp_ns: int, first_us: int) -> None:
        before = self.clock.steps
        self.clock.update(stamp_ns, first_us)
        if self.clock.steps > before:
            self._report(
                "clock_step",
                "stamps of event packets and sensor time moved apart at once: the host's clock was set, or packets "
                "were held up for seconds; the clock is fitted anew",
            )

    def _warn(self, warnings: dict[str, str]) -> None:
        for reason, sentence in warnings.items():
            if reason not in self._warned:
                self._warned.add(reason)
                self._report(reason, sentence)

    def _breaks_stream(self, view: EventPacketView) -> EventSam3dError | None:
        newest = self.newest
        if newest is None:
            return None
        if _shape(view) != _shape(newest):
            return DecodeError(
                f"event packet is {_describe(view)}, the stream was {_describe(newest)}", reason="stream_changed"
            )
        if self._newest_ns - view.stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            return BackwardTimeError("stamp of the event packets", self._newest_ns // 1000, view.stamp_ns // 1000)
        if view.seq < newest.seq and view.stamp_ns <= newest.stamp_ns and self._numbers.is_missing(view.seq):
            return None  # late
        if not -1 < view.seq - newest.seq <= MAX_LOST:
            return DecodeError(
                f"the number of an event packet is {view.seq} after {newest.seq}: the driver was started again, or two "
                "publish on this topic",
                reason="stream_restarted",
            )
        return None

    def _implausible(self, view: EventPacketView, events: Events) -> EventSam3dError | None:
        if self.t_last is None:
            return None
        first_us, last_us, *_ = events.extent()
        return time_jump(self.clock, view.stamp_ns, view.stamp_ns - self._newest_ns, first_us, last_us)


def check_geometry(width: int, height: int) -> None:
    """Refuse a sensor without pixels, or one whose images would take all memory."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise DecodeError(
            f"event message says its sensor has {width}x{height} pixels; sides from 1 to {MAX_SIDE} are possible: "
            "check the driver",
            reason="bad_geometry",
        )


def _shape(view: EventPacketView) -> tuple[str, int, int, bool]:
    return view.encoding, view.width, view.height, view.is_bigendian


def _describe(view: EventPacketView) -> str:
    return f"{view.width}x{view.height} {excerpt(view.encoding)}{' big-endian' if view.is_bigendian else ''}"
