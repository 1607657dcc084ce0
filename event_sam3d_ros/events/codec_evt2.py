"""EVT2 and EVT2.1, the 32-bit and 64-bit word formats of Prophesee sensors (Prophesee documentation, "EVT 2.0 Format",
"EVT 2.1 Format"; OpenEB, evt2_event_types.h and evt21_event_types.h).

Both have the type in the upper four bits of an address word, and 34-bit times of which the upper 28 bits come in words
of their own. EVT2 has one event per word; EVT2.1 adds a second half to each, 32 pixels of one row as bits.
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

# 0 and 1 are events of that polarity.
TIME_HIGH, EXT_TRIGGER, IMU, OTHERS, CONTINUED = 0x8, 0xA, 0xD, 0xE, 0xF

# TIME_HIGH counts 64 us and has 28 bits: it wraps after 4 h 46 min. A step of up to a quarter of that, to either side,
# is taken modulo the wrap; a larger one, as after a reset of the camera, is taken as it stands.
_WRAP = 1 << 28
# The last word before the second part of a longer pause: an encoder's step that every decoder follows.
_STEP = _WRAP // 4 - 1

_STATE = [("high", np.int64), ("has_history", np.int64), ("has_high", np.int64)]
_COUNTERS = (
    "unsynchronised_events",
    "out_of_range_events",
    "unknown_words",
    "unsynchronised_triggers",
    "triggers",
)
# Which half of EVT2.1's words holds the address is settled by a lead of so many points, see `_legacy_lead`.
_SETTLED = 16
_LOOKED_AT = 4096
_HALF = np.uint64(0xFFFFFFFF)
# Of EVT2: the lowest word that is no event, where events have their coordinates, and from how many on they are
# unpacked together.
_NO_EVENT, _COLUMN, _ROW = np.uint32(2 << 28), np.uint32(0x7FF << 11), np.uint32(0x7FF)
_LONG_RUN = 16


class Evt2Decoder(Decoder):
    """Decoder of EVT2; ``time_base_ns`` is not used by this encoding.

    Times are unwrapped to 64 bit from the first packet on. At the start and after `resynchronise` events and triggers
    are dropped until the first TIME_HIGH.

    Counters: ``unsynchronised_events`` and ``unsynchronised_triggers`` dropped for that reason,
    ``out_of_range_events`` dropped outside the image, ``unknown_words`` of no defined type, ``triggers`` decoded.
    """

    WORD = np.dtype(np.uint32)
    STATE = np.dtype(_STATE)
    COUNTERS = _COUNTERS

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        others = _count_others(words)
        events, triggers = empty_events(words.size - others), empty_triggers(others)
        n, m = _decode_evt2(words, *events, *triggers, state, counts, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n, triggers, m)


class Evt21Decoder(Decoder):
    """Decoder of EVT2.1, as `Evt2Decoder`.

    ``legacy`` True: the address is in the lower half of the 64-bit word (IMX636 and older, "endianness=legacy" in the
    header of a RAW file), False: in the upper half (GenX320), None: found out from the words and then kept.
    """

    WORD = np.dtype(np.uint64)
    STATE = np.dtype([*_STATE, ("legacy", np.int64), ("lead", np.int64), ("settled", np.int64)])
    COUNTERS = _COUNTERS

    def __init__(self, width: int, height: int, is_bigendian: bool = False, legacy: bool | None = None) -> None:
        self._told = legacy
        super().__init__(width, height, is_bigendian)

    @property
    def legacy(self) -> bool | None:
        """Whether the address is in the lower half; None while that is not settled."""
        return bool(self._state["legacy"][0]) if self._state["settled"][0] else None

    def _new_state(self) -> NDArray[Any]:
        state = super()._new_state()
        if self._told is not None:
            state["legacy"], state["settled"] = self._told, 1
        return state

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        if not state["settled"][0]:
            _settle_legacy(words, state, self.width, self.height)
        size, edges = _count_evt21(words, state)
        events, triggers = empty_events(size), empty_triggers(edges)
        n, m = _decode_evt21(words, *events, *triggers, state, counts, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n, triggers, m)


class Evt2Encoder(Encoder):
    """Encoder of EVT2; packets begin with TIME_HIGH, times must not decrease, pauses are bridged as in EVT3."""

    TRIGGER_BITS = 5

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._times = RisingTimes("evt2")

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        before_us = self._times.advance(events, triggers)
        addresses, _ = _encode(
            events.t, events.x, events.y, events.p, triggers.t, triggers.id, triggers.p, before_us, False
        )
        return addresses.astype("<u4").tobytes(), 0


class Evt21Encoder(Encoder):
    """Encoder of EVT2.1, as `Evt2Encoder`; ``legacy`` as in `Evt21Decoder`.

    Events of one time, row and polarity, in rising order in one of the row's groups of 32 columns, become one word.
    """

    TRIGGER_BITS = 5

    def __init__(self, width: int, height: int, legacy: bool = False) -> None:
        super().__init__(width, height)
        self._times, self._legacy = RisingTimes("evt21"), legacy

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        before_us = self._times.advance(events, triggers)
        halves = _encode(events.t, events.x, events.y, events.p, triggers.t, triggers.id, triggers.p, before_us, True)
        address, mask = halves
        return np.stack((address, mask) if self._legacy else (mask, address), 1).astype("<u4").tobytes(), 0


@njit(cache=True, nogil=True)
def _next_high(high, has_history, value):  # type: ignore[no-untyped-def]
    """Unwrapped TIME_HIGH after ``high``."""
    if not has_history:
        return np.int64(value)
    step = (value - high) & (_WRAP - 1)
    if step <= _WRAP // 4:
        return high + step
    if step >= _WRAP - _WRAP // 4:
        return high + step - _WRAP
    return high - (high & (_WRAP - 1)) + value


@njit(cache=True, nogil=True)
def _count_others(words):  # type: ignore[no-untyped-def]
    """Number of EVT2 words that are no events."""
    others = np.uint32(0)
    for i in range(words.size):
        others = np.uint32(others + (words[i] >= _NO_EVENT))
    return np.int64(others)


@njit(cache=True, nogil=True)
def _all_inside(words, first, count, width, height):  # type: ignore[no-untyped-def]
    """Whether the events in ``count`` words are in the image."""
    columns, rows = np.uint32(width << 11), np.uint32(height)
    outside: Any = False
    for i in range(count):
        word = words[first + i]
        outside |= (np.uint32(word & _COLUMN) >= columns) | (np.uint32(word & _ROW) >= rows)
    return not outside


@njit(cache=True, nogil=True)
def _unpack(words, first, count, time, t, x, y, p, n):  # type: ignore[no-untyped-def]
    """Write the events of ``count`` words from place n on. One column after another: the compiler makes each loop do
    many words at a time."""
    for i in range(count):
        t[n + i] = time | np.int64(words[first + i] >> np.uint32(22) & np.uint32(0x3F))
    for i in range(count):
        x[n + i] = words[first + i] >> np.uint32(11) & np.uint32(0x7FF)
    for i in range(count):
        y[n + i] = words[first + i] & _ROW
    for i in range(count):
        p[n + i] = words[first + i] >> np.uint32(28)


@njit(cache=True, nogil=True)
def _decode_evt2(  # type: ignore[no-untyped-def]
    words, t, x, y, p, edge_t, edge_id, edge_p, state, counts, width, height
):
    s = state[0]
    high, has_history, has_high = s.high, s.has_history, s.has_high
    time = high << 6
    unsynchronised, out_of_range, unknown, early = np.int64(0), 0, 0, 0
    # Unsigned: an index that may be negative is one that numba looks at twice.
    i, n, m, one, size = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(1), np.uint64(words.size)
    while True:
        # A run of events, all of one TIME_HIGH.
        first = i
        while i < size and words[i] < _NO_EVENT:
            i += one
        if not has_high:
            unsynchronised += np.int64(i - first)
        elif i - first >= _LONG_RUN and _all_inside(words, first, i - first, width, height):
            _unpack(words, first, i - first, time, t, x, y, p, n)
            n += i - first
        else:
            for j in range(first, i):
                word = np.int64(words[j])
                column, row = word >> 11 & 0x7FF, word & 0x7FF
                if column >= width or row >= height:
                    out_of_range += 1
                else:
                    t[n], x[n], y[n], p[n] = time | word >> 22 & 0x3F, column, row, word >> 28
                    n += one
        if i == size:
            break
        word = np.int64(words[i])
        i += one
        kind = word >> 28
        if kind == TIME_HIGH:
            high = _next_high(high, has_history, word & (_WRAP - 1))
            has_history, has_high, time = 1, 1, high << 6
        elif kind == EXT_TRIGGER:
            if has_high:
                edge_t[m], edge_id[m], edge_p[m] = time | word >> 22 & 0x3F, word >> 8 & 0x1F, word & 1
                m += one
            else:
                early += 1
        elif kind != OTHERS and kind != CONTINUED and kind != IMU:
            unknown += 1
    s.high, s.has_history, s.has_high = high, has_history, has_high
    counts[0], counts[1], counts[2], counts[3], counts[4] = unsynchronised, out_of_range, unknown, early, m
    return n, m


@njit(cache=True, nogil=True)
def _points(address, mask, last_high, width, height):  # type: ignore[no-untyped-def]
    """How well two halves go as address and pixels: (points, TIME_HIGH).

    Sensors leave the other half of TIME_HIGH and triggers empty, and TIME_HIGH counts up; events are in the image, have
    at least one pixel, and begin at a multiple of 32. A mask taken for an address rarely has all that, and an empty
    half taken for one says nothing.
    """
    kind = address >> 28
    if kind == TIME_HIGH:
        high = address & (_WRAP - 1)
        step = high - last_high if last_high >= 0 else 0
        if mask == 0 and step >= 0:
            return 8, high
        return (4 if 0 < step <= 1 << 10 else 0), high
    if address == 0:
        return 0, last_high
    if kind <= 1:
        column, row = address >> 11 & 0x7FF, address & 0x7FF
        if column >= width or row >= height or mask == 0:
            return -1, last_high
        return (1 if column % 32 else 2), last_high
    if kind == EXT_TRIGGER:
        return (4 if mask == 0 else 0), last_high
    return (0 if kind == OTHERS or kind == CONTINUED else -2), last_high


@njit(cache=True, nogil=True)
def _legacy_lead(words, width, height):  # type: ignore[no-untyped-def]
    """By how many points the words look more like having the address in the lower half."""
    lead = 0
    lower_high, upper_high = np.int64(-1), np.int64(-1)
    for i in range(min(words.size, _LOOKED_AT)):
        upper, lower = np.int64(words[i] >> np.uint64(32)), np.int64(words[i] & np.uint64(0xFFFFFFFF))
        points, lower_high = _points(lower, upper, lower_high, width, height)
        lead += points
        points, upper_high = _points(upper, lower, upper_high, width, height)
        lead -= points
    return lead


@njit(cache=True, nogil=True)
def _settle_legacy(words, state, width, height):  # type: ignore[no-untyped-def]
    """Which half is the address, as far as the stream has shown it; time is forgotten where that changes."""
    s = state[0]
    s.lead += _legacy_lead(words, width, height)
    legacy = 1 if s.lead > 0 else 0
    if legacy != s.legacy:
        s.legacy, s.has_history, s.has_high = legacy, 0, 0
    if abs(s.lead) >= _SETTLED:
        s.settled = 1


@njit(cache=True, nogil=True)
def _shifts(s):  # type: ignore[no-untyped-def]
    """Shifts that bring a word's address and its pixels down."""
    return np.uint64(0 if s.legacy else 32), np.uint64(32 if s.legacy else 0)


