"""What has been evaluated of one recording: a line of JSON for each frame, appended when the frame is done.

A process that is killed leaves whole lines and perhaps a torn last one, which the next run cuts off. So nothing is lost
but the frame that was being worked on, and nothing is there twice.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.evaluation.poses import CameraPose
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction

Row = dict[str, Any]

_LOCK_WAIT_S = 5.0


class FrameLog:
    """The file of one recording, open for one evaluation at a time; ConfigurationError if another one has it.

    First `earlier` has to be read to its end, then `append` may follow.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115  # closed by close()
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise ConfigurationError(
                        f"another evaluation is writing {path}: wait for it, or give another --out", reason="in_use"
                    ) from error
            time.sleep(0.1)

    def __enter__(self) -> FrameLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def earlier(self) -> Iterator[Row]:
        """The rows of earlier runs; what is torn behind them is cut off when they end."""
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                row = _parsed(line)
                if row is None:
                    break
                end += len(line)
                yield row
        if end < self._path.stat().st_size:
            self._file.truncate(end)

    def clear(self) -> None:
        """Begin anew."""
        self._file.truncate(0)

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row. OSError, which names the file, if there is no room: what is there stays."""
        line = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) or 0 :]
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self._path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, which it becomes at the end of the block; nothing is left of it after an
    error. OSError, which names ``path``, if there is no room."""
    partial = path.with_suffix(".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def read_rows(path: Path) -> Iterator[Row]:
    """All whole rows of a file, which may not be there yet."""
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                row = _parsed(line)
                if row is None:
                    return
                yield row


def _parsed(line: bytes) -> Row | None:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def object_row(found: Reconstruction, label: int, metrics: Mapping[str, float]) -> Row:
    """A reconstruction without its points: all that the tables and the next frame need. ``label``: of its mask."""
    return {
        "id": found.id,
        "label": label,
        "score": float(found.score),
        "metric": bool(found.metric),
        "position": [float(value) for value in found.position],
        "quaternion": [float(value) for value in found.quaternion],
        "size": [float(value) for value in found.size],
        "occupancy": base64.b64encode(zlib.compress(np.packbits(found.occupancy).tobytes(), 1)).decode(),
        "metrics": dict(metrics),
    }


def reconstruction_of_row(row: Row) -> Reconstruction:
    """What `object_row` was made of, without points, and with the mask's label as its id."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(row["occupancy"])), np.uint8))
    return Reconstruction(
        id=row["label"],
        score=row["score"],
        metric=row["metric"],
        occupancy=bits.astype(bool).reshape((OCCUPANCY_RESOLUTION,) * 3),
        points=np.zeros((0, 3), np.float32),
        colors=np.zeros((0, 3), np.uint8),
        position=np.array(row["position"]),
        quaternion=np.array(row["quaternion"]),
        size=np.array(row["size"]),
    )


def pose_row(pose: CameraPose | None) -> list[float] | None:
    """x y z qx qy qz qw."""
    return None if pose is None else [*map(float, pose.position), *map(float, pose.orientation)]


def pose_of_row(stamp_ns: int, values: list[float] | None) -> CameraPose | None:
    """The other way."""
    return None if values is None else CameraPose(stamp_ns, np.array(values[:3]), np.array(values[3:]))
