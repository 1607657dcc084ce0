"""The image encoder: a vision transformer in DINOv2's form, optionally behind a convolutional stem.

One class serves all inputs and sizes. State-dict names are DINOv2's (``patch_embed.proj``, ``cls_token``,
``register_tokens``, ``pos_embed``, ``blocks.i...``, ``norm``); a stem adds ``stem.i``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import EncoderConfig
from event_sam3d_ros.sam3d.layers import Block, conv_block

Inject = Callable[[str, Tensor], Tensor]
"""Changes the features of the stage named ``stem.i`` or ``block.i`` on their way through the encoder."""

# ImageNet statistics, as DINOv2 uses them; further channels (a mask) are normalised to mean 0.5, deviation 0.5.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What an encoder gives: ``tokens`` (B, 1 + registers + grid^2, C) after the final norm, and the outputs of every
    stage by name (``stem.i``: (B, C_i, H_i, W_i); ``block.i``: (B, tokens, C))."""

    tokens: Tensor
    stages: dict[str, Tensor]


class VisionTransformer(nn.Module):
    """(B, in_channels, S, S) float in [0, 1] -> `Features`."""

    mean: Tensor
    std: Tensor

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
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        extra = config.in_channels - 3
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN + (0.5,) * extra).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD + (0.5,) * extra).view(1, -1, 1, 1), persistent=False)
        for parameter in (self.cls_token, self.register_tokens, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, image: Tensor, inject: Inject | None = None) -> Features:
        """``inject`` may replace each stage's output; the replaced one is what flows on and is returned."""
        change = inject or (lambda _, features: features)
        stages: dict[str, Tensor] = {}
        x = (image - self.mean) / self.std
        for i, stage in enumerate(self.stem):
            x = stages[f"stem.{i}"] = change(f"stem.{i}", stage(x))
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for i, block in enumerate(self.blocks):
            x = stages[f"block.{i}"] = change(f"block.{i}", block(x))
        return Features(self.norm(x), stages)
