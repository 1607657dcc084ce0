"""Zero-initialised gated fusion: event features enter the RGB branch through gates that start closed.

At transformer blocks the RGB tokens attend to the event tokens (the gated cross-attention of Flamingo, Alayrac et al.
2022, section 2.2: ``x + tanh(g) * attention``, ``x + tanh(g) * mlp``); at stem scales, where both feature maps share
one pixel grid, a convolution over both replaces the attention. At the final tokens there are the three fusions of
event_sam3d (kirilllzaitsev/event_sam3d, models/fusion.py): ``gated``, ``attn``, ``cattn``. With every gate at zero the
RGB branch is unchanged bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import EncoderConfig, FusionConfig
from event_sam3d_ros.sam3d.layers import Attention, Block, CrossAttention, Mlp, conv_block


def gated(gate: Tensor, branch: Tensor) -> Tensor:
    """``tanh(gate) * branch`` for one ``gate`` (), zeros where it is closed whatever the branch holds."""
    return torch.tanh(gate) * finite_if(gate == 0, branch)


def finite_if(closed: Tensor, branch: Tensor) -> Tensor:
    """``branch``, and if its gate is ``closed`` (() bool) with zeros for inf and NaN, for 0 * inf is NaN: in float16 a
    branch that nothing has trained yet may overflow. Its other numbers stay: by them the gate learns to open."""
    return branch.masked_fill(closed & ~branch.isfinite(), 0)


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
        x = x + gated(self.gate, self.attention(self.norm(x), self.norm_context(events)))
        return x + gated(self.gate_mlp, self.mlp(self.norm_mlp(x)))


class GatedConvolution(nn.Module):
    """Feature maps (B, C, H, W) of RGB and events on one grid -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(conv_block(2 * channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, events: Tensor) -> Tensor:
        return x + gated(self.gate, self.mix(torch.cat([x, events], dim=1)))


class GatedProjection(nn.Module):
    """``gated``: projected event tokens, weighed by a gate that sees both tokens of a place.

    ``x + tanh(gate [x, p]) * p`` with ``p = project(events)``, for tokens (B, N, C) on one grid. The projection of the
    RGB tokens, which starts as the identity in event_sam3d, is left out: it would round them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.gate = nn.Linear(2 * width, width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, events: Tensor) -> Tensor:
        closed = ~(self.gate.weight.any() | self.gate.bias.any())
        events = finite_if(closed, self.project(events))
        return x + torch.tanh(self.gate(torch.cat([x, events], dim=-1))) * events


class DecoderBlock(nn.Module):
    """Pre-norm block that looks at itself, then at a context (B, M, C), as a transformer's decoder does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class TokenAttention(nn.Module):
    """``attn``: a transformer over the event tokens and the RGB tokens together, of which the RGB tokens are kept;
    ``cattn`` (``cross``): one over the RGB tokens that attend to the event tokens.

    ``x + tanh(g) * (T(x, events) - x)`` for tokens (B, N, C) and (B, M, C): from the plain tokens at g = 0 to the
    transformer's own. Depth 2 and MLPs as wide as the tokens are event_sam3d's; the gate and norms before instead of
    after each part are ours, so that training starts from the plain network.
    """

    def __init__(self, width: int, heads: int, cross: bool, depth: int = 2) -> None:
        super().__init__()
        self.cross = cross
        self.blocks = nn.ModuleList(
            DecoderBlock(width, heads) if cross else Block(width, heads, mlp_ratio=1.0, layer_scale=False)
            for _ in range(depth)
        )
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, events: Tensor) -> Tensor:
        y = x if self.cross else torch.cat([events, x], dim=1)
        for block in self.blocks:
            y = block(y, events) if self.cross else block(y)
        return x + gated(self.gate, y[:, -x.shape[1] :] - x)


def token_fusion(kind: str, width: int, heads: int) -> nn.Module:
    """The fusion of final tokens named ``kind``: a module of (RGB tokens, event tokens) -> RGB tokens."""
    return GatedProjection(width) if kind == "gated" else TokenAttention(width, heads, cross=kind == "cattn")


class EventFusion(nn.Module):
    """All fusion modules of one encoder, by stage name (with ``_`` for ``.``, which module names can't hold).

    ``token_width``: channels of the final tokens that ``fusion.tokens`` works on.
    """

    def __init__(self, encoder: EncoderConfig, fusion: FusionConfig, token_width: int | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleDict()
        for i in fusion.stems:
            self.stages[f"stem_{i}"] = GatedConvolution(encoder.stem[i])
        for i in fusion.blocks:
            self.stages[f"block_{i}"] = GatedCrossAttention(encoder.width, fusion.heads)
        self.tokens = token_fusion(fusion.tokens, token_width or encoder.width, fusion.heads) if fusion.tokens else None

    def forward(self, stage: str, x: Tensor, events: Tensor) -> Tensor:
        """``x`` and ``events``: both encoders' features at ``stage``; stages without fusion pass ``x`` through."""
        name = stage.replace(".", "_")
        return self.stages[name](x, events) if name in self.stages else x

    def fuse_tokens(self, x: Tensor, events: Tensor) -> Tensor:
        """``x`` and ``events``: final tokens (B, N, C) of both branches; without token fusion ``x`` itself."""
        return x if self.tokens is None else self.tokens(x, events)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of an encoder that fusion reads."""
        return tuple(name.replace("_", ".") for name in self.stages)

    def gates(self) -> dict[str, Tensor]:
        """Every gate by its parameter name."""
        return {name: p for name, p in self.named_parameters() if any(s.startswith("gate") for s in name.split("."))}
