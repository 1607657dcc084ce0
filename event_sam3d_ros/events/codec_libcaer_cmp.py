"""`libcaer_cmp`, the 16-bit word format of libcaer_driver (event_camera_codecs, libcaer_cmp_types.h).

Like EVT3 with rows and columns swapped: x is said once for a group of events, and eight rows fit one vector. Times are
relative to the packet's time base.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.events.codec_base import (
    Decoder,
    Encoder,
    check_time_base,
    count_ones,
    empty_events,
    filled,
    lowest_one,
)
from event_sam3d_ros.events.codec_words64 import first_time
from event_sam3d_ros.events.events import Events, Triggers

TIME_HIGH, TIME_LOW, ADDR_X, ADDR_Y, VECT_BASE_Y, VECT_8 = 0, 1, 2, 3, 4, 5

# Single events of one block of 8 rows, one after another in different columns: in a sound stream most of them differ in
# y. So many pairs in so many blocks, and never another y, are no chance.
_PAIRS, _BLOCKS = 256, 8
_ADVICE = "start the driver with encoding:=libcaer"
_STALE_Y = (
    "single events of libcaer_cmp have wrong rows, up to 7 pixels off, an error of the driver's encoder: " + _ADVICE
)
_TIME_FOLD = (
    "times of libcaer_cmp fall back by 65.536 ms inside a packet, an error of the driver's encoder: "
    f"{_ADVICE}, or set event_message_time_threshold below 0.06"
)


class LibcaerCmpDecoder(Decoder):
    """Decoder of `libcaer_cmp`.

    At the start and after `resynchronise` events are dropped until ADDR_X was seen (for vectors VECT_BASE_Y too); the
    driver begins each packet with it.

    Counters: ``unsynchronised_events`` dropped for that reason, ``out_of_range_events`` dropped outside the image,
    ``unknown_words`` of no defined type, ``folded_times``: TIME_HIGH that fell back inside a packet.

    Warnings, for two defects of the driver's encoder (libcaer_driver, message_converter.cpp). Neither can be repaired:
    ``libcaer_cmp_stale_y``    single events carry the row of an earlier one in their block of 8 rows
    ``libcaer_cmp_time_fold``  only 4 bits of TIME_HIGH are sent: inside a packet times fall back by 65.536 ms
    """

    WORD = np.dtype(np.uint16)
    # same_y, other_y and blocks (a bit set): the evidence for stale rows.
    STATE = np.dtype(
        [
            *((name, np.int64) for name in ("x", "base_y", "polarity", "has_x", "has_base")),
            *((name, np.int64) for name in ("same_y", "other_y", "blocks", "folds")),
        ]
    )
    COUNTERS = ("unsynchronised_events", "out_of_range_events", "unknown_words", "folded_times")

    def _run(self, words: NDArray[Any], state: NDArray[Any], counts: NDArray[np.int64], time_base_ns: int) -> Any:
        check_time_base(time_base_ns)
        events = empty_events(_count(words))
        n = _decode(words, *events, state, counts, time_base_ns // 1000, self.width, self.height)  # type: ignore[call-arg]
        return filled(events, n)

    def _look_for_defects(self) -> None:
        state = self._state[0]
        if state["other_y"] == 0 and state["same_y"] >= _PAIRS and int(state["blocks"]).bit_count() >= _BLOCKS:
            self.warnings = {**self.warnings, "libcaer_cmp_stale_y": _STALE_Y}
        if state["folds"]:
            self.warnings = {**self.warnings, "libcaer_cmp_time_fold": _TIME_FOLD}


class LibcaerCmpEncoder(Encoder):
    """Encoder of `libcaer_cmp`, without the defects of the driver's; a packet may span 2**24 us (16.8 s)."""

    def _encode(self, events: Events, triggers: Triggers) -> tuple[bytes, int]:
        start = first_time(events, 1 << 24, "libcaer_cmp")
        words = _encode(events.t - start, events.x, events.y, events.p)
        return words.astype("<u2").tobytes(), start * 1000


