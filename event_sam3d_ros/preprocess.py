"""From an `Observation` to the network's inputs: the same code on the robot, offline and in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.layout import CropFrame


@dataclass(frozen=True)
class Observation:
    """What a camera saw of one instant. All images share one rectified pixel grid of H x W.

    ``image``: (H, W, 3) uint8 RGB or None (events only); ``mask``: (H, W) uint8 or uint16, 0 = nothing, k = object k;
    ``event_image``: (H, W, 3) uint8 Tencode or None (RGB only); ``K``: (3, 3) intrinsics in pixels; ``depth``: (H, W)
    float32 metres along the optical axis, 0 or NaN = unknown, or None; ``stamp_ns``: time of the frame's mid-exposure.
    """

    image: npt.NDArray[np.uint8] | None
    mask: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    event_image: npt.NDArray[np.uint8] | None
    K: npt.NDArray[np.floating]
    depth: npt.NDArray[np.float32] | None = None
    stamp_ns: int = 0

    def validate(self) -> None:
        """Raises InputError, with a reason, for anything that the pipeline can't work with."""
        mask = self.mask
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16):
            raise InputError(
                f"mask is {mask.dtype} of shape {mask.shape}; give a label image (H, W) of uint8 or uint16",
                reason="bad_dtype",
            )
        for name, image in (("image", self.image), ("event_image", self.event_image)):
            if image is None:
                continue
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise InputError(
                    f"{name} is {image.dtype} of shape {image.shape}; give (H, W, 3) uint8", reason="bad_dtype"
                )
            _same_size(name, image.shape[:2], mask.shape)
        if self.image is None and self.event_image is None:
            raise InputError("neither image nor event_image is given; give at least one", reason="no_input")
        if self.depth is not None:
            if self.depth.dtype != np.float32:
                raise InputError(f"depth is {self.depth.dtype}; give float32 metres", reason="bad_dtype")
            _same_size("depth", self.depth.shape, mask.shape)
        K = np.asarray(self.K)
        usable = K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
        if not usable or K[1, 0] != 0 or tuple(K[2]) != (0, 0, 1):
            raise InputError(
                f"K is not a camera matrix: {K.tolist()}; calibrate the camera (positive focal lengths, and 0 0 1 in "
                "the last row)",
                reason="bad_intrinsics",
            )
        if not mask.any():
            raise InputError("the mask is all zero: no object to reconstruct in this frame", reason="empty_mask")


@dataclass(frozen=True)
class Crop:
    """One object's square window of the frame: ``x0``, ``y0`` (may be negative) and ``side``, whole pixels."""

    label: int
    x0: int
    y0: int
    side: int

    def frame(self, K: npt.NDArray[np.floating], depth_range: float) -> CropFrame:
        """Where this crop's voxel grid lies in the camera frame."""
        center = (self.x0 + (self.side - 1) / 2, self.y0 + (self.side - 1) / 2)
        return CropFrame(np.asarray(K, dtype=np.float64), center, float(self.side), depth_range)


def object_crops(mask: npt.NDArray[np.integer], crop_factor: float) -> list[Crop]:
    """One crop for each label of ``mask`` (H, W), by ascending label; objects under 3 pixels wide or high are left out.

    The square is ``crop_factor`` times the larger side of the label's box, around the box's centre (SAM 3D's rule, its
    factor being 1.2).
    """
    crops = []
    for label in np.unique(mask[mask > 0]):
        ys, xs = np.nonzero(mask == label)
        left, right, top, bottom = int(xs.min()), int(xs.max()), int(ys.min()), int(ys.max())
        if right - left < 2 or bottom - top < 2:
            continue
        side = int(max(right - left, bottom - top) * crop_factor)
        x0, y0 = (left + right) // 2 - side // 2, (top + bottom) // 2 - side // 2
        crops.append(Crop(int(label), x0, y0, side))
    return crops


def crop_resize(image: npt.NDArray[np.generic], crop: Crop, size: int) -> Tensor:
    """(H, W) or (H, W, C), any number type -> (C, size, size) float32 of the same values, zero outside the frame.

    Bilinear with antialiasing, as SAM 3D resizes its crops.
    """
    if image.ndim == 2:
        image = image[..., None]
    height, width = image.shape[:2]
    window = np.zeros((crop.side, crop.side, image.shape[2]), dtype=np.float32)
    x0, y0 = max(crop.x0, 0), max(crop.y0, 0)
    x1, y1 = min(crop.x0 + crop.side, width), min(crop.y0 + crop.side, height)
    if x1 > x0 and y1 > y0:
        window[y0 - crop.y0 : y1 - crop.y0, x0 - crop.x0 : x1 - crop.x0] = image[y0:y1, x0:x1]
    tensor = torch.from_numpy(window).permute(2, 0, 1)[None]
    return F.interpolate(tensor, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]


@dataclass(frozen=True)
class NetworkInput:
    """A batch of B object crops: ``image``, ``event_image``: (B, 3, S, S) or None; ``mask``: (B, 1, S, S); float32 in
    [0, 1].
    """

    image: Tensor | None
    event_image: Tensor | None
    mask: Tensor


def network_input(observation: Observation, crops: list[Crop], config: ModelConfig) -> NetworkInput:
    """Cuts the crops out of a validated observation."""
    size = config.encoder.image_size

    def cut(image: npt.NDArray[np.uint8] | None) -> Tensor | None:
        return None if image is None else torch.stack([crop_resize(image, c, size) for c in crops]) / 255

    mask = torch.stack([crop_resize(observation.mask == c.label, c, size) for c in crops])
    return NetworkInput(cut(observation.image), cut(observation.event_image), mask)


def _same_size(name: str, shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(mask_shape):
        raise InputError(
            f"{name} is {shape[1]}x{shape[0]} but the mask is {mask_shape[1]}x{mask_shape[0]}; "
            "events, frames, masks and depth must share one pixel grid",
            reason="size_mismatch",
        )
