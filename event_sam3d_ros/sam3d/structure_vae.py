"""The sparse-structure VAE: a 64^3 occupancy grid <-> a latent grid of 16^3 cells with 8 channels.

The decoder turns the geometry flow's shape latent into occupancy logits. The encoder, its mirror, is only needed to
train a flow. Both are plain 3-D convolution networks in the manner of TRELLIS (Xiang et al. 2024, section 3.3); names
of parameters and arithmetic as in facebookresearch/sam-3d-objects, tdfy_dit/models/sparse_structure_vae.py.

Grids are (B, C, X, Y, Z) in the decoder's object frame (`layout.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def tokens_to_grid(tokens: Tensor) -> Tensor:
    """The flow's shape tokens (B, R^3, C), z running fastest -> latent grid (B, C, R, R, R)."""
    resolution = round(tokens.shape[1] ** (1 / 3))
    return tokens.transpose(1, 2).unflatten(2, (resolution, resolution, resolution))


def grid_to_tokens(grid: Tensor) -> Tensor:
    """The inverse of `tokens_to_grid`."""
    return grid.flatten(2).transpose(1, 2)


class StructureDecoder(nn.Module):
    """Latent grid (B, latent_channels, R, R, R) -> occupancy logits (B, 1, R', R', R'), > 0 is occupied.

    ``channels`` are the widths of the stages from coarse to fine; each further stage doubles the resolution, so the
    released three take R = 16 to R' = 64.
    """

    def __init__(
        self,
        channels: Sequence[int] = (512, 128, 32),
        latent_channels: int = 8,
        blocks: int = 2,
        middle_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResidualBlock(channels[0]) for _ in range(middle_blocks)))
        stages: list[nn.Module] = []
        for width, finer in zip(channels, [*channels[1:], None], strict=True):
            stages += [ResidualBlock(width) for _ in range(blocks)]
            if finer is not None:
                stages.append(Upsample(width, finer))
        self.blocks = nn.Sequential(*stages)
        self.out_layer = nn.Sequential(
            ChannelLayerNorm(channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 1, 3, padding=1)
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.out_layer(self.blocks(self.middle_block(self.input_layer(latent))))


class StructureEncoder(nn.Module):
    """Occupancy (B, 1, R', R', R') of 0 and 1, floating point -> mean and log variance of the latent, each
    (B, latent_channels, R, R, R). The latent that the flow learns is the mean. ``channels`` run from fine to coarse.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 128, 512),
        latent_channels: int = 8,
        blocks: int = 2,
        middle_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(1, channels[0], 3, padding=1)
        stages: list[nn.Module] = []
        for width, coarser in zip(channels, [*channels[1:], None], strict=True):
            stages += [ResidualBlock(width) for _ in range(blocks)]
            if coarser is not None:
                stages.append(Downsample(width, coarser))
        self.blocks = nn.Sequential(*stages)
        self.middle_block = nn.Sequential(*(ResidualBlock(channels[-1]) for _ in range(middle_blocks)))
        self.out_layer = nn.Sequential(
            ChannelLayerNorm(channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 2 * latent_channels, 3, padding=1)
        )

    def forward(self, occupancy: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.out_layer(self.middle_block(self.blocks(self.input_layer(occupancy)))).chunk(2, dim=1)
        return mean, log_variance


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input. Starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(width)
        self.norm2 = ChannelLayerNorm(width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each voxel, in float32 whatever the type of the rest.

    A group norm has parameters of the same shapes, so a mix-up would load without a word; this is the released one.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(
            x.movedim(1, -1).float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.movedim(-1, 1).to(x.dtype)


class Upsample(nn.Module):
    """Twice the resolution: a convolution makes each voxel's eight children as channels, c' * 8 + 4 dx + 2 dy + dz."""

    def __init__(self, width: int, finer: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, 8 * finer, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        children = self.conv(x).unflatten(1, (-1, 2, 2, 2))  # (B, C', dx, dy, dz, X, Y, Z)
        return children.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Downsample(nn.Module):
    """Half the resolution by a convolution over 2 x 2 x 2 voxels."""

    def __init__(self, width: int, coarser: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, coarser, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
