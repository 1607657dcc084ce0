"""AEDAT 4, the files of DV and dv-processing, read through dv-processing."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
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
# dv-processing's types of triggers that are edges at an input (1: rising, 2: falling, 3: pulse) or of the generator
# (4: rising, 5: falling): number of the input, and the edge's polarity. The others mark exposures and resets.
_EDGES = {1: (0, 1), 2: (0, 0), 3: (0, 1), 4: (1, 1), 5: (1, 0)}


class Aedat4File(EventFile):
    """Events, pictures, inertial measurements and triggers of a file's first camera. Times are microseconds of the Unix
    epoch. A file whose recording was interrupted, or that was cut, is read as far as it goes."""

    encoding = "aedat4"

    def __init__(self, path: Path) -> None:
        try:
            import dv_processing
        except ImportError as error:
            raise RecordingError(
                f"{path} needs the package dv-processing: pip install dv-processing", reason="missing_package"
            ) from error
        self.path = path
        self._dv = dv_processing
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._readable = path
        try:
            reader = self._open()
        except RuntimeError as error:
            self._readable = self._repaired(error)
            reader = self._open()
        self._has = {
            "events": reader.isEventStreamAvailable(),
            "frames": reader.isFrameStreamAvailable(),
            "imu": reader.isImuStreamAvailable(),
            "triggers": reader.isTriggerStreamAvailable(),
        }
        size = reader.getEventResolution() if self._has["events"] else None
        size = size or (reader.getFrameResolution() if self._has["frames"] else None)
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._span = reader.getTimeRange()
        super().__init__(path)
        if self._folder is not None:
            self.warn("is cut: its table of contents is missing; what is whole was read")
        self.image_count = sum(1 for _ in self._frames(lambda frame: frame)) if self._has["frames"] else 0

    def _open(self) -> Any:
        return self._dv.io.MonoCameraRecording(str(self._readable))

    def _repaired(self, error: RuntimeError) -> Path:
        """A copy that does not promise a table of contents: dv-processing then finds the packets itself."""
        said = str(error).split("Stacktrace")[0]
        problem = RecordingError(
            f"{self.path} can't be read as an AEDAT 4 ({' '.join(said.split())[:200]})", reason="broken_recording"
        )
        if "FileDataTable" not in said:
            raise problem from error
        try:
            with self.path.open("rb") as file:
                place, end = _table_position(file.read(4096)), _end_of_packets(file)
        except struct.error:
            raise problem from error
        if place == 0:
            raise problem from error
        self._folder = tempfile.TemporaryDirectory(prefix="event_sam3d_")
        copy = Path(self._folder.name) / self.path.name
        shutil.copyfile(self.path, copy)
        with copy.open("r+b") as file:
            file.seek(place)
            file.write(struct.pack("<q", -1))
            file.truncate(end)
        try:
            self._dv.io.MonoCameraRecording(str(copy))
        except RuntimeError:
            raise problem from error
        return copy

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    def _first_us(self) -> int:
        return int(self._span[0])

    def _blocks(self) -> Iterator[Block]:
        reader = self._open()
        begin, end = self._span
        while self._has["events"] and (batch := reader.getNextEventBatch()) is not None:
            rows = batch.numpy()
            if not len(rows):
                continue
            t = np.ascontiguousarray(rows["timestamp"])
            x, y = rows["x"].astype(np.uint16), rows["y"].astype(np.uint16)
            yield Events(t, x, y, (rows["polarity"] > 0).astype(np.uint8)), None
            self.progress = min(1.0, max(0.0, (int(t[-1]) - begin) / max(1, end - begin)))

    def _others(self) -> list[Iterator[Sample]]:
        readers = {"frames": self._frames(self._frame), "imu": self._imu(), "triggers": self._triggers()}
        return [samples for name, samples in readers.items() if self._has[name]]

    def _frames(self, make: Any) -> Iterator[Any]:
        reader = self._open()
        while (frame := reader.getNextFrame()) is not None:
            yield make(frame)

    def _frame(self, frame: Any) -> Sample:
        pixels = np.asarray(frame.image)
        pixels = pixels if pixels.ndim == 2 else pixels[..., 2::-1]  # BGR(A) -> RGB
        stamp = self.stamp_ns(int(frame.timestamp))
        return Frame("image", stamp, stamp, FRAME_ID, np.ascontiguousarray(pixels))

    def _imu(self) -> Iterator[Sample]:
        reader = self._open()
        while (batch := reader.getNextImuBatch()) is not None:
            for row in batch:
                stamp = self.stamp_ns(int(row.timestamp))
                acceleration = np.array([row.getAccelerations()], np.float64)
                turning = np.array([row.getAngularVelocities()], np.float64)
                yield ImuChunk(stamp, stamp, FRAME_ID, np.array([row.timestamp], np.int64), acceleration, turning)

    def _triggers(self) -> Iterator[Sample]:
        reader = self._open()
        while (batch := reader.getNextTriggerBatch()) is not None:
            edges = [(int(row.timestamp), *_EDGES[int(row.type)]) for row in batch if int(row.type) in _EDGES]
            t, number, p = (np.array(column) for column in zip(*edges, strict=True)) if edges else ((),) * 3
            triggers = Triggers(np.array(t, np.int64), np.array(number, np.uint8), np.array(p, np.uint8))
            yield from self._cut(Events.empty(), triggers)


def _table_position(header: bytes) -> int:
    """Where the header, a flatbuffer with its size before it, keeps the position of the table of contents (its second
    field); 0 if it has none. struct.error for a header that is too short."""
    base = _BEGIN + 4
    table = base + struct.unpack_from("<I", header, base)[0]
    fields = table - struct.unpack_from("<i", header, table)[0]
    place = int(table + struct.unpack_from("<H", header, fields + 6)[0])
    struct.unpack_from("<q", header, place)
    return place if place > table else 0


def _end_of_packets(file: BinaryIO) -> int:
    """Position behind the last packet (int32 stream, int32 size, data) that is whole. dv-processing does not come back
    from sizes that are none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(_BEGIN)
    position = _BEGIN + 4 + struct.unpack("<I", file.read(4))[0]
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return int(position)
        stream, length = struct.unpack("<ii", header)
        if not 0 <= stream < _MOST_STREAMS or length <= 0 or position + 8 + length > size:
            return int(position)
        position += 8 + length
