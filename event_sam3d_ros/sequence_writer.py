"""Writes a 4D sequence frame by frame: one NPZ (see `sequence`), one PLY of all frames, and the tracks as JSON.

An archive takes one array after the other, but frames bring a piece of each. So every array grows in a file of its own
(.npy) beside the archive, and is copied into it at the end: memory is that of one frame, and the disk has to hold the
arrays twice for a moment. Where that fails the .npy files stay, each of them whole.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.sequence import FIELDS, FILE_NAME
from event_sam3d_ros.tracking import TrackedFrame

PLY_NAME, TRACKS_NAME, PARTS_NAME = "sequence.ply", "tracks.json", "arrays"
PLY_PIXELS = 10_000  # points of a frame's depth in the PLY, evenly chosen
_PLY_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("frame", "<i4"), ("object", "<i4")])
_PLY_HEADER_BYTES = 512


class SequenceWriter:
    """Writes into ``folder``, which must be empty or not exist; to be used with ``with``. ``count``: frames written.

    However the block ends, the files hold the frames that were added.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.folder, self.info, self.count = folder, info, 0
        self._parts = folder / PARTS_NAME
        self._parts.mkdir(parents=True)
        self._arrays: dict[str, _GrowingArray] = {}
        self._ply = _GrowingPly(folder / PLY_NAME)
        self._tracks: dict[int, dict[str, Any]] = {}
        self._ended: list[dict[str, Any]] = []
        self._points = 0
        self._size = (0, 0)

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def add(self, observation: Observation, tracked: TrackedFrame, camera_to_world: NDArray[np.float64] | None) -> None:
        """One more frame. InputError where its images are of another size than those of the first."""
        height, width = observation.mask.shape
        if not self._arrays:
            self._open(height, width)
        if (height, width) != self._size:
            raise InputError(
                f"a frame is {width}x{height}, those before it are {self._size[1]}x{self._size[0]}: a sequence has one "
                "size; cut the recording where it changes",
                reason="size_mismatch",
            )
        pose = np.eye(4) if camera_to_world is None else camera_to_world
        depth = np.full((height, width), np.nan, np.float32)
        if observation.depth is not None:
            usable = np.isfinite(observation.depth) & (observation.depth > 0)
            depth[usable] = observation.depth[usable]
        xyz = unproject(depth, np.asarray(observation.K, float), pose)
        black = np.zeros((height, width, 3), np.uint8)
        rgb = black if observation.image is None else observation.image
        self._append("xyzs", xyz)
        self._append("rgbs", rgb)
        self._append("event_images", black if observation.event_image is None else observation.event_image)
        self._append("depths", depth)
        self._append("intrinsics", observation.K)
        self._append("extrinsics", pose)
        self._append("poses_known", camera_to_world is not None)
        self._append("masks", observation.mask)
        self._append("stamps", observation.stamp_ns)
        clouds = self._add_objects(tracked, pose)
        known = np.flatnonzero(np.isfinite(depth))
        known = known[np.linspace(0, len(known) - 1, min(len(known), PLY_PIXELS)).astype(int)]
        self._ply.append(xyz.reshape(-1, 3)[known], rgb.reshape(-1, 3)[known], self.count, 0)
        for item, points in zip(tracked.reconstructions, clouds, strict=True):
            self._ply.append(points, item.colors, self.count, item.id)
        self._follow(observation.stamp_ns, tracked)
        for part in (*self._arrays.values(), self._ply):
            part.mark()
        self.count += 1

    def _open(self, height: int, width: int) -> None:
        self._size = (height, width)
        sides = {"h": height, "w": width}
        for name, (dtype, shape) in FIELDS.items():
            whole = tuple(sides.get(str(side), side) for side in shape)
            self._arrays[name] = _GrowingArray(self._parts / f"{name}.npy", np.dtype(dtype), whole)  # type: ignore[arg-type]
        self._append("object_offsets", 0)

    def _append(self, name: str, row: Any) -> None:
        self._arrays[name].extend(np.asarray(row)[None])

    def _add_objects(self, tracked: TrackedFrame, camera_to_world: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        """Writes the reconstructions; their points in the world."""
        clouds = []
        for item, label in zip(tracked.reconstructions, tracked.labels, strict=True):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = Rotation.from_quat(item.quaternion).as_matrix(), item.position
            points = (item.points @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]).astype(np.float32)
            self._points += len(points)
            self._append("object_frames", self.count)
            self._append("object_ids", item.id)
            self._append("object_labels", label)
            self._append("object_scores", item.score)
            self._append("object_metric", item.metric)
            self._append("object_poses", camera_to_world @ pose)
            self._append("object_sizes", item.size)
            self._append("object_offsets", self._points)
            self._arrays["object_points"].extend(points)
            self._arrays["object_colors"].extend(item.colors)
            clouds.append(points)
        return clouds

    def _follow(self, stamp_ns: int, tracked: TrackedFrame) -> None:
        """Births, deaths and lives of tracks."""
        for ended in tracked.died:  # its id may come again where a recording starts again
            self._ended.append(self._tracks.pop(ended) | {"ended": True})
        for item, label in zip(tracked.reconstructions, tracked.labels, strict=True):
            fresh = {"id": item.id, "labels": [], "first_ns": stamp_ns, "last_ns": 0, "frames": 0, "ended": False}
            track = self._tracks.setdefault(item.id, fresh)
            track["last_ns"], track["frames"] = stamp_ns, track["frames"] + 1
            if label not in track["labels"]:
                track["labels"].append(label)

    @property
    def tracks(self) -> list[dict[str, Any]]:
        """By id: ``id``, ``labels`` that it bore, ``first_ns``, ``last_ns``, ``frames`` in which it was seen, and
        ``ended``, False for those that could still have gone on at the end."""
        return sorted([*self._ended, *self._tracks.values()], key=lambda track: track["id"])

    def close(self) -> None:
        """Brings the files into their final form; without frames they are removed. OSError, which says what is left,
        where the disk has no place for that."""
        try:
            self._close()
        except OSError as error:
            (self.folder / FILE_NAME).unlink(missing_ok=True)
            sentence = f"{error.strerror or error}; {self.count} frames are kept there, as one .npy file for each array"
            raise OSError(error.errno, sentence, str(self._parts)) from error

    def _close(self) -> None:
        for array in self._arrays.values():
            array.close()
        self._ply.close()
        if self.count == 0:
            shutil.rmtree(self._parts)
            (self.folder / PLY_NAME).unlink()
            return
        info = {**self.info, "tracks": self.tracks}
        (self.folder / TRACKS_NAME).write_text(json.dumps(self.tracks, indent=2) + "\n")
        np.save(self._parts / "info.npy", np.array(json.dumps(info)))
        with zipfile.ZipFile(self.folder / FILE_NAME, "w", zipfile.ZIP_STORED) as archive:
            for name in (*FIELDS, "info"):
                part = self._parts / f"{name}.npy"
                # A date of its own, as zip begins: equal runs give equal bytes.
                member = zipfile.ZipInfo(part.name, (1980, 1, 1, 0, 0, 0))
                with part.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 18)
        shutil.rmtree(self._parts)


