"""What the flow head's training keeps of a case: the whole frames and the truth, whatever the model's size.

The released preprocessing cuts its windows when a batch is made (`batches.py`), as it does on the robot.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from event_sam3d_ros.sam3d.layout import voxel_centers
from event_sam3d_ros.synthetic.world import Case

OCCUPANCY = 64
"""Side of the stored occupancy grid; a model with a coarser one pools it."""


def fields(sensor: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> (shape, dtype) of everything that is stored for one case on a window of ``sensor`` x ``sensor``."""
    image, mask = (sensor, sensor, 3), (sensor, sensor)
    return {
        "sharp": (image, np.uint8),
        "blurry": (image, np.uint8),
        "events": (image, np.uint8),
        "true_mask": (mask, np.uint8),
        "degraded_mask": (mask, np.uint8),
        "depth": (mask, np.float32),
        "K": ((3, 3), np.float32),
        "rotation": ((3, 3), np.float32),
        "position": ((3,), np.float32),
        "size": ((3,), np.float32),
        "occupancy": ((OCCUPANCY**3 // 8,), np.uint8),
    }


def sample(case: Case) -> dict[str, npt.NDArray]:
    """The fields of a case: frames (H, W, 3) uint8 RGB; masks (H, W) uint8, 255 inside; depth in metres, 0 = hole;
    object -> camera (optical frame) in metres; the bits of `cube_occupancy`."""
    return {
        "sharp": case.sharp,
        "blurry": case.blurry,
        "events": case.event_image,
        "true_mask": case.mask * np.uint8(255),
        "degraded_mask": case.degraded_mask * np.uint8(255),
        "depth": case.depth,
        "K": case.K,
        "rotation": case.rotation,
        "position": case.position,
        "size": case.size,
        "occupancy": np.packbits(cube_occupancy(case).ravel()),
    }


def cube_occupancy(case: Case, resolution: int = OCCUPANCY) -> npt.NDArray[np.bool_]:
    """(R, R, R) bool, indexed x, y, z: the solid in the decoder's cube, whose edge is the longest side of the object's
    box (TRELLIS scales meshes so, Xiang et al. 2024), with the axes of the object."""
    axes = np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij")
    points = voxel_centers(np.stack(axes, axis=-1).reshape(-1, 3), resolution) * case.shape.extent.max()
    return (case.shape.distance(points) < 0).reshape((resolution,) * 3)
