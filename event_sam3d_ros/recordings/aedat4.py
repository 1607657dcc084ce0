"""AEDAT 4, the files of DV and dv-processing, read through dv-processing in processes of its own."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.event_file import FRAME_ID, Block, EventFile
from event_sam3d_ros.recordings.samples import Frame, ImuChunk, Sample

MAGIC = b"#!AER-DAT4.0"
_BEGIN = 14  # the magic line
_MOST_STREAMS = 1000
# In the header's XML: the number of the first stream of frames.
_FRAMES = re.compile(rb'outInfo/(\d+)/">(?:(?!<node).)*?"typeIdentifier"[^>]*>FRME<', re.DOTALL)
# Seconds without an answer after which dv-processing is given up. A batch takes milliseconds; to open a large file
# without a table of contents takes long.
PATIENCE_S = 60.0
# dv-processing's types of triggers that are edges at an input (1: rising, 2: falling, 3: pulse) or of the generator
# (4: rising, 5: falling): number of the input, and the edge's polarity. The others mark exposures and resets.
_EDGES = {1: (0, 1), 2: (0, 0), 3: (0, 1), 4: (1, 1), 5: (1, 0)}


class _DvError(Exception):
    """What dv-processing says about a file."""


class Aedat4File(EventFile):
    """Events, pictures, inertial measurements and triggers of a file's first camera. Times are microseconds of the Unix
    epoch. A file whose recording was interrupted, or that was cut, is read as far as it goes."""

    encoding = "aedat4"

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("dv_processing") is None:
            raise RecordingError(
                f"{path} needs the package dv-processing: pip install dv-processing", reason="missing_package"
            )
        self.path = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._readable = path
        if path.suffix != ".aedat4":  # dv-processing goes by the name
            self._readable = self._beside("link")
            self._readable.symlink_to(path.resolve())
        is_cut = False
        try:
            (self._info,) = self._dv("info")
        except _DvError as error:
            self._readable, is_cut = self._repaired(error), True
            (self._info,) = self._read("info")
        super().__init__(path)
        if is_cut:
            self.warn("is cut: its table of contents is missing; what is whole was read")
        self.image_count = self._count_frames() if "frames" in self._info["streams"] else 0

    def _beside(self, name: str) -> Path:
        """Where a file for dv-processing may be, which goes with this object."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="event_sam3d_")
        return Path(self._folder.name) / f"{name}.aedat4"

    def _read(self, stream: str) -> Iterator[Any]:
        """What `aedat4_process` gives of a stream; RecordingError for what dv-processing can't read."""
        try:
            yield from self._dv(stream)
        except _DvError as error:
            raise self._broken(error) from error

    def _dv(self, stream: str) -> Iterator[Any]:
        command = [sys.executable, "-m", "event_sam3d_ros.recordings.aedat4_process", str(self._readable), stream]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            try:
                while True:
                    (size,) = struct.unpack("<Q", _receive(process.stdout.fileno(), 8))
                    kind, content = pickle.loads(_receive(process.stdout.fileno(), size))
                    if kind == "end":
                        return
                    if kind == "problem":
                        raise _DvError(content)
                    yield content
            finally:
                process.kill()

    def _broken(self, error: _DvError) -> RecordingError:
        said = textwrap.shorten(str(error).split("Error info:")[-1], 200, placeholder=" ...")
        return RecordingError(f"{self.path} can't be read as an AEDAT 4 ({said})", reason="broken_recording")

    def _repaired(self, error: _DvError) -> Path:
        """A copy that does not promise a table of contents: dv-processing then finds the packets itself."""
        if "FileDataTable" not in str(error):
            raise self._broken(error) from error
        try:
            with self.path.open("rb") as file:
                place = _table_position(file.read(4096))
                _header(file)
                end = max((position for _, position in _packets(file)), default=file.tell())
        except struct.error:
            raise self._broken(error) from error
        if place == 0:
            raise self._broken(error) from error
        copy = self._beside("copy")
        shutil.copyfile(self.path, copy)
        with copy.open("r+b") as file:
            file.seek(place)
            file.write(struct.pack("<q", -1))
            file.truncate(end)
        return copy

    def _count_frames(self) -> int:
        """Packets of the stream of frames, each of which has one; dv-processing would decode them all."""
        with self._readable.open("rb") as file:
            place = _table_position(file.read(4096))
            match = _FRAMES.search(_header(file))
            begin = file.tell()
            file.seek(place)
            (end,) = struct.unpack("<q", file.read(8)) if place else (-1,)
            file.seek(begin)
            return sum(stream == int(match[1]) for stream, at in _packets(file) if end < 0 or at <= end) if match else 0

    def _said_size(self) -> tuple[int, int] | None:
        size: tuple[int, int] | None = self._info["size"]
        return size

    def _first_us(self) -> int:
        return int(self._info["span"][0])

    def _blocks(self) -> Iterator[Block]:
        if "events" not in self._info["streams"]:
            return
        begin, end = self._info["span"]
        for columns in self._read("events"):
            events = Events(*columns)
            if len(events):
                yield events, None
                self.progress = min(1.0, max(0.0, (int(events.t[-1]) - begin) / max(1, end - begin)))

    def _others(self) -> list[Iterator[Sample]]:
        readers = {"frames": self._frames, "imu": self._imu, "triggers": self._triggers}
        return [read() for name, read in readers.items() if name in self._info["streams"]]

    def _frames(self) -> Iterator[Sample]:
        for t, exposure_us, pixels in self._read("frames"):
            pixels = pixels if pixels.ndim == 2 else pixels[..., 2::-1]  # BGR(A) -> RGB
            stamp = self.stamp_ns(t)
            yield Frame("image", stamp, stamp, FRAME_ID, np.ascontiguousarray(pixels), exposure_us * 1000)

    def _imu(self) -> Iterator[Sample]:
        for rows in self._read("imu"):
            for row in rows:
                stamp = self.stamp_ns(int(row[0]))
                yield ImuChunk(stamp, stamp, FRAME_ID, row[:1].astype(np.int64), row[None, 1:4], row[None, 4:7])

    def _triggers(self) -> Iterator[Sample]:
        for batch in self._read("triggers"):
            edges = [(t, *_EDGES[kind]) for t, kind in batch if kind in _EDGES]
            t, number, p = (np.array(column) for column in zip(*edges, strict=True)) if edges else ((),) * 3
            triggers = Triggers(np.array(t, np.int64), np.array(number, np.uint8), np.array(p, np.uint8))
            yield from self._cut([], triggers)


