"""The event messages of one topic of a bag, in their order, to events and triggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from event_sam3d_ros.errors import EventSam3dError
from event_sam3d_ros.events.codecs import EventPacketView, decode_dvs_event_array_cdr, parse_event_packet_cdr
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.packet_sequence import Packet, PacketSequence, Taken, check_geometry
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
class _Packet(Packet):
    message: RawMessage


class EventTopic:
    """Decodes the messages of one event topic as event_image_node would.

    What becomes of packets that do not go on from those before: see PacketSequence. A packet that makes no sense is
    left out.
    """

    def __init__(self, leave_out: Callable[[str, RawMessage, EventSam3dError], None], losses: Losses) -> None:
        self._leave_out, self._losses = leave_out, losses
        self._sequence = PacketSequence[_Packet](self)
        self._begun: EventSam3dError | None = None  # why a stream first began after another
        self._lost = self._starts = self._repeated = self._unknown = 0
        self._warnings: dict[str, str] = {}

    def said(self) -> Iterator[str]:
        """What there is to say about the messages so far, a part of a sentence each."""
        if self._lost:
            packets = counted(self._lost, "event packet{s}")
            behind = "it" if self._lost == 1 else "them"
            yield f"lacks {packets} (gaps of seq): decoding was synchronised anew behind {behind}"
        if self._repeated:
            yield f"has {counted(self._repeated, 'event packet{s}')} twice: one of each was read"
        if self._begun:
            times = "once" if self._starts == 1 else f"{self._starts} times"
            yield f"begins anew {times}, and the sensor's clock with it ({self._begun})"
        if self._unknown:
            words = counted(self._unknown, "word{s}")
            yield f"has {words} of no type that its encoding defines: {left_out(self._unknown)}"
        yield from self._warnings.values()

    def __call__(self, message: RawMessage) -> list[Sample]:
        """Events, sorted by time, and triggers of a message, where it has any."""
        samples: list[Sample] = []
        try:
            if message.type in DVS_TYPES:
                return self._of_array(message)
            try:
                view = _packet(message)
            except EventSam3dError:
                self._sequence.refuse()
                raise
            for taken in self._sequence.add(_Packet(view, None, message)):
                samples += self._samples(taken)
        except EventSam3dError as error:
            self._leave_out("corrupt_packets", message, error)
        return samples

    def rest(self) -> list[Sample]:
        """What the last packet gives where it began a new stream, by its size, encoding or number."""
        return [sample for taken in self._sequence.end() for sample in self._samples(taken)]

    # As an Observer of the sequence.

    def lost(self, count: int, before: int) -> None:
        self._lost += count
        self._losses.counts["lost_packets"] += count

    def repeated(self, packet: _Packet) -> None:
        self._repeated += 1

    def come_too_late(self, packet: _Packet, why: EventSam3dError) -> None:
        self._leave_out("corrupt_packets", packet.message, why)

    def dropped(self, packet: _Packet, why: EventSam3dError) -> None:
        self._leave_out("corrupt_packets", packet.message, why)

    def begun(self, why: EventSam3dError) -> None:
        if why.reason != "stream_changed":
            self._starts += 1
            self._begun = self._begun or why

    def _of_array(self, message: RawMessage) -> list[Sample]:
        _, width, height, events = decode_dvs_event_array_cdr(message.cdr)
        if not len(events):
            return []
        self._losses.has_events = True
        # These events carry ROS time, whatever the header's stamp is: their packet counts as stamped by the first.
        events = _sorted(events)
        return [EventChunk(int(events.t[0]) * 1000, message.receive_ns, "", width, height, events)]

    def _samples(self, taken: Taken[_Packet]) -> Iterator[Sample]:
        for name in _COUNTED:
            self._losses.counts[name] += taken.counts.get(name, 0)
        self._unknown += taken.counts.get("unknown_words", 0)
        self._warnings |= taken.warnings
        self._losses.has_events |= len(taken.events) > 0 or len(taken.triggers) > 0
        view, receive_ns = taken.packet.view, taken.packet.message.receive_ns
        if len(taken.events):
            events = _sorted(taken.events)
            yield EventChunk(view.stamp_ns, receive_ns, view.frame_id, view.width, view.height, events)
        if len(taken.triggers):
            yield TriggerChunk(view.stamp_ns, receive_ns, view.frame_id, taken.triggers)


def _packet(message: RawMessage) -> EventPacketView:
    if message.type not in EVENT_PACKET_TYPES:
        raise unsupported_type(message, f"one of {', '.join(EVENT_TYPES)}")
    packet = parse_event_packet_cdr(message.cdr)
    check_geometry(packet.width, packet.height)
    return packet


def _sorted(events: Events) -> Events:
    """In a packet, times may step back a little (EVT3's bit noise, libcaer_cmp's folds)."""
    return events[np.argsort(events.t, kind="stable")] if np.any(events.t[1:] < events.t[:-1]) else events
