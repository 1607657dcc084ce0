"""A saved sequence as frames of the viewer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sequence import Sequence, SequenceFrame, SequenceObject, load_sequence
from event_sam3d_ros.viewer.frames import (
    SCENE_POINTS,
    History,
    ViewFrame,
    ViewObject,
    evenly,
    object_values,
)
from event_sam3d_ros.viewer.truths import NO_TRUTH, ViewTruth


class SequenceFrames:
    """`Frames` of a saved sequence, read from the disk when they are looked at. InputError for one that can't be
    used."""

    live = False

    def __init__(self, path: Path, truth: ViewTruth = NO_TRUTH) -> None:
        self._sequence: Sequence = load_sequence(path)
        self._truth = truth
        name, info = self._sequence.path.parent.name if path.is_dir() else path.stem, self._sequence.info
        if not isinstance(info, dict) or "recording" not in info:
            raise InputError(
                f"{self._sequence.path} is not a whole sequence (info does not name its recording): write it anew",
                reason="bad_sequence",
            )
        self.title = f"{name}: {info['recording']}"
        truth.check_overlap(self._sequence.arrays["stamps"])
        self.history = self._history()

    def _history(self) -> History:
        history, of = History(), self._sequence.arrays
        for index, stamp_ns in enumerate(of["stamps"].tolist()):
            objects = self._sequence[index].objects
            values = {str(one.id): object_values(_shown(one, slice(0)), of["extrinsics"][index]) for one in objects}
            camera = of["extrinsics"][index, :3, 3] if of["poses_known"][index] else None
            history.add(stamp_ns, values, {}, camera)
        return history

    def span(self) -> tuple[int, int]:
        """See `Frames`."""
        return 0, len(self._sequence)

    def frame(self, index: int) -> ViewFrame | None:
        """See `Frames`."""
        if not 0 <= index < len(self._sequence):
            return None
        frame = self._sequence[index]
        points, colors = _scene(frame)
        return ViewFrame(
            stamp_ns=frame.stamp_ns,
            rgb=np.asarray(frame.rgb),
            event_image=np.asarray(frame.event_image),
            tracks=frame.track_mask(),
            K=frame.K,
            camera_to_world=frame.camera_to_world,
            pose_known=frame.pose_known,
            scene_points=points,
            scene_colors=colors,
            objects=tuple(map(_shown, frame.objects)),
            truths=self._truth.at(frame.stamp_ns, frame.camera_to_world),
        )

    def complete(self) -> bool:
        """See `Frames`."""
        return True

    def status(self) -> str:
        """See `Frames`."""
        return ""

    def close(self) -> None:
        """See `Frames`."""


def _shown(item: SequenceObject, chosen: slice = slice(None)) -> ViewObject:
    """``chosen``: which of its points; all."""
    points = (item.points[chosen] - item.pose[:3, 3]) @ item.pose[:3, :3]
    return ViewObject(
        name=str(item.id),
        id=item.id,
        pose=item.pose,
        size=item.size,
        points=points.astype(np.float32),
        colors=np.asarray(item.colors[chosen]),
        score=item.score,
        metric=item.metric,
    )


def _scene(frame: SequenceFrame) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points of the depth in the camera's frame, and their colours."""
    known = np.flatnonzero(np.isfinite(frame.depth))
    known = known[evenly(len(known), SCENE_POINTS)]
    rows, columns = np.divmod(known, frame.depth.shape[1])
    pose = frame.camera_to_world
    points = (frame.xyz[rows, columns] - pose[:3, 3]) @ pose[:3, :3]
    return points.astype(np.float32), frame.rgb[rows, columns]
