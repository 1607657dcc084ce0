"""Packets in, each judged by those before it and decoded: live, and of a recorded topic."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import DecodeError, EventSam3dError, excerpt
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock
from event_sam3d_ros.events.codecs import Decoder, EventPacketView, make_decoder
from event_sam3d_ros.events.events import FIELDS, Events, Triggers
from event_sam3d_ros.events.packet_numbers import PacketNumbers
from event_sam3d_ros.events.plausibility import time_jump

MAX_SIDE = 8192  # pixels; several times the largest event sensor
MAX_LOST = 100_000  # packets: more than a minute of them
_REMEMBERED = 16  # packets, to know one that comes twice
_SHOWS_BY_ITSELF = ("stream_changed", "stream_restarted")


@dataclass
class Packet:
    """A packet that came. ``events``: of messages that need no decoder; their stamp is always set."""

    view: EventPacketView
    events: Events | None

    @property
    def key(self) -> tuple[int, int, int]:
        """What two packets rarely have in common."""
        return self.view.seq, self.view.stamp_ns, len(self.view.payload)

    def equals(self, other: Packet) -> bool:
        """Whether the content is the same, and there is any."""
        mine, others = self.events, other.events
        if mine is None or others is None:
            return len(self.view.payload) > 0 and self.view.payload == other.view.payload
        return 0 < len(mine) == len(others) and all(
            np.array_equal(getattr(mine, name), getattr(others, name)) for name in FIELDS
        )


P = TypeVar("P", bound=Packet)
_Seen = TypeVar("_Seen", bound=Packet, contravariant=True)


@dataclass
class Taken(Generic[P]):
    """What a packet gave, in its own order. ``counts``, ``warnings``: by its decoder, see there.

    ``late``: it came after its successors. ``clock_stepped``: see SensorClock.
    """

    packet: P
    events: Events
    triggers: Triggers
    late: bool
    clock_stepped: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)


class Observer(Protocol[_Seen]):
    """Is told what becomes of packets that are not simply taken."""

    def lost(self, count: int, before: int) -> None:
        """So many never came; the next one had the number ``before``."""

    def repeated(self, packet: _Seen) -> None:
        """It came before, and is dropped."""

    def come_too_late(self, packet: _Seen, why: EventSam3dError) -> None:
        """It came after its successors and can't be decoded any more."""

    def dropped(self, packet: _Seen, why: EventSam3dError) -> None:
        """It did not go on from those before, and none went on from it."""

    def begun(self, why: EventSam3dError) -> None:
        """A new stream has begun; what is taken next belongs to it."""


