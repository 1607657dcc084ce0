"""AEDAT 2.0, as jAER and v2e write it: lines that begin with '#', then big-endian address and time, 4 bytes each.

Addresses (iniVation's documentation of file formats, "AEDAT-2.0"; v2e's aedat2_output.py; jAER's DVS128.java): DAVIS
cameras have x in bits 12 to 21, y in bits 22 to 30, the polarity in bit 11; bit 10 marks special events, bit 31 samples
of the frame sensor (and of the inertial unit), neither of which is read. The DVS640 has the polarity in bit 0, x from
bit 1, y from bit 11; the DVS128 the polarity in bit 0, where 0 is ON, x in bits 1 to 7, y in bits 8 to 14, and bit 15
set at its input's edges. The origin is the lower right corner, so that both axes are turned round here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.event_file import BLOCK_BYTES, Block, EventFile, Unwrapped32, is_text

MAGIC = b"#!AER-DAT2.0"
_ROW = np.dtype([("address", ">u4"), ("t", ">u4")])
_LARGE = (640, 480)
_SMALL = ((240, 180), (346, 260))
# Chips by what the names of jAER's classes for them begin with: size, and layout of the address.
_CHIPS = {
    "davis240": ((240, 180), "davis"),
    "davis346": ((346, 260), "davis"),
    "davis640": (_LARGE, "davis"),
    "dvs640": (_LARGE, "dvs640"),
    "dvs128": ((128, 128), "dvs128"),
}


class Aedat2File(EventFile):
    """Polarity events of a DAVIS, a DVS640 or a DVS128, which the header names; else the addresses tell a DAVIS240 or
    DAVIS346 from a DVS640."""

    encoding = "aedat2"

    def __init__(self, path: Path) -> None:
        text = b""
        with path.open("rb") as file:
            while (line := file.readline(4096)).startswith(b"#") and is_text(line):
                text += line
            self._begin = file.tell() - len(line)
        self._size, self._layout = self._find_chip(path, text.decode())
        super().__init__(path)

    @staticmethod
    def _find_chip(path: Path, header: str) -> tuple[tuple[int, int] | None, str]:
        """Size and layout of the chip whose class the header names; no size where it names none."""
        match = re.search(r"^#\s*AEChip:\s*(\S+)", header, re.MULTILINE)
        if match is None:
            return None, "davis"
        name = match[1].rpartition(".")[2]
        for begin, (size, layout) in _CHIPS.items():
            if name.lower().startswith(begin):
                return size, layout
        raise RecordingError(
            f"{path} is of the chip {name}; {', '.join(_CHIPS)} can be read", reason="unknown_encoding"
        )

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    def _guessed_size(self) -> tuple[int, int]:
        """Addresses of a DAVIS leave bits 0 to 9 empty, those of the large sensor have x there."""
        x = y = 0
        for rows in self._rows():
            address = rows["address"].astype(np.int64)
            address = address[_is_polarity(address)]
            if np.any(address & 0x3FF):
                self._layout = "dvs640"
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
        if self._layout == "dvs640":
            x, y, p = address >> 1 & 0x3FF, address >> 11 & 0x3FF, address & 1
        elif self._layout == "dvs128":
            keep = address >> 15 == 0
            t, address = t[keep], address[keep]
            x, y, p = address >> 1 & 0x7F, address >> 8 & 0x7F, 1 - (address & 1)
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
