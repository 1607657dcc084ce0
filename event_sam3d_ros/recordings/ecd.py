"""Recordings as a folder of text files and pictures: the layout of the Event Camera Dataset (Mueggler et al. 2017).

    events.txt (or events_chunk.txt)   t x y p          seconds, pixels, 0 or 1; by ascending time
    images.txt                         t path           seconds, path from the folder
    calib.txt                          fx fy cx cy k1 k2 p1 p2 k3
    masks/<name of the image>.png      optional label image of that frame, 0 = no object

The camera poses of groundtruth.txt have no use here and are left alone. Stamps of images are taken as they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.samples import Calibration, EventChunk, Frame, Sample

EVENT_FILES = ("events.txt", "events_chunk.txt")
PACKET_US = 4000
FRAME_ID = "camera_optical_frame"
_BLOCK_LINES = 100_000
_NS = 1_000_000_000


class EcdFolder:
    """A recording in the layout above. Memory: one block of 100,000 lines and one picture at a time.

    Times below one second are moved on by exactly one second (``time_offset_ns``), for a ROS stamp of 0 means "not set"
    and the window of the first frame begins before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._event_file = self._find_events()
        self._images = self._read_images()
        self._coefficients = self._read_calibration()
        first = self._read_image(0)
        self.width, self.height = first.shape[1], first.shape[0]
        self.time_offset_ns = _NS if self._images[0][0] < _NS else 0
        self.start_ns = self._images[0][0] + self.time_offset_ns
        self.end_ns = self._images[-1][0] + self.time_offset_ns
        self.image_count = len(self._images)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder looks like this layout, complete or not."""
        return any((path / name).is_file() for name in (*EVENT_FILES, "images.txt", "calib.txt"))

    def samples(self) -> Iterator[Sample]:
        """All samples by ascending receive time. RecordingError names file and line of what can't be used."""
        return heapq.merge(self._frames(), self._event_chunks(), key=lambda sample: sample.receive_ns)

    def _frames(self) -> Iterator[Sample]:
        for index, (time_ns, image_path) in enumerate(self._images):
            stamp = time_ns + self.time_offset_ns
            yield self._calibration(stamp)
            yield Frame("image", stamp, stamp, FRAME_ID, self._read_image(index))
            mask_path = self.path / "masks" / image_path.name
            if mask_path.is_file():
                yield Frame("mask", stamp, stamp, FRAME_ID, self._read_mask(mask_path))

    def _event_chunks(self) -> Iterator[Sample]:
        """Packets of 4 ms. An event packet is received with its last event."""
        pending = Events.empty()
        for block in self._event_blocks():
            pending = concatenate([pending, block])
            packet = pending.t // PACKET_US
            cuts = np.flatnonzero(np.diff(packet)) + 1
            for begin, end in zip([0, *cuts[:-1]], cuts, strict=False):
                yield self._chunk(pending[int(begin) : int(end)])
            pending = pending[int(cuts[-1]) :] if len(cuts) else pending
        if len(pending):
            yield self._chunk(pending)

    def _chunk(self, events: Events) -> EventChunk:
        first, last = int(events.t[0]) * 1000, int(events.t[-1]) * 1000
        return EventChunk(first, last, FRAME_ID, self.width, self.height, events)

    def _event_blocks(self) -> Iterator[Events]:
        previous = -1
        with self._event_file.open(errors="replace") as file:
            number = 1
            while lines := list(islice(file, _BLOCK_LINES)):
                columns = _parse_events(lines, number, self._event_file)
                self._check_events(columns, previous, number)
                seconds, x, y, p = columns.T
                t = np.rint(seconds * 1e6).astype(np.int64) + self.time_offset_ns // 1000
                yield Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8))
                previous = seconds[-1]
                number += len(lines)

    def _check_events(self, columns: NDArray[np.float64], previous: float, number: int) -> None:
        seconds, x, y, p = columns.T
        where = self._event_file
        whole = (x == np.floor(x)) & (y == np.floor(y))
        inside = whole & (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        _refuse(~inside, number, where, f"the pixel is outside the {self.width}x{self.height} images")
        _refuse((p != 0) & (p != 1), number, where, "the polarity is neither 0 nor 1")
        _refuse(~np.isfinite(seconds) | (seconds < 0), number, where, "the time is not a number of seconds from 0 on")
        _refuse(np.diff(seconds, prepend=previous) < 0, number, where, "the time runs backwards")

    def _calibration(self, stamp_ns: int) -> Calibration:
        fx, fy, cx, cy = self._coefficients[:4]
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return Calibration(stamp_ns, stamp_ns, FRAME_ID, self.width, self.height, K, self._coefficients[4:])

    def _find_events(self) -> Path:
        for name in EVENT_FILES:
            if (self.path / name).is_file():
                return self.path / name
        raise _error(f"{self.path} has no {EVENT_FILES[0]} (lines of 't x y p')", "missing_file")

    def _read_images(self) -> list[tuple[int, Path]]:
        """Times in ns and paths, as images.txt lists them."""
        file = self._existing("images.txt", "lines of 'seconds path'")
        images: list[tuple[int, Path]] = []
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            columns = line.split()
            if not columns:
                continue
            try:
                seconds, name = columns
                images.append((round(float(seconds) * 1e6) * 1000, self.path / name))
            except ValueError:
                raise _error(f"{file}:{number}: expected 'seconds path', found {line!r}", "bad_columns") from None
            if len(images) > 1 and images[-1][0] <= images[-2][0]:
                raise _error(f"{file}:{number}: the time does not go forward", "backward_time")
        if not images:
            raise _error(f"{file} lists no image, so the sensor's size is unknown", "no_images")
        return images

    def _read_calibration(self) -> NDArray[np.float64]:
        wanted = "one line 'fx fy cx cy k1 k2 p1 p2 k3'"
        file = self._existing("calib.txt", wanted)
        try:
            values = np.array([float(word) for word in file.read_text(errors="replace").split()])
        except ValueError:
            values = np.empty(0)
        if len(values) != 9 or not np.isfinite(values).all() or (values[:2] <= 0).any():
            raise _error(f"{file}:1: expected {wanted} with positive focal lengths", "bad_columns")
        return values

    def _read_image(self, index: int) -> NDArray[np.uint8]:
        path = self._images[index][1]
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if image is None or image.dtype != np.uint8:
            problem = "is missing" if not path.is_file() else "is not an 8-bit picture"
            raise _error(f"{self.path / 'images.txt'}: {path} {problem}", "bad_image")
        if index and image.shape[:2] != (self.height, self.width):
            raise _error(f"{path} is not {self.width}x{self.height} like the first image", "size_mismatch")
        return np.ascontiguousarray(image if image.ndim == 2 else image[..., 2::-1], dtype=np.uint8)

    def _read_mask(self, path: Path) -> NDArray[np.generic]:
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if mask is None or mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16):
            raise _error(f"{path} is not a label image (one channel, 8 or 16 bit, 0 = no object)", "bad_mask")
        if mask.shape != (self.height, self.width):
            raise _error(f"{path} is not {self.width}x{self.height} like the images", "size_mismatch")
        return mask

    def _existing(self, name: str, content: str) -> Path:
        if not (self.path / name).is_file():
            raise _error(f"{self.path} has no {name} ({content})", "missing_file")
        return self.path / name


def _parse_events(lines: list[str], number: int, file: Path) -> NDArray[np.float64]:
    """(N, 4) float64 of a block that starts at line ``number``; the slow search runs only when the fast one fails."""
    try:
        columns = np.loadtxt(lines, dtype=np.float64, ndmin=2, comments=None)
    except ValueError:
        columns = np.empty((0, 0))
    if columns.shape == (len(lines), 4):
        return columns
    for offset, line in enumerate(lines):
        words = line.split()
        try:
            good = len([float(word) for word in words]) == 4
        except ValueError:
            good = False
        if not good:
            raise _error(f"{file}:{number + offset}: expected 't x y p', found {line.strip()[:60]!r}", "bad_columns")
    raise _error(f"{file}:{number}: the columns can't be read as 't x y p'", "bad_columns")


def _refuse(bad: NDArray[np.bool_], number: int, file: Path, problem: str) -> None:
    if bad.any():
        raise _error(f"{file}:{number + int(np.argmax(bad))}: {problem}", "bad_event")


def _error(message: str, reason: str) -> RecordingError:
    return RecordingError(message, reason=reason)
