"""The encodings with one 64-bit little-endian word per event: `mono` and `libcaer`. No state between packets."""

from __future__ import annotations

import numpy as np
from numba import njit

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codec_base import Buffer, Decoder, Encoder, as_bytes, check_packet, uint32_at
from event_sam3d_ros.events.events import Events

# libcaer times have 31 bits of microseconds; a step back by more than half of that is a rollover, less is disorder.
_LIBCAER_WRAP = 1 << 31


def _check_time_base(time_base_ns: int) -> int:
    if not 0 <= time_base_ns < 1 << 62:
        raise DecodeError(f"time_base {time_base_ns} ns of the event packet is no time", reason="corrupt_packet")
    return int(time_base_ns)


class MonoDecoder(Decoder):
    """Decoder of `mono`: bits 0-31 nanoseconds after time_base, 32-47 x, 48-62 y, 63 polarity.

    Microseconds are those of time_base + dt, rounded down. Counter: ``out_of_range_events``.
    """

    def decode(self, payload: Buffer, time_base_ns: int = 0) -> Events:
        data = as_bytes(payload, 8)
        fields = _decode_mono(data, _check_time_base(time_base_ns), self.width, self.height)
        events = Events(*fields)
        out_of_range = data.size // 8 - len(events)
        check_packet(data.size // 8, 0, len(events), out_of_range)
        self._count({"out_of_range_events": out_of_range})
        return events


class LibcaerDecoder(Decoder):
    """Decoder of `libcaer`: uint32 data (bit 0 valid, 1 polarity, 2-16 y, 17-31 x), then int32 microseconds.

    The time is time_base plus the microseconds, plus 2**31 us for each rollover inside the packet; the sum is rounded
    down to microseconds. Counters: ``out_of_range_events``, ``invalid_events`` (marked so, or with a negative time).
    """

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height, ("out_of_range_events", "invalid_events"))

    def decode(self, payload: Buffer, time_base_ns: int = 0) -> Events:
        data = as_bytes(payload, 8)
        *fields, invalid = _decode_libcaer(data, _check_time_base(time_base_ns), self.width, self.height)
        events = Events(*fields)
        out_of_range = data.size // 8 - len(events) - invalid
        check_packet(data.size // 8, invalid, len(events), out_of_range)
        self._count({"out_of_range_events": out_of_range, "invalid_events": invalid})
        return events


class MonoEncoder(Encoder):
    """Encoder of `mono`; a packet may span 4.29 s."""

    def encode(self, events: Events) -> tuple[bytes, int]:
        if len(events) == 0:
            return b"", 0
        self._check(events)
        start = _start(events, (1 << 32) // 1000, "mono")
        elapsed = ((events.t - start) * 1000).astype(np.uint64)
        place = events.x.astype(np.uint64) << np.uint64(32) | events.y.astype(np.uint64) << np.uint64(48)
        words = elapsed | place | events.p.astype(np.uint64) << np.uint64(63)
        return words.astype("<u8").tobytes(), start * 1000


class LibcaerEncoder(Encoder):
    """Encoder of `libcaer`; a packet may span 2**30 us (18 minutes)."""

    def encode(self, events: Events) -> tuple[bytes, int]:
        if len(events) == 0:
            return b"", 0
        self._check(events)
        start = _start(events, 1 << 30, "libcaer")
        place = events.y.astype(np.uint32) << np.uint32(2) | events.x.astype(np.uint32) << np.uint32(17)
        words = np.empty((len(events), 2), "<u4")
        words[:, 0] = place | events.p.astype(np.uint32) << np.uint32(1) | np.uint32(1)
        words[:, 1] = events.t % _LIBCAER_WRAP
        return words.tobytes(), start // _LIBCAER_WRAP * _LIBCAER_WRAP * 1000


def _start(events: Events, span_us: int, encoding: str) -> int:
    """Time of the first event, for events that fit one packet."""
    start, stop = int(events.t[0]), int(events.t[-1])
    if start < 0 or stop - start >= span_us:
        raise InputError(
            f"events of {start} to {stop} us do not fit one {encoding} packet: start at 0 or later, "
            f"span less than {span_us} us",
            reason="bad_window",
        )
    return start


@njit(cache=True, nogil=True)
def _decode_mono(data, time_base_ns, width, height):  # type: ignore[no-untyped-def]
    size = data.size // 8
    t, x = np.empty(size, np.int64), np.empty(size, np.uint16)
    y, p = np.empty(size, np.uint16), np.empty(size, np.uint8)
    n = 0
    for i in range(size):
        place = uint32_at(data, 8 * i + 4)
        column, row = place & 0xFFFF, place >> 16 & 0x7FFF
        if column < width and row < height:
            t[n] = (time_base_ns + uint32_at(data, 8 * i)) // 1000
            x[n], y[n], p[n] = column, row, place >> 31
            n += 1
    return t[:n], x[:n], y[:n], p[:n]


@njit(cache=True, nogil=True)
def _decode_libcaer(data, time_base_ns, width, height):  # type: ignore[no-untyped-def]
    size = data.size // 8
    t, x = np.empty(size, np.int64), np.empty(size, np.uint16)
    y, p = np.empty(size, np.uint16), np.empty(size, np.uint8)
    base_us = time_base_ns // 1000
    last, rollovers, invalid = np.int64(0), np.int64(0), 0
    n = 0
    for i in range(size):
        place, time = uint32_at(data, 8 * i), uint32_at(data, 8 * i + 4)
        if not place & 1 or time >= _LIBCAER_WRAP:
            invalid += 1
            continue
        if last - time > _LIBCAER_WRAP // 2:
            rollovers += 1
        last = time
        column, row = place >> 17, place >> 2 & 0x7FFF
        if column < width and row < height:
            t[n] = base_us + time + rollovers * _LIBCAER_WRAP
            x[n], y[n], p[n] = column, row, place >> 1 & 1
            n += 1
    return t[:n], x[:n], y[:n], p[:n], invalid
