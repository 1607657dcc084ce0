"""Occupied voxels as lists of coordinates: (N, 4) int32 rows [object, x, y, z], in lexicographic order.

What the geometry stage hands to the structured-latent stage (appearance), which is not part of this package yet: until
then only tests against the reference call this module. Rules of facebookresearch/sam-3d-objects,
pipeline/inference_utils.py, applied to each object on its own, so that an object's voxels don't depend on its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this the official mesh decoder would overflow its int32 indices: 2^31 / (64 * 768), rounded down.
MAX_VOXELS = 42_000


def occupied_voxels(logits: Tensor) -> Tensor:
    """Occupancy logits (B, 1, R, R, R) -> coordinates of the voxels with logit > 0."""
    return torch.argwhere(logits[:, 0] > 0).int()


def prune_interior(coords: Tensor) -> Tensor:
    """Drops the voxels whose 26 neighbours are all occupied: nobody sees them. Outside of the grid is empty."""
    if len(coords) == 0:
        return coords
    objects, *shape = (coords.amax(0) + 1).tolist()
    empty = torch.ones(objects, 1, *shape, device=coords.device)
    i, x, y, z = coords.long().unbind(1)
    empty[i, 0, x, y, z] = 0
    touches_empty = F.max_pool3d(F.pad(empty, (1,) * 6, value=1.0), kernel_size=3, stride=1) > 0
    return coords[touches_empty[i, 0, x, y, z]]


def downsample(coords: Tensor, objects: int, limit: int = MAX_VOXELS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Halves the resolution of every object that has more than ``limit`` voxels.

    ``objects``: how many objects the batch has, those without a voxel included. Returns the coordinates and (objects,)
    int64 factors, 2 for a halved object and else 1: the object's scale has to be multiplied by it. An object that has
    too many voxels even so keeps a random choice of them, drawn with ``seed``.
    """
    factors = torch.ones(objects, dtype=torch.int64)
    kept = []
    for i in range(objects):
        voxels = coords[coords[:, 0] == i]
        if len(voxels) > limit:
            factors[i] = 2
            voxels = torch.unique(torch.cat([voxels[:, :1], _halved(voxels[:, 1:])], dim=1), dim=0)
            if len(voxels) > limit:
                generator = torch.Generator().manual_seed(seed)
                chosen = torch.randperm(len(voxels), generator=generator)[:limit]
                voxels = voxels[chosen.sort().values.to(voxels.device)]
        kept.append(voxels)
    return torch.cat([coords[:0], *kept]), factors


def _halved(xyz: Tensor) -> Tensor:
    """(N, 3) coordinates shrunk to half the size of their box, about the box's centre, and rounded."""
    position = xyz.float()
    low, high = position.amin(0), position.amax(0)
    size = high - low + 1
    target_low = low + size / 4
    target_high = target_low + size / 2 - 1
    share = (position - low) / (high - low).clamp(min=1)
    shrunk = torch.round(share * (size / 2 - 1) + target_low).int()
    return torch.clamp(shrunk, target_low.int(), target_high.int())
