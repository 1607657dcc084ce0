"""The image encoder: a vision transformer in DINOv2's form, optionally behind a convolutional stem.

One class serves all inputs and sizes: DINOv2 with registers (Oquab et al. 2023, Darcet et al. 2023) at released size,
and small networks with another patch size and a stem. State-dict names are DINOv2's (``patch_embed.proj``,
``cls_token``, ``register_tokens``, ``pos_embed``, ``blocks.i...``, ``norm``); a stem adds ``stem.i``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import EncoderConfig
from event_sam3d_ros.sam3d.layers import Block, conv_block

Inject = Callable[[str, Tensor], Tensor]
"""Changes the features of the stage named ``stem.i`` or ``block.i`` on their way through the encoder."""

# ImageNet statistics, as DINOv2 uses them; further channels (a mask) are normalised to mean 0.5, deviation 0.5.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What an encoder gives. Tokens are (B, 1 + registers + grid^2, C): class, registers, patches row by row.

    ``tokens``: after the final norm; ``prenorm``: the same before it; ``stages``: outputs by stage name (``stem.i``:
    (B, C_i, H_i, W_i); ``block.i``: (B, tokens, C)).
    """

    tokens: Tensor
    prenorm: Tensor
    stages: dict[str, Tensor]


class VisionTransformer(nn.Module):
    """(B, in_channels, H, W) float in [0, 1], or one channel that stands for all -> `Features`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        channels = (config.in_channels, *config.stem)
        self.stem = nn.ModuleList(
            nn.Sequential(conv_block(a, b, stride=2), conv_block(b, b))
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        patch = 2 if config.stem else config.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels[-1], width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if config.mask_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in (self.cls_token, self.register_tokens, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, image: Tensor, inject: Inject | None = None, keep: Collection[str] | None = None) -> Features:
        """``inject`` may replace each stage's output; the replaced one is what flows on and is returned. ``keep`` names
        the stages to return, None all of them."""
        return self.encode(self.prepare(image), inject, keep)

    def prepare(self, image: Tensor) -> Tensor:
        """Resizes to the network's size, repeats a single channel, normalises.

        Released masks go through the same normalisation as images (facebookresearch/sam-3d-objects, embedder/dino.py).
        Raises InputError for another number of channels.
        """
        if image.shape[1] not in (1, self.config.in_channels):
            raise InputError(
                f"an image of {image.shape[1]} channels; this encoder takes 1 or {self.config.in_channels}",
                reason="wrong_channels",
            )
        size = (self.config.size, self.config.size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        extra = self.config.in_channels - 3
        mean = image.new_tensor(IMAGE_MEAN + (0.5,) * extra).view(1, -1, 1, 1)
        std = image.new_tensor(IMAGE_STD + (0.5,) * extra).view(1, -1, 1, 1)
        return (image - mean) / std  # broadcasting repeats the single channel

    def encode(self, x: Tensor, inject: Inject | None = None, keep: Collection[str] | None = None) -> Features:
        """`forward` for what `prepare` made of the images."""
        change = inject or (lambda _, features: features)
        stages: dict[str, Tensor] = {}

        def finish(name: str, features: Tensor) -> Tensor:
            features = change(name, features)
            if keep is None or name in keep:
                stages[name] = features
            return features

        x = x.to(self.pos_embed.dtype)
        for i, stage in enumerate(self.stem):
            x = finish(f"stem.{i}", stage(x))
        x = self.patch_embed["proj"](x)
        positions = self._positions(x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        if self.register_tokens is not None:  # after the positions, which registers have none of
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for i, block in enumerate(self.blocks):
            x = finish(f"block.{i}", block(x))
        return Features(self.norm(x), x, stages)

    def _positions(self, grid: int) -> Tensor:
        """The position table for ``grid`` x ``grid`` patches. Another grid than the table's is interpolated as DINOv2
        does for its models with registers: bicubic with antialiasing, by size (dinov2, hub/backbones.py)."""
        if grid == self.config.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
        table = F.interpolate(table.float(), (grid, grid), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2).to(self.pos_embed)], dim=1)
