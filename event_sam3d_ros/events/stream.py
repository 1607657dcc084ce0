"""From serialized event messages to sorted events and the sensor's clock: the half of event_image_node that listens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import SensorClock
from event_sam3d_ros.events.codecs import (
    ARRAY_TYPES,
    EventPacketView,
    decode_dvs_event_array_cdr,
    parse_event_packet_cdr,
    parse_header_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.filters import EventFilter, FilterSettings
from event_sam3d_ros.events.packet_sequence import Packet, PacketSequence, Taken, check_geometry


class EventStream:
    """One event stream: its newest events in ``buffer``, its clock in ``clock``.

    What becomes of packets that do not go on from those before: see PacketSequence. Each of them is one report.

    ``report(reason, sentence)`` gets everything that is lost or unusual. ``filters`` stand before the buffer; clock,
    checks and totals see all events.

    ``latest``  what the latest message gave: nothing, or one packet, or two where it decided on the one before
    ``starts``  how often a stream has begun after another
    ``packets``, ``events``, ``duplicate_packets``  totals over all streams
    ``lost_packets``  those that never came, by the gaps of seq that are over; `end` ends all of them
    """

    def __init__(
        self,
        message_type: str,
        buffer: EventBuffer,
        report: Callable[[str, str], None],
        filters: FilterSettings | None = None,
    ) -> None:
        self.buffer = buffer
        self.starts = self.packets = self.events = self.duplicate_packets = self.lost_packets = 0
        self.latest: list[Taken[Packet]] = []
        self._counted: Counter[str] = Counter()  # by decoders, and by the filters of earlier streams
        self._is_array, self._report = message_type in ARRAY_TYPES, report
        self._filter_settings = filters or FilterSettings()
        self._filters: list[EventFilter] | None = None  # made when the sensor's size is known
        self._warned: set[str] = set()
        self._sequence = PacketSequence[Packet](self)

    @property
    def clock(self) -> SensorClock:
        """The sensor's clock; another one when a new stream has begun."""
        return self._sequence.run.clock

    @property
    def newest(self) -> EventPacketView | None:
        """The newest packet that was taken: size, frame_id and encoding of the stream; None before the first."""
        newest = self._sequence.run.newest
        return None if newest is None else newest.view

    @property
    def t_last(self) -> int | None:
        """Sensor time up to which events have come, whether they were kept or not; None before the first."""
        return self._sequence.run.t_last

    def end(self) -> None:
        """No more packets will come."""
        self._use(self._sequence.end())

    @property
    def _counters(self) -> Counter[str]:
        """Of all decoders and filters so far."""
        counters = self._counted.copy()
        for one in self._filters or ():
            counters.update(one.counters)
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
        if self._sequence.run.newest_ns is not None:
            values["clock/offset_ms"] = f"{self.clock.offset_ns / 1e6:.3f}"
            values["clock/drift_ppm"] = f"{self.clock.drift_ppm:.2f}"
        return values | {f"events/{name}": str(count) for name, count in counters.items()}

    def add_message(self, cdr: bytes) -> None:
        """Take in one serialized event message. Raises DecodeError or InputError for one that can't be used."""
        try:
            packet = self._read_array(cdr) if self._is_array else self._read_packet(cdr)
        except EventSam3dError:
            self._sequence.refuse()
            raise
        self._add(packet)

    def add_events(self, stamp_ns: int, frame_id: str, width: int, height: int, events: Events) -> None:
        """Take in events that are decoded already, with the stamp of their packet."""
        check_geometry(width, height)
        view = EventPacketView(stamp_ns, frame_id, width, height, 0, 0, "decoded", False, memoryview(b""))
        self._add(Packet(view, events))

    def _read_packet(self, cdr: bytes) -> Packet:
        view = parse_event_packet_cdr(cdr)
        check_geometry(view.width, view.height)
        if view.stamp_ns <= 0:
            raise InputError("event packet without a stamp was dropped: fill header.stamp", reason="zero_stamp")
        return Packet(view, None)

    def _read_array(self, cdr: bytes) -> Packet:
        stamp_ns, width, height, events = decode_dvs_event_array_cdr(cdr)
        check_geometry(width, height)
        if len(events):
            # These events carry ROS time: their packet counts as stamped when its first event happened.
            stamp_ns = int(events.t[0]) * 1000
        frame_id = parse_header_cdr(cdr)[1]
        view = EventPacketView(stamp_ns, frame_id, width, height, 0, 0, "event array", False, memoryview(b""))
        return Packet(view, events)

    def _add(self, packet: Packet) -> None:
        self._use(self._sequence.add(packet))

    def _use(self, latest: Iterable[Taken[Packet]]) -> None:
        self.latest = []
        for taken in latest:
            self.buffer.append(self._filtered(taken))
            self.packets, self.events = self.packets + 1, self.events + len(taken.events)
            for name, count in taken.counts.items():
                self._counted[name] += count
            self.latest.append(taken)
            self._report_of(taken)

    def _filtered(self, taken: Taken[Packet]) -> Events:
        events, view = taken.events, taken.packet.view
        try:
            if self._filters is None:
                self._filters = self._filter_settings.make(view.width, view.height)
            for keep in self._filters:
                events = keep(events)
        except EventSam3dError:
            self._forget()  # as if nothing had come
            raise
        return events

    def _forget(self) -> None:
        self._drop_events()
        self._sequence.forget()

    def _drop_events(self) -> None:
        self._counted = self._counters
        self._filters = None
        self.buffer.clear()

    def _report_of(self, taken: Taken[Packet]) -> None:
        if taken.late:
            self._report("late_packet", f"{self._sequence.run.out_of_order(taken.packet)}: their events are sorted in")
        if taken.clock_stepped:
            self._report(
                "clock_step",
                "stamps of event packets and sensor time moved apart at once: the host's clock was set, or packets "
                "were held up for seconds; the clock is fitted anew",
            )
        for reason, sentence in taken.warnings.items():
            if reason not in self._warned:
                self._warned.add(reason)
                self._report(reason, sentence)

    # As an Observer of the sequence.

    def lost(self, count: int, before: int) -> None:
        self.lost_packets += count
        self._report("sequence_gap", f"{count} event packets were lost on the way (seq jumps to {before})")

    def repeated(self, packet: Packet) -> None:
        self.duplicate_packets += 1
        self._report("duplicate_packet", "event packets come twice: see that only one publishes them; one is used")

    def come_too_late(self, packet: Packet, why: EventSam3dError) -> None:
        self._report(why.reason, str(why))

    def dropped(self, packet: Packet, why: EventSam3dError) -> None:
        self._report(why.reason, f"one event packet was dropped: {why}")

    def begun(self, why: EventSam3dError) -> None:
        self._report(why.reason, f"the event stream starts anew: {why}")
        self._drop_events()
        self.starts += 1
