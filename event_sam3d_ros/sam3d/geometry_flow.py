"""The sampling geometry head: shape and pose of an object flow together from noise, conditioned on its tokens.

A mixture of transformers (Liang et al. 2024, arXiv 2411.04996) with two streams of tokens that have their own weights:
``shape`` (the 16^3 latent grid of the structure decoder) and the pose (6D rotation, translation, scale, translation
scale; one token each). Pose attends to shape, shape never to pose. Names of tensors, and with them of streams and
latents, are those of the released model after its prefix ``_base_models.generator.reverse_fn.backbone.``
(facebookresearch/sam-3d-objects, mot_sparse_structure_flow.py, mm_latent.py, timestep_embedder.py, and modulated.py and
modules.py of the transformer and attention).

The condition does not change while an object is sampled, so `GeometryFlow.condition` makes its keys and values once.
The unconditional branch of the guidance sees a condition of zeros: all keys are equal, all values are the bias, and
attention to them is one constant vector per block and stream, whatever asks. Both branches run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import FlowHeadConfig, SamplerConfig
from event_sam3d_ros.sam3d.flow import Latents, draw_noise, sample

SHAPE = "shape"
POSE = "6drotation_normalized"
"""The pose stream carries the name of its first latent."""
STREAMS = (SHAPE, POSE)
POSE_CHANNELS = {"6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
"""Latents of the pose stream, in the order of their tokens."""

FREQUENCIES = 128
MAX_PERIOD = 10000.0


class ConditionCache(NamedTuple):
    """What one block keeps of the condition for one stream: ``keys`` and ``values`` (B, heads, M, D) of the condition
    tokens, and ``unconditional`` (C,), the outcome of attending to zeros instead."""

    keys: Tensor
    values: Tensor
    unconditional: Tensor


Streams = dict[str, Tensor]
BlockCondition = dict[str, ConditionCache]


class ScalarEmbedder(nn.Module):
    """(B,) float32 times or step sizes, in the network's units -> (B, C), by sinusoids and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        exponent = torch.arange(FREQUENCIES, dtype=torch.float32, device=value.device) / FREQUENCIES
        angles = value.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoids.to(next(self.parameters()).dtype))


