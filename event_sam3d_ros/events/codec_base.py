"""What all decoders and encoders of event packets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from typing import Any, Union

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.events import FIELDS, Events, Triggers

Buffer = Union[bytes, bytearray, memoryview, "array[int]", NDArray[np.uint8]]

# A packet is refused when more words are undefined, or more events outside the image, than a few and this share.
_FEW = 8
_UNKNOWN_SHARE = 1 / 8
_OUT_OF_RANGE_SHARE = 1 / 2
_NO_TRIGGERS = Triggers.empty()
_NO_EDGES: list[NDArray[Any]] = [np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint8)]


class Decoder(ABC):
    """Turns the payloads of one stream's packets, in their order, into Events.

    A packet is decoded or refused as a whole: where `decode` raises, the decoder is as if the packet had never come.

    ``triggers``  edges at the camera's trigger inputs in the latest packet that was decoded
    ``counters``  what was skipped, since construction, in packets that were decoded
    ``counts``    the same of the latest packet alone
    ``warnings``  what the stream shows to be wrong with its source: a reason (snake_case) -> one sentence with advice

    ``is_bigendian`` as in EventPacket: the words of payloads have their most significant byte first.
    """

    # Words of the payload; how many of them belong together; what is kept from packet to packet.
    WORD: np.dtype[Any]
    GROUP = 1
    STATE: np.dtype[Any] = np.dtype([])
    COUNTERS: tuple[str, ...] = ("out_of_range_events",)

    def __init__(self, width: int, height: int, is_bigendian: bool = False) -> None:
        _check_size(width, height)
        self.width, self.height, self.is_bigendian = int(width), int(height), is_bigendian
        self.counts = dict.fromkeys(self.COUNTERS, 0)
        self.counters = self.counts.copy()
        self.warnings: dict[str, str] = {}
        self.triggers = _NO_TRIGGERS
        self._state = self._new_state()

    def decode(self, payload: Buffer, time_base_ns: int = 0) -> Events:
        """Events of one packet; ``payload`` and ``time_base_ns`` as in event_camera_msgs/EventPacket.

        Raises DecodeError for bytes that are not this encoding: ``truncated_packet`` where the length is no multiple of
        the word's, ``corrupt_packet`` where many words are undefined, many events outside the image, or the time base
        is none.
        """
        words = as_words(payload, self.WORD, self.GROUP, self.is_bigendian)
        state, counts = self._state.copy(), np.zeros(len(self.COUNTERS), np.int64)
        t, x, y, p, *edges = self._run(words, state, counts, int(time_base_ns))
        events = Events.adopt(t, x, y, p)
        found = dict(zip(self.COUNTERS, counts.tolist(), strict=True))
        check_packet(words.size // self.GROUP, len(events), found)
        self._state = state
        self.triggers = Triggers(*edges) if edges and len(edges[0]) else _NO_TRIGGERS
        self.counts = found
        if any(found.values()):
            self.counters = {name: number + found[name] for name, number in self.counters.items()}
        self._look_for_defects()
        return events

    @abstractmethod
    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        """(t, x, y, p) of the events and, where the encoding has triggers, their (t, id, p).

        Writes the new state into ``state`` and fills ``counts``, in the order of COUNTERS.
        """

    def reset(self) -> None:
        """Forget everything but counters and warnings: a new stream begins."""
        self._state = self._new_state()
        self.triggers = _NO_TRIGGERS

    def resynchronise(self) -> None:
        """Packets were lost: drop what depends on them until it is known again. The time goes on."""
        self._state = self._state.copy()
        for name in self._state.dtype.names or ():
            if name.startswith("has_") and name != "has_history":
                self._state[name] = 0

    def copy(self) -> Decoder:
        """A decoder in the same state that goes its own way from here. Cheap: a step that may have to be taken back."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # which are replaced, never written to
        return twin

    def _new_state(self) -> NDArray[Any]:
        return np.zeros(1, self.STATE)

    # Only one encoding has known defects.

    def _look_for_defects(self) -> None:  # noqa: B027
        """Add to ``warnings`` what ``_state`` proves."""


class Encoder(ABC):
    """Turns Events and Triggers into payloads that `Decoder` of the same encoding gives back, in the same order."""

    # Bits of a trigger's number; 0 where the encoding has no triggers. Bits of a coordinate.
    TRIGGER_BITS = 0
    COORDINATE_BITS = 11

    def __init__(self, width: int, height: int) -> None:
        _check_size(width, height)
        if max(width, height) > 1 << self.COORDINATE_BITS:
            raise InputError(
                f"{type(self).__name__} has {self.COORDINATE_BITS} bits per coordinate: {width}x{height} does not fit",
                reason="bad_geometry",
            )
        self.width, self.height = int(width), int(height)

    def encode(self, events: Events, triggers: Triggers = _NO_TRIGGERS) -> tuple[bytes, int]:
        """Payload and time_base (nanoseconds) of one packet.

        Raises InputError for events outside the sensor, out of order in time, or too far apart for one packet, and for
        triggers that the encoding can't hold.
        """
        if len(events) == 0 and len(triggers) == 0:
            return b"", 0
        self._check(events, triggers)
        return self._encode(events, triggers)

    @abstractmethod
    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        """As `encode`, for at least one event or trigger, all of them checked."""

    def _check(self, events: Events, triggers: Triggers) -> None:
        if len(events) and (int(events.x.max()) >= self.width or int(events.y.max()) >= self.height):
            raise InputError(
                f"event at ({events.x.max()}, {events.y.max()}) is outside {self.width}x{self.height}",
                reason="out_of_range_events",
            )
        for what, columns in (("events", events), ("triggers", triggers)):
            if np.any(columns.t[1:] < columns.t[:-1]):
                raise InputError(f"{what} are not sorted by time: sort them before encoding", reason="unsorted_events")
            if len(columns) and int(columns.p.max()) > 1:
                raise InputError(f"polarity {columns.p.max()} is neither 0 nor 1", reason="bad_events")
        if len(triggers) and int(triggers.id.max()) >> self.TRIGGER_BITS or (len(triggers) and not self.TRIGGER_BITS):
            raise InputError(
                f"{type(self).__name__} has {self.TRIGGER_BITS} bits for a trigger's number, {triggers.id.max()} does "
                "not fit: leave the trigger out, or choose another encoding",
                reason="bad_triggers",
            )


