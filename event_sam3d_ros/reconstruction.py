"""What comes out: one object's shape and pose, and the surface of a grid of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

OCCUPANCY_RESOLUTION = 64


@dataclass(frozen=True)
class Reconstruction:
    """One object, in the camera's optical frame.

    ``id``: the mask's label; ``score``: 0..1, the IoU that the network expects of its shape; ``metric``: True if the
    scale comes from depth, else size and distance rest on the model's prior size and only their ratio means anything;
    ``occupancy``: (64, 64, 64) bool, indexed [x, y, z] in the object frame, a cube of side max(size) around the centre,
    z up; ``points``: (N, 3) float32 on the surface, metres, camera frame; ``colors``: (N, 3) uint8 RGB; ``position``:
    (3,) the box's centre, metres; ``quaternion``: (4,) x, y, z, w, object -> camera; ``size``: (3,) the box's extents
    along the object's axes, metres.
    """

    id: int
    score: float
    metric: bool
    occupancy: npt.NDArray[np.bool_]
    points: npt.NDArray[np.float32]
    colors: npt.NDArray[np.uint8]
    position: npt.NDArray[np.float64]
    quaternion: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]


def largest_component(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """Keeps the largest connected solid of a grid of logits (D, H, W), the other ones' cells set to just below zero;
    None if nothing is solid."""
    labels, count = ndimage.label(logits > 0)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.where((labels > 0) & (labels != largest), np.float32(-1e-3), logits)


def surface_points(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(D, H, W) logits -> (N, 3) grid coordinates u, v, w of the zero crossings along the three axes.

    These are the vertices of marching cubes, interpolated linearly between cell centres; a solid that touches the
    grid's border ends half a cell outside it.
    """
    padded = np.pad(logits, 1, constant_values=-1e-3)
    resolution = logits.shape[0]
    solid = padded > 0
    found = []
    for axis in range(3):
        first, second = _shifted(solid, axis)
        index = np.argwhere(first != second)
        if len(index) == 0:
            continue
        after = index.copy()
        after[:, axis] += 1
        a, b = padded[tuple(index.T)].astype(np.float64), padded[tuple(after.T)].astype(np.float64)
        position = index.astype(np.float64)
        position[:, axis] += a / (a - b)
        found.append(position)
    cells = np.concatenate(found) - 1  # undo the padding
    return (((cells + 0.5) * (2 / resolution)) - 1)[:, ::-1]  # (w, v, u) -> (u, v, w)


def _shifted(grid: npt.NDArray[np.bool_], axis: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Two views of the grid, the second one cell further along the axis."""
    first, second = [slice(None)] * 3, [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return grid[tuple(first)], grid[tuple(second)]
