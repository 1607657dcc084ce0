"""What can be had without a network: the mean shape, and the true silhouette inflated.

Both know the true mask, which the model's `blurry`, `events` and `fused` modes do not; everything else about them
comes from training objects. They are solids like the model's and go through the same metrics and the same alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation.metrics import align, silhouette
from event_sam3d_ros.evaluation.solids import Floats, Solid
from event_sam3d_ros.sam3d.layout import object_rotation

LEVELS = np.arange(0.2, 0.81, 0.1)  # of the mean occupancy, where to cut
DEPTH_FACTORS = (0.6, 0.8, 1.0, 1.25, 1.5)
CHOICE_CASES = 40  # training cases on which level and factor are chosen
REFERENCE_DEPTH = 1.0  # m; without depth the scale is free

BASELINE_OBJECT_SEEDS = range(1_000_000, 1_000_200)
"""The training objects that the shipped baselines are fitted on, at rest: baselines see true masks only."""
BASELINES_FILE = Path("weights") / "baselines.npz"
"""In the share folder; `scripts/fit_baselines.py` makes it."""


@dataclass(frozen=True)
class View:
    """A training object and how it was seen: ``mask`` (H, W) uint8 true mask, ``K`` (3, 3) intrinsics."""

    truth: Solid
    mask: NDArray[np.uint8]
    K: Floats


@dataclass(frozen=True)
class Baselines:
    """``mean_occupancy``: (64, 64, 64) bool, object frame; ``up``: (3,) mean up vector of the training views, camera
    frame; ``depth_factor``: thickness of the inflation, 1 makes a disc a sphere."""

    mean_occupancy: NDArray[np.bool_]
    up: Floats
    depth_factor: float

    @classmethod
    def fit(cls, views: Sequence[View]) -> Baselines:
        """Takes the mean up vector, and the level and the factor with the best mean `iou` over training views."""
        if not views:
            raise InputError("no training views: baselines are fitted on at least one", reason="no_input")
        grids = np.stack([view.truth.occupancy for view in views])
        mean = grids.mean(0, dtype=np.float32)
        up = np.mean([view.truth.rotation[:, 2] for view in views], axis=0)

        up /= np.linalg.norm(up)
        chosen = views[:CHOICE_CASES]

        def mean_shape_iou(level: float) -> float:
            fitted = cls(mean > level, up, 1.0)
            return float(np.mean([align(fitted.mean_shape(v.mask, v.K), v.truth)[0] for v in chosen]))

        mean_occupancy = mean > max(LEVELS[LEVELS < mean.max()], key=mean_shape_iou)

        def inflated_iou(factor: float) -> float:
            fitted = cls(mean_occupancy, up, factor)
            return float(np.mean([align(fitted.inflated(v.mask, v.K), v.truth)[0] for v in chosen]))

        return cls(mean_occupancy, up, max(DEPTH_FACTORS, key=inflated_iou))

    def save(self, path: Path) -> None:
        """Writes a .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, mean_occupancy=self.mean_occupancy, up=self.up, depth_factor=self.depth_factor)

    @classmethod
    def load(cls, path: Path) -> Baselines:
        """Reads what `save` wrote."""
        with np.load(path) as data:
            return cls(data["mean_occupancy"], data["up"], float(data["depth_factor"]))

    def mean_shape(self, mask: NDArray[np.integer], K: Floats) -> Solid:
        """The mean shape, placed so that its silhouette's box has the centre and the larger side of the mask's."""
        centre, side = _box(mask)
        solid = self._mean_shape_at(centre, side, K)
        for _ in range(2):
            drawn = silhouette(solid, K, mask.shape[1], mask.shape[0])
            if not drawn.any():
                break
            drawn_centre, drawn_side = _box(drawn)
            centre_now, side_now = _project(solid, K)
            solid = self._mean_shape_at(centre_now + centre - drawn_centre, side_now * side / drawn_side, K)
        return solid

    def _mean_shape_at(self, pixel: Floats, side: float, K: Floats) -> Solid:
        """The mean shape around a pixel, its cube's side ``side`` pixels long."""
        position = REFERENCE_DEPTH * (np.linalg.inv(K) @ [pixel[0], pixel[1], 1.0])
        size = np.full(3, side * REFERENCE_DEPTH / K[0, 0])
        return Solid(self.mean_occupancy, object_rotation(self.up, position), position, size)

    def inflated(self, mask: NDArray[np.integer], K: Floats) -> Solid:
        """The mask as a solid whose half thickness grows from its outline as that of a sphere:
        factor * sqrt(d * (2 * D - d)), d the distance from the outline and D its maximum, in pixels."""
        _box(mask)
        padded = np.pad(mask > 0, 1).astype(np.uint8)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        distance = np.maximum(distance - 0.5, 0.0)  # the outline runs half a pixel outside the outermost centres
        pixel = REFERENCE_DEPTH / K[0, 0]
        thickness = self.depth_factor * pixel * np.sqrt(distance * (2 * distance.max() - distance))
        rows, columns = np.nonzero(mask)
        rays = np.stack([columns, rows, np.ones(len(rows))], axis=1) @ np.linalg.inv(K).T
        half = thickness[rows, columns, None]
        points = np.concatenate([rays * (REFERENCE_DEPTH - half), rays * (REFERENCE_DEPTH + half)])

        def inside(points: Floats) -> NDArray[np.bool_]:
            pixels = points @ K.T
            at = pixels[:, 1::-1] / np.maximum(pixels[:, 2:], 1e-6)
            limit = ndimage.map_coordinates(thickness, at.T, order=1)
            return np.abs(points[:, 2] - REFERENCE_DEPTH) < limit

        rotation = object_rotation(self.up, rays.mean(0))
        return Solid.from_function(inside, rotation, points, margin=2 * pixel)


def _project(solid: Solid, K: Floats) -> tuple[Floats, float]:
    """Pixel of the cube's centre, and the cube's side in pixels."""
    pixel = K @ (solid.position / solid.position[2])
    return pixel[:2], solid.side * K[0, 0] / float(solid.position[2])


def _box(mask: NDArray[np.generic]) -> tuple[Floats, float]:
    """Centre (x, y) and larger side of the mask's box, pixels."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise InputError("mask is all zero: there is no silhouette to start from", reason="empty_mask")
    low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()])
    return (low + high) / 2, float((high - low).max() + 1)
