"""Recordings written as one HDF5 file in DSEC's layout, with everything else that a recording has beside it.

    events/t x y p          (N,) int64 us from t_offset on, uint16, uint16, uint8 0/1
    t_offset, ms_to_idx     int64 us; (M,) uint64: first event at or after each millisecond; not where the clock begins
                            again, or pauses for more than two hours
    packets/                end (index behind the last event), stamp_ns, receive_ns of each event packet
    frames/image mask depth data (F, H, W) or (F, H, W, 3), exposure_ns (0: unknown), stamp_ns, receive_ns
    calibration/            K (C, 3, 3), D (C, n), size, binning, roi, stamp_ns, receive_ns; attribute model
    triggers/               t, id, p, stamp_ns, receive_ns
    imu/                    t, acceleration, angular_velocity, stamp_ns, receive_ns
    poses/                  position, orientation x y z w, stamp_ns, receive_ns

Attributes of the file: width, height; of every group but events: frame_id. Compression: gzip, which every HDF5 reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError, RecordingWarning
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US
from event_sam3d_ros.recordings.samples import (
    Calibration,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Sample,
    TriggerChunk,
)

if TYPE_CHECKING:
    import h5py

_BUFFER_BYTES = 1 << 20
# Without an event; two hours are 58 MB of the index.
_LONGEST_PAUSE_MS = 2 * 3_600_000


def write_hdf5(path: Path, samples: Iterable[Sample]) -> int:
    """Writes ``samples`` as a new file and returns their number. A file that exists is refused (RecordingError); on any
    error nothing is left behind."""
    import h5py

    if path.exists():
        raise RecordingError(f"{path} exists already: remove it or choose another name", reason="output_exists")
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)  # as the writer of rosbag2 does
    try:
        with h5py.File(path, "w") as file:
            writer = _Writer(file)
            for sample in samples:
                writer.add(sample)
                count += 1
            writer.finish()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return count


class _Writer:
    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._tables: dict[str, _Table] = {}
        self._count = 0
        self._milliseconds = 0
        self._t_offset: int | None = None
        self._newest_us: int | None = None
        self._has_index = True

    def add(self, sample: Sample) -> None:
        if isinstance(sample, EventChunk):
            self._add_events(sample)
        elif isinstance(sample, Frame):
            exposure = np.array([sample.exposure_ns], np.int64)
            self._rows(f"frames/{sample.role}", sample, data=sample.data[None], exposure_ns=exposure)
        elif isinstance(sample, Calibration):
            self._add_calibration(sample)
        elif isinstance(sample, TriggerChunk):
            edges = sample.triggers
            self._rows("triggers", sample, t=edges.t, id=edges.id, p=edges.p)
        elif isinstance(sample, ImuChunk):
            motion = {"acceleration": sample.acceleration, "angular_velocity": sample.angular_velocity}
            self._rows("imu", sample, t=sample.t, **motion)
        elif isinstance(sample, Pose):
            self._rows("poses", sample, position=sample.position[None], orientation=sample.orientation[None])

    def finish(self) -> None:
        if self._t_offset is None:
            self._start(0, 0, 0)
        for table in self._tables.values():
            table.flush()

    def _start(self, t_offset: int, width: int, height: int) -> None:
        self._t_offset = t_offset
        self._file["t_offset"] = np.int64(t_offset)
        self._file.attrs["width"], self._file.attrs["height"] = width, height
        empty = {"t": np.int64, "x": np.uint16, "y": np.uint16, "p": np.uint8}
        self._table("events").add(**{name: np.empty(0, dtype) for name, dtype in empty.items()})
        self._table("").add(ms_to_idx=np.empty(0, np.uint64))

    def _add_events(self, chunk: EventChunk) -> None:
        events = chunk.events
        if self._t_offset is None:
            self._start(int(events.t[0]) if len(events) else 0, chunk.width, chunk.height)
        assert self._t_offset is not None
        t = events.t - self._t_offset
        # Each millisecond up to that of the last event begins at an event that was seen by now.
        last = int(t[-1]) // 1000 if len(t) else -1
        if len(t) and self._newest_us is not None and int(t[0]) < self._newest_us - BACKWARD_TOLERANCE_US:
            self._leave_index_out(f"rising times: the recording's go back from {self._span_to(t[0])}")
        elif last - self._milliseconds > _LONGEST_PAUSE_MS:
            self._leave_index_out(f"an entry per millisecond: too many for the pause from {self._span_to(t[-1])}")
        if self._has_index and last >= self._milliseconds:
            starts = np.arange(self._milliseconds, last + 1) * 1000
            self._table("").add(ms_to_idx=(self._count + np.searchsorted(t, starts)).astype(np.uint64))
            self._milliseconds = last + 1
        self._newest_us = int(t[-1]) if len(t) else self._newest_us
        self._count += len(events)
        self._table("events").add(t=t, x=events.x, y=events.y, p=events.p)
        self._rows("packets", chunk, end=np.array([self._count]))

    def _span_to(self, t_us: int) -> str:
        """Words for the times of the last event written and of another."""
        assert self._t_offset is not None
        return f"{(self._newest_us or 0) + self._t_offset} us to {t_us + self._t_offset} us"

    def _leave_index_out(self, needs: str) -> None:
        """A clock that begins again, where a millisecond may come twice, or a pause without end."""
        if self._has_index:
            self._has_index = False
            del self._tables[""], self._file["ms_to_idx"]
            sentence = (
                f"{self._file.filename} has no ms_to_idx, which needs {needs}; for tools that need it, cut the "
                "recording there before"
            )
            warnings.warn(RecordingWarning(sentence), stacklevel=2)

    def _add_calibration(self, sample: Calibration) -> None:
        self._rows(
            "calibration",
            sample,
            K=sample.K[None],
            D=sample.D[None],
            size=np.array([[sample.width, sample.height]]),
            binning=np.array([sample.binning]),
            roi=np.array([sample.roi]),
        )
        said = self._file["calibration"].attrs.setdefault("model", sample.model)
        if said != sample.model:
            raise RecordingError(
                f"calibrations of two models, {said} and {sample.model}: HDF5 takes one", reason="size_mismatch"
            )

    def _table(self, name: str) -> _Table:
        if name not in self._tables:
            self._tables[name] = _Table(self._file.require_group(name) if name else self._file)
        return self._tables[name]

    def _rows(self, name: str, sample: Sample, **columns: NDArray[Any]) -> None:
        table = self._table(name)
        table.group.attrs.setdefault("frame_id", sample.frame_id)
        rows = len(next(iter(columns.values())))
        times = {key: np.full(rows, getattr(sample, key), np.int64) for key in ("stamp_ns", "receive_ns")}
        table.add(**columns, **times)


class _Table:
    """Columns of one length in a group. Rows are collected, for HDF5 takes long to append a few."""

    def __init__(self, group: h5py.Group) -> None:
        self.group = group
        self._rows: list[dict[str, NDArray[Any]]] = []
        self._bytes = 0

    def add(self, **columns: NDArray[Any]) -> None:
        for name, column in columns.items():
            dataset = self.group.get(name)
            if dataset is None:
                self._create(name, column)
            elif dataset.shape[1:] != column.shape[1:] or dataset.dtype != column.dtype:
                raise RecordingError(
                    f"{self.group.name}/{name} began as {dataset.dtype}{dataset.shape[1:]} and goes on as "
                    f"{column.dtype}{column.shape[1:]}: HDF5 takes one kind; convert to a rosbag2",
                    reason="size_mismatch",
                )
        self._rows.append(columns)
        self._bytes += sum(column.nbytes for column in columns.values())
        if self._bytes > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for name in self._rows[0] if self._rows else ():
            rows = np.concatenate([columns[name] for columns in self._rows])
            dataset = self.group[name]
            dataset.resize(len(dataset) + len(rows), axis=0)
            dataset[len(dataset) - len(rows) :] = rows
        self._rows, self._bytes = [], 0

    def _create(self, name: str, column: NDArray[Any]) -> None:
        # Chunks of one picture, or of many small rows.
        rows = max(1, min(1 << 16, (1 << 18) // max(1, int(np.prod(column.shape[1:])) * column.itemsize)))
        self.group.create_dataset(
            name,
            (0, *column.shape[1:]),
            column.dtype,
            maxshape=(None, *column.shape[1:]),
            chunks=(rows, *column.shape[1:]),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
