"""Losses of the direct geometry head and of distillation. All return scalars; batches are (B, ...) tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.sam3d.geometry_direct import Geometry
from event_sam3d_ros.sam3d.vit import Features
from training.distributed import mean

POSITIVE_WEIGHT = 2.0  # solid cells are the minority of a crop's grid


def occupancy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus soft dice; logits and target (B, D, H, W), target in [0, 1]."""
    weight = torch.tensor(POSITIVE_WEIGHT, device=logits.device)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * target).sum((1, 2, 3))
    dice = 1 - (overlap + 1) / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    return cross_entropy + dice.mean()


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal binary cross-entropy (Lin et al. 2017, eq. 4, without alpha) against probabilities ``target``."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    error = (torch.sigmoid(logits) - target).abs()
    return (error**gamma * cross_entropy).mean()


def depth_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(front depth, thickness) in units of the grid's depth, L1, over the columns that are solid in ``target``.

    The front is the expected first hit under independent cells: p_k * prod_{j<k} (1 - p_j). Both are 0 for a batch
    without a solid column. Several processes divide by their mean number of columns, so that the mean of their losses
    is that of the whole batch.
    """
    probability = torch.sigmoid(logits)
    columns = target.amax(1) > 0.5
    count = mean(columns.sum().float()).clamp(min=1)
    front = (front_depth(probability) - front_depth(target)).abs()
    thickness = (probability.mean(1) - target.mean(1)).abs()
    return (front * columns).sum() / count, (thickness * columns).sum() / count


def silhouette_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the solid's outlines seen along each axis of the grid: the most solid cell of a line
    speaks for it. Voxel by voxel a doubtful end is best left out; this makes the whole reach as far as the truth."""
    outlines = [F.binary_cross_entropy_with_logits(logits.amax(axis), target.amax(axis)) for axis in (1, 2, 3)]
    return torch.stack(outlines).mean()


def front_depth(probability: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H, W): depth of each column's front, 0 at the grid's near side to 1 at its far side."""
    resolution = probability.shape[1]
    free = torch.cumprod(1 - probability.clamp(0, 1 - 1e-4), dim=1)
    return free.mean(1) + 0.5 / resolution  # the expected share of free cells before the first hit


def up_loss(up: Tensor, target: Tensor) -> Tensor:
    """1 - cosine between unit vectors (B, 3)."""
    return (1 - (up * target).sum(-1)).mean()


def grid_iou(logits: Tensor, target: Tensor) -> Tensor:
    """(B,) IoU of the predicted and true solids in the crop's grid."""
    a, b = logits > 0, target > 0.5
    return (a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)


def score_loss(geometry: Geometry, target: Tensor) -> Tensor:
    """The score learns the IoU that the prediction has."""
    return F.binary_cross_entropy_with_logits(geometry.score, grid_iou(geometry.logits, target).detach())


def geometry_loss(geometry: Geometry, occupancy: Tensor, up: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The direct head's loss against the truth, and its parts for the log."""
    front, thickness = depth_losses(geometry.logits, occupancy)
    parts = {
        "occupancy": occupancy_loss(geometry.logits, occupancy),
        "front": front,
        "thickness": thickness,
        "silhouette": silhouette_loss(geometry.logits, occupancy),
        "up": up_loss(geometry.up, up),
        "score": score_loss(geometry, occupancy),
    }
    total = parts["occupancy"] + 2 * front + thickness + parts["silhouette"] + parts["up"] + 0.1 * parts["score"]
    return total, {**parts, "iou": grid_iou(geometry.logits, occupancy).mean()}


def feature_loss(
    student: Features, teacher: Features, stages: Sequence[str], attention: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Stage 1: L1 between the features of the selected stages and the final tokens, averaged over them.

    ``attention``: weights (B, N, 1) of tokens by stage, and by "tokens" for the final ones; stages without one count
    plainly. Features that agree have a loss of zero.
    """
    pairs = {name: (student.stages[name], teacher.stages[name]) for name in stages}
    pairs["tokens"] = (student.tokens, teacher.tokens)
    weights = attention or {}
    terms = [
        ((a - b).abs() * weights[name]).mean() if name in weights else F.l1_loss(a, b) for name, (a, b) in pairs.items()
    ]
    return torch.stack(terms).mean()


def teacher_loss(geometry: Geometry, teacher: Geometry) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage 2: what the network gives on the blurry frame with events against what it gives on the sharp one.

    Focal cross-entropy on the solid, as event_sam3d; its up vectors differ by their cosine, which is their mean squared
    error times 1.5 (unit vectors: ``|a - b|^2 = 2 - 2 a.b``). Rotation, translation and scale are not predicted by the
    direct head: they follow from the crop.
    """
    target = torch.sigmoid(teacher.logits)
    focal = focal_loss(geometry.logits, target)
    occupancy = occupancy_loss(geometry.logits, target)
    up = up_loss(geometry.up, teacher.up)
    return 4 * focal + occupancy + up, {"focal": focal, "occupancy": occupancy, "up": up}
