"""Compiles all kernels of camera/, so that no frame waits for them: ``python -m event_sam3d_ros.camera.warmup``."""

from __future__ import annotations

import numpy as np

from event_sam3d_ros.camera.calibration import CameraPair
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.pixel_map import PixelMapper
from event_sam3d_ros.events.events import Events


def warm_up() -> None:
    """Run every kernel once; a second call takes some ten milliseconds."""
    camera = CameraModel([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]], (0.01, 0, 0, 0), 2, 2)
    mapper = PixelMapper(CameraPair(camera, camera, np.eye(3), np.zeros(3)))
    one = Events(np.zeros(1, np.int64), np.zeros(1, np.uint16), np.zeros(1, np.uint16), np.zeros(1, np.uint8))
    mapper.by_depth(np.ones((2, 2)), "rgb", 1.0).map(one)
    mapper.by_depth(np.ones((2, 2)), "events").map(one)
    mapper.by_homography()


if __name__ == "__main__":
    warm_up()
