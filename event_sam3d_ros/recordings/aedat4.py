"""AEDAT 4, the files of DV and dv-processing, read through dv-processing in processes of its own."""

from __future__ import annotations

import importlib.util
import mmap
import os
import pickle
import re
import select
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.event_file import FRAME_ID, Block, EventFile
from event_sam3d_ros.recordings.samples import Frame, ImuChunk, Sample

MAGIC = b"#!AER-DAT4.0"
_BEGIN = 14  # the magic line
_MOST_STREAMS = 1000
_COMPRESSIONS = {bytes.fromhex("04224d18"): "lz4", bytes.fromhex("28b52ffd"): "zstd"}  # by their marks
_MARK = re.compile(b"|".join(map(re.escape, _COMPRESSIONS)), re.DOTALL)
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
        self._left_out = 0  # packets
        is_cut = self._is_damaged()
        if is_cut:
            self._readable = self._repaired()
        (self._info,) = self._read("info")
        super().__init__(path)
        if is_cut and not self._left_out:
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

    def _whole(self, stream: str) -> Iterator[Any]:
        """As `_read`, up to a packet that dv-processing can't read."""
        try:
            yield from self._dv(stream)
        except _DvError as error:
            problem = f"{self.path} is damaged: of its {stream} the rest can't be read ({_shortened(error)})"
            self.losses.leave_out(
                _kind_of_loss(stream == "events"), RecordingError(problem, reason="corrupt_recording")
            )

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
        said = _shortened(error).replace(str(self._readable), str(self.path))
        return RecordingError(f"{self.path} can't be read as an AEDAT 4 ({said})", reason="broken_recording")

    def _is_damaged(self) -> bool:
        """Whether packets can't be decompressed, of which dv-processing does not come back, or the table of contents is
        not where the header has it. All of the file is read for that."""
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                place = _table_position(data[:4096])
                _header(file)
                if place == 0:
                    return False
                (table,) = struct.unpack_from("<q", data, place)
                last = file.tell()
                for _, begin, end in _sound_packets(data, last, table):
                    self._left_out += begin < 0
                    last = end
                return self._left_out > 0 or last != (table if table >= 0 else len(data))
        except struct.error:
            return False  # dv-processing says what it lacks

    def _repaired(self) -> Path:
        """A copy of the packets that are whole, without a table of contents: dv-processing then finds them itself."""
        copy = self._beside("copy")
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = _table_position(data[:4096])
            _header(file)
            table = struct.unpack_from("<q", data, place)[0]
            with copy.open("wb") as new:
                new.write(data[: file.tell()])
                for _, begin, end in _sound_packets(data, file.tell(), table):
                    if begin >= 0:
                        new.write(data[begin:end])
                new.seek(place)
                new.write(struct.pack("<q", -1))
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
        has_events = "events" in self._info["streams"]
        if self._left_out:
            error = RecordingError(f"{self.path} has packets that can't be decompressed", reason="corrupt_recording")
            self.losses.leave_out(_kind_of_loss(has_events), error, self._left_out)
        if not has_events:
            return
        begin, end = self._info["span"]
        for columns in self._whole("events"):
            events = Events(*columns)
            if len(events):
                yield events, None
                self.progress = min(1.0, max(0.0, (int(events.t[-1]) - begin) / max(1, end - begin)))

    def _others(self) -> list[Iterator[Sample]]:
        readers = {"frames": self._frames, "imu": self._imu, "triggers": self._triggers}
        return [read() for name, read in readers.items() if name in self._info["streams"]]

    def _frames(self) -> Iterator[Sample]:
        for t, exposure_us, pixels in self._whole("frames"):
            pixels = pixels if pixels.ndim == 2 else pixels[..., 2::-1]  # BGR(A) -> RGB
            stamp = self.stamp_ns(t)
            yield Frame("image", stamp, stamp, FRAME_ID, np.ascontiguousarray(pixels), exposure_us * 1000)

    def _imu(self) -> Iterator[Sample]:
        for rows in self._whole("imu"):
            for row in rows:
                stamp = self.stamp_ns(int(row[0]))
                yield ImuChunk(stamp, stamp, FRAME_ID, row[:1].astype(np.int64), row[None, 1:4], row[None, 4:7])

    def _triggers(self) -> Iterator[Sample]:
        for batch in self._whole("triggers"):
            edges = [(t, *_EDGES[kind]) for t, kind in batch if kind in _EDGES]
            t, number, p = (np.array(column) for column in zip(*edges, strict=True)) if edges else ((),) * 3
            triggers = Triggers(np.array(t, np.int64), np.array(number, np.uint8), np.array(p, np.uint8))
            yield from self._cut([], triggers)


def _kind_of_loss(of_events: bool) -> str:
    return "corrupt_packets" if of_events else "corrupt_messages"


def _shortened(error: _DvError) -> str:
    return textwrap.shorten(str(error).split("Error info:")[-1], 200, placeholder=" ...")


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


def _sound_packets(data: mmap.mmap, position: int, table: int) -> Iterator[tuple[int, int, int]]:
    """Stream, begin and end of each packet (int32 stream, int32 size, content) up to the table of contents, or to the
    end of the file where that is negative. Begin is -1 for one that can't be decompressed, or is none; behind that the
    next one is looked for."""
    size = table if 0 <= table <= len(data) else len(data)
    while position + 8 <= size:
        stream, length = struct.unpack_from("<ii", data, position)
        begin, end = position, position + 8 + length
        is_packet = 0 <= stream < _MOST_STREAMS and 0 < length and end <= len(data)
        if is_packet and _is_whole(data[begin + 8 : end]):
            yield stream, begin, end
            position = end
            continue
        # Where bytes are missing, the next packet begins inside this one.
        if is_packet and (end == size or _begins_packet(data, end)):
            position = end
        else:
            found = _MARK.search(data, begin + 9)
            position = found.start() - 8 if found else size
        if is_packet or position < size:
            yield stream, -1, begin


def _begins_packet(data: mmap.mmap, position: int) -> bool:
    return data[position + 8 : position + 12] in _COMPRESSIONS


def _is_whole(content: bytes) -> bool:
    """Whether a packet's content can be decompressed, and has the size that it says."""
    decompress = DECOMPRESSORS[_COMPRESSIONS.get(content[:4], "")]
    try:
        plain = decompress(content, 0)
        return struct.unpack_from("<I", plain)[0] + 4 == len(plain)
    except Exception:  # whatever the decompressors say
        return False


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
