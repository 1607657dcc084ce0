"""The filter 0x8ECF, with which Prophesee's HDF5 files keep chunks of events (format: prophesee-ai/hdf5_ecf).

A chunk is, little endian: uint32 (number of events << 2 | all packed << 1 | x and polarity packed), uint64 first time,
then

    times     nibbles (step 0-14, count); count 15 = uint16 behind it; step 15 = 4 bits of a longer step, lowest first
    all packed: y, x (11 bits each) and polarity, four events in three uint32; else
    y         uint16 (y << 5 | count); count 31 = uint16 behind it
    x and polarity packed: 12 bits each, four events in three uint16; else
    x         uint16 (x << 5 | mask), mask bit 4 = also x+1, ..., bit 0 = also x+5; the last mask may say too much
    polarity  uint8 (p << 7 | count); count 127 = uint16 behind it
"""

from __future__ import annotations

import numpy as np
from numba import njit

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.codec_base import Buffer, as_bytes
from event_sam3d_ros.events.events import Events

LIMIT = 65535
_HEADER_BYTES = 12


def decode_ecf(chunk: Buffer) -> Events:
    """Events of one chunk; DecodeError (``truncated_chunk``, ``corrupt_chunk``) for bytes that are none."""
    data = as_bytes(chunk, 1)
    if data.size < _HEADER_BYTES:
        raise DecodeError(f"chunk of {data.size} bytes is cut off inside its header", reason="truncated_chunk")
    size = int.from_bytes(data[:4].tobytes(), "little") >> 2
    if size > LIMIT:
        raise DecodeError(f"chunk says that it has {size} events, more than {LIMIT}", reason="corrupt_chunk")
    good, t, x, y, p = _decode(data, size)
    if not good:
        raise DecodeError(f"chunk of {data.size} bytes ends before its {size} events do", reason="truncated_chunk")
    return Events(t, x, y, p)


@njit(cache=True, nogil=True)
def _word16(data, i):  # type: ignore[no-untyped-def]
    return np.int64(data[i]) | np.int64(data[i + 1]) << 8


@njit(cache=True, nogil=True)
def _word32(data, i):  # type: ignore[no-untyped-def]
    return _word16(data, i) | _word16(data, i + 2) << 16


@njit(cache=True, nogil=True)
def _decode(data, size):  # type: ignore[no-untyped-def]
    # Groups of four and masks of five may write a little behind the last event.
    t, x = np.empty(size, np.int64), np.empty(size + 5, np.uint16)
    y, p = np.empty(size + 5, np.uint16), np.empty(size + 5, np.uint8)
    position = _decode_times(data, t)
    if position >= 0:
        if data[0] & 2:
            position = _decode_all(data, position, size, x, y, p)
        else:
            position = _decode_rows(data, position, size, y)
            if position >= 0 and data[0] & 1:
                position = _decode_columns_and_polarities(data, position, size, x, p)
            elif position >= 0:
                position = _decode_columns(data, position, size, x)
                if position >= 0:
                    position = _decode_polarities(data, position, size, p)
    return position >= 0, t, x[:size], y[:size], p[:size]


# Each part gives the position behind it, or -1 where the data end too early.


@njit(cache=True, nogil=True)
def _decode_times(data, t):  # type: ignore[no-untyped-def]
    time = _word32(data, 4) | _word32(data, 8) << 32
    position = _HEADER_BYTES
    n = 0
    while n < t.size:
        long_step, shift = np.int64(0), 0
        while position < data.size and data[position] >> 4 == 15:
            if shift < 64:
                long_step |= np.int64(data[position] & 15) << shift
            shift, position = shift + 4, position + 1
        if position >= data.size:
            return -1
        time += long_step + (data[position] >> 4)
        count, position = np.int64(data[position] & 15), position + 1
        if count == 15:
            if position + 2 > data.size:
                return -1
            count, position = _word16(data, position), position + 2
        for _ in range(min(count, t.size - n)):
            t[n] = time
            n += 1
    return position


@njit(cache=True, nogil=True)
def _decode_rows(data, position, size, y):  # type: ignore[no-untyped-def]
    n = 0
    while n < size:
        if position + 2 > data.size:
            return -1
        word, position = _word16(data, position), position + 2
        count = word & 31
        if count == 31:
            if position + 2 > data.size:
                return -1
            count, position = _word16(data, position), position + 2
        for _ in range(min(count, size - n)):
            y[n] = word >> 5
            n += 1
    return position


@njit(cache=True, nogil=True)
def _decode_columns(data, position, size, x):  # type: ignore[no-untyped-def]
    n = 0
    while n < size:
        if position + 2 > data.size:
            return -1
        word, position = _word16(data, position), position + 2
        x[n] = word >> 5
        n += 1
        for k in range(5):
            if word >> 4 - k & 1:
                x[n] = (word >> 5) + k + 1
                n += 1
    return position


@njit(cache=True, nogil=True)
def _decode_polarities(data, position, size, p):  # type: ignore[no-untyped-def]
    n = 0
    while n < size:
        if position >= data.size:
            return -1
        byte, position = np.int64(data[position]), position + 1
        count = byte & 127
        if count == 127:
            if position + 2 > data.size:
                return -1
            count, position = _word16(data, position), position + 2
        for _ in range(min(count, size - n)):
            p[n] = byte >> 7
            n += 1
    return position


@njit(cache=True, nogil=True)
def _decode_columns_and_polarities(data, position, size, x, p):  # type: ignore[no-untyped-def]
    if position + (size + 3) // 4 * 6 > data.size:
        return -1
    for n in range(0, size, 4):
        first, second, third = _word16(data, position), _word16(data, position + 2), _word16(data, position + 4)
        position += 6
        packed = (
            first >> 4,
            first & 0xF | second >> 8 << 4,
            second & 0xFF | third >> 12 << 8,
            third & 0xFFF,
        )
        for k in range(4):
            x[n + k], p[n + k] = packed[k] >> 1, packed[k] & 1
    return position


@njit(cache=True, nogil=True)
def _decode_all(data, position, size, x, y, p):  # type: ignore[no-untyped-def]
    if position + (size + 3) // 4 * 12 > data.size:
        return -1
    for n in range(0, size, 4):
        first, second, third = _word32(data, position), _word32(data, position + 4), _word32(data, position + 8)
        position += 12
        packed = (
            first >> 8,
            first & 0xFF | second >> 16 << 8,
            second & 0xFFFF | third >> 24 << 16,
            third & 0xFFFFFF,
        )
        for k in range(4):
            x[n + k], y[n + k], p[n + k] = packed[k] >> 1 & 0x7FF, packed[k] >> 12 & 0x7FF, packed[k] & 1
    return position
