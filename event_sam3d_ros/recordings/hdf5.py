"""HDF5 files of Prophesee, DSEC and MVSEC, and those that `hdf5_writer` writes (DSEC's layout with more in it)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from event_sam3d_ros.errors import DecodeError, RecordingError
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.ecf import decode_ecf
from event_sam3d_ros.recordings.event_file import BLOCK_ROWS, FRAME_ID, Block, EventFile, events_from_columns
from event_sam3d_ros.recordings.samples import (
    Calibration,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Role,
    Sample,
    TriggerChunk,
)

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
_ECF = 0x8ECF
_DSEC_SIZE, _MVSEC_SIZE = (640, 480), (346, 260)
_T = TypeVar("_T")


def open_hdf5(path: Path) -> EventFile:
    """The recording in an HDF5 file, by what is in it; RecordingError names what is there instead."""
    with _opened(path) as file:
        if "CD/events" in file:
            kind: type[EventFile] = PropheseeHdf5
        elif all(f"events/{name}" in file for name in "txyp"):
            kind = Hdf5File
        elif "davis/left/events" in file or "davis/right/events" in file:
            kind = MvsecFile
        else:
            found: list[str] = []
            file.visit(found.append)
            raise RecordingError(
                f"{path} holds {', '.join(found[:8]) or 'nothing'}; expected CD/events (Prophesee), events/t, x, y, p "
                "(DSEC) or davis/left/events (MVSEC)",
                reason="unknown_recording",
            )
    return kind(path)


class _opened:
    """An HDF5 file for reading; what the library says about damaged files becomes a RecordingError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> h5py.File:
        import h5py

        try:
            self._file = h5py.File(self._path, "r")
        except OSError as error:
            raise self._broken(error) from error
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._file.close()
        # Things of another kind or shape than expected make h5py and numpy raise whatever there is.
        if isinstance(error, Exception) and not isinstance(error, RecordingError):
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> RecordingError:
        return RecordingError(f"{self._path} is damaged or cut: {error}", reason="broken_recording")


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """ValueError for a group of that name."""
    found = file[name]
    if not hasattr(found, "chunks"):
        raise ValueError(f"{name} is a group, not a dataset")
    return found


def _filters(dataset: h5py.Dataset) -> list[int]:
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]


def _check_filters(*datasets: h5py.Dataset) -> None:
    """RecordingError where a compression is missing that the package hdf5plugin brings."""
    import h5py

    def missing() -> list[str]:
        return [
            f"{d.name} (filter {code})" for d in datasets for code in _filters(d) if not h5py.h5z.filter_avail(code)
        ]

    if missing() and importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")
    if names := missing():
        raise RecordingError(
            f"{datasets[0].file.filename}: {', '.join(names)} are compressed in a way that needs the package "
            "hdf5plugin: pip install hdf5plugin",
            reason="missing_package",
        )


