"""Sample pictures of the direct head: what it sees of a few crops, what it should give and what it gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.sam3d.geometry_direct import Geometry
from training.losses import front_depth

ROWS = 8


def sheet(batch: dict[str, Tensor], geometry: Geometry) -> Tensor:
    """(3, H, W) in [0, 1], a row per crop: sharp frame, blurry frame, events, degraded mask, then the target's and the
    prediction's silhouette, and the depth of their front, near is bright. Without truth the target is black."""
    size = batch["degraded_mask"].shape[-1]
    found = torch.sigmoid(geometry.logits.float())
    target = batch.get("degraded_occupancy", torch.zeros_like(found))
    columns = [batch[f"degraded_{name}"] for name in ("sharp", "blurry", "events", "mask")]
    columns += [_map(target.amax(1), size), _map(found.amax(1), size), _depth(target, size), _depth(found, size)]
    rows = torch.cat([column.expand(-1, 3, -1, -1)[:ROWS].cpu() for column in columns], dim=-1)
    return torch.cat(list(rows), dim=1)


def _map(values: Tensor, size: int) -> Tensor:
    return F.interpolate(values[:, None], (size, size), mode="nearest")


def _depth(probability: Tensor, size: int) -> Tensor:
    return _map((1 - front_depth(probability)) * (probability.amax(1) > 0.5), size)
