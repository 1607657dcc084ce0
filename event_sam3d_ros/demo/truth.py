"""Ground truth beside a recording: ``ground_truth.yaml`` with a mesh per object, and how far results are from it.

frame_id: camera_optical_frame
objects:
  - id: 1
    mesh: object_1.ply            # beside the file; metres, object's own frame, z up
    size: [sx, sy, sz]            # extents along the axes of that frame, metres
    poses:                        # object frame -> camera optical frame, one per RGB frame
      - {stamp_ns: 0, position: [x, y, z], quaternion: [x, y, z, w]}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from event_sam3d_ros.demo.results import FrameResult, ObjectResult, RunResult
from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.evaluation.metrics import evaluate, silhouette
from event_sam3d_ros.evaluation.solids import RESOLUTION, Floats, Solid

FILE_NAME = "ground_truth.yaml"
SCORED_FRAMES = 8
_WIDEST_GAP_CELLS = 4
_SURFACE_POINTS = 20_000
COLUMNS = ("iou", "iou_camera", "chamfer", "mask_iou", "up_error_deg", "add_s", "iou3d_box")


@dataclass(frozen=True)
class Pose:
    """Object frame -> camera optical frame, metres."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


@dataclass(frozen=True)
class TrueObject:
    """An object whose shape and motion are known."""

    id: int
    mesh: Path
    size: NDArray[np.float64]
    poses: Mapping[int, Pose]

    @cached_property
    def _surface(self) -> NDArray[np.float64]:
        import open3d  # heavy, and needed for meshes alone

        mesh = open3d.io.read_triangle_mesh(self.mesh)
        return np.asarray(mesh.sample_points_uniformly(_SURFACE_POINTS).points)

    def surface(self, stamp_ns: int) -> NDArray[np.float64]:
        """Points (N, 3) on the true surface in the camera frame at a stamp that has a pose."""
        pose = self.poses[stamp_ns]
        return self._surface @ pose.rotation.T + pose.position

    def solid(self, stamp_ns: int) -> Solid:
        """The true solid at a stamp that has a pose."""
        pose = self.poses[stamp_ns]
        return Solid.from_mesh(self.mesh, pose.rotation, pose.position)


def read_truth(bag: Path) -> dict[int, TrueObject] | None:
    """Truth beside the bag (in its folder, or next to its file) by object id; None where there is none."""
    path = (bag if bag.is_dir() else bag.parent) / FILE_NAME
    return read_truth_file(path) if path.is_file() else None


def read_truth_file(path: Path) -> dict[int, TrueObject]:
    """Truth by object id; meshes lie beside the file. RecordingError, with object and field, for another file."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _bad(path, " ".join(str(error).split())) from error
    items = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise _bad(path, "it has no list 'objects'")
    objects: dict[int, TrueObject] = {}
    for number, item in enumerate(items, 1):
        true = _true_object(path, f"object {number}", item)
        if true.id in objects:
            raise _bad(path, f"the id {true.id} is given twice")
        objects[true.id] = true
    return objects


def score_run(
    run: RunResult, truth: Mapping[int, TrueObject], K: Floats, width: int, height: int
) -> dict[int, dict[str, float]]:
    """Mean metrics per object over at most 8 frames, evenly chosen; ``K``, ``width``, ``height``: rectified camera."""
    scored: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in spread(run.results, SCORED_FRAMES):
        for item in result.objects:
            if item.id not in truth or result.stamp_ns not in truth[item.id].poses:
                continue
            true = truth[item.id].solid(result.stamp_ns)
            mask = silhouette(true, K, width, height).astype(np.uint8)
            values = evaluate(solid_of(item), true, mask, K, metric=item.metric)
            for name in COLUMNS:
                if name in values:
                    scored[item.id][name].append(values[name])
    return {id_: {name: float(np.mean(values)) for name, values in columns.items()} for id_, columns in scored.items()}


def spread(results: Sequence[FrameResult], count: int) -> list[FrameResult]:
    """At most ``count`` of them, evenly spread over time."""
    if len(results) <= count:
        return list(results)
    return [results[round(i)] for i in np.linspace(0, len(results) - 1, count)]


def solid_of(item: ObjectResult) -> Solid:
    """The solid inside a closed surface given by points: their cells, closed as little as makes it hold water."""
    rotation = Rotation.from_quat(item.quaternion).as_matrix()
    margin = _WIDEST_GAP_CELLS + 1
    local = (item.points - item.position) @ rotation / float(item.size.max())
    cells = np.clip(np.floor((local + 0.5) * RESOLUTION).astype(int), 0, RESOLUTION - 1) + margin
    shell = np.zeros((RESOLUTION + 2 * margin,) * 3, dtype=bool)
    shell[tuple(cells.T)] = True
    for gap in range(1, _WIDEST_GAP_CELLS + 1):
        thick = ndimage.binary_dilation(shell, iterations=gap)
        filled = ndimage.binary_fill_holes(thick)
        if filled.sum() > 1.2 * thick.sum():
            break
    solid = ndimage.binary_erosion(filled, iterations=gap)
    grid = solid[margin:-margin, margin:-margin, margin:-margin]
    return Solid(np.ascontiguousarray(grid), rotation, np.asarray(item.position, float), np.asarray(item.size, float))


def _true_object(path: Path, place: str, item: Any) -> TrueObject:
    id_ = _field(path, place, item, "id")
    if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 1:
        raise _bad(path, f"{place}: id is {id_!r}, not the label of a mask (1, 2, ...)")
    place = f"object {id_}"
    mesh = _field(path, place, item, "mesh")
    if not isinstance(mesh, str):
        raise _bad(path, f"{place}: mesh is {mesh!r}, not the name of a file")
    size = _numbers(path, place, item, "size", 3)
    given = _field(path, place, item, "poses")
    if not isinstance(given, list):
        raise _bad(path, f"{place}: poses is no list")
    poses = {}
    for number, pose in enumerate(given, 1):
        where = f"{place}, pose {number}"
        stamp = _field(path, where, pose, "stamp_ns")
        if isinstance(stamp, bool) or not isinstance(stamp, int):
            raise _bad(path, f"{where}: stamp_ns is {stamp!r}, not a whole number of nanoseconds")
        position, quaternion = (_numbers(path, where, pose, *one) for one in (("position", 3), ("quaternion", 4)))
        if np.linalg.norm(quaternion) < 1e-6:
            raise _bad(path, f"{where}: the quaternion (x, y, z, w) is zero")
        poses[stamp] = Pose(position, Rotation.from_quat(quaternion).as_matrix())
    return TrueObject(id_, path.parent / mesh, size, poses)


def _field(path: Path, place: str, item: Any, name: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise _bad(path, f"{place} has no {name}")
    return item[name]


def _numbers(path: Path, place: str, item: Any, name: str, count: int) -> NDArray[np.float64]:
    values = _field(path, place, item, name)
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise _bad(path, f"{place}: {name} is {values!r}, not {count} finite numbers")
    return array


def _bad(path: Path, problem: str) -> RecordingError:
    return RecordingError(f"{path} is not a ground truth file: {problem}", reason="bad_truth")
