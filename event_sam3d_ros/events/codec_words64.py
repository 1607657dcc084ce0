"""The encodings with 64 bits per event: `mono`, `trigger` and `libcaer`. No state between packets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.codec_base import Decoder, Encoder, check_time_base, empty_events, filled
from event_sam3d_ros.events.events import Events, Triggers

# libcaer times have 31 bits of microseconds; a step back by more than half of that is a rollover, less is disorder.
_LIBCAER_WRAP = 1 << 31
_MONO_SPAN_US = (1 << 32) // 1000


class MonoDecoder(Decoder):
    """Decoder of `mono`: bits 0-31 nanoseconds after time_base, 32-47 x, 48-62 y, 63 polarity.

    Microseconds are those of time_base + dt, rounded down. Counter: ``out_of_range_events``.
    """

    WORD = np.dtype(np.uint64)

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        check_time_base(time_base_ns)
        events = empty_events(words.size)
        n = _decode_mono(words, *events, counts, time_base_ns, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n)


class TriggerDecoder(Decoder):
    """Decoder of `trigger`: bits 0-31 nanoseconds after time_base, 48-55 number of the input, 63 edge. No events."""

    WORD = np.dtype(np.uint64)
    COUNTERS = ("triggers",)

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        check_time_base(time_base_ns)
        counts[0] = words.size
        t = (time_base_ns + (words & np.uint64(0xFFFFFFFF)).astype(np.int64)) // 1000
        number, edge = words >> np.uint64(48) & np.uint64(0xFF), words >> np.uint64(63)
        none = Events.empty()
        return none.t, none.x, none.y, none.p, t, number.astype(np.uint8), edge.astype(np.uint8)


class LibcaerDecoder(Decoder):
    """Decoder of `libcaer`: uint32 data (bit 0 valid, 1 polarity, 2-16 y, 17-31 x), then int32 microseconds.

    The time is time_base plus the microseconds, plus 2**31 us for each rollover inside the packet; the sum is rounded
    down to microseconds. Counters: ``out_of_range_events``, ``invalid_events`` (marked so, or with a negative time).
    """

    WORD = np.dtype(np.uint32)
    GROUP = 2
    COUNTERS = ("out_of_range_events", "invalid_events")

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        check_time_base(time_base_ns)
        events = empty_events(words.size // 2)
        n = _decode_libcaer(words, *events, counts, time_base_ns, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n)


class MonoEncoder(Encoder):
    """Encoder of `mono`; a packet may span 4.29 s."""

    COORDINATE_BITS = 15

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        start = first_time(events, _MONO_SPAN_US, "mono")
        elapsed = ((events.t - start) * 1000).astype(np.uint64)
        place = events.x.astype(np.uint64) << np.uint64(32) | events.y.astype(np.uint64) << np.uint64(48)
        words = elapsed | place | events.p.astype(np.uint64) << np.uint64(63)
        return words.astype("<u8").tobytes(), start * 1000


class TriggerEncoder(Encoder):
    """Encoder of `trigger`: triggers alone; a packet may span 4.29 s."""

    TRIGGER_BITS = 8
    COORDINATE_BITS = 16

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        if len(events):
            raise InputError("trigger packets hold no events: choose another encoding", reason="bad_events")
        start = first_time(triggers, _MONO_SPAN_US, "trigger")
        elapsed = ((triggers.t - start) * 1000).astype(np.uint64)
        words = elapsed | triggers.id.astype(np.uint64) << np.uint64(48) | triggers.p.astype(np.uint64) << np.uint64(63)
        return words.astype("<u8").tobytes(), start * 1000


class LibcaerEncoder(Encoder):
    """Encoder of `libcaer`; a packet may span 2**30 us (18 minutes)."""

    COORDINATE_BITS = 15

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        start = first_time(events, 1 << 30, "libcaer")
        place = events.y.astype(np.uint32) << np.uint32(2) | events.x.astype(np.uint32) << np.uint32(17)
        words = np.empty((len(events), 2), "<u4")
        words[:, 0] = place | events.p.astype(np.uint32) << np.uint32(1) | np.uint32(1)
        words[:, 1] = events.t % _LIBCAER_WRAP
        return words.tobytes(), start // _LIBCAER_WRAP * _LIBCAER_WRAP * 1000


def first_time(columns: Events | Triggers, span_us: int, encoding: str) -> int:
    """Time of the first event; InputError unless all fit one packet that may span less than ``span_us``."""
    start, stop = int(columns.t[0]), int(columns.t[-1])
    if start < 0 or stop - start >= span_us:
        raise InputError(
            f"events of {start} to {stop} us do not fit one {encoding} packet: start at 0 or later, "
            f"span less than {span_us} us",
            reason="bad_window",
        )
    return start


@njit(cache=True, nogil=True)
def _decode_mono(words, t, x, y, p, counts, time_base_ns, width, height):  # type: ignore[no-untyped-def]
    n, one = np.uint64(0), np.uint64(1)
    for i in range(words.size):
        place = np.int64(words[i] >> np.uint64(32))
        column, row = place & 0xFFFF, place >> 16 & 0x7FFF
        if column < width and row < height:
            t[n] = (time_base_ns + np.int64(words[i] & np.uint64(0xFFFFFFFF))) // 1000
            x[n], y[n], p[n] = column, row, place >> 31
            n += one
    counts[0] = words.size - np.int64(n)
    return n


@njit(cache=True, nogil=True)
def _decode_libcaer(words, t, x, y, p, counts, time_base_ns, width, height):  # type: ignore[no-untyped-def]
    size = words.size // 2
    base_us = time_base_ns // 1000
    last, rollovers, invalid = np.int64(0), np.int64(0), 0
    n, one = np.uint64(0), np.uint64(1)
    for i in range(size):
        place, time = np.int64(words[2 * i]), np.int64(words[2 * i + 1])
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
            n += one
    counts[0], counts[1] = size - np.int64(n) - invalid, invalid
    return n
