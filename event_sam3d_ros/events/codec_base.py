"""What all decoders and encoders of event packets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping
from typing import Union

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.events import Events

Buffer = Union[bytes, bytearray, memoryview, "array[int]", NDArray[np.uint8]]

# A packet is refused when more words are undefined, or more events outside the image, than a few and this share.
_FEW = 8
_UNKNOWN_SHARE = 1 / 8
_OUT_OF_RANGE_SHARE = 1 / 2


class Decoder(ABC):
    """Turns the payloads of one stream's packets, in their order, into Events.

    A packet is decoded or refused as a whole: where `decode` raises, the decoder is as if the packet had never come.
    ``counters`` says, since construction, what was skipped in packets that were decoded.
    """

    def __init__(self, width: int, height: int, counters: Iterable[str] = ("out_of_range_events",)) -> None:
        if width < 1 or height < 1:
            raise InputError(f"sensor of {width}x{height} has no pixels: give its size", reason="bad_geometry")
        self.width, self.height = int(width), int(height)
        self.counters = dict.fromkeys(counters, 0)

    @abstractmethod
    def decode(self, payload: Buffer, time_base_ns: int = 0) -> Events:
        """Events of one packet; ``payload`` and ``time_base_ns`` as in event_camera_msgs/EventPacket.

        Raises DecodeError for bytes that are not this encoding: ``truncated_packet`` where the length is no multiple of
        the word's, ``corrupt_packet`` where many words are undefined or many events outside the image.
        """

    # Most encodings keep nothing from packet to packet, so doing nothing is right unless a decoder says otherwise.

    def reset(self) -> None:  # noqa: B027
        """Forget everything but the counters: a new stream begins."""

    def resynchronise(self) -> None:  # noqa: B027
        """Packets were lost: drop what depends on them. The time goes on."""

    def _count(self, found: Mapping[str, int]) -> None:
        for name, number in found.items():
            self.counters[name] += number


class Encoder(ABC):
    """Turns Events into payloads that `Decoder` of the same encoding gives back, in the same order."""

    def __init__(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise InputError(f"sensor of {width}x{height} has no pixels: give its size", reason="bad_geometry")
        self.width, self.height = int(width), int(height)

    @abstractmethod
    def encode(self, events: Events) -> tuple[bytes, int]:
        """Payload and time_base (nanoseconds) of one packet.

        Raises InputError for events outside the sensor, out of order in time, or too far apart for one packet.
        """

    def _check(self, events: Events) -> None:
        """Raise InputError unless the (at least one) events are on the sensor and sorted by time."""
        if int(events.x.max()) >= self.width or int(events.y.max()) >= self.height:
            raise InputError(
                f"event at ({events.x.max()}, {events.y.max()}) is outside {self.width}x{self.height}",
                reason="out_of_range_events",
            )
        if np.any(events.t[1:] < events.t[:-1]):
            raise InputError("events are not sorted by time: sort them before encoding", reason="unsorted_events")
        if int(events.p.max()) > 1:
            raise InputError(f"polarity {events.p.max()} is neither 0 nor 1", reason="bad_events")


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


def check_packet(words: int, unknown_words: int, events: int, out_of_range: int) -> None:
    """DecodeError if so much of a packet makes no sense that the rest cannot be trusted."""
    if unknown_words > _FEW and unknown_words > _UNKNOWN_SHARE * words:
        raise DecodeError(
            f"{unknown_words} of {words} words in the event packet are undefined: check its encoding",
            reason="corrupt_packet",
        )
    if out_of_range > _FEW and out_of_range > _OUT_OF_RANGE_SHARE * (events + out_of_range):
        raise DecodeError(
            f"{out_of_range} of {events + out_of_range} events are outside the image: check width, height and encoding",
            reason="corrupt_packet",
        )


@njit(cache=True, nogil=True)
def uint32_at(data, i):  # type: ignore[no-untyped-def]
    """Little-endian uint32 at byte i of a uint8 array, as int64. Byte by byte, because payloads need not be aligned."""
    return np.int64(data[i]) | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24
