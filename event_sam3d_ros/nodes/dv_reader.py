"""The process in which dv_camera_node reads an iniVation camera, an AEDAT4 file or a dv network stream.

A process of its own, because dv-processing 2.0.4 keeps Python's lock while it waits, and does so for ever at a damaged
file or a server that speaks something else: the node has to be able to end that and go on. It needs no ROS.

It takes its settings as JSON in the first argument and writes records to its standard output: a line of JSON with
``kind`` and ``size``, then ``size`` bytes.

| kind    | other entries                      | bytes                                                                 |
| ------- | ---------------------------------- | --------------------------------------------------------------------- |
| source  | name, width, height, frames        | none; once, when the source is open                                   |
| events  | t_us of the first one, time_base   | payload in the encoding `libcaer`                                     |
| frame   | t_us, height, width, channels      | uint8 grey or BGR                                                     |
| imu     |                                    | float64 [N,7]: us, acceleration in m/s^2, angular velocity in rad/s   |
| alive   |                                    | none; at least twice a second while nothing comes                     |
| problem | reason, sentence                   | none; something was left out                                          |
| end     | reason, sentence                   | none; the last record                                                 |

Times are Unix microseconds: of the camera's clock for frames (mid-exposure), events and IMU alike.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from event_sam3d_ros.errors import InputError, RecordingError
from event_sam3d_ros.events.codecs import make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.aedat4_process import IMU_FIELDS, IMU_UNITS, end_with_parent

_ALIVE_S = 0.3
_IDLE_S = 0.001


@dataclass(frozen=True)
class _Item:
    """What a source gave at once: ``end_us`` is the time of its newest part, when a live camera would have sent it."""

    kind: str
    end_us: int
    content: Any


class _Output:
    """Writes records, and says that the process is alive where none are to be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._written_s = file, time.monotonic()

    def write(self, kind: str, payload: bytes = b"", **entries: Any) -> None:
        header = json.dumps({"kind": kind, "size": len(payload), **entries})
        self._file.write(header.encode() + b"\n" + payload)
        self._file.flush()
        self._written_s = time.monotonic()

    def sleep_until(self, due_s: float) -> None:
        """Sleep until a time of the monotonic clock."""
        while (left_s := due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _ALIVE_S))
            self.alive()

    def alive(self) -> None:
        if time.monotonic() - self._written_s > _ALIVE_S:
            self.write("alive")


def _take_from(reader: Any) -> list[Callable[[], _Item | None]]:
    """Functions that take the next item of each of a reader's streams, None if there is none."""

    def events() -> _Item | None:
        store = reader.getNextEventBatch()
        if store is None or store.isEmpty():
            return None
        return _Item("events", store.getHighestTime(), store.numpy())

    def frame() -> _Item | None:
        found = reader.getNextFrame()
        return None if found is None else _Item("frame", found.timestamp, np.ascontiguousarray(found.image))

    def imu() -> _Item | None:
        found = reader.getNextImuBatch()
        if not found:
            return None
        rows = np.array([[m.timestamp, *(getattr(m, name) for name in IMU_FIELDS)] for m in found], np.float64)
        return _Item("imu", int(rows[-1, 0]), rows * IMU_UNITS)

    available = (
        (events, reader.isEventStreamAvailable()),
        (frame, reader.isFrameStreamAvailable()),
        (imu, reader.isImuStreamAvailable()),
    )
    return [take for take, there in available if there]


def _live(readers: list[Any], output: _Output) -> Iterator[_Item]:
    """Items of cameras or network streams as they come, until one of them ends."""
    takes = [take for reader in readers for take in _take_from(reader)]
    while all(reader.isRunning() for reader in readers):
        items = [item for take in takes if (item := take()) is not None]
        yield from items
        if not items:
            output.alive()
            time.sleep(_IDLE_S)


def _recorded(reader: Any) -> Iterator[_Item]:
    """Items of a recording, by time."""
    takes = _take_from(reader)
    waiting = {take: item for take in takes if (item := take()) is not None}
    while waiting:
        take = min(waiting, key=lambda take: waiting[take].end_us)
        yield waiting.pop(take)
        if (item := take()) is not None:
            waiting[take] = item


def _open(settings: dict[str, Any]) -> list[Any]:
    """dv-processing's readers of the source. Raises RecordingError, with the reason that belongs to the source."""
    try:
        import dv_processing as dv
    except ImportError as error:
        raise RecordingError(
            f"dv_camera_node needs dv-processing, which {sys.executable} does not find ({error}): "
            "pip install dv-processing",
            reason="missing_package",
        ) from error
    if settings["source"] == "file":
        if not Path(settings["file"]).is_file():
            raise RecordingError(
                f"there is no file {settings['file']!r}: give the path of an AEDAT4 file", reason="no_recording"
            )
        return _opened(
            lambda: [dv.io.MonoCameraRecording(settings["file"])],
            "bad_recording",
            f"{settings['file']} can't be opened as AEDAT4, it is damaged or something else",
        )
    if settings["source"] == "network":
        address, ports = settings["address"], settings["ports"]
        return _opened(
            lambda: [dv.io.NetworkReader(address, port) for port in ports],
            "no_connection",
            f"no dv network stream at {address} (an IP address), port {', '.join(map(str, ports))}",
        )
    if not dv.io.camera.discover():
        raise RecordingError(
            "no iniVation camera is connected: plug one in, and see that this user may access it (udev rules)",
            reason="no_camera",
        )
    named = [settings["camera"]] if settings["camera"] else []
    return _opened(
        lambda: [dv.io.camera.open(*named)],
        "no_camera",
        f"the camera {settings['camera'] or 'that is connected'} can't be opened",
    )