def _check_whole(*datasets: h5py.Dataset) -> None:
    """ValueError where parts of a dataset are not in the file, which HDF5 would give as zeros."""
    for dataset in datasets:
        if dataset.chunks is None:
            missing = dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize
        else:
            pieces = zip(dataset.shape, dataset.chunks, strict=True)
            missing = dataset.id.get_num_chunks() != math.prod(-(-size // step) for size, step in pieces)
        if missing:
            raise ValueError(f"{dataset.name} says that it has {len(dataset)} rows, but not all of them are there")


class _Hdf5(EventFile):
    """What files of all layouts have in common: a place that is damaged is left out."""

    def _sound(self, name: str, read: Callable[[], _T], what: str) -> _T | None:
        """What ``read`` gives; None, counted among the losses by ``name``, where a chunk is damaged or events make no
        sense."""
        try:
            return read()
        except (OSError, DecodeError) as error:
            problem = RecordingError(f"{self.path} is damaged, {what}: {error}", reason="corrupt_recording")
        except RecordingError as error:
            if error.reason != "bad_event":
                raise
            problem = error
        self.losses.leave_out(name, problem)
        return None


class PropheseeHdf5(_Hdf5):
    """Prophesee's layout: CD/events of x, y, p, t (usually compressed by ECF), EXT_TRIGGER/events of p, t, id."""

    encoding = "prophesee_hdf5"

    def _said_size(self) -> tuple[int, int] | None:
        with _opened(self.path) as file:
            said = {key: _text(value) for key, value in file.attrs.items()}
        options = dict(part.partition("=")[::2] for part in said.get("format", "").split(";"))
        words = said.get("geometry", f"{options.get('width')}x{options.get('height')}").split("x")
        return (int(words[0]), int(words[1])) if len(words) == 2 and all(w.isdecimal() for w in words) else None

    def _blocks(self) -> Iterator[Block]:
        with _opened(self.path) as file:
            dataset = _dataset(file, "CD/events")
            _check_whole(dataset)
            if not set("txyp") <= set(dataset.dtype.names or ()):
                raise ValueError(f"{dataset.name} has no fields t, x, y and p")
            length = len(dataset)
            packed = _ECF in _filters(dataset)
            if not packed:
                _check_filters(dataset)
            step = dataset.chunks[0] if packed else BLOCK_ROWS
            for begin in range(0, length, step):
                self.progress = begin / length
                read = partial(self._unpacked if packed else self._plain, dataset, begin, begin + step)
                if (events := self._sound("corrupt_packets", read, f"from event {begin} on")) is not None:
                    yield events[: length - begin], None

    def _plain(self, dataset: h5py.Dataset, begin: int, end: int) -> Events:
        return self._of_rows(dataset[begin:end], begin)

    def _unpacked(self, dataset: h5py.Dataset, begin: int, end: int) -> Events:
        """Events of a chunk; one may be stored as it is (the filter is optional)."""
        skipped, data = dataset.id.read_direct_chunk((begin,))
        return self._of_rows(np.frombuffer(data, dataset.dtype), begin) if skipped else decode_ecf(data)

    def _of_rows(self, rows: np.ndarray, begin: int) -> Events:
        where = f"{self.path}, from event {begin} on"
        return events_from_columns(where, rows["t"], rows["x"], rows["y"], rows["p"])

    def _others(self) -> list[Iterator[Sample]]:
        return [self._triggers()]

    def _triggers(self) -> Iterator[Sample]:
        with _opened(self.path) as file:
            if "EXT_TRIGGER/events" not in file:
                return
            dataset = _dataset(file, "EXT_TRIGGER/events")
            _check_whole(dataset)
            for begin in range(0, len(dataset), BLOCK_ROWS):
                rows = dataset[begin : begin + BLOCK_ROWS]
                t = rows["t"].astype(np.int64)
                triggers = Triggers(t, rows["id"].astype(np.uint8), rows["p"].astype(np.uint8))
                yield from self._cut([], triggers)


class MvsecFile(_Hdf5):
    """MVSEC's layout, left camera where there is one: davis/left/events (x, y, t in seconds, p), image_raw with
    image_raw_ts, and imu (acceleration, angular velocity) with imu_ts. The size is that of the pictures."""

    encoding = "mvsec_hdf5"

    def __init__(self, path: Path) -> None:
        with _opened(path) as file:
            self._camera = "davis/left" if "davis/left/events" in file else "davis/right"
            images = file.get(f"{self._camera}/image_raw")
            self._size = _MVSEC_SIZE if images is None else (int(images.shape[2]), int(images.shape[1]))
        super().__init__(path)
        self.geometry_inferred = images is None
        self.image_count = 0 if images is None else int(images.shape[0])

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    def _blocks(self) -> Iterator[Block]:
        with _opened(self.path) as file:
            dataset = _dataset(file, f"{self._camera}/events")
            _check_filters(dataset)
            _check_whole(dataset)
            if dataset.ndim != 2 or dataset.shape[1] != 4:
                raise ValueError(f"{dataset.name} has the shape {dataset.shape}, not four columns")
            for begin in range(0, len(dataset), BLOCK_ROWS):
                self.progress = begin / len(dataset)
                read = partial(self._events, dataset, begin)
                if (events := self._sound("corrupt_packets", read, f"from event {begin} on")) is not None:
                    yield events, None

    def _events(self, dataset: h5py.Dataset, begin: int) -> Events:
        x, y, t, p = dataset[begin : begin + BLOCK_ROWS].T
        return events_from_columns(f"{self.path}, from event {begin} on", t, x, y, p)

    def _others(self) -> list[Iterator[Sample]]:
        return [self._frames(), self._imu()]

    def _frames(self) -> Iterator[Sample]:
        with _opened(self.path) as file:
            for index in range(self.image_count):
                stamp = self.stamp_ns(round(float(file[f"{self._camera}/image_raw_ts"][index]) * 1e6))
                read = partial(file[f"{self._camera}/image_raw"].__getitem__, index)
                if (data := self._sound("corrupt_messages", read, f"picture {index}")) is not None:
                    yield Frame("image", stamp, stamp, FRAME_ID, data)

    def _imu(self) -> Iterator[Sample]:
        with _opened(self.path) as file:
            if f"{self._camera}/imu" not in file:
                return
            values, times = file[f"{self._camera}/imu"], file[f"{self._camera}/imu_ts"]
            for begin in range(len(times)):
                t = np.rint(times[begin : begin + 1] * 1e6).astype(np.int64)
                rows = values[begin : begin + 1].astype(np.float64)
                stamp = self.stamp_ns(int(t[0]))
                yield ImuChunk(stamp, stamp, FRAME_ID, t, rows[:, :3], rows[:, 3:6])


class Hdf5File(_Hdf5):
    """DSEC's layout, alone or with what `hdf5_writer` adds: see there."""

    encoding = "hdf5"

    def __init__(self, path: Path) -> None:
        with _opened(path) as file:
            sizes = [file.attrs.get(key) for key in ("width", "height")]
            self._has_packets = "packets" in file
            # DSEC does not say its size, but nothing else has these two beside the events.
            self._is_dsec = "ms_to_idx" in file and "t_offset" in file
            self._offset_us = int(file["t_offset"][()]) if "t_offset" in file else 0
            images = len(file["frames/image/stamp_ns"]) if "frames/image" in file else 0
            self._size = (int(sizes[0]), int(sizes[1])) if all(size is not None for size in sizes) else None
        super().__init__(path)
        self.image_count = images

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    def _guessed_size(self) -> tuple[int, int]:
        return _DSEC_SIZE if self._is_dsec else super()._guessed_size()

    def _blocks(self) -> Iterator[Block]:
        with _opened(self.path) as file:
            columns = [_dataset(file, f"events/{name}") for name in "txyp"]
            _check_filters(*columns)
            _check_whole(*columns)
            length = len(columns[0])
            for begin in range(0, length, BLOCK_ROWS):
                self.progress = begin / length
                read = partial(self._events, columns, begin, begin + BLOCK_ROWS)
                if (events := self._sound("corrupt_packets", read, f"from event {begin} on")) is not None:
                    yield events, None

    def _events(self, columns: list[h5py.Dataset], begin: int, end: int) -> Events:
        t, x, y, p = (column[begin:end] for column in columns)
        if t.dtype.kind != "f":
            t = t.astype(np.int64) + self._offset_us
        return events_from_columns(f"{self.path}, from event {begin} on", t, x, y, p)

    def _packets(self) -> Iterator[Sample]:
        return self._stored_packets() if self._has_packets else super()._packets()

    def _stored_packets(self) -> Iterator[Sample]:
        with _opened(self.path) as file:
            columns = [_dataset(file, f"events/{name}") for name in "txyp"]
            table = file["packets"]
            _check_whole(*columns, *table.values())
            frame_id = _text(table.attrs["frame_id"])
            length = len(columns[0])
            block, first = Events.empty(), 0
            for number in range(len(table["end"])):
                begin = int(table["end"][number - 1]) if number else 0
                end = int(table["end"][number])
                if not begin < end <= length:
                    raise ValueError(f"packet {number} has the events from {begin} to {end} of {length}")
                self.progress = begin / max(length, 1)
                if end > first + len(block):
                    found = self._ahead(columns, begin, end)
                    if found is None:
                        continue
                    block, first = found, begin
                self.losses.has_events = True
                times = int(table["stamp_ns"][number]), int(table["receive_ns"][number])
                yield EventChunk(*times, frame_id, self.width, self.height, block[begin - first : end - first])

    def _ahead(self, columns: list[h5py.Dataset], begin: int, end: int) -> Events | None:
        """Events of a packet and of some behind it; of the packet alone where those behind it are damaged."""
        try:
            return self._events(columns, begin, max(end, begin + BLOCK_ROWS))
        except (OSError, RecordingError):
            read = partial(self._events, columns, begin, end)
            return self._sound("corrupt_packets", read, f"from event {begin} on")

    def _others(self) -> list[Iterator[Sample]]:
        roles: tuple[Role, ...] = ("image", "mask", "depth")
        return [
            self._calibrations(),
            *(self._frames(role) for role in roles),
            *(self._chunks(name) for name in ("triggers", "imu", "poses")),
        ]

    def _frames(self, role: Role) -> Iterator[Sample]:
        with _opened(self.path) as file:
            if f"frames/{role}" in file:
                table = file[f"frames/{role}"]
                for i in range(len(table["stamp_ns"])):
                    read = partial(table["data"].__getitem__, i)
                    if (data := self._sound("corrupt_messages", read, f"{role} {i}")) is not None:
                        exposure_ns = int(table["exposure_ns"][i]) if "exposure_ns" in table else 0
                        yield Frame(role, *_times(table, i), _text(table.attrs["frame_id"]), data, exposure_ns)

    def _calibrations(self) -> Iterator[Sample]:
        with _opened(self.path) as file:
            if "calibration" not in file:
                return
            table = file["calibration"]
            for i in range(len(table["stamp_ns"])):
                width, height = (int(number) for number in table["size"][i])
                yield Calibration(
                    *_times(table, i),
                    _text(table.attrs["frame_id"]),
                    width,
                    height,
                    table["K"][i],
                    table["D"][i],
                    _text(table.attrs["model"]),
                    tuple(table["binning"][i].tolist()),
                    tuple(table["roi"][i].tolist()),
                )

    def _chunks(self, name: str) -> Iterator[Sample]:
        """Samples of one row each, or of the neighbouring rows that have the same two times."""
        with _opened(self.path) as file:
            if name not in file:
                return
            table = file[name]
            frame_id = _text(table.attrs["frame_id"])
            times = np.stack([table["stamp_ns"][:], table["receive_ns"][:]], axis=1)
            changes = np.flatnonzero(np.any(np.diff(times, axis=0), axis=1)) + 1
            for begin, end in zip([0, *changes], [*changes, len(times)], strict=True):
                rows = {key: column[begin:end] for key, column in table.items()}
                both = int(times[begin, 0]), int(times[begin, 1])
                if name == "triggers":
                    yield TriggerChunk(*both, frame_id, Triggers(rows["t"], rows["id"], rows["p"]))
                elif name == "imu":
                    yield ImuChunk(*both, frame_id, rows["t"], rows["acceleration"], rows["angular_velocity"])
                else:
                    yield Pose(*both, frame_id, rows["position"][0], rows["orientation"][0])


def _times(table: h5py.Group, i: int) -> tuple[int, int]:
    return int(table["stamp_ns"][i]), int(table["receive_ns"][i])


def _text(value: Any) -> str:
    """A string attribute, which may be kept as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