def _receive(pipe: int, size: int) -> bytes:
    """So many bytes from the process; _DvError if it ends before, or says nothing for long."""
    data = bytearray()
    while len(data) < size:
        if not select.select([pipe], [], [], PATIENCE_S)[0]:
            raise _DvError(f"dv-processing did not come back for {PATIENCE_S:g} s: a packet is damaged")
        part = os.read(pipe, size - len(data))
        if not part:
            raise _DvError("dv-processing broke down: a packet is damaged")
        data += part
    return bytes(data)


def _table_position(header: bytes) -> int:
    """Where the header, a flatbuffer with its size before it, keeps the position of the table of contents (its second
    field); 0 if it has none. struct.error for a header that is too short."""
    base = _BEGIN + 4
    table = base + struct.unpack_from("<I", header, base)[0]
    fields = table - struct.unpack_from("<i", header, table)[0]
    place = int(table + struct.unpack_from("<H", header, fields + 6)[0])
    struct.unpack_from("<q", header, place)
    return place if place > table else 0


def _header(file: BinaryIO) -> bytes:
    """The header, and ``file`` behind it. struct.error for one that is too short."""
    file.seek(_BEGIN)
    return file.read(struct.unpack("<I", file.read(4))[0])


def _packets(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Stream of each packet (int32 stream, int32 size, data) that is whole, and the position behind it, from where
    ``file`` is. dv-processing does not come back from sizes that are none."""
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return
        stream, length = struct.unpack("<ii", header)
        position += 8 + length
        if not 0 <= stream < _MOST_STREAMS or length <= 0 or position > size:
            return
        yield stream, position