def _opened(make: Callable[[], list[Any]], reason: str, sentence: str) -> list[Any]:
    try:
        return make()
    except (RuntimeError, IndexError) as error:
        raise RecordingError(f"{sentence} ({_first_words(error)})", reason=reason) from error


def _first_words(error: Exception) -> str:
    """What dv-processing says, without its source file, line and stack trace."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(("/", "Stacktrace", " "))]
    return (lines or [type(error).__name__])[0].split(" [system")[0][:200]


class _Writer:
    """Turns items into records."""

    def __init__(self, output: _Output, event_size: tuple[int, int]) -> None:
        self._output = output
        self._encoder = make_encoder("libcaer", *event_size)

    def write(self, item: _Item, shift_us: int) -> None:
        """Write an item with its times moved by ``shift_us``."""
        if item.kind == "imu":
            rows = item.content + (shift_us, 0, 0, 0, 0, 0, 0)
            self._output.write("imu", rows.tobytes())
        elif item.kind == "frame":
            height, width = item.content.shape[:2]
            channels = item.content.shape[2] if item.content.ndim == 3 else 1
            shape = {"height": height, "width": width, "channels": channels}
            self._output.write("frame", item.content.tobytes(), t_us=item.end_us + shift_us, **shape)
        else:
            self._write_events(item.content, shift_us)

    def _write_events(self, found: Any, shift_us: int) -> None:
        events = Events(
            found["timestamp"] + np.int64(shift_us),
            found["x"].astype(np.uint16),
            found["y"].astype(np.uint16),
            found["polarity"].astype(np.uint8),
        )
        try:
            payload, time_base_ns = self._encoder.encode(events)
        except InputError as error:
            self._output.write("problem", reason=error.reason, sentence=f"a batch of events was dropped: {error}")
            return
        self._output.write("events", payload, t_us=int(events.t[0]), time_base=time_base_ns)


def _size(readers: list[Any]) -> tuple[int, int]:
    """Pixels of the source that sends events, else frames; raises RecordingError where it sends neither."""
    for reader in readers:
        size = reader.getEventResolution() or reader.getFrameResolution()
        if size is not None:
            return size
    raise RecordingError("the source has neither events nor frames", reason="no_events")


def read(settings: dict[str, Any], output: _Output) -> None:
    """Write everything that the source gives. Raises RecordingError where it can't be opened, and when it ends."""
    readers = _open(settings)
    width, height = _size(readers)
    frames = any(reader.isFrameStreamAvailable() for reader in readers)
    output.write("source", name=readers[0].getCameraName(), width=width, height=height, frames=frames)
    writer = _Writer(output, (width, height))
    if settings["source"] != "file":
        for item in _live(readers, output):
            writer.write(item, 0)
        raise RecordingError(f"the {settings['source']} stopped sending", reason="stream_ended")
    for _ in itertools.count() if settings["loop"] else range(1):
        _play(readers[0], writer, output, settings)
        readers[0].resetSequentialRead()
    raise RecordingError("the recording is over", reason="end_of_recording")


def _play(reader: Any, writer: _Writer, output: _Output, settings: dict[str, Any]) -> None:
    """One time through a recording, at its rate."""
    begin_s, begin_us, shift_us = time.monotonic(), 0, 0
    for number, item in enumerate(_recorded(reader)):
        if number == 0:
            begin_us = item.end_us
            shift_us = time.time_ns() // 1000 - begin_us if settings["restamp"] else 0
        output.sleep_until(begin_s + (item.end_us - begin_us) / 1e6 / settings["rate"])
        writer.write(item, shift_us)


def main() -> None:
    """Run the process."""
    end_with_parent()
    # Whatever the libraries print goes to standard error: standard output carries records alone.
    with os.fdopen(os.dup(1), "wb") as file:
        os.dup2(2, 1)
        output = _Output(file)
        try:
            read(json.loads(sys.argv[1]), output)
        except RecordingError as error:
            output.write("end", reason=error.reason, sentence=str(error))
        except BrokenPipeError:
            os._exit(1)  # the node is gone
        except Exception as error:
            output.write("end", reason="source_failed", sentence=f"dv-processing failed: {_first_words(error)}")
    os._exit(0)  # the destructors of dv-processing wait for peers


if __name__ == "__main__":
    main()
