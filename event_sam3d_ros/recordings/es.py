"""Event Stream files (.es) of version 2 with DVS events.

Format (neuromorphicsystems/event_stream): "Event Stream", three bytes of version, one of type, width and height as
little-endian uint16. An event is one byte with the time since the event before (7 bits, microseconds) and the polarity
(bit 0), then x and y as uint16. Where an event begins, the byte 0xFF adds 127 us and 0xFE does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numba import njit

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.event_file import BLOCK_BYTES, Block, EventFile

MAGIC = b"Event Stream"
_HEADER_BYTES = 20
_DVS = 1
_TYPES = {0: "generic", 2: "ATIS", 3: "asynchronous modular display", 4: "colour"}
_RESET, _OVERFLOW, _OVERFLOW_US = 0xFE, 0xFF, 127


class EsFile(EventFile):
    """A DVS stream; other types and versions are a RecordingError."""

    encoding = "es"

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            raise RecordingError(f"{path} is cut: it ends inside its header", reason="broken_recording")
        if header[12] != 2 or header[15] != _DVS:
            kind = _TYPES.get(header[15], f"unknown ({header[15]})") if header[15] != _DVS else "DVS"
            raise RecordingError(
                f"{path} is an Event Stream of version {header[12]}, type {kind}; version 2, type DVS can be read",
                reason="unknown_encoding",
            )
        self._size: list[int] = np.frombuffer(header, "<u2", 2, 16).tolist()
        super().__init__(path)

    def _said_size(self) -> tuple[int, int] | None:
        width, height = self._size
        return (width, height) if width and height else None

    def _blocks(self) -> Iterator[Block]:
        size = self.path.stat().st_size
        state = np.zeros(len(STATE), np.int64)
        with self.path.open("rb") as file:
            file.seek(_HEADER_BYTES)
            while data := file.read(BLOCK_BYTES):
                yield Events(*decode_es(np.frombuffer(data, np.uint8), state)), None
                self.progress = file.tell() / size
        if state[0]:
            self.warn("ends in the middle of an event: it is cut; what is whole was read")


# What carries over from block to block: bytes of the current event that were read, and what they said.
STATE = ("phase", "t", "x", "y", "p")


@njit(cache=True, nogil=True)
def decode_es(data, state):  # type: ignore[no-untyped-def]
    """t, x, y, p of the events that end in ``data``, uint8 bytes behind the header; ``state`` is brought up to date."""
    phase, time, column, row, polarity = state[0], state[1], state[2], state[3], state[4]
    capacity = (data.size + 4) // 5
    t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
    y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
    n = 0
    for i in range(data.size):
        byte = np.int64(data[i])
        if phase == 0:
            if byte == _OVERFLOW:
                time += _OVERFLOW_US
            elif byte != _RESET:
                time, polarity, phase = time + (byte >> 1), byte & 1, 1
        elif phase == 1:
            column, phase = byte, 2
        elif phase == 2:
            column, phase = column | byte << 8, 3
        elif phase == 3:
            row, phase = byte, 4
        else:
            row, phase = row | byte << 8, 0
            t[n], x[n], y[n], p[n] = time, column, row, polarity
            n += 1
    state[0], state[1], state[2], state[3], state[4] = phase, time, column, row, polarity
    return t[:n], x[:n], y[:n], p[:n]