@njit(cache=True, nogil=True)
def _count_evt21(words, state):  # type: ignore[no-untyped-def]
    """As `_count_evt2`."""
    address_at, mask_at = _shifts(state[0])
    events, edges = 0, 0
    for i in range(words.size):
        kind = (words[i] >> address_at & _HALF) >> np.uint64(28)
        if kind <= 1:
            events += count_ones(words[i] >> mask_at & _HALF)
        edges += kind == EXT_TRIGGER
    return events, edges


@njit(cache=True, nogil=True)
def _decode_evt21(  # type: ignore[no-untyped-def]
    words, t, x, y, p, edge_t, edge_id, edge_p, state, counts, width, height
):
    s = state[0]
    address_at, mask_at = _shifts(s)
    high, has_history, has_high = s.high, s.has_history, s.has_high
    time = high << 6
    unsynchronised, out_of_range, unknown, early = 0, 0, 0, 0
    n, m, one = np.uint64(0), np.uint64(0), np.uint64(1)
    for i in range(words.size):
        address, mask = np.int64(words[i] >> address_at & _HALF), words[i] >> mask_at & _HALF
        kind = address >> 28
        if kind <= 1:
            base, row, now = address >> 11 & 0x7FF, address & 0x7FF, time | address >> 22 & 0x3F
            if not has_high:
                unsynchronised += count_ones(mask)
                continue
            while mask:
                column = base + lowest_one(mask)
                mask &= mask - one
                if column >= width or row >= height:
                    out_of_range += 1
                else:
                    t[n], x[n], y[n], p[n] = now, column, row, kind
                    n += one
        elif kind == TIME_HIGH:
            high = _next_high(high, has_history, address & (_WRAP - 1))
            has_history, has_high, time = 1, 1, high << 6
        elif kind == EXT_TRIGGER:
            if has_high:
                edge_t[m], edge_id[m], edge_p[m] = time | address >> 22 & 0x3F, address >> 8 & 0x1F, address & 1
                m += one
            else:
                early += 1
        elif kind != OTHERS and kind != CONTINUED:
            unknown += 1
    s.high, s.has_history, s.has_high = high, has_history, has_high
    counts[0], counts[1], counts[2], counts[3], counts[4] = unsynchronised, out_of_range, unknown, early, m
    return n, m


