"""Flow matching and the shortcut objective on latents of shape and pose.

The loss and its settings are SAM 3D's (paper, appendix C.2, C.4 and table 5; the released ss_generator.yaml): weighted
mean squared errors of the velocity, times from sigmoid(N(-1, 1)), a tenth of the objects without condition, and, for
few steps, a quarter of the objects that learn to do two steps in one (shortcut models, Frans et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from event_sam3d_ros.sam3d.flow import TIME_SCALE, Latents, draw_noise, guide, interpolate
from event_sam3d_ros.sam3d.geometry_flow import SHAPE, GeometryFlow
from training.distributed import whole_batch

WEIGHTS = {SHAPE: 1.0, "6drotation_normalized": 0.1, "translation": 1.0, "scale": 0.1, "translation_scale": 0.0}
"""Table 5: S 1.0, R 0.1, t 1.0, s 0.1. ``translation_scale`` has no meaning in the released convention: weight 0."""

UNCONDITIONAL = 0.1
TIME_MEAN, TIME_DEVIATION = -1.0, 1.0
SELF_CONSISTENT = 0.25
"""Share of objects that learn long steps; the others go on learning velocities."""
GUIDANCE = 1.0
"""The paper's w = 2, ``unconditional + w (conditional - unconditional)``, in units of `flow.guide`: where guidance of
the shape leads is what long steps learn, because what is sampled in few steps is not guided. As Frans et al. do, only
velocities are guided, and longer steps take it over from shorter ones; guided at each doubling it would add up."""
FINEST = 64
"""Long steps are 1, 1/2, ..., 1/64; the halves of the shortest are taken with the guided velocity (step size 0)."""


def flow_matching_loss(
    flow: GeometryFlow, tokens: Tensor, data: Latents, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """``tokens``: condition (B, M, C) of B objects, ``data``: their latents -> the weighted loss and its parts. All
    random choices come from ``generator``, of the CPU."""
    return _loss(flow, tokens, data, generator, long_share=0.0)


def shortcut_loss(
    flow: GeometryFlow, tokens: Tensor, data: Latents, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """`flow_matching_loss` for most objects; for the first quarter the self-consistency of long steps."""
    return _loss(flow, tokens, data, generator, long_share=SELF_CONSISTENT)


def velocity_errors(predicted: Latents, target: Latents) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of mean squared errors of all latents with `WEIGHTS`, and those that count by short names."""
    errors = {name: (predicted[name] - target[name]).square().mean() for name, weight in WEIGHTS.items() if weight}
    total = torch.stack([WEIGHTS[name] * error for name, error in errors.items()]).sum()
    return total, {name.removesuffix("_normalized"): error for name, error in errors.items()}


def _loss(
    flow: GeometryFlow, tokens: Tensor, data: Latents, generator: torch.Generator, long_share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    device = tokens.device
    count, own = whole_batch(len(tokens))
    long_steps = round(long_share * count)
    noise = own_noise(flow, len(tokens), generator, device)
    time = torch.sigmoid(TIME_MEAN + TIME_DEVIATION * torch.randn(count, generator=generator))
    kept = (torch.rand(count, generator=generator) >= UNCONDITIONAL).float()
    step = torch.zeros(count)
    step[:long_steps], time[:long_steps] = random_long_steps(long_steps, generator)
    kept[:long_steps] = 1
    time, step, kept = (drawn[own].to(device) for drawn in (time, step, kept))
    long_steps = len(range(long_steps)[own])
    state, target = interpolate(noise, data, time)
    if long_steps:
        first = slice(0, long_steps)
        consistent = two_half_steps(flow, tokens[first], _rows(state, first), time[first], step[first])
        target = {name: torch.cat([consistent[name], x[long_steps:]]) for name, x in target.items()}
    condition = flow.condition(tokens * kept[:, None, None])
    predicted, _ = flow(state, TIME_SCALE * time, TIME_SCALE * step, condition)
    return velocity_errors(predicted, target)


def own_noise(flow: GeometryFlow, rows: int, generator: torch.Generator, device: torch.device) -> Latents:
    """Noise for this process's ``rows`` samples of a batch."""
    count, own = whole_batch(rows)
    return {name: x[own].to(device) for name, x in draw_noise(flow.latent_shapes, [generator] * count).items()}


def random_long_steps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count,) step sizes 1, 1/2, ..., 1 / FINEST, and times that are multiples of them: where a sampler in even steps
    of that size asks."""
    levels = FINEST.bit_length()
    step = 0.5 ** torch.randint(levels, (count,), generator=generator)
    return step, step * torch.floor(torch.rand(count, generator=generator) / step)


@torch.no_grad()
def two_half_steps(flow: GeometryFlow, tokens: Tensor, state: Latents, time: Tensor, step: Tensor) -> Latents:
    """The mean velocity of two steps of half the size ``step`` (B,) from ``state`` at ``time`` (B,), in the flow's
    units."""
    half = step / 2
    finest = step <= 1 / FINEST
    told = torch.where(finest, 0.0, half)
    condition = flow.condition(tokens)

    def velocity(state: Latents, time: Tensor) -> Latents:
        conditional, unconditional = flow(state, TIME_SCALE * time, TIME_SCALE * told, condition, bool(finest.any()))
        if unconditional is None:
            return conditional
        guided = guide({SHAPE: conditional[SHAPE]}, unconditional, GUIDANCE)[SHAPE]
        return conditional | {SHAPE: torch.where(finest[:, None, None], guided, conditional[SHAPE])}

    first = velocity(state, time)
    middle = {name: x + half[:, None, None] * first[name] for name, x in state.items()}
    second = velocity(middle, time + half)
    return {name: (first[name] + second[name]) / 2 for name in first}


def _rows(latents: Latents, rows: slice) -> Latents:
    return {name: x[rows] for name, x in latents.items()}
