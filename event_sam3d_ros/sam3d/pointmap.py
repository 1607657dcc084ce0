"""Pointmaps from what robots have: a depth image, a monocular model that the user brings, or nothing.

A pointmap gives each pixel's point in space, (3, H, W) float32 in the pointmap frame of `layout.py`, NaN where unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.layout import FloatArray, turn

# With fewer known points on an object, medians say more about the sensor's noise than about the object.
MIN_POINTS = 10


@dataclass(frozen=True)
class Pointmap:
    """``points``: (3, H, W) float32, pointmap frame; ``metric``: whether its unit is the metre; ``prior``: whether it
    only stands in for a missing one, so that the network should rather run with the pointmap dropped.
    """

    points: Tensor
    metric: bool
    prior: bool = False


class MonocularModel(Protocol):
    """What estimates points from one image, such as MoGe; `pointmap_from_model` calls it.

    ``metric``: whether its unit is the metre.
    """

    metric: bool

    def __call__(self, image: npt.NDArray[np.uint8], K: FloatArray) -> FloatArray:
        """``image``: (H, W, 3) RGB, ``K``: (3, 3) its intrinsics in pixels -> points (H', W', 3) in the optical frame
        (x right, y down, z forward) that project to their pixels with ``K``; not finite where unknown. H' x W' may be
        another size of the same view.
        """


def pointmap_from_depth(depth: FloatArray, K: FloatArray) -> Pointmap:
    """``depth``: (H, W) metres along the optical axis, 0, negative or not finite where unknown; ``K``: (3, 3) of the
    same pixel grid, pixel centres at whole numbers. Raises InputError with reason ``bad_depth``.
    """
    if depth.ndim != 2:
        raise InputError(f"depth has the shape {depth.shape}; give one image (H, W)", reason="bad_depth")
    known = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
    return Pointmap(_along_rays(known, K), metric=True)


def pointmap_from_points(points: FloatArray, metric: bool) -> Pointmap:
    """``points``: (H, W, 3) in the optical frame; a point with anything not finite is unknown. Raises InputError with
    reason ``bad_pointmap``.
    """
    if points.ndim != 3 or points.shape[2] != 3:
        raise InputError(f"a pointmap has the shape {points.shape}; it must be (H, W, 3)", reason="bad_pointmap")
    known = np.isfinite(points).all(axis=-1, keepdims=True)
    turned = np.where(known, turn(points), np.nan).astype(np.float32)
    return Pointmap(torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1))), metric)


def pointmap_from_model(model: MonocularModel, image: npt.NDArray[np.uint8], K: FloatArray) -> Pointmap:
    """Runs the user's model on an (H, W, 3) image. Raises InputError with reason ``bad_pointmap``."""
    return pointmap_from_points(np.asarray(model(image, K)), model.metric)


def prior_pointmap(mask: npt.NDArray[np.integer], K: FloatArray, size_m: float) -> Pointmap:
    """The stand-in where nothing is known: a plane that faces the camera, at the distance at which the larger side of
    the mask's box is ``size_m`` long.

    So size and distance of the object are a guess, and only their ratio, what the image shows, means anything.
    ``mask``: (H, W), not empty.
    """
    ys, xs = np.nonzero(mask)
    angle = max((np.ptp(xs) + 1) / K[0, 0], (np.ptp(ys) + 1) / K[1, 1])
    return Pointmap(_along_rays(np.full(mask.shape, size_m / angle), K), metric=False, prior=True)


def object_pointmaps(
    scene: Pointmap | None, masks: Sequence[npt.NDArray[np.integer]], K: FloatArray, prior_size_m: float
) -> list[Pointmap]:
    """Each object's pointmap: the scene's, or the prior for an object that the scene's doesn't show.

    ``masks``: (H, W) each, 0 outside of the object. Shiny, dark and glass objects often have no depth at all although
    their surroundings do; fewer than 10 known points in the mask, or points that are all one, count as none.
    """
    return [
        scene if scene is not None and _shows(scene, mask) else prior_pointmap(mask, K, prior_size_m) for mask in masks
    ]


def _shows(scene: Pointmap, mask: npt.NDArray[np.integer]) -> bool:
    height, width = scene.points.shape[1:]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    inside = torch.from_numpy(mask[rows[:, None], columns] > 0).to(scene.points.device)
    on_object = scene.points[:, inside]
    known = on_object[:, on_object.isfinite().all(dim=0)]
    return known.shape[1] >= MIN_POINTS and bool((known != known[:, :1]).any())


def _along_rays(depth: FloatArray, K: FloatArray) -> Tensor:
    """The points (3, H, W), pointmap frame, at ``depth`` (H, W) on the rays of the pixels; all NaN where one coordinate
    is not finite."""
    height, width = depth.shape
    points = np.empty((3, height, width), dtype=np.float32)
    for plane, inverse, sign in zip(points, np.linalg.inv(K), turn(np.ones(3)), strict=True):
        ray = np.arange(width) * inverse[0] + np.arange(height)[:, None] * inverse[1] + inverse[2]
        plane[:] = ray * depth * sign
    points[:, ~np.isfinite(points).all(axis=0)] = np.nan
    return torch.from_numpy(points)
