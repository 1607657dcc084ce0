"""The process in which dv-processing reads one stream of an AEDAT 4 file: ``python -m ... FILE STREAM``.

A process of its own, because dv-processing 2.0.4 does not come back from some damaged packets, holds Python's lock
while it goes round, and so can only be ended from outside.

It writes records to its standard output: uint64 size, then so many bytes, a pickled (kind, content):

| stream     | kind     | content                                                                                    |
| ---------- | -------- | ------------------------------------------------------------------------------------------ |
| `info`     | item     | dict: streams (names), size (width, height) or None, span (first and last us)              |
| `events`   | item     | arrays t int64 us, x, y uint16, p uint8                                                    |
| `frames`   | item     | t us (mid-exposure), exposure us (0: unknown), uint8 grey or BGR(A) picture                |
| `imu`      | item     | (N, 7) float64: us, acceleration in m/s^2, angular velocity in rad/s                       |
| `triggers` | item     | list of (t us, type)                                                                       |
| any        | problem  | what dv-processing said; the last record                                                   |
| any        | end      | None; the last record                                                                      |
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

IMU_FIELDS = [f"{sensor}{axis}" for sensor in ("accelerometer", "gyroscope") for axis in "XYZ"]
# AEDAT 4 has g and degrees per second. Standard gravity, where dv-processing's getAccelerations takes 9.81007 m/s^2.
IMU_UNITS = np.array([1.0] + [9.80665] * 3 + [np.pi / 180] * 3)

_PR_SET_PDEATHSIG = 1  # prctl(2)


def _info(reader: Any) -> Iterator[Any]:
    streams = {
        "events": reader.isEventStreamAvailable(),
        "frames": reader.isFrameStreamAvailable(),
        "imu": reader.isImuStreamAvailable(),
        "triggers": reader.isTriggerStreamAvailable(),
    }
    size = reader.getEventResolution() if streams["events"] else None
    size = size or (reader.getFrameResolution() if streams["frames"] else None)
    yield {
        "streams": [name for name, there in streams.items() if there],
        "size": None if size is None else (int(size[0]), int(size[1])),
        "span": tuple(int(time) for time in reader.getTimeRange()),
    }


def _events(reader: Any) -> Iterator[Any]:
    while (batch := reader.getNextEventBatch()) is not None:
        rows = batch.numpy()
        x, y = rows["x"].astype(np.uint16), rows["y"].astype(np.uint16)
        yield np.ascontiguousarray(rows["timestamp"]), x, y, (rows["polarity"] > 0).astype(np.uint8)


def _frames(reader: Any) -> Iterator[Any]:
    while (frame := reader.getNextFrame()) is not None:
        yield int(frame.timestamp), max(0, round(1e6 * frame.exposure.total_seconds())), np.asarray(frame.image)


def _imu(reader: Any) -> Iterator[Any]:
    while (batch := reader.getNextImuBatch()) is not None:
        rows = [[row.timestamp, *(getattr(row, name) for name in IMU_FIELDS)] for row in batch]
        yield np.array(rows, np.float64).reshape(-1, 7) * IMU_UNITS


def _triggers(reader: Any) -> Iterator[Any]:
    while (batch := reader.getNextTriggerBatch()) is not None:
        yield [(int(row.timestamp), int(row.type)) for row in batch]


_STREAMS = {"info": _info, "events": _events, "frames": _frames, "imu": _imu, "triggers": _triggers}


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed: one that hangs would never see its pipe break."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run the process."""
    end_with_parent()
    # Whatever the libraries print goes to standard error: standard output carries records alone.
    with os.fdopen(os.dup(1), "wb") as file:
        os.dup2(2, 1)

        def write(kind: str, content: Any) -> None:
            record = pickle.dumps((kind, content))
            file.write(struct.pack("<Q", len(record)) + record)
            file.flush()

        try:
            import dv_processing

            path, stream = sys.argv[1:]
            for item in _STREAMS[stream](dv_processing.io.MonoCameraRecording(path)):
                write("item", item)
            write("end", None)
        except BrokenPipeError:
            os._exit(1)  # nobody reads any more
        except Exception as error:
            write("problem", str(error).split("Stacktrace")[0])
    os._exit(0)  # the destructors of dv-processing may not come back either


if __name__ == "__main__":
    main()
