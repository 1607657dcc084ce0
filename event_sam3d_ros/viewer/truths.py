"""Ground truth in the viewer: true surfaces where they were."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.evaluation.bag_truth import Truth, read_bag_truth
from event_sam3d_ros.evaluation.poses import PoseTrack
from event_sam3d_ros.viewer.frames import ViewObject

TRUTH_POINTS = 2_000
COLOR = (200, 60, 200)


@dataclass(frozen=True)
class ViewTruth:
    """The truth of a recording, which may be nothing."""

    truth: Truth

    @property
    def camera(self) -> PoseTrack | None:
        """The camera's poses, where they are known."""
        return self.truth.camera

    def at(self, stamp_ns: int, camera_to_world: NDArray[np.float64]) -> tuple[ViewObject, ...]:
        """The true objects at a stamp, without a score."""
        found = []
        for label, (true, track) in (self.truth.objects or {}).items():
            pose = track.at(stamp_ns)
            if pose is None:
                continue
            points, colors = _surface(true.mesh)
            in_camera = np.eye(4)
            in_camera[:3, :3], in_camera[:3, 3] = pose.rotation, pose.position
            found.append(ViewObject(str(label), label, camera_to_world @ in_camera, true.size, points, colors))
        return tuple(found)

    def check_overlap(self, stamps: NDArray[np.int64]) -> None:
        """RecordingError where the truth lies at another time than all frames."""
        if len(stamps):
            self.truth.check_overlap(int(stamps.min()), int(stamps.max()))


NO_TRUTH = ViewTruth(Truth())


def read_view_truth(beside: Path, given: Path | None) -> ViewTruth:
    """The file that was given, else ground_truth.yaml beside a recording, else nothing; RecordingError or InputError
    for one that can't be used."""
    return ViewTruth(read_bag_truth(beside, given))


@cache
def _surface(mesh: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points of a mesh in its own frame, the same at every call."""
    import open3d  # heavy, and needed for meshes alone

    open3d.utility.random.seed(0)
    cloud = open3d.io.read_triangle_mesh(mesh).sample_points_uniformly(TRUTH_POINTS)
    points = np.asarray(cloud.points, np.float32)
    return points, np.full((len(points), 3), COLOR, np.uint8)
