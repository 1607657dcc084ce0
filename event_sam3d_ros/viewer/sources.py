"""What a path holds, as frames of the viewer."""

from __future__ import annotations

from pathlib import Path

from event_sam3d_ros.viewer.frames import Frames
from event_sam3d_ros.viewer.sequences import SequenceFrames
from event_sam3d_ros.viewer.truths import read_view_truth


def open_frames(path: Path, ground_truth: Path | None) -> Frames:
    """Frames of a sequence. An EventSam3dError says why there are none."""
    return SequenceFrames(path, read_view_truth(path, ground_truth))