@njit(cache=True, nogil=True)
def _encode(t, x, y, p, edge_t, edge_id, edge_p, before_us, vectors):  # type: ignore[no-untyped-def]
    """Address words and the halves of pixels beside them; without ``vectors`` one event per word, pixels unused."""
    first_t = min(t[0] if t.size else edge_t[0], edge_t[0] if edge_t.size else t[0])
    final_t = max(t[-1] if t.size else edge_t[-1], edge_t[-1] if edge_t.size else t[-1])
    high = before_us >> 6 if before_us >= 0 else first_t >> 6
    size = 2 * (t.size + edge_t.size) + ((final_t >> 6) - high) // _STEP + 1
    address, mask = np.empty(size, np.uint32), np.zeros(size, np.uint32)
    n, i, j = 0, 0, 0
    while i < t.size or j < edge_t.size:
        is_edge = j < edge_t.size and (i == t.size or edge_t[j] <= t[i])
        now = edge_t[j] if is_edge else t[i]
        while (now >> 6) - high > _STEP:
            high += _STEP
            address[n], n = TIME_HIGH << 28 | high & (_WRAP - 1), n + 1
        if now >> 6 != high or n == 0:
            high = now >> 6
            address[n], n = TIME_HIGH << 28 | high & (_WRAP - 1), n + 1
        low = (now & 0x3F) << 22
        if is_edge:
            address[n], n = EXT_TRIGGER << 28 | low | np.int64(edge_id[j]) << 8 | edge_p[j], n + 1
            j += 1
            continue
        column, row = np.int64(x[i]), np.int64(y[i])
        base = column - column % 32 if vectors else column
        address[n], mask[n] = np.int64(p[i]) << 28 | low | base << 11 | row, np.int64(1) << column - base
        i += 1
        while (
            vectors and i < t.size and t[i] == now and y[i] == row and p[i] == p[i - 1] and x[i - 1] < x[i] < base + 32
        ):
            mask[n] |= np.int64(1) << x[i] - base
            i += 1
        n += 1
    return address[:n], mask[:n]
