"""Prophesee's files: RAW (the sensor's words behind a text header) and DAT (events of 8 bytes).

Formats: Prophesee's documentation, "RAW File Format" and "DAT File Format"; OpenEB (psee_raw_file_header.cpp for what
old headers mean, dat_tools.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from event_sam3d_ros.errors import DecodeError, RecordingError, excerpt
from event_sam3d_ros.events.codecs import Decoder, Evt21Decoder, make_decoder
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.event_file import BLOCK_BYTES, FEW, Block, EventFile, Unwrapped32, is_text

_LONGEST_LINE = 4096
_RAW_KEYS = {"evt", "format", "plugin_name", "system_id", "integrator_name", "serial_number", "camera_integrator_name"}
_WORD_BYTES = {"evt2": 4, "evt21": 8, "evt3": 2}
# Where a block is damaged, pieces of so many bytes are judged on their own. In one that has what no sensor sends, and
# whose time moves by more than a second, the time is damage too.
_PIECE_BYTES = 512
_JUMP_US = 1_000_000
_MANY = 64
_VERSIONS = {"2.0": "evt2", "2": "evt2", "2.1": "evt21", "3.0": "evt3", "3": "evt3"}
# Sensors by system_ID, which is what headers without geometry have (OpenEB: device_system_id.h).
_SENSOR_OF_SYSTEM = {
    **dict.fromkeys((0x15, 0x17, 0x18, 0x19, 0x1B, 0x1C, 0x1D, 0x21, 0x22, 0x23, 0x24, 0x28, 0x29), (640, 480)),
    **dict.fromkeys((0x1A, 0x1E, 0x1F, 0x20, 0x27, 0x2E, 0x30, 0x31, 0x32, 0x3A, 0x42), (1280, 720)),
    **dict.fromkeys((0x3B, 0x40), (320, 320)),
}


def read_header(file: BinaryIO) -> dict[str, str]:
    """Reads the lines "% key value" with the file at its begin, and leaves it where the data begin. Keys in lower case.

    The header ends with "% end", or, in old files, before the first line that is none.
    """
    header: dict[str, str] = {}
    while True:
        begin = file.tell()
        line = file.readline(_LONGEST_LINE)
        if not line.startswith(b"% ") or not is_text(line):
            file.seek(begin)
            return header
        key, _, value = line[2:].decode().strip().partition(" ")
        if key == "end":
            return header
        header[key.lower()] = value.strip()


def is_raw(header: dict[str, str]) -> bool:
    """Whether a header is that of a RAW file; that of a DAT file has other keys."""
    return not _RAW_KEYS.isdisjoint(header)


class RawFile(EventFile):
    """RAW with EVT2, EVT2.1 or EVT3. ``header``: keys and values of the text header."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.header = read_header(file)
            self._begin = file.tell()
        self.encoding = self._find_encoding(path)
        super().__init__(path)

    def _find_encoding(self, path: Path) -> str:
        name = self._format().get("name", "").lower()
        if name in _WORD_BYTES:
            return name
        found = _VERSIONS.get(self.header.get("evt", ""))
        if name or not found:
            said = excerpt(name or self.header.get("evt", ""))
            of_header = f"says {said!r} for the encoding" if said else "does not say the encoding (format or evt)"
            raise RecordingError(
                f"{path}: the header {of_header}; {', '.join(_WORD_BYTES)} can be read",
                reason="unknown_encoding",
            )
        return found

    def _format(self) -> dict[str, str]:
        """The entry "EVT3;height=720;width=1280" as a dictionary; its first word is ``name``."""
        name, *options = self.header.get("format", "").split(";")
        return {"name": name.strip(), **dict(option.strip().partition("=")[::2] for option in options)}

    def _guessed_size(self) -> tuple[int, int]:
        system = _SENSOR_OF_SYSTEM.get(_integer(self.header.get("system_id", "")))
        return system or super()._guessed_size()

    def _said_size(self) -> tuple[int, int] | None:
        options = self._format()
        said = [_integer(options.get(key, "")) for key in ("width", "height")]
        if not all(said):
            match = re.fullmatch(r"(\d+)x(\d+)", self.header.get("geometry", ""))
            said = [int(number) for number in match.groups()] if match else []
        return (said[0], said[1]) if len(said) == 2 and all(said) else None

    def _blocks(self) -> Iterator[Block]:
        decode = _Pieces(self)
        size = self.path.stat().st_size
        word = _WORD_BYTES[self.encoding]
        with self.path.open("rb") as file:
            file.seek(self._begin)
            while data := file.read(BLOCK_BYTES):
                whole = len(data) // word * word
                yield from decode(data[:whole], file.tell() - len(data))
                self.progress = file.tell() / size
                if whole < len(data):
                    self.warn(f"ends in the middle of a word of {word} bytes: it is cut; what is whole was read")
        for name in ("unknown_words", "out_of_range_events"):
            self.losses.counts[name] += decode.decoder.counters[name]

    def make_decoder(self) -> Decoder:
        """A decoder of what the file has, at its begin."""
        order = self._format().get("endianness") or self.header.get("endianness")
        if self.encoding == "evt21" and order in ("legacy", "little"):
            return Evt21Decoder(self.width, self.height, legacy=order == "legacy")
        return make_decoder(self.encoding, self.width, self.height)


