"""The event messages of one topic of a bag, in their order, to events and triggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import DecodeError, EventSam3dError, excerpt
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock
from event_sam3d_ros.events.codecs import (
    Decoder,
    EventPacketView,
    decode_dvs_event_array_cdr,
    make_decoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.events.plausibility import time_jump
from event_sam3d_ros.events.stream import MAX_LOST, check_geometry
from event_sam3d_ros.recordings.bag_messages import (
    DVS_TYPES,
    EVENT_PACKET_TYPES,
    EVENT_TYPES,
    RawMessage,
    unsupported_type,
)
from event_sam3d_ros.recordings.losses import Losses, counted, left_out
from event_sam3d_ros.recordings.samples import EventChunk, Sample, TriggerChunk

_COUNTED = ("unknown_words", "out_of_range_events")


def geometry(message: RawMessage) -> tuple[str, int, int]:
    """Encoding, or package of the message, width and height of an event message."""
    if message.type in DVS_TYPES:
        _, width, height, _ = decode_dvs_event_array_cdr(message.cdr)
        return message.type.split("/")[0], width, height
    packet = _packet(message)
    return packet.encoding, packet.width, packet.height


@dataclass
class _Taken:
    """What a packet gave; ``lost``: how many are missing before it."""

    message: RawMessage
    packet: EventPacketView
    events: Events
    triggers: Triggers
    counts: dict[str, int]
    lost: int


class EventTopic:
    """Decodes the messages of one event topic as event_image_node would.

    A packet that makes no sense is left out. One that does not go on from those before (another size or encoding, a
    number, stamp or sensor time far from what is expected) is kept until the next one: where that goes on from it a new
    stream has begun, else it was damaged.
    """

    def __init__(self, leave_out: Callable[[str, RawMessage, EventSam3dError], None], losses: Losses) -> None:
        self._leave_out, self._losses = leave_out, losses
        self._stream = _Stream()
        self._held: tuple[RawMessage, EventPacketView, EventSam3dError] | None = None
        self._begun: EventSam3dError | None = None  # why a stream first began after another
        self._lost = self._starts = self._unread = self._unknown = 0

    def said(self) -> Iterator[str]:
        """What there is to say about the messages so far, a part of a sentence each."""
        if self._lost:
            packets = counted(self._lost, "event packet{s}")
            behind = "it" if self._lost == 1 else "them"
            yield f"lacks {packets} (gaps of seq): decoding was synchronised anew behind {behind}"
        if self._begun:
            times = "once" if self._starts == 1 else f"{self._starts} times"
            yield f"begins anew {times}, and the sensor's clock with it ({self._begun})"
        if self._unknown:
            words = counted(self._unknown, "word{s}")
            yield f"has {words} of no type that its encoding defines: {left_out(self._unknown)}"
        yield from self._stream.warnings.values()

    def __call__(self, message: RawMessage) -> list[Sample]:
        """Events, sorted by time, and triggers of a message, where it has any."""
        try:
            if message.type in DVS_TYPES:
                return self._of_array(message)
            packet = _packet(message)
            taken = self._stream.take(message, packet, self._unread + (self._held is not None))
        except EventSam3dError as error:
            self._leave_out("corrupt_packets", message, error)
            self._unread += 1
            self._stream.resynchronise()
            return []
        if isinstance(taken, _Taken):
            self._drop_held()
            return self._samples(taken)
        begun = self._begin(message, packet) if self._held is not None else []
        if not begun:
            self._drop_held()
            self._held = message, packet, taken
        return [sample for one in begun for sample in self._samples(one)]

    def rest(self) -> list[Sample]:
        """What the last packet gives where it began a new stream, by its size, encoding or number."""
        if self._held is not None and isinstance(self._held[2], _Another):
            message, packet, _ = self._held
            try:
                taken = _Stream().take(message, packet, 0)
            except EventSam3dError:
                taken = None
            if isinstance(taken, _Taken):
                self._count_begin()
                return self._samples(taken)
        self._drop_held()
        return []

    def _count_begin(self) -> None:
        """A new stream has begun with the packet that was held."""
        assert self._held is not None
        if self._held[2].reason != "stream_changed":
            self._starts += 1
            self._begun = self._begun or self._held[2]
        self._held = None

    def _drop_held(self) -> None:
        """Leave out a packet that did not go on from those before, and from which none went on."""
        if self._held is not None:
            message, _, problem = self._held
            self._leave_out("corrupt_packets", message, problem)
            self._held = None
            self._unread += 1

    def _begin(self, message: RawMessage, packet: EventPacketView) -> list[_Taken]:
        """A new stream of the packet that is held and this one; nothing if they are none."""
        assert self._held is not None
        stream = _Stream(self._stream.warnings)
        begun = []
        try:
            for one in (self._held[:2], (message, packet)):
                taken = stream.take(*one, 0)
                if not isinstance(taken, _Taken):
                    return []
                begun.append(taken)
        except EventSam3dError:
            return []
        self._stream = stream
        self._count_begin()
        return begun

    def _of_array(self, message: RawMessage) -> list[Sample]:
        _, width, height, events = decode_dvs_event_array_cdr(message.cdr)
        if not len(events):
            return []
        self._losses.has_events = True
        # These events carry ROS time, whatever the header's stamp is: their packet counts as stamped by the first.
        events = _sorted(events)
        return [EventChunk(int(events.t[0]) * 1000, message.receive_ns, "", width, height, events)]

    def _samples(self, taken: _Taken) -> list[Sample]:
        self._unread = 0
        self._lost += taken.lost
        self._losses.counts["lost_packets"] += taken.lost
        for name, count in taken.counts.items():
            self._losses.counts[name] += count
        self._unknown += taken.counts["unknown_words"]
        packet, receive_ns = taken.packet, taken.message.receive_ns
        samples: list[Sample] = []
        if len(taken.events):
            size = packet.width, packet.height
            samples.append(EventChunk(packet.stamp_ns, receive_ns, packet.frame_id, *size, taken.events))
        if len(taken.triggers):
            samples.append(TriggerChunk(packet.stamp_ns, receive_ns, packet.frame_id, taken.triggers))
        self._losses.has_events |= bool(samples)
        return samples


class _Another(DecodeError):
    """A packet that is of another stream, or was damaged."""


class _Stream:
    """One run of a sensor: what is kept from packet to packet. ``warnings``: of all decoders."""

    def __init__(self, warnings: dict[str, str] | None = None) -> None:
        self.warnings = dict(warnings or {})
        self._decoder: Decoder | None = None
        self._newest: EventPacketView | None = None
        self._clock = SensorClock()
        self._stamp_ns = 0  # of the newest packet with times
        self._last_us: int | None = None  # newest of these

    def resynchronise(self) -> None:
        """A packet is missing."""
        if self._decoder is not None:
            self._decoder.resynchronise()

    def take(self, message: RawMessage, packet: EventPacketView, unread: int) -> _Taken | EventSam3dError:
        """What the packet holds, or why it does not go on from those before; nothing is changed then.

        ``unread``: packets before it that came, but could not be used. DecodeError or InputError for one that makes no
        sense.
        """
        problem = self._breaks(packet)
        if problem is not None:
            return problem
        decoder = self._decoder.copy() if self._decoder else make_decoder(*_shape(packet))
        step = packet.seq - self._newest.seq if self._newest else 0
        if step > 1:
            decoder.resynchronise()
        before = decoder.counters.copy()
        events, triggers = decoder.decode(packet.payload, packet.time_base), decoder.triggers
        t = events.t if len(events) else triggers.t
        if len(t):
            problem = self._check_times(packet.stamp_ns, t)
            if problem is not None:
                return problem
        self._decoder, self._newest = decoder, packet
        self.warnings |= decoder.warnings
        counts = {name: decoder.counters.get(name, 0) - before.get(name, 0) for name in _COUNTED}
        return _Taken(message, packet, _sorted(events), triggers, counts, max(0, step - 1 - unread))

    def _check_times(self, stamp_ns: int, t: NDArray[np.int64]) -> EventSam3dError | None:
        """Take in a packet's times, or say why they do not go on from those before."""
        first_us, last_us = int(t.min()), int(t.max())
        if self._stamp_ns and stamp_ns:
            problem = time_jump(self._clock, stamp_ns, stamp_ns - self._stamp_ns, first_us, last_us)
            if problem is not None:
                return problem
        before_us = first_us if self._last_us is None else self._last_us
        if first_us < max(before_us, last_us) - BACKWARD_TOLERANCE_US:  # else none is so late
            newest = np.maximum(np.maximum.accumulate(t), before_us)
            worst = int(np.argmax(newest - t))
            if newest[worst] - t[worst] > BACKWARD_TOLERANCE_US:
                return BackwardTimeError("event time", int(newest[worst]), int(t[worst]))
        if stamp_ns:
            self._clock.update(stamp_ns, first_us)
            self._stamp_ns = stamp_ns
        self._last_us = max(before_us, last_us)
        return None

    def _breaks(self, packet: EventPacketView) -> EventSam3dError | None:
        newest = self._newest
        if newest is None:
            return None
        if _shape(packet) != _shape(newest):
            return _Another(
                f"an event packet of {packet.width}x{packet.height} {excerpt(packet.encoding)} in a stream of "
                f"{newest.width}x{newest.height} {excerpt(newest.encoding)}",
                reason="stream_changed",
            )
        # Drivers that do not count give the same number always.
        if not 0 <= packet.seq - newest.seq <= MAX_LOST:
            return _Another(
                f"the number (seq) of an event packet is {packet.seq} after {newest.seq}", reason="stream_restarted"
            )
        if self._stamp_ns - packet.stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            return BackwardTimeError("stamp of the event packets", self._stamp_ns // 1000, packet.stamp_ns // 1000)
        return None


def _packet(message: RawMessage) -> EventPacketView:
    if message.type not in EVENT_PACKET_TYPES:
        raise unsupported_type(message, f"one of {', '.join(EVENT_TYPES)}")
    packet = parse_event_packet_cdr(message.cdr)
    check_geometry(packet.width, packet.height)
    return packet


def _shape(packet: EventPacketView) -> tuple[str, int, int, bool]:
    return packet.encoding, packet.width, packet.height, packet.is_bigendian


def _sorted(events: Events) -> Events:
    """In a packet, times may step back a little (EVT3's bit noise, libcaer_cmp's folds)."""
    return events[np.argsort(events.t, kind="stable")] if np.any(events.t[1:] < events.t[:-1]) else events
