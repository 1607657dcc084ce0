"""What the recording itself shows at the stamps of a run: pictures, masks, camera."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.demo.processes import DemoError
from event_sam3d_ros.evaluation.replay import ReplayedFrame, replay_frames
from event_sam3d_ros.events.recordings import Recording


@dataclass
class RecordingScene:
    """``stamps`` of all RGB frames; ``masked``: stamps whose mask shows an object; ``frames``: the wanted ones by
    stamp; ``K`` (3, 3), ``width``, ``height``: the rectified camera."""

    K: NDArray[np.floating]
    width: int
    height: int
    stamps: list[int] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    frames: dict[int, ReplayedFrame] = field(default_factory=dict)


def read_scene(recording: Recording, wanted: Collection[int]) -> RecordingScene:
    """Reads the recording once; of its pictures only the ``wanted`` stamps stay in memory."""
    scene: RecordingScene | None = None
    stamps, masked, frames = [], [], {}
    for frame in replay_frames(recording):
        stamps.append(frame.stamp_ns)
        if frame.mask is not None and frame.mask.any():
            masked.append(frame.stamp_ns)
        if frame.stamp_ns in wanted:
            frames[frame.stamp_ns] = frame
        if scene is None and frame.observation is not None:
            height, width = frame.image.shape[:2]
            scene = RecordingScene(frame.observation.K, width, height, stamps, masked, frames)
    if scene is None:
        raise DemoError("no frame of the recording has both a mask and a calibration")
    return scene
