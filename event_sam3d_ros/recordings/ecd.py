"""Recordings as a folder of text files and pictures: the layout of the Event Camera Dataset (Mueggler et al. 2017).

    events.txt (or events_chunk.txt)   t x y p          seconds, pixels, 0 or 1; by ascending time
    images.txt                         t path           seconds, path from the folder
    calib.txt                          fx fy cx cy k1 k2 p1 p2 k3
    groundtruth.txt                    optional t x y z qx qy qz qw: the camera's poses
    masks/<name of the image>.png      optional label image of that frame, 0 = no object

Stamps of images are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.event_file import FRAME_ID, MAX_US, Block, EventFile
from event_sam3d_ros.recordings.samples import Calibration, Frame, Pose, Sample
from event_sam3d_ros.recordings.text import parse_events, refuse

EVENT_FILES = ("events.txt", "events_chunk.txt")
_BLOCK_LINES = 100_000


class EcdFolder(EventFile):
    """A recording in the layout above. Memory: one block of 100,000 lines and one picture at a time."""

    encoding = "text"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._event_file = self._find_events()
        self._images = self._read_images()
        self._coefficients = self._read_calibration()
        first = self._read_image(0)
        self._size = (first.shape[1], first.shape[0])
        super().__init__(path)
        self.image_count = len(self._images)

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    def _first_us(self) -> int:
        return self._images[0][0] // 1000

    @cached_property
    def end_ns(self) -> int:
        """Stamp of the last image."""
        return self.stamp_ns(self._images[-1][0] // 1000)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder looks like this layout, complete or not."""
        return any((path / name).is_file() for name in (*EVENT_FILES, "images.txt", "calib.txt"))

    def _others(self) -> list[Iterator[Sample]]:
        return [self._frames(), self._poses()]

    def _frames(self) -> Iterator[Sample]:
        for index, (time_ns, image_path) in enumerate(self._images):
            stamp = self.stamp_ns(time_ns // 1000)
            yield self._calibration(stamp)
            yield Frame("image", stamp, stamp, FRAME_ID, self._read_image(index))
            mask_path = self.path / "masks" / image_path.name
            if mask_path.is_file():
                yield Frame("mask", stamp, stamp, FRAME_ID, self._read_mask(mask_path))

    def _poses(self) -> Iterator[Sample]:
        file = self.path / "groundtruth.txt"
        if not file.is_file():
            return
        with file.open(errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    values = np.array([float(word) for word in line.split()])
                except ValueError:
                    values = np.empty(0)
                if len(values) != 8 or not np.isfinite(values).all():
                    wanted = "'t x y z qx qy qz qw'"
                    raise _error(f"{file}:{number}: expected {wanted}, found {line.strip()[:60]!r}", "bad_columns")
                stamp = self.stamp_ns(round(values[0] * 1e6))
                yield Pose(stamp, stamp, FRAME_ID, values[1:4], values[4:])

    def _blocks(self) -> Iterator[Block]:
        previous = -1.0
        size = self._event_file.stat().st_size
        with self._event_file.open("rb") as file:
            number = 1
            while lines := [line.decode(errors="replace") for line in islice(file, _BLOCK_LINES)]:
                columns = parse_events(lines, number, self._event_file)
                self._check_events(columns, previous, number)
                seconds, x, y, p = columns.T
                t = np.rint(seconds * 1e6).astype(np.int64)
                yield Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)), None
                previous = seconds[-1] if len(seconds) else previous
                number += len(lines)
                self.progress = file.tell() / size

    def _check_events(self, columns: NDArray[np.float64], previous: float, number: int) -> None:
        seconds, x, y, p = columns.T
        where = self._event_file
        whole = (x == np.floor(x)) & (y == np.floor(y))
        inside = whole & (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        refuse(~inside, number, where, f"the pixel is outside the {self.width}x{self.height} images")
        refuse((p != 0) & (p != 1), number, where, "the polarity is neither 0 nor 1")
        possible = (seconds >= 0) & (seconds * 1e6 < MAX_US)
        refuse(~possible, number, where, "the time is not a number of seconds from 0 on, as a ROS stamp has them")
        refuse(np.diff(seconds, prepend=previous) < 0, number, where, "the time runs backwards")

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
            except (ValueError, OverflowError):
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


def _error(message: str, reason: str) -> RecordingError:
    return RecordingError(message, reason=reason)
