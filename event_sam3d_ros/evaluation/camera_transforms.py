"""Where the camera was in the world, from the /tf and /tf_static of a recording."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import EventSam3dError, InputError, excerpt
from event_sam3d_ros.evaluation.poses import CameraPose, PoseTrack
from event_sam3d_ros.evaluation.replay import Report
from event_sam3d_ros.recordings.bag_messages import RawMessage, Transform, decode_transforms, where

TF_TOPICS = {"/tf": False, "/tf_static": True}
_KEPT = 2000  # transforms of each frame: seconds of a fast source


class CameraTransforms:
    """The transforms of a recording as they come, with bounded memory.

    ``world``: the frame in which poses are given; empty: the uppermost above the camera's, as it is known when the
    first pose is asked for. ``report(reason, sentence)`` gets what can't be used.
    """

    def __init__(self, world: str, report: Report) -> None:
        self.world, self._report = world, report
        self._parents: dict[str, str] = {}
        self._fixed: dict[str, CameraPose] = {}
        self._moving: dict[str, deque[CameraPose]] = {}

    def observe(self, message: RawMessage) -> None:
        """Takes a message in; those of other topics are passed over."""
        if message.topic not in TF_TOPICS:
            return
        try:
            for transform in decode_transforms(message):
                self._add(transform, TF_TOPICS[message.topic], message)
        except EventSam3dError as error:
            self._report(error.reason, str(error))

    def _add(self, transform: Transform, is_fixed: bool, message: RawMessage) -> None:
        length = float(np.linalg.norm(transform.quaternion))
        if not (np.isfinite(transform.translation).all() and abs(length - 1) < 1e-2):
            raise InputError(
                f"{where(message)}: the transform from {excerpt(transform.child)} to {excerpt(transform.parent)} is "
                "none: publish finite numbers and a unit quaternion",
                reason="bad_transform",
            )
        child, pose = transform.child, CameraPose(transform.stamp_ns, transform.translation, transform.quaternion)
        self._parents[child] = transform.parent
        if is_fixed:
            self._fixed[child] = pose
        else:
            self._moving.setdefault(child, deque(maxlen=_KEPT)).append(pose)

    def pose(self, frame_id: str, stamp_ns: int) -> NDArray[np.float64] | None:
        """(4, 4) of a camera's optical frame in the world at a stamp; None where that is not known, or not yet."""
        chain = self._chain(frame_id.lstrip("/"))
        if not self.world and chain:
            self.world = self._parents[chain[-1]]
        if not chain or self._parents[chain[-1]] != self.world:
            return None
        pose: NDArray[np.float64] = np.eye(4)
        for child in chain:
            step = self._fixed.get(child) or PoseTrack(self._moving[child]).at(stamp_ns)
            if step is None:
                return None
            pose = matrix(step) @ pose
        return pose

    def _chain(self, frame: str) -> list[str]:
        """The frames from the camera's up to the one below the world, or below the uppermost."""
        chain: list[str] = []
        while frame != self.world and frame in self._parents and frame not in chain:
            chain.append(frame)
            frame = self._parents[frame]
        return chain


def matrix(pose: CameraPose) -> NDArray[np.float64]:
    """The pose as a (4, 4) matrix."""
    result: NDArray[np.float64] = np.eye(4)
    result[:3, :3], result[:3, 3] = Rotation.from_quat(pose.orientation).as_matrix(), pose.position
    return result
