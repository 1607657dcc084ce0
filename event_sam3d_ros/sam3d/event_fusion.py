"""Zero-initialised gated fusion: event features enter the RGB encoder through gates that start closed.

At transformer blocks the RGB tokens attend to the event tokens (the gated cross-attention of Flamingo, Alayrac et al.
2022, section 2.2: ``x + tanh(g) * attention``, ``x + tanh(g) * mlp``); at stem scales, where both feature maps share
one pixel grid, a convolution over both replaces the attention. With every gate at zero the RGB encoder is unchanged bit
for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import EncoderConfig, FusionConfig
from event_sam3d_ros.sam3d.layers import CrossAttention, Mlp, conv_block


class GatedCrossAttention(nn.Module):
    """Tokens (B, N, C) with event tokens (B, M, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.norm_context = nn.LayerNorm(width, eps=1e-6)
        self.attention = CrossAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 2 * width)
        self.gate = nn.Parameter(torch.zeros(()))
        self.gate_mlp = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, events: Tensor) -> Tensor:
        x = x + torch.tanh(self.gate) * self.attention(self.norm(x), self.norm_context(events))
        return x + torch.tanh(self.gate_mlp) * self.mlp(self.norm_mlp(x))


class GatedConvolution(nn.Module):
    """Feature maps (B, C, H, W) of RGB and events on one grid -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(conv_block(2 * channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, events: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * self.mix(torch.cat([x, events], dim=1))


class EventFusion(nn.Module):
    """All fusion modules of one encoder, by stage name (with ``_`` for ``.``, which module names can't hold)."""

    def __init__(self, encoder: EncoderConfig, fusion: FusionConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleDict()
        for i in fusion.stems:
            self.stages[f"stem_{i}"] = GatedConvolution(encoder.stem[i])
        for i in fusion.blocks:
            self.stages[f"block_{i}"] = GatedCrossAttention(encoder.width, fusion.heads)

    def forward(self, stage: str, x: Tensor, events: Tensor) -> Tensor:
        """``x`` and ``events``: both encoders' features at ``stage``; stages without fusion pass ``x`` through."""
        name = stage.replace(".", "_")
        return self.stages[name](x, events) if name in self.stages else x

    def gates(self) -> dict[str, Tensor]:
        """Every gate by its parameter name."""
        return {name: p for name, p in self.named_parameters() if name.rsplit(".", 1)[-1].startswith("gate")}