class RisingTimes:
    """Checks for encoders whose times must not decrease from packet to packet either. ``last_us``: -1 at the start."""

    def __init__(self, encoding: str) -> None:
        self._encoding, self.last_us = encoding, -1

    def advance(self, events: Events, triggers: Triggers) -> int:
        """Take in a packet's sorted times and return the last one before it."""
        times = [columns.t for columns in (events, triggers) if len(columns)]
        first, before = min(int(t[0]) for t in times), self.last_us
        if first < max(before, 0):
            raise InputError(
                f"event at {first} us after {before} us: {self._encoding} needs rising times from 0 on",
                reason="unsorted_events",
            )
        self.last_us = max(int(t[-1]) for t in times)
        return before


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"sensor of {width}x{height} has no pixels: give its size", reason="bad_geometry")


def as_bytes(payload: Buffer, word_size: int) -> NDArray[np.uint8]:
    """Read-only uint8 view of a payload; DecodeError if its length is no multiple of ``word_size``."""
    data = np.frombuffer(payload, np.uint8)
    if data.size % word_size:
        raise DecodeError(
            f"event packet of {data.size} bytes is cut off: words have {word_size} bytes", reason="truncated_packet"
        )
    # One array type for the kernels, whatever the payload was: each type would be compiled anew.
    data.flags.writeable = False
    return data


def as_words(payload: Buffer, word: np.dtype[Any], group: int = 1, is_bigendian: bool = False) -> NDArray[Any]:
    """Read-only array of a payload's words in this machine's byte order; a view if they have it and are aligned.

    DecodeError (``truncated_packet``) if the length is no multiple of ``group`` words.
    """
    words = as_bytes(payload, word.itemsize * group).view(word.newbyteorder(">" if is_bigendian else "<"))
    if not words.flags.aligned or not words.dtype.isnative:
        words = words.astype(word)
        words.flags.writeable = False
    return words


def check_time_base(time_base_ns: int) -> None:
    """DecodeError for nanoseconds that are negative or would overflow."""
    if not 0 <= time_base_ns < 1 << 62:
        raise DecodeError(f"time_base {time_base_ns} ns of the event packet is no time", reason="corrupt_packet")


def check_packet(words: int, events: int, found: Mapping[str, int]) -> None:
    """DecodeError if so much of a packet makes no sense that the rest cannot be trusted. ``found``: its counters."""
    unknown = found.get("unknown_words", 0) + found.get("invalid_events", 0)
    if unknown > _FEW and unknown > _UNKNOWN_SHARE * words:
        raise DecodeError(
            f"{unknown} of {words} words in the event packet are undefined: check its encoding", reason="corrupt_packet"
        )
    outside = found.get("out_of_range_events", 0)
    if outside > _FEW and outside > _OUT_OF_RANGE_SHARE * (events + outside):
        raise DecodeError(
            f"{outside} of {events + outside} events are outside the image: check width, height and encoding",
            reason="corrupt_packet",
        )


def _count_ones(typing_context, word):  # type: ignore[no-untyped-def]
    """Number of bits that are set in a uint64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _lowest_one(typing_context, word):  # type: ignore[no-untyped-def]
    """Position of the lowest bit that is set in a uint64 other than 0."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate


# One instruction each, for kernels.
count_ones: Any = intrinsic(_count_ones)
lowest_one: Any = intrinsic(_lowest_one)


def empty_events(size: int) -> list[NDArray[Any]]:
    """Arrays for the times, columns, rows and polarities of ``size`` events.

    Made by numpy, not in a kernel: numpy asks for huge pages, which for large packets takes a third of the time.
    """
    return [np.empty(size, dtype) for dtype in FIELDS.values()]


def empty_triggers(size: int) -> list[NDArray[Any]]:
    """Arrays for the times, numbers and edges of ``size`` triggers."""
    if size == 0:
        return _NO_EDGES
    return [np.empty(size, np.int64), np.empty(size, np.uint8), np.empty(size, np.uint8)]


def filled(events: list[NDArray[Any]], n: int, triggers: list[NDArray[Any]] | None = None, m: int = 0) -> Any:
    """What a kernel has filled: the first ``n`` events and the first ``m`` triggers."""
    columns = events if n == len(events[0]) else [column[:n] for column in events]
    return columns + [column[:m] for column in triggers] if m and triggers else columns


@njit(cache=True, nogil=True)
def uint32_at(data, i):  # type: ignore[no-untyped-def]
    """Little-endian uint32 at byte i of a uint8 array, as int64. Byte by byte, because payloads need not be aligned."""
    return np.int64(data[i]) | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24
