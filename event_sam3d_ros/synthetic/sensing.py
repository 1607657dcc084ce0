"""What sensors make of the true scene: exposure, wrong masks, noisy depth."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from event_sam3d_ros.errors import InputError


def exposure_weights(times_us: np.ndarray, start_us: float, end_us: float) -> np.ndarray:
    """Weights (N,) float32 with which images at rising `times_us` are averaged for an exposure [start, end].

    The scene is taken as linear between neighbouring images, so a weight is the mean of that image's hat function.
    """
    moments = np.linspace(start_us, end_us, 40 * len(times_us) + 1)
    hats = [np.interp(moments, times_us, unit) for unit in np.eye(len(times_us))]
    weights = np.mean(hats, axis=1)
    return (weights / weights.sum()).astype(np.float32)


def _grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilates (H, W) bool by a square of `pixels`; erodes for a negative number."""
    if pixels == 0:
        return mask
    size = 2 * abs(pixels) + 1
    sign = 1.0 if pixels > 0 else -1.0
    values = F.pad(sign * mask[None, None].float(), [abs(pixels)] * 4, mode="replicate")
    return sign * F.max_pool2d(values, size, stride=1)[0, 0] > 0.5


def _shift(mask: Tensor, dy: int, dx: int) -> Tensor:
    height, width = mask.shape
    padded = F.pad(mask[None, None].float(), [2, 2, 2, 2], mode="replicate")[0, 0]
    return padded[2 - dy : 2 - dy + height, 2 - dx : 2 - dx + width] > 0.5


def degrade_mask(blurred_alpha: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The mask (H, W) bool that a segmenter might give on a blurred frame.

    blurred_alpha: (H, W) mean coverage over the exposure. It is cut at a random threshold in .08-.92, dilated or eroded
    by 0-2 pixels and shifted by 0-2 pixels: a threshold of one half alone would show the sharp silhouette. Never empty:
    where nothing is left, the threshold is lowered and nothing eroded. Raises InputError (`empty_mask`) where the
    object was never in view.
    """
    if not blurred_alpha.any():
        raise InputError("the object is out of view: there is nothing to mask", reason="empty_mask")
    threshold = float(rng.uniform(0.08, 0.92))
    growth, dy, dx = (int(n) for n in rng.integers(-2, 3, 3))
    alpha = torch.from_numpy(blurred_alpha)
    mask = _shift(_grow(alpha > threshold, growth), dy, dx)
    threshold = min(threshold, float(alpha.max()))
    while not mask.any():
        threshold *= 0.7
        mask = _shift(_grow(alpha > threshold, max(growth, 0)), dy, dx)
    return mask.numpy()


def noisy_depth(true_depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """What a depth camera reports of (H, W) metres (inf = no return): float32 metres with noise, 0 = hole.

    Noise of 0.5-1 % of the distance; holes in random blobs and along depth edges, as of stereo and structured light.
    """
    height, width = true_depth.shape
    truth = torch.from_numpy(true_depth)
    noise = torch.from_numpy(rng.standard_normal((height, width), dtype=np.float32))
    depth = truth * (1.0 + float(rng.uniform(0.005, 0.01)) * noise)
    blobs = torch.from_numpy(rng.random((1, 1, max(2, height // 8), max(2, width // 8)), dtype=np.float32))
    blobs = F.interpolate(blobs, (height, width), mode="bilinear", align_corners=False)[0, 0]
    hole = blobs > float(rng.uniform(0.86, 0.97))
    near = torch.nan_to_num(truth, posinf=100.0)[None, None]
    edge = (F.max_pool2d(near, 3, 1, 1) + F.max_pool2d(-near, 3, 1, 1) > 0.06 * near)[0, 0]
    hole |= edge & torch.from_numpy(rng.random((height, width), dtype=np.float32) < float(rng.uniform(0.2, 0.8)))
    return torch.where(hole | ~torch.isfinite(truth), torch.zeros_like(depth), depth).numpy()
