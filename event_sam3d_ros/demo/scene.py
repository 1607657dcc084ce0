"""What the recording itself shows at the stamps of a run: pictures, masks, camera."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.demo.processes import DemoError
from event_sam3d_ros.evaluation.replay import ReplayedFrame, replay_frames
from event_sam3d_ros.recordings.files import Recording


@dataclass
class RecordingScene:
    """``stamps`` of all RGB frames; ``masked``: stamps whose mask shows an object; ``frames``: the wanted ones that can
    be shown, by stamp; ``K`` (3, 3), ``width``, ``height``: the rectified camera."""

    K: NDArray[np.floating]
    width: int
    height: int
    stamps: list[int] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    frames: dict[int, ReplayedFrame] = field(default_factory=dict)


def read_scene(recording: Recording, wanted: Collection[int]) -> RecordingScene:
    """Reads the recording once; of its pictures only the ``wanted`` stamps stay in memory.

    What can't be used is skipped: the nodes have counted it. DemoError if none of the wanted frames can be shown.
    """
    scene: RecordingScene | None = None
    stamps, masked, frames = [], [], {}
    for frame in replay_frames(recording, report=lambda reason, sentence: None):
        stamps.append(frame.stamp_ns)
        if frame.mask is not None and frame.mask.any():
            masked.append(frame.stamp_ns)
        if frame.stamp_ns in wanted and frame.observation is not None and frame.observation.mask.any():
            frames[frame.stamp_ns] = frame
        if scene is None and frame.observation is not None:
            height, width = frame.observation.mask.shape
            scene = RecordingScene(frame.observation.K, width, height, stamps, masked, frames)
    if scene is None or not frames:
        raise DemoError(
            "read again, the recording has no mask with an object and no calibration in time for the frames of the "
            "results"
        )
    return scene