class HeadNorm(nn.Module):
    """Scales every head's vector (..., heads, D) to length sqrt(D) and multiplies by a learned gain per channel."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        # eps only keeps a zero vector zero: the released code divides by max(length, 1e-12)
        return F.rms_norm(x, x.shape[-1:], eps=1e-24) * self.gamma


class MixedAttention(nn.Module):
    """Self-attention of both streams, (B, N, C) each: shape to shape, pose to pose and shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.ModuleDict({name: nn.Linear(width, 3 * width) for name in STREAMS})
        self.q_rms_norm = nn.ModuleDict({name: HeadNorm(heads, width // heads) for name in STREAMS})
        self.k_rms_norm = nn.ModuleDict({name: HeadNorm(heads, width // heads) for name in STREAMS})
        self.to_out = nn.ModuleDict({name: nn.Linear(width, width) for name in STREAMS})

    def forward(self, tokens: Streams) -> Streams:
        shape_q, shape_k, shape_v = self._project(SHAPE, tokens[SHAPE])
        pose_q, pose_k, pose_v = self._project(POSE, tokens[POSE])
        # the loss of the pose must not shape the geometry, so its gradient ends here
        pose_k = torch.cat([pose_k, shape_k.detach()], dim=2)
        pose_v = torch.cat([pose_v, shape_v.detach()], dim=2)
        attended = {
            SHAPE: F.scaled_dot_product_attention(shape_q, shape_k, shape_v),
            POSE: F.scaled_dot_product_attention(pose_q, pose_k, pose_v),
        }
        return {name: self.to_out[name](x.transpose(1, 2).flatten(2)) for name, x in attended.items()}

    def _project(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> queries, keys, values (B, heads, N, D)."""
        q, k, v = self.to_qkv[name](x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = self.q_rms_norm[name](q), self.k_rms_norm[name](k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class ConditionAttention(nn.Module):
    """Attention of one stream to the condition tokens."""

    def __init__(self, width: int, condition_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(condition_width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def cache(self, condition: Tensor) -> ConditionCache:
        """``condition``: (B, M, condition_width)."""
        keys, values = self.to_kv(condition).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        _, value_bias = self.to_kv.bias.chunk(2)
        return ConditionCache(keys, values, self.to_out(value_bias))

    def forward(self, x: Tensor, cache: ConditionCache) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, cache.keys, cache.values)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between (DINOv2's `layers.Mlp` has the exact one)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class FlowBlock(nn.Module):
    """One block for both streams: self-attention and MLP modulated and gated by the time embedding (adaLN of DiT,
    Peebles and Xie 2023; one modulation for both streams), plain attention to the condition between them."""

    def __init__(self, config: FlowHeadConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.norm2 = nn.ModuleDict({name: nn.LayerNorm(width, eps=1e-6) for name in STREAMS})
        self.self_attn = MixedAttention(width, heads)
        self.cross_attn = nn.ModuleDict(
            {name: ConditionAttention(width, config.condition_width, heads) for name in STREAMS}
        )
        self.mlp = nn.ModuleDict({name: FeedForward(width, int(width * config.mlp_ratio)) for name in STREAMS})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def cache(self, condition: Tensor) -> BlockCondition:
        return {name: cast(ConditionAttention, self.cross_attn[name]).cache(condition) for name in STREAMS}

    def forward(self, tokens: Streams, time: Tensor, condition: BlockCondition, guided: bool) -> Streams:
        """``tokens``: (B, N, C) per stream; ``time``: (B, C).

        If ``guided``, ``time`` and the result hold 2B rows: those with the condition, then those without. ``tokens``
        may still hold B, the same for both: before the first block nothing tells the branches apart.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(time)[:, None].chunk(6, dim=-1)
        rows = len(tokens[SHAPE])
        modulated = {name: modulate(x, shift[:rows], scale[:rows]) for name, x in tokens.items()}
        attended = self.self_attn(modulated)
        result = {}
        for name, x in tokens.items():
            x = torch.addcmul(x, gate[:rows], attended[name])
            x = self._attend_to_condition(name, x, condition[name], guided)
            result[name] = torch.addcmul(x, gate_mlp, self.mlp[name](modulate(x, shift_mlp, scale_mlp)))
        return result

    def _attend_to_condition(self, name: str, x: Tensor, cache: ConditionCache, guided: bool) -> Tensor:
        objects = len(cache.keys)
        conditional = x[:objects]
        conditional = conditional + self.cross_attn[name](self.norm2[name](conditional), cache)
        if not guided:
            return conditional
        return torch.cat([conditional, x[-objects:] + cache.unconditional])


class LatentMapping(nn.Module):
    """One latent (B, tokens, channels) to tokens (B, tokens, C) and back. ``positions``: fixed (tokens, C), or None for
    one token with a learned position."""

    def __init__(self, channels: int, width: int, positions: Tensor | None = None) -> None:
        super().__init__()
        self.input_layer = nn.Linear(channels, width)
        self.out_layer = nn.Linear(width, channels)
        if positions is None:
            self.pos_emb = nn.Parameter(torch.randn(1, width) * 0.02)
        else:
            self.register_buffer("pos_emb", positions)

    def to_tokens(self, latent: Tensor) -> Tensor:
        return self.input_layer(latent.to(self.input_layer.weight.dtype)) + self.pos_emb

    def to_latent(self, tokens: Tensor) -> Tensor:
        normed = F.layer_norm(tokens.float(), tokens.shape[-1:])
        return self.out_layer(normed.to(self.out_layer.weight.dtype)).float()


class GeometryFlow(nn.Module):
    """Condition tokens of objects -> latents of their shape and pose.

    Weights may be float32, bfloat16 or float16 (``.to(dtype)``); latents stay float32 outside. The released model keeps
    embeddings and latent mappings in float32 and its blocks in float16: ``flow.blocks.to(dtype)``.
    """

    def __init__(self, config: FlowHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.t_embedder = ScalarEmbedder(config.width)
        self.d_embedder = ScalarEmbedder(config.width)
        self.blocks = nn.ModuleList(FlowBlock(config) for _ in range(config.depth))
        mapping = {SHAPE: LatentMapping(config.channels, config.width, grid_positions(config.resolution, config.width))}
        mapping |= {name: LatentMapping(channels, config.width) for name, channels in POSE_CHANNELS.items()}
        self.latent_mapping = nn.ModuleDict(mapping)
        self._initialise()

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in."""
        return next(self.blocks.parameters()).dtype

    @property
    def latent_shapes(self) -> dict[str, tuple[int, int]]:
        """(tokens, channels) of every latent by name."""
        shape = {SHAPE: (self.config.resolution**3, self.config.channels)}
        return shape | {name: (1, channels) for name, channels in POSE_CHANNELS.items()}

    def condition(self, tokens: Tensor) -> list[BlockCondition]:
        """``tokens``: (B, M, condition_width) of B objects -> what every block keeps of them.

        Raises InputError if the tokens do not fit the network.
        """
        width = self.config.condition_width
        if tokens.ndim != 3 or tokens.shape[2] != width or 0 in tokens.shape:
            raise InputError(
                f"condition tokens {tuple(tokens.shape)} do not fit the network: expected (objects, tokens, {width})",
                reason="wrong_condition",
            )
        tokens = tokens.to(self.dtype)
        return [cast(FlowBlock, block).cache(tokens) for block in self.blocks]

    def memory_per_object(self, condition_tokens: int) -> int:
        """Bytes that `sample` takes for each object beside the weights, from above: what is kept of the condition (at
        released size 1.5 GB in 16 bits), and the tokens of both branches at the widest place, inside an MLP."""
        config = self.config
        kept = condition_tokens * (config.condition_width + len(STREAMS) * config.depth * 2 * config.width)
        tokens = config.resolution**3 + len(POSE_CHANNELS)
        working = 2 * tokens * config.width * (6 + 2 * config.mlp_ratio)
        return (kept + math.ceil(working)) * self.dtype.itemsize

    def forward(
        self,
        latents: Latents,
        time: Tensor,
        step_size: Tensor,
        condition: list[BlockCondition],
        guided: bool = False,
    ) -> tuple[Latents, Latents | None]:
        """Velocities of ``latents`` ((B, tokens, channels) by name) -> the conditional and, if ``guided``, the
        unconditional ones, float32.

        ``time``, ``step_size``: (B,) or (1,) float32 in the network's units, 1000 times the flow's; the step size is 0
        outside shortcut mode, and its embedding is added all the same.
        """
        embedding = self.t_embedder(time) + self.d_embedder(step_size)
        embedding = embedding.expand(len(latents[SHAPE]), -1).to(self.dtype)
        if guided:
            embedding = embedding.repeat(2, 1)
        streams = self._to_streams(latents)
        for block, block_condition in zip(self.blocks, condition, strict=True):
            streams = block(streams, embedding, block_condition, guided)
        velocity = self._to_latents(streams)
        if not guided:
            return velocity, None
        pairs = {name: v.chunk(2) for name, v in velocity.items()}
        return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}

    def sample(self, tokens: Tensor, generators: Sequence[torch.Generator], config: SamplerConfig) -> Latents:
        """Draws one sample per object: ``tokens`` (B, M, condition_width) and B ``generators``
        (`flow.seeded_generators`) -> latents by name, (B, tokens, channels) float32.

        Raises InputError if the tokens do not fit, or if the result is not finite (float16 can overflow).
        """
        if len(generators) != len(tokens):
            raise InputError(
                f"{len(generators)} noise generators for {len(tokens)} objects: give one each", reason="wrong_seeds"
            )
        noise = draw_noise(self.latent_shapes, generators, tokens.device)
        with torch.no_grad():
            condition = self.condition(tokens)

        def velocity(latents: Latents, time: Tensor, step_size: Tensor, guided: bool) -> tuple[Latents, Latents | None]:
            return self(latents, time, step_size, condition, guided)

        latents = sample(velocity, noise, config)
        if not tokens.is_meta and not all(x.isfinite().all() for x in latents.values()):
            raise InputError(
                "the sampled geometry holds NaN or inf: the condition tokens do, or the precision is too low for these "
                "weights; try bfloat16 or float32",
                reason="geometry_not_finite",
            )
        return latents

    def _to_streams(self, latents: Latents) -> Streams:
        tokens = {name: mapping.to_tokens(latents[name]).to(self.dtype) for name, mapping in self._mappings()}
        return {SHAPE: tokens[SHAPE], POSE: torch.cat([tokens[name] for name in POSE_CHANNELS], dim=1)}

    def _to_latents(self, streams: Streams) -> Latents:
        tokens = dict(zip(POSE_CHANNELS, streams[POSE].split(1, dim=1), strict=True)) | {SHAPE: streams[SHAPE]}
        return {name: mapping.to_latent(tokens[name]) for name, mapping in self._mappings()}

    def _mappings(self) -> Iterator[tuple[str, LatentMapping]]:
        for name, mapping in self.latent_mapping.items():
            yield name, cast(LatentMapping, mapping)

    def _initialise(self) -> None:
        """The released model's start: gates closed, step size without effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight") or name == "d_embedder.mlp.2.weight":
                nn.init.zeros_(parameter)
            elif name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
                nn.init.normal_(parameter, std=0.02)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x`` (B, N, C), normalised over channels, times ``1 + scale`` plus ``shift`` (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def grid_positions(resolution: int, width: int) -> Tensor:
    """(resolution^3, width) sinusoids of every cell's x, y, z; z changes fastest, left-over channels are 0."""
    axis = torch.arange(resolution, dtype=torch.float32)
    coordinates = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    return coordinate_embedding(coordinates, width)


def coordinate_embedding(coordinates: Tensor, width: int) -> Tensor:
    """(N, 3) grid coordinates -> (N, width): sines, then cosines, for each of x, y, z; left-over channels are 0."""
    frequencies = width // 6
    exponent = torch.arange(frequencies, dtype=torch.float32, device=coordinates.device) / frequencies
    angles = coordinates.float()[..., None] * MAX_PERIOD**-exponent
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(embedding, (0, width - embedding.shape[1]))
