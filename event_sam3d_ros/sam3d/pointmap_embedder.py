"""The pointmap embedder: a map of 3-D points, with holes -> one token for each window of pixels.

SAM 3D's geometry stage reads depth through it (facebookresearch/sam-3d-objects, embedder/pointmap.py; the windows'
transformer is that of MCC, Wu et al. 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import PointmapConfig
from event_sam3d_ros.sam3d.layers import Block

# Points that go through the windows' transformer at once: two released maps, about 0.7 GB of activations in bfloat16.
# More gain no speed, and the maps of eight objects would need as much memory as all weights.
POINTS_AT_ONCE = 2 * 256**2


class PointmapEmbedder(nn.Module):
    """(B, 3, H, W) points, NaN or inf where unknown -> tokens (B, windows, C), windows row by row.

    Points are in the normalised frame of the preprocessing. A pixel counts as unknown if any of its three values is not
    finite; it is then represented by a learned token.
    """

    def __init__(self, config: PointmapConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        windows = config.input_size // patch
        self.point_proj = nn.Linear(3, width)
        self.invalid_xyz_token = nn.Parameter(torch.zeros(width))
        self.pos_embed = nn.Parameter(torch.zeros(1, width, windows, windows))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, 1 + patch * patch, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Block(width, config.heads, mlp_ratio=2.0, layer_scale=False)])
        for parameter in (self.invalid_xyz_token, self.pos_embed, self.pos_embed_window, self.cls_token):
            nn.init.normal_(parameter, std=0.02)

    @property
    def tokens(self) -> int:
        """Tokens that one map gives."""
        return (self.config.input_size // self.config.patch_size) ** 2

    @property
    def memory_per_map(self) -> int:
        """Bytes that embedding one map takes beside the weights, from above: the widest place, its windows' attention,
        holds 4.4 times the points' channels; the rest is for what the other embedders gave meanwhile."""
        points, weight = self.config.input_size**2, self.point_proj.weight
        return 5 * points * self.config.width * weight.dtype.itemsize

    def forward(self, pointmap: Tensor) -> Tensor:
        points = self.resize(pointmap)
        at_once = max(1, POINTS_AT_ONCE // self.config.input_size**2)
        windows = torch.cat([self._embed_windows(self.embed_points(part)) for part in points.split(at_once)])
        return windows + self.pos_embed.flatten(2).transpose(1, 2)

    def resize(self, pointmap: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, S, S, 3) by nearest neighbour: unknown points must not spread."""
        size = (self.config.input_size, self.config.input_size)
        return F.interpolate(pointmap, size, mode="nearest").permute(0, 2, 3, 1)

    def embed_points(self, points: Tensor) -> Tensor:
        """(B, S, S, 3) points -> (B, S, S, C).

        The projection of three coordinates runs in float32: it costs nothing, and half precision would move points by
        millimetres, or turn far ones to inf.
        """
        valid = points.isfinite().all(-1, keepdim=True)
        weight, bias = self.point_proj.weight, self.point_proj.bias
        x = F.linear(torch.where(valid, points, 0.0).float(), weight.float(), bias.float()).to(weight.dtype)
        return torch.where(valid, x, self.invalid_xyz_token)

    def _embed_windows(self, x: Tensor) -> Tensor:
        """(B, S, S, C) points -> (B, windows, C): the class token of each window's transformer."""
        b, size, _, c = x.shape
        patch = self.config.patch_size
        x = x.reshape(b, size // patch, patch, size // patch, patch, c).transpose(2, 3).reshape(-1, patch * patch, c)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed_window
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.first(x).reshape(b, -1, c)
