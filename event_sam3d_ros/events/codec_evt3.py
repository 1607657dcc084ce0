"""EVT3, the 16-bit word format of Prophesee sensors (Prophesee documentation, "EVT 3.0 Format").

The upper four bits of a little-endian word are its type. Everything is relative to earlier words, also of earlier
packets: a packet may begin in the middle of a group, so the decoder carries its state from packet to packet.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.codec_base import Buffer, Decoder, Encoder, as_bytes, check_packet
from event_sam3d_ros.events.events import Events

ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8 = 0x0, 0x2, 0x3, 0x4, 0x5
TIME_LOW, CONTINUED_4, TIME_HIGH, RESERVED, EXT_TRIGGER, OTHERS, CONTINUED_12 = 0x6, 0x7, 0x8, 0x9, 0xA, 0xE, 0xF

# TIME_HIGH counts 4096 us and has 12 bits. Sensors make it step back a little now and then ("bit noise"); a larger
# step back is the wrap after 16.777216 s. The limit is that of event_camera_codecs.
HIGH_BITS_NOISE = 10

# What the next word depends on. `high` is unwrapped; the `has_` fields say what was seen since the start or a loss.
_STATE = np.dtype(
    [
        *((name, np.int64) for name in ("high", "low", "y", "base_x", "polarity")),
        *((name, np.int64) for name in ("has_history", "has_high", "has_low", "has_y", "has_base")),
    ]
)
_COUNTERS = ("unsynchronised_events", "out_of_range_events", "unknown_words", "reserved_words", "triggers")


class Evt3Decoder(Decoder):
    """Decoder of EVT3; ``time_base_ns`` is not used by this encoding.

    Times are 24-bit microseconds on the wire and are unwrapped to 64 bit from the first packet on: the first event lies
    in [0, 16.777216 s). A TIME_HIGH that is up to 10 units (41 ms) lower than the one before is taken as it is, so that
    times may step back by so much; one still lower means that the time has wrapped. Events between a new TIME_HIGH and
    its TIME_LOW get the low part 0.

    At the start and after `resynchronise` events are dropped until TIME_HIGH, then TIME_LOW, and ADDR_Y were seen (for
    vectors VECT_BASE_X too).

    Counters: ``unsynchronised_events`` dropped for that reason, ``out_of_range_events`` dropped outside the image,
    ``unknown_words`` of no defined type, ``reserved_words`` of type 9 (padding of some cameras), ``triggers`` skipped.
    """

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height, _COUNTERS)
        self._state = np.zeros(1, _STATE)

    def decode(self, payload: Buffer, time_base_ns: int = 0) -> Events:
        data = as_bytes(payload, 2)
        state = self._state.copy()
        counts = np.zeros(len(_COUNTERS), np.int64)
        events = Events(*_decode(data, state, counts, self.width, self.height))
        found = dict(zip(_COUNTERS, counts.tolist(), strict=True))
        check_packet(
            words=data.size // 2,
            unknown_words=found["unknown_words"],
            events=len(events),
            out_of_range=found["out_of_range_events"],
        )
        self._state = state
        self._count(found)
        return events

    def reset(self) -> None:
        self._state = np.zeros(1, _STATE)

    def resynchronise(self) -> None:
        # The time so far is kept, so that time goes on after a loss of less than 16.7 s.
        for field in ("has_high", "has_low", "has_y", "has_base"):
            self._state[field] = 0


class Evt3Encoder(Encoder):
    """Encoder of EVT3. Every packet starts with the time and the row, so that it can be decoded without the others.

    Five or more events of one time, row and polarity within 32 columns, in rising order, become a vector group
    (VECT_BASE_X, VECT_12, VECT_12, VECT_8); the order of the events is kept. Times must not decrease, neither inside a
    packet nor from one to the next; a pause is bridged with TIME_HIGH words.
    """

    def __init__(self, width: int, height: int) -> None:
        if max(width, height) > 2048:
            raise InputError(f"evt3 has 11 bits per coordinate: {width}x{height} does not fit", reason="bad_geometry")
        super().__init__(width, height)
        self._last_us = -1

    def encode(self, events: Events) -> tuple[bytes, int]:
        if len(events) == 0:
            return b"", 0
        self._check(events)
        if events.t[0] < max(self._last_us, 0):
            raise InputError(
                f"event at {events.t[0]} us after {self._last_us} us: evt3 needs rising times from 0 on",
                reason="unsorted_events",
            )
        words = _encode(events.t, events.x, events.y, events.p, self._last_us)
        self._last_us = int(events.t[-1])
        return words.astype("<u2").tobytes(), 0


@njit(cache=True, nogil=True)
def _count_capacity(data):  # type: ignore[no-untyped-def]
    """Events that the words hold, all of them valid."""
    capacity = 0
    for i in range(0, data.size - 1, 2):
        kind = data[i + 1] >> 4
        if kind == ADDR_X:
            capacity += 1
        elif kind == VECT_12 or kind == VECT_8:
            mask = data[i] | (data[i + 1] & 0xF) << 8 if kind == VECT_12 else np.int64(data[i])
            while mask:
                mask &= mask - 1
                capacity += 1
    return capacity


@njit(cache=True, nogil=True)
def _decode(data, state, counts, width, height):  # type: ignore[no-untyped-def]
    capacity = _count_capacity(data)
    t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
    y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
    s = state[0]
    high, low, row, base, polarity = s.high, s.low, s.y, s.base_x, s.polarity
    has_history, has_high, has_low, has_y, has_base = s.has_history, s.has_high, s.has_low, s.has_y, s.has_base
    time = high << 12 | low
    unsynchronised, out_of_range, unknown, reserved, triggers = 0, 0, 0, 0, 0
    n = 0
    for i in range(0, data.size - 1, 2):
        word = data[i] | data[i + 1] << 8
        kind, value = word >> 12, word & 0xFFF
        if kind == ADDR_X:
            column = value & 0x7FF
            if not (has_low and has_y):
                unsynchronised += 1
            elif column >= width or row >= height:
                out_of_range += 1
            else:
                t[n], x[n], y[n], p[n] = time, column, row, value >> 11
                n += 1
        elif kind == VECT_12 or kind == VECT_8:
            size = 12 if kind == VECT_12 else 8
            for bit in range(size):
                if value >> bit & 1:
                    if not (has_low and has_y and has_base):
                        unsynchronised += 1
                    elif base + bit >= width or row >= height:
                        out_of_range += 1
                    else:
                        t[n], x[n], y[n], p[n] = time, base + bit, row, polarity
                        n += 1
            base += size
        elif kind == ADDR_Y:
            row, has_y = value & 0x7FF, 1
        elif kind == VECT_BASE_X:
            base, polarity, has_base = value & 0x7FF, value >> 11, 1
        elif kind == TIME_LOW:
            low, has_low = value, has_high
            time = high << 12 | low
        elif kind == TIME_HIGH:
            # The step forward modulo 2**12, unless it is a small step back.
            step = (value - high) & 0xFFF if has_history else value
            if step >= 0x1000 - HIGH_BITS_NOISE and has_history:
                step -= 0x1000
            if step != 0:
                high, low = high + step, 0
            time = high << 12 | low
            has_history, has_high = 1, 1
        elif kind == EXT_TRIGGER:
            triggers += 1
        elif kind == RESERVED:
            reserved += 1
        elif kind != OTHERS and kind != CONTINUED_4 and kind != CONTINUED_12:
            unknown += 1
    s.high, s.low, s.y, s.base_x, s.polarity = high, low, row, base, polarity
    s.has_history, s.has_high, s.has_low, s.has_y, s.has_base = has_history, has_high, has_low, has_y, has_base
    counts[0], counts[1], counts[2], counts[3], counts[4] = unsynchronised, out_of_range, unknown, reserved, triggers
    return t[:n], x[:n], y[:n], p[:n]


@njit(cache=True, nogil=True)
def _encode(t, x, y, p, last_us):  # type: ignore[no-untyped-def]
    # A decoder follows steps of less than one wrap: long pauses are cut into halves of it.
    high = last_us >> 12 if last_us >= 0 else t[0] >> 12
    pauses = (t[-1] >> 12) - high >> 11
    words = np.empty(4 * t.size + pauses, np.uint16)
    n = 0
    last_t, last_y = np.int64(-1), np.int64(-1)
    i = 0
    while i < t.size:
        if t[i] != last_t:
            while (t[i] >> 12) - high > 0x800:
                high += 0x800
                words[n], n = TIME_HIGH << 12 | high & 0xFFF, n + 1
            if t[i] >> 12 != high or last_t < 0:
                high = t[i] >> 12
                words[n], n = TIME_HIGH << 12 | high & 0xFFF, n + 1
            words[n], n = TIME_LOW << 12 | t[i] & 0xFFF, n + 1
            last_t = t[i]
        if y[i] != last_y:
            last_y = np.int64(y[i])
            words[n], n = ADDR_Y << 12 | last_y, n + 1
        end, mask = i + 1, np.int64(1)
        while end < t.size and t[end] == t[i] and y[end] == y[i] and p[end] == p[i] and x[end - 1] < x[end] < x[i] + 32:
            mask |= np.int64(1) << (x[end] - x[i])
            end += 1
        if end - i >= 5:
            words[n] = VECT_BASE_X << 12 | p[i] << 11 | x[i]
            words[n + 1] = VECT_12 << 12 | mask & 0xFFF
            words[n + 2] = VECT_12 << 12 | mask >> 12 & 0xFFF
            words[n + 3] = VECT_8 << 12 | mask >> 24 & 0xFF
            n += 4
            i = end
        else:
            words[n], n = ADDR_X << 12 | p[i] << 11 | x[i], n + 1
            i += 1
    return words[:n]
