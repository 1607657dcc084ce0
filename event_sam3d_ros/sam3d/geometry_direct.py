"""The one-pass geometry head: each image column of the crop predicts its column of voxels.

The voxel grid is aligned with the crop and perspective-correct (`layout.CropFrame`), so the silhouette is a local
question and only depth has to be inferred. Deterministic, no sampling; made for small models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.layers import conv_block
from event_sam3d_ros.sam3d.vit import Features


@dataclass(frozen=True)
class Geometry:
    """``logits``: (B, D, H, W) occupancy in the crop's grid, depth from near to far, > 0 is solid; ``up``: (B, 3) unit
    vector, the object's z axis in the crop frame; ``score``: (B,) logit of the expected IoU."""

    logits: Tensor
    up: Tensor
    score: Tensor


class DirectHead(nn.Module):
    """`Features` -> `Geometry`: the tokens as an image, upsampled twice with the stem's features as skips."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        encoder, head = config.encoder, config.direct
        self.grid, self.prefix = encoder.grid, 1 + encoder.registers
        self.resolution = head.resolution
        self.enter = conv_block(encoder.width, head.channels[0])
        skips = encoder.stem[::-1][: len(head.channels) - 1]
        self.up_blocks = nn.ModuleList(
            nn.Sequential(conv_block(a + skip, b), conv_block(b, b))
            for a, b, skip in zip(head.channels[:-1], head.channels[1:], skips, strict=True)
        )
        self.skip_names = [f"stem.{i}" for i in reversed(range(len(encoder.stem)))][: len(skips)]
        self.columns = nn.Conv2d(head.channels[-1], head.resolution, 1)
        assert self.columns.bias is not None
        self.up_vector = nn.Sequential(
            nn.Linear(encoder.width, encoder.width), nn.GELU(), last := nn.Linear(encoder.width, 3)
        )
        self.score = nn.Sequential(nn.Linear(encoder.width, 64), nn.GELU(), nn.Linear(64, 1))
        with torch.no_grad():
            self.columns.bias.fill_(-1.5)  # about the share of solid voxels in a crop's grid
            # start from the commonest view: up is image-up, tilted a little to the camera
            last.weight.mul_(0.1)
            last.bias.copy_(torch.tensor([0.0, -0.9, -0.4]))

    def forward(self, features: Features) -> Geometry:
        tokens = features.tokens
        x = tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = self.enter(x)
        for name, block in zip(self.skip_names, self.up_blocks, strict=True):
            skip = features.stages[name]
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        logits = self.columns(x)
        # the score looks at finished features and must not shape them
        pooled = tokens[:, self.prefix :].mean(1).detach()
        return Geometry(logits, F.normalize(self.up_vector(tokens[:, 0]), dim=-1), self.score(pooled).squeeze(-1))
