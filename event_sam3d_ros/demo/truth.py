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
    """Truth by object id; meshes lie beside the file. RecordingError for a file of another kind."""
    try:
        content = yaml.safe_load(path.read_text())
        return {int(item["id"]): _true_object(path.parent, item) for item in content["objects"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path} is not a ground truth file ({error!r})", reason="bad_truth") from error


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


def _true_object(folder: Path, item: Mapping[str, Any]) -> TrueObject:
    poses = {
        int(pose["stamp_ns"]): Pose(
            np.array(pose["position"], dtype=float), Rotation.from_quat(pose["quaternion"]).as_matrix()
        )
        for pose in item["poses"]
    }
    return TrueObject(int(item["id"]), folder / str(item["mesh"]), np.array(item["size"], dtype=float), poses)