class PacketSequence(Generic[P]):
    """The packets of one topic.

    A packet that does not continue the stream (another geometry or encoding, a stamp, number or sensor time far before
    or after what is expected) is set aside. If the next packet continues the stream, the odd one is dropped, unless it
    was only longer than the stamps before could show, and that of the next one does. If the next packet goes on from
    the odd one alone, a new stream has begun, as when a bag loops or a camera is started again. Else it is set aside
    instead.

    A packet that came before is dropped. One that comes after its successors, by at most BACKWARD_TOLERANCE_US, is
    taken where its encoding keeps nothing from packet to packet, and left out where it does.
    """

    def __init__(self, observer: Observer[P]) -> None:
        self._observer = observer
        self._held: tuple[P, EventSam3dError] | None = None
        self.run: Run[P] = Run(observer.lost)

    def forget(self) -> None:
        """Begin as if nothing had come, but for what was counted."""
        self.run.numbers.end()
        self._held = None
        self.run = Run(self._observer.lost)

    def refuse(self) -> None:
        """A packet came that can't be read."""
        self.run.numbers.refuse()

    def add(self, packet: P) -> Iterator[Taken[P]]:
        """What is taken now, in the order in which it came.

        DecodeError or InputError for a packet that makes no sense, which changes nothing but the count of refused ones.
        """
        if self._came_before(packet):
            self._observer.repeated(packet)
            return
        if self._held is not None:
            yield from self._readmit_held(self._held, packet.view.stamp_ns)
        try:
            taken = self.run.take(packet)
        except EventSam3dError:
            self.refuse()
            raise
        if isinstance(taken, Taken):
            self._drop_held()
            yield taken
        elif isinstance(taken, TooLate):
            self._observer.come_too_late(packet, taken)
        else:
            begun = self._begin(packet) if self._held is not None else []
            if not begun:
                self._drop_held()
                self._held = packet, taken
                self.refuse()
            yield from begun

    def end(self) -> list[Taken[P]]:
        """No more packets will come: what the last one gives where it began a new stream, by itself."""
        taken: list[Taken[P]] = []
        if self._held is not None and self._held[1].reason in _SHOWS_BY_ITSELF:
            taken = self._begin()
        self._drop_held()
        self.run.numbers.end()
        return taken

    def _readmit_held(self, held: tuple[P, EventSam3dError], next_ns: int) -> Iterator[Taken[P]]:
        """The packet that is held, where it goes on from those before now that the next stamp is known."""
        if held[1].reason != "time_jump":
            return
        self.run.numbers.readmit()
        taken = self.run.take(held[0], next_ns)
        if isinstance(taken, Taken):
            self._held = None
            yield taken
        else:
            self.refuse()

    def _drop_held(self) -> None:
        if self._held is not None:
            (packet, why), self._held = self._held, None
            self._observer.dropped(packet, why)

    def _begin(self, *more: P) -> list[Taken[P]]:
        """A new stream of the packet that is held and others; nothing if they are none."""
        assert self._held is not None
        run: Run[P] = Run(self._observer.lost)
        begun = []
        try:
            for packet in (self._held[0], *more):
                taken = run.take(packet)
                if not isinstance(taken, Taken):
                    return []
                begun.append(taken)
        except EventSam3dError:
            return []
        why, self._held = self._held[1], None
        self.run.numbers.end()
        self.run = run
        self._observer.begun(why)
        return begun

    def _came_before(self, packet: P) -> bool:
        newest = self.run.newest
        if newest is not None and packet.view.seq <= newest.view.seq and packet.key in self.run.recent:
            # Drivers that do not count give all packets one number: only the content tells them apart.
            if packet.view.seq < newest.view.seq or packet.equals(newest):
                return True
        return self._held is not None and self._held[0].key == packet.key and packet.equals(self._held[0])


class TooLate(DecodeError):
    """A packet came after its successors and can't be decoded any more."""