class _Pieces:
    """Decodes one block of a RAW file after another, and goes on behind what is damaged."""

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self.decoder = file.make_decoder()
        # Time of the event before, until so much is damaged behind it that it tells nothing; pieces of that.
        self._last: int | None = None
        self._refused = 0

    def __call__(self, data: bytes, position: int) -> Iterator[Block]:
        """Events of the block at a byte of the file; where it makes no sense as a whole, those of its sound pieces."""
        try:
            yield self._take(data, data)
        except DecodeError:
            for begin in range(0, len(data), _PIECE_BYTES):
                try:
                    # A time that is put off shows in the events behind it, which may be those of the next piece.
                    yield self._take(data[begin : begin + _PIECE_BYTES], data[begin : begin + 2 * _PIECE_BYTES])
                except DecodeError as error:
                    place = f"is damaged at byte {position + begin}, or is not {self._file.encoding}"
                    self._file.leave_out(f"{place}: {error}")
                    self.decoder.resynchronise()
                    self._refused += 1
                    if self._refused >= _MANY:
                        self._last = None

    def _take(self, data: bytes, looked_at: bytes) -> Block:
        """Events of data; DecodeError where they, or what is looked at, make no sense."""
        trial = self.decoder.copy()
        events = trial.decode(data)
        if trial.counters["unknown_words"] > self.decoder.counters["unknown_words"]:
            t = events.t if data is looked_at else self.decoder.copy().decode(looked_at).t
            if self._jumps(t):
                raise DecodeError("the time jumps beside words of no type that is defined", reason="corrupt_packet")
        self.decoder, self._refused = trial, 0
        self._last = int(events.t[-1]) if len(events) else self._last
        return events, trial.triggers

    def _jumps(self, t: np.ndarray) -> bool:
        times = t if self._last is None else np.append(t, self._last)
        return bool(len(times)) and int(np.ptp(times)) > _JUMP_US


class DatFile(EventFile):
    """DAT of change detection events (type 0 or 12) or triggers (type 14)."""

    encoding = "dat"
    _ROW = np.dtype([("t", "<u4"), ("data", "<u4")])
    _CHANGES, _TRIGGERS = (0, 12), 14

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.header = read_header(file)
            kind = file.read(2)
            self._begin = file.tell()
        if len(kind) < 2:
            raise RecordingError(f"{path} is cut: it ends with its header", reason="broken_recording")
        if kind[0] not in (*self._CHANGES, self._TRIGGERS) or kind[1] != self._ROW.itemsize:
            raise RecordingError(
                f"{path} has events of type and size 0x{kind.hex()}; types 0, 12 and 14 of 8 bytes can be read",
                reason="unknown_encoding",
            )
        self._kind = kind[0]
        # Version 1 has 9, 8 and 4 bits for x, y and polarity, version 2 has 14, 14 and 4.
        self._bits = (9, 8) if self.header.get("version") == "1" else (14, 14)
        super().__init__(path)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a header is followed by a type and a size that can be read."""
        with path.open("rb") as file:
            kind = file.read(2) if read_header(file) else b""
        return len(kind) == 2 and kind[0] in (*cls._CHANGES, cls._TRIGGERS) and kind[1] == cls._ROW.itemsize

    def _said_size(self) -> tuple[int, int] | None:
        width, height = (_integer(self.header.get(key, "")) for key in ("width", "height"))
        return (width, height) if width and height else None

    def _blocks(self) -> Iterator[Block]:
        size = self.path.stat().st_size
        unwrapped = Unwrapped32()
        with self.path.open("rb") as file:
            file.seek(self._begin)
            while data := file.read(BLOCK_BYTES):
                rows = self._sound(
                    np.frombuffer(data, self._ROW, len(data) // self._ROW.itemsize), file.tell() - len(data)
                )
                yield self._block(unwrapped(rows["t"]), rows["data"])
                self.progress = file.tell() / size
                if len(data) % self._ROW.itemsize:
                    self.warn("ends in the middle of an event: it is cut; what is whole was read")

    def _sound(self, rows: np.ndarray, position: int) -> np.ndarray:
        """The rows of a block without those outside the sensor and without damaged pieces, whose times would put all
        later ones off."""
        x, y = self._pixels(rows["data"])
        outside = (x >= self.width) | (y >= self.height)
        if self._kind == self._TRIGGERS or not outside.any():
            return rows
        keep = np.ones(len(rows), np.bool_)
        step = _PIECE_BYTES // self._ROW.itemsize
        for begin in range(0, len(rows), step):
            piece = slice(begin, begin + step)
            out, t = outside[piece], rows["t"][piece].astype(np.int64)
            count = int(np.count_nonzero(out))
            if count == 0:
                continue
            # Differences from the first time, modulo the wrap.
            spread = (t[~out] - t[~out][:1] + (1 << 31)) % (1 << 32)
            if (count > FEW and 2 * count > len(out)) or (len(spread) and np.ptp(spread) > _JUMP_US):
                keep[piece] = False
                place = f"is damaged at byte {position + begin * self._ROW.itemsize}"
                self.leave_out(f"{place}: {count} of {len(out)} events are outside {self.width}x{self.height}")
            else:
                keep[piece] = ~out
                self.losses.counts["out_of_range_events"] += count
        return rows[keep]

    def _pixels(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_x, of_y = self._bits
        return data & (1 << of_x) - 1, data >> of_x & (1 << of_y) - 1

    def _block(self, t: np.ndarray, data: np.ndarray) -> Block:
        if self._kind == self._TRIGGERS:
            return Events.empty(), Triggers(t, (data >> 8 & 0x1F).astype(np.uint8), (data & 1).astype(np.uint8))
        x, y = self._pixels(data)
        p = data >> sum(self._bits) & 1
        return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)), None


def _integer(text: str) -> int:
    """The number that ``text`` is, else 0."""
    return int(text) if text.strip().isdecimal() else 0
