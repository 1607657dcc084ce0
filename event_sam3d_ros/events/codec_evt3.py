"""EVT3, the 16-bit word format of Prophesee sensors (Prophesee documentation, "EVT 3.0 Format").

The upper four bits of a word are its type. Everything is relative to earlier words, also of earlier packets: a packet
may begin in the middle of a group, so the decoder carries its state from packet to packet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.events.codec_base import (
    Decoder,
    Encoder,
    RisingTimes,
    count_ones,
    empty_events,
    empty_triggers,
    filled,
    lowest_one,
)
from event_sam3d_ros.events.events import Events, Triggers

ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8 = 0x0, 0x2, 0x3, 0x4, 0x5
TIME_LOW, CONTINUED_4, TIME_HIGH, RESERVED, EXT_TRIGGER, OTHERS, CONTINUED_12 = 0x6, 0x7, 0x8, 0x9, 0xA, 0xE, 0xF

# TIME_HIGH counts 4096 us and has 12 bits. It wraps after 16.777216 s; a step back by less than half of that is none
# (as in OpenEB): sensors step back a little now and then ("bit noise"), and a bit that was damaged must not move all
# times that follow. So a pause without any TIME_HIGH must be shorter than 8.4 s; sensors send every one. Only behind a
# loss each step goes forward, but for the noise, whose bound is that of event_camera_codecs.
HALF_WRAP = 1 << 11
HIGH_BITS_NOISE = 10

_NO_ROW = 1 << 16  # below all images


class Evt3Decoder(Decoder):
    """Decoder of EVT3; ``time_base_ns`` is not used by this encoding.

    Times are 24-bit microseconds on the wire and are unwrapped to 64 bit from the first packet on: the first event lies
    in [0, 16.777216 s). A TIME_HIGH that is lower than the one before means that the time has wrapped if it is lower by
    half of that or more, else that the time steps back. Behind a loss the time steps back by 41 ms at most, so that
    up to 16.7 s may be lost. Events between a new TIME_HIGH and its TIME_LOW get the low part 0.

    At the start and after `resynchronise` events are dropped until TIME_HIGH, then TIME_LOW, and ADDR_Y were seen (for
    vectors VECT_BASE_X too), triggers until the time is known.

    Counters: ``unsynchronised_events`` and ``unsynchronised_triggers`` dropped for that reason,
    ``out_of_range_events`` dropped outside the image, ``unknown_words`` of no defined type, ``reserved_words`` of type
    9 (padding of some cameras), ``triggers`` decoded.
    """

    WORD = np.dtype(np.uint16)
    # What the next word depends on. `high` is unwrapped; the `has_` fields say what was seen since the start or a loss.
    STATE = np.dtype(
        [
            *((name, np.int64) for name in ("high", "low", "y", "base_x", "polarity")),
            *((name, np.int64) for name in ("has_history", "has_high", "has_low", "has_y", "has_base")),
        ]
    )
    COUNTERS = (
        "unsynchronised_events",
        "out_of_range_events",
        "unknown_words",
        "reserved_words",
        "unsynchronised_triggers",
        "triggers",
    )

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        size, edges = _count(words)
        events, triggers = empty_events(size + 1), empty_triggers(edges)
        n, m = _decode(words, *events, *triggers, state, counts, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n, triggers, m)


class Evt3Encoder(Encoder):
    """Encoder of EVT3. Every packet starts with the time and the row, so that it can be decoded without the others.

    Five or more events of one time, row and polarity within 32 columns, in rising order, become a vector group
    (VECT_BASE_X, VECT_12, VECT_12, VECT_8); the order of the events is kept. Times must not decrease, neither inside a
    packet nor from one to the next; a pause is bridged with TIME_HIGH words.
    """

    TRIGGER_BITS = 4

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._times = RisingTimes("evt3")

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        before_us = self._times.advance(events, triggers)
        words = _encode(events.t, events.x, events.y, events.p, triggers.t, triggers.id, triggers.p, before_us)
        return words.astype("<u2").tobytes(), 0


@njit(cache=True, nogil=True)
def _count(words):  # type: ignore[no-untyped-def]
    """(events, triggers) that the words hold, if all of them are valid."""
    single, vectors, triggers = 0, 0, 0
    for i in range(words.size):  # short and without branches: the compiler makes it many words at a time
        kind = words[i] >> np.uint16(12)
        single += kind == ADDR_X
        vectors += (kind == VECT_12) | (kind == VECT_8)
        triggers += kind == EXT_TRIGGER
    if vectors:
        for i in range(words.size):
            kind = words[i] >> 12
            if kind == VECT_12 or kind == VECT_8:
                single += count_ones(np.uint64(words[i] & (0xFFF if kind == VECT_12 else 0xFF)))
    return single, triggers


@njit(cache=True, nogil=True)
def _decode(  # type: ignore[no-untyped-def]
    words, t, x, y, p, edge_t, edge_id, edge_p, state, counts, width, height
):
    s = state[0]
    high, base, polarity = s.high, s.base_x, s.polarity
    has_history, has_high, has_low, has_base = s.has_history, s.has_high, s.has_low, s.has_base
    time, row = high << 12 | s.low, s.y if s.has_y else _NO_ROW
    # Words are told apart by branches where the next type is easy to foresee. How many words of time come before the
    # next event is not: all that change nothing but the lower bits share one way, without a branch in it. Most
    # TIME_HIGH repeat the one before.
    same_high = TIME_HIGH << 12 | high & 0xFFF if has_high else -1
    rows = height if has_low else 0
    unsynchronised, out_of_range, unknown, reserved, early = 0, 0, 0, 0, 0
    # Unsigned: an index that may be negative is one that numba looks at twice.
    n, m, one = np.uint64(0), np.uint64(0), np.uint64(1)
    for i in range(words.size):
        word = np.int64(words[i])
        kind, value = word >> 12, word & 0xFFF
        if kind & ~(ADDR_X | ADDR_Y) == 0:
            # Rows and columns follow each other in no order that could be foreseen: both are written down, and only
            # a column that is an event stays.
            column, is_row = value & 0x7FF, -np.int64(kind == ADDR_Y)  # all bits, or none
            row = is_row & column | ~is_row & row
            t[n], x[n], y[n], p[n] = time, column, row, value >> 11
            is_inside = np.int64(column < width) & np.int64(row < rows)
            n += np.uint64(is_inside & ~is_row)
            if not (is_inside | is_row):
                if has_low and row != _NO_ROW:
                    out_of_range += 1
                else:
                    unsynchronised += 1
        elif kind == TIME_LOW or word == same_high or kind >= OTHERS or kind == CONTINUED_4:
            is_low = -np.int64(kind == TIME_LOW)  # all bits, or none
            time = is_low & (high << 12 | value) | ~is_low & time
            has_low |= is_low & has_high
            rows = height * has_low
        elif kind == VECT_12 or kind == VECT_8:
            size = 12 if kind == VECT_12 else 8
            mask = np.uint64(value if kind == VECT_12 else value & 0xFF)
            if not (has_low and row != _NO_ROW and has_base):
                unsynchronised += count_ones(mask)
            else:
                while mask:
                    column = base + lowest_one(mask)
                    mask &= mask - one
                    if column < width and row < rows:
                        t[n], x[n], y[n], p[n] = time, column, row, polarity
                        n += one
                    else:
                        out_of_range += 1
            base += size
        elif kind == VECT_BASE_X:
            base, polarity, has_base = value & 0x7FF, value >> 11, 1
        elif kind == TIME_HIGH:
            step = value - (high & 0xFFF)
            if has_history and step < (1 - HALF_WRAP if has_high else -HIGH_BITS_NOISE):
                step += 0x1000
            elif has_history and step >= 0x1000 - HIGH_BITS_NOISE:  # noise across the wrap
                step -= 0x1000
            if step != 0:
                high += step
                time = high << 12
            has_history, has_high, same_high = 1, 1, word
        elif kind == EXT_TRIGGER:
            if has_low:
                edge_t[m], edge_id[m], edge_p[m] = time, value >> 8, value & 1
                m += one
            else:
                early += 1
        elif kind == RESERVED:
            reserved += 1
        else:
            unknown += 1
    s.high, s.low, s.y, s.base_x, s.polarity = high, time & 0xFFF, row, base, polarity
    has_y = np.int64(row != _NO_ROW)
    s.has_history, s.has_high, s.has_low, s.has_y, s.has_base = has_history, has_high, has_low, has_y, has_base
    counts[0], counts[1], counts[2], counts[3] = unsynchronised, out_of_range, unknown, reserved
    counts[4], counts[5] = early, m
    return n, m


@njit(cache=True, nogil=True)
def _encode_time(words, n, t, last_t, high, first):  # type: ignore[no-untyped-def]
    """Words that bring a decoder from ``last_t`` to ``t``; returns the number of words so far and TIME_HIGH."""
    if t == last_t and not first:
        return n, high
    # A decoder follows steps of less than half a wrap: long pauses are cut.
    while (t >> 12) - high >= HALF_WRAP:
        high += HALF_WRAP - 1
        words[n], n = TIME_HIGH << 12 | high & 0xFFF, n + 1
    if t >> 12 != high or first:
        high = t >> 12
        words[n], n = TIME_HIGH << 12 | high & 0xFFF, n + 1
    words[n], n = TIME_LOW << 12 | t & 0xFFF, n + 1
    return n, high


@njit(cache=True, nogil=True)
def _encode(t, x, y, p, edge_t, edge_id, edge_p, before_us):  # type: ignore[no-untyped-def]
    first_t = min(t[0] if t.size else edge_t[0], edge_t[0] if edge_t.size else t[0])
    final_t = max(t[-1] if t.size else edge_t[-1], edge_t[-1] if edge_t.size else t[-1])
    high = before_us >> 12 if before_us >= 0 else first_t >> 12
    words = np.empty(4 * t.size + 3 * edge_t.size + ((final_t >> 12) - high) // (HALF_WRAP - 1) + 2, np.uint16)
    n = 0
    last_t, last_y = np.int64(-1), np.int64(-1)
    i, j = 0, 0
    while i < t.size or j < edge_t.size:
        if j < edge_t.size and (i == t.size or edge_t[j] <= t[i]):
            n, high = _encode_time(words, n, edge_t[j], last_t, high, last_t < 0)
            last_t = edge_t[j]
            words[n], n = EXT_TRIGGER << 12 | np.int64(edge_id[j]) << 8 | edge_p[j], n + 1
            j += 1
            continue
        n, high = _encode_time(words, n, t[i], last_t, high, last_t < 0)
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
