"""Transformer layers with DINOv2's names and arithmetic (pre-norm, LayerScale, exact GELU, LayerNorm eps 1e-6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int, initial: float = 1.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def first(self, x: Tensor) -> Tensor:
        """``forward(x)[:, :1]``, computed for that one query alone."""
        b, n, c = x.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:c], bias[:c]).reshape(b, 1, self.heads, c // self.heads).transpose(1, 2)
        kv = F.linear(x, weight[c:], bias[c:])
        k, v = kv.reshape(b, n, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).reshape(b, 1, c))


class CrossAttention(nn.Module):
    """Multi-head attention of queries (B, N, C) over a context (B, M, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(context).reshape(b, context.shape[1], 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated projection without biases, ``w2(silu(w1 x) * w3 x)``, in Llama 3's form: ``hidden`` is cut to two thirds,
    for there are three matrices instead of two, and rounded up to a multiple of 256."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        hidden = -(-(2 * hidden // 3) // 256) * 256
        self.w1 = nn.Linear(width_in, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width_out, bias=False)
        self.w3 = nn.Linear(width_in, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One pre-norm transformer block of DINOv2; without ``layer_scale`` that of the plain ViT."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, layer_scale: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))

    def first(self, x: Tensor) -> Tensor:
        """``forward(x)[:, :1]``: where only the first token is read, the others need neither query nor MLP."""
        y = x[:, :1] + self.ls1(self.attn.first(self.norm1(x)))
        return y + self.ls2(self.mlp(self.norm2(y)))


def conv_block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, GroupNorm, GELU. Kaiming weights: the default initialisation leaves features almost equal
    across inputs, and training starts with a long plateau."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    if not conv.weight.is_meta:  # which has no numbers; for normal ones torch would import its compiler, 800 modules
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(min(8, channels_out // 4), channels_out), nn.GELU())
