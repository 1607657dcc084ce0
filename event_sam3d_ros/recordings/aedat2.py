"""AEDAT 2.0, as jAER and v2e write it: lines that begin with '#', then big-endian address and time, 4 bytes each.

Addresses (iniVation's documentation of file formats, "AEDAT-2.0"; v2e's aedat2_output.py): DAVIS cameras have x in bits
12 to 21, y in bits 22 to 30, the polarity in bit 11; bit 10 marks special events, bit 31 samples of the frame sensor
(and of the inertial unit), neither of which is read. The 640x480 camera has the polarity in bit 0, x from bit 1, y from
bit 11. The origin is the lower right corner, so that both axes are turned round here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.event_file import BLOCK_BYTES, Block, EventFile, Unwrapped32, is_text

MAGIC = b"#!AER-DAT2.0"
_ROW = np.dtype([("address", ">u4"), ("t", ">u4")])
_LARGE = (640, 480)
_SMALL = ((240, 180), (346, 260))
_CHIPS = {"davis240": (240, 180), "davis346": (346, 260), "dvs640": _LARGE, "davis640": _LARGE}


class Aedat2File(EventFile):
    """Polarity events of a DAVIS240, DAVIS346 or 640x480 camera, which the header names, or else the addresses tell."""

    encoding = "aedat2"

    def __init__(self, path: Path) -> None:
        text = b""
        with path.open("rb") as file:
            while (line := file.readline(4096)).startswith(b"#") and is_text(line):
                text += line
            self._begin = file.tell() - len(line)
        self._header = text.decode().lower()
        super().__init__(path)

    def _said_size(self) -> tuple[int, int] | None:
        return next((size for name, size in _CHIPS.items() if name in self._header), None)

    def _guessed_size(self) -> tuple[int, int]:
        """Addresses of a DAVIS leave bits 0 to 9 empty, those of the large sensor have x there."""
        x = y = 0
        for rows in self._rows():
            address = rows["address"].astype(np.int64)
            address = address[_is_polarity(address)]
            if np.any(address & 0x3FF):
                return _LARGE
            if len(address):
                x, y = max(x, int((address >> 12 & 0x3FF).max())), max(y, int((address >> 22 & 0x1FF).max()))
        return next((size for size in _SMALL if x < size[0] and y < size[1]), _SMALL[-1])

    def _rows(self) -> Iterator[np.ndarray]:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(self._begin)
            while data := file.read(BLOCK_BYTES):
                yield np.frombuffer(data, _ROW, len(data) // _ROW.itemsize)
                self.progress = file.tell() / size
                if len(data) % _ROW.itemsize:
                    self.warn("ends in the middle of an event: it is cut; what is whole was read")

    def _blocks(self) -> Iterator[Block]:
        unwrapped = Unwrapped32()
        for rows in self._rows():
            yield self._events(unwrapped(rows["t"]), rows["address"].astype(np.int64)), None

    def _events(self, t: np.ndarray, address: np.ndarray) -> Events:
        if (self.width, self.height) == _LARGE:
            x, y, p = address >> 1 & 0x3FF, address >> 11 & 0x3FF, address & 1
        else:
            keep = _is_polarity(address)
            t, address = t[keep], address[keep]
            x, y, p = address >> 12 & 0x3FF, address >> 22 & 0x1FF, address >> 11 & 1
        # A pixel beyond the sensor becomes a huge number here, which counts as outside.
        column, row = (self.width - 1 - x).astype(np.uint16), (self.height - 1 - y).astype(np.uint16)
        return Events(t, column, row, p.astype(np.uint8))


def _is_polarity(address: np.ndarray) -> np.ndarray:
    """Where an address of a DAVIS is neither a sample (bit 31) nor a special event (bit 10)."""
    return (address >> 31 | address >> 10 & 1) == 0