class Run(Generic[P]):
    """One run of a sensor: what is kept from packet to packet.

    ``newest``     the packet of the highest number; None before the first
    ``newest_ns``  the greatest stamp of packets with times, for that of an empty one can't be checked
    ``t_last``     sensor time up to which events have come; None before the first
    ``recent``     the keys of the last packets
    """

    def __init__(self, lost: Callable[[int, int], None]) -> None:
        self.numbers = PacketNumbers(lost)
        self.clock = SensorClock()
        self.newest: P | None = None
        self.newest_ns: int | None = None
        self.t_last: int | None = None
        self.recent: deque[tuple[int, int, int]] = deque(maxlen=_REMEMBERED)
        self._decoder: Decoder | None = None

    def take(self, packet: P, next_ns: int | None = None) -> Taken[P] | EventSam3dError:
        """What a packet holds, or why it does not go on from those before; nothing is changed then.

        ``next_ns``: the stamp of the packet behind it, where that is known. DecodeError for one that makes no sense;
        nothing is changed then either.
        """
        view = packet.view
        problem = self._breaks(view)
        if problem is not None:
            return problem
        late = self.newest is not None and view.seq < self.newest.view.seq
        if late and self._decoder is not None and self._decoder.STATE.names:
            return self._leave_late(packet)
        decoder = self._decoder
        if packet.events is not None:
            taken = Taken(packet, packet.events, Triggers.empty(), late)
        else:
            decoder = self._next_decoder(view)
            taken = _decoded(packet, decoder, late)
        t = taken.events.t if len(taken.events) else taken.triggers.t
        if len(t):
            first_us, last_us = taken.events.extent()[:2] if len(taken.events) else (int(t.min()), int(t.max()))
            # A stamp of 0 is none; events that need no decoder may begin at 0.
            stamp_ns = view.stamp_ns if view.stamp_ns or packet.events is not None else None
            problem = self._check_times(stamp_ns, next_ns, first_us, last_us, t)
            if problem is not None:
                return problem
            taken.clock_stepped = self._advance(stamp_ns, first_us, last_us)
        self._decoder = decoder
        self.recent.append(packet.key)
        if late:
            self.numbers.come_late(view.seq)
        else:
            if self.newest is not None:
                self.numbers.advance(self.newest.view.seq, view.seq)
            self.newest = packet
        return taken

    def _leave_late(self, packet: P) -> TooLate:
        self.recent.append(packet.key)
        self.numbers.come_late(packet.view.seq)
        return TooLate(
            f"{self.out_of_order(packet)}: their events are left out, for {packet.view.encoding} has to be decoded in "
            "order",
            reason="late_packet",
        )

    def out_of_order(self, late: P) -> str:
        """The beginning of a sentence on a late packet."""
        assert self.newest is not None
        return f"event packets arrive out of order (number {late.view.seq} after {self.newest.view.seq})"

    def _next_decoder(self, view: EventPacketView) -> Decoder:
        """A copy, because whether the events continue the stream is known only when they are decoded."""
        if self._decoder is None or self.newest is None:
            return make_decoder(*_shape(view))
        decoder = self._decoder.copy()
        # The very next number shows that what was refused in between was none of this stream.
        step = view.seq - self.newest.view.seq
        if step > 1 or (step == 0 and self.numbers.refused):
            decoder.resynchronise()
        return decoder

    def _check_times(
        self, stamp_ns: int | None, next_ns: int | None, first_us: int, last_us: int, t: NDArray[np.int64]
    ) -> EventSam3dError | None:
        """Why a packet's times, from ``first_us`` to ``last_us``, do not go on from those before."""
        if self.newest_ns is not None and stamp_ns is not None:
            advance_ns = max(stamp_ns - self.newest_ns, (next_ns or stamp_ns) - stamp_ns)
            problem = time_jump(self.clock, stamp_ns, advance_ns, first_us, last_us)
            if problem is not None:
                return problem
        before_us = first_us if self.t_last is None else self.t_last
        if first_us < max(before_us, last_us) - BACKWARD_TOLERANCE_US:  # else none is so late
            newest = np.maximum(np.maximum.accumulate(t), before_us)
            worst = int(np.argmax(newest - t))
            if newest[worst] - t[worst] > BACKWARD_TOLERANCE_US:
                return BackwardTimeError("event time", int(newest[worst]), int(t[worst]))
        return None

    def _advance(self, stamp_ns: int | None, first_us: int, last_us: int) -> bool:
        """Take in a packet's times; whether the clock stepped."""
        steps = self.clock.steps
        if stamp_ns is not None:
            self.clock.update(stamp_ns, first_us)
            self.newest_ns = stamp_ns if self.newest_ns is None else max(self.newest_ns, stamp_ns)
        self.t_last = last_us if self.t_last is None else max(self.t_last, last_us)
        return self.clock.steps > steps

    def _breaks(self, view: EventPacketView) -> EventSam3dError | None:
        """Why a packet does not go on from those before, by all but its content."""
        if self.newest is None:
            return None
        newest = self.newest.view
        if _shape(view) != _shape(newest):
            return DecodeError(
                f"event packet is {_describe(view)}, the stream was {_describe(newest)}", reason="stream_changed"
            )
        if self.newest_ns is not None and self.newest_ns - view.stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            return BackwardTimeError("stamp of the event packets", self.newest_ns // 1000, view.stamp_ns // 1000)
        is_late = view.seq < newest.seq and view.stamp_ns <= newest.stamp_ns and self.numbers.is_missing(view.seq)
        if not is_late and not 0 <= view.seq - newest.seq <= MAX_LOST:
            return DecodeError(
                f"the number of an event packet is {view.seq} after {newest.seq}: the driver was started again, or two "
                "publish on this topic",
                reason="stream_restarted",
            )
        return None


def _decoded(packet: P, decoder: Decoder, late: bool) -> Taken[P]:
    events = decoder.decode(packet.view.payload, packet.view.time_base)
    return Taken(packet, events, decoder.triggers, late, counts=decoder.counts, warnings=decoder.warnings)


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