def unproject(
    depth: NDArray[np.float32], K: NDArray[np.float64], camera_to_world: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(h, w) metres along the optical axis -> (h, w, 3) points in the world; NaN stays NaN."""
    height, width = depth.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([columns, rows, np.ones_like(columns)], axis=-1) @ np.linalg.inv(K).T
    points = (rays * depth[..., None]) @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]
    return points.astype(np.float32)


class _GrowingFile:
    """A header, and records behind it; ``close`` cuts off what came behind the latest ``mark``, as where a write failed
    in the middle of a frame."""

    def __init__(self, path: Path, record_bytes: int) -> None:
        self._record_bytes, self._records, self._marked = record_bytes, 0, 0
        self._file = path.open("wb", buffering=0)  # nothing is left to be written at the end
        self._write(self._header(0))
        self._begin = self._file.tell()

    def _header(self, records: int) -> bytes:
        """Of one length for any number of records."""
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _add(self, rows: NDArray[Any]) -> None:
        self._write(rows.tobytes())
        self._records += len(rows)

    def mark(self) -> None:
        """What was added so far stays."""
        self._marked = self._records

    def close(self) -> None:
        """Writes the header of what stays."""
        self._file.truncate(self._begin + self._marked * self._record_bytes)
        self._file.seek(0)
        self._write(self._header(self._marked))
        self._file.close()


class _GrowingArray(_GrowingFile):
    """An .npy file to which rows are added."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        super().__init__(path, int(np.prod(shape)) * dtype.itemsize)

    def _header(self, records: int) -> bytes:
        # numpy leaves room in a header for any length of the first axis.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (records, *self._shape)}
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def extend(self, rows: NDArray[Any]) -> None:
        """Adds rows of the array's shape."""
        data = np.ascontiguousarray(rows, self._dtype)
        assert data.shape[1:] == self._shape
        self._add(data)


class _GrowingPly(_GrowingFile):
    """A binary PLY to which points are added; beside place and colour they bear their frame and object (0: none)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _PLY_VERTEX.itemsize)

    def _header(self, records: int) -> bytes:
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {records}"]
        lines += [f"property float {name}" for name in "xyz"]
        lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
        lines += ["property int frame", "property int object"]
        used = len("\n".join([*lines, "comment ", "end_header", ""]))
        return "\n".join([*lines, "comment " + "-" * (_PLY_HEADER_BYTES - used), "end_header", ""]).encode()

    def append(self, points: NDArray[np.float32], colors: NDArray[np.uint8], frame: int, item: int) -> None:
        """Adds points (N, 3) with colours (N, 3)."""
        rows = np.empty(len(points), _PLY_VERTEX)
        rows["xyz"], rows["rgb"], rows["frame"], rows["object"] = points, colors, frame, item
        self._add(rows)


def describe_tracks(tracks: Sequence[dict[str, Any]], first_ns: int) -> list[str]:
    """A line for each track: when it was born and, if it did, when it ended."""
    lines = []
    for track in tracks:
        begin, end = ((track[name] - first_ns) / 1e9 for name in ("first_ns", "last_ns"))
        fate = "then lost" if track["ended"] else "to the end"
        labels = ", ".join(map(str, sorted(track["labels"])))
        lines.append(
            f"object {track['id']}: {begin:.2f} s to {end:.2f} s, {fate}; {track['frames']} frames, mask label {labels}"
        )
    return lines