@njit(cache=True, nogil=True)
def _count(words):  # type: ignore[no-untyped-def]
    """Events that the words hold, if all of them are valid."""
    events = 0
    for i in range(words.size):
        kind = words[i] >> 12
        if kind == ADDR_Y:
            events += 1
        elif kind == VECT_8:
            events += count_ones(np.uint64(words[i] & 0xFF))
    return events


@njit(cache=True, nogil=True)
def _decode(words, t, x, y, p, state, counts, base_us, width, height):  # type: ignore[no-untyped-def]
    s = state[0]
    column, base, polarity, has_x, has_base = s.x, s.base_y, s.polarity, s.has_x, s.has_base
    high, low, folds = np.int64(0), np.int64(0), 0
    # Column and row of the event just before, if it was a single one.
    last_column, last_row = np.int64(-1), np.int64(-1)
    unsynchronised, out_of_range, unknown = 0, 0, 0
    n, one = np.uint64(0), np.uint64(1)
    for i in range(words.size):
        word = np.int64(words[i])
        kind, value = word >> 12, word & 0xFFF
        if kind == ADDR_Y:
            row = value & 0x7FF
            if not has_x:
                unsynchronised += 1
            elif column >= width or row >= height:
                out_of_range += 1
            else:
                t[n], x[n], y[n], p[n] = base_us + (high << 12 | low), column, row, value >> 11
                n += one
                if last_column >= 0 and last_column != column and last_row >> 3 == row >> 3:
                    s.same_y += row == last_row
                    s.other_y += row != last_row
                    s.blocks |= np.int64(1) << (row >> 3 & 0x3F)
                last_column, last_row = column, row
        elif kind == ADDR_X:
            column, has_x = value & 0x7FF, 1
        elif kind == TIME_LOW:
            low = value
        elif kind == VECT_8:
            mask = np.uint64(value & 0xFF)
            if not (has_x and has_base):
                unsynchronised += count_ones(mask)
            else:
                while mask:
                    row = base + lowest_one(mask)
                    mask &= mask - one
                    if column >= width or row >= height:
                        out_of_range += 1
                    else:
                        t[n], x[n], y[n], p[n] = base_us + (high << 12 | low), column, row, polarity
                        n += one
            base += 8
            last_column = np.int64(-1)
        elif kind == VECT_BASE_Y:
            base, polarity, has_base = value & 0x7FF, value >> 11, 1
        elif kind == TIME_HIGH:
            # The times of a packet rise; what has only four bits starts again from 0 after 15.
            folds += 1 if high < 16 and high - value >= 8 else 0
            high = value
        else:
            unknown += 1
    s.x, s.base_y, s.polarity, s.has_x, s.has_base = column, base, polarity, has_x, has_base
    s.folds += folds
    counts[0], counts[1], counts[2], counts[3] = unsynchronised, out_of_range, unknown, folds
    return n


@njit(cache=True, nogil=True)
def _encode(dt, x, y, p):  # type: ignore[no-untyped-def]
    """Words of events; ``dt`` microseconds since the first."""
    words = np.empty(5 * dt.size, np.uint16)
    n, i = 0, 0
    high, low, column = np.int64(0), np.int64(0), np.int64(-1)
    while i < dt.size:
        if dt[i] >> 12 != high:
            high = dt[i] >> 12
            words[n], n = TIME_HIGH << 12 | high, n + 1
        if dt[i] & 0xFFF != low:
            low = dt[i] & 0xFFF
            words[n], n = TIME_LOW << 12 | low, n + 1
        if x[i] != column:
            column = np.int64(x[i])
            words[n], n = ADDR_X << 12 | column, n + 1
        begin, base, mask = i, y[i] - y[i] % 8, np.int64(1) << y[i] % 8
        i += 1
        while i < dt.size and dt[i] == dt[begin] and x[i] == column and p[i] == p[begin] and y[i - 1] < y[i] < base + 8:
            mask |= np.int64(1) << y[i] - base
            i += 1
        if i - begin == 1:
            words[n], n = ADDR_Y << 12 | np.int64(p[begin]) << 11 | y[begin], n + 1
        else:
            words[n], n = VECT_BASE_Y << 12 | np.int64(p[begin]) << 11 | base, n + 1
            words[n], n = VECT_8 << 12 | mask, n + 1
    return words[:n]
