"""Flow matching: from noise to a sample along a learned velocity field.

Time runs from t = 0 (noise x0) to t = 1 (data x1) on the straight line ``x_t = (1 - t) x0 + t x1``, whose velocity
``x1 - x0`` the network learns (Lipman et al. 2023, arXiv 2210.02747, with sigma_min = 0). A sample is drawn by Euler
steps, guided without a classifier in a part of the time (Ho and Salimans 2022, arXiv 2207.12598), or in a few steps by
a network that also knows the size of the step (shortcut models, Frans et al. 2024, arXiv 2410.12557).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import SamplerConfig

Latents = dict[str, Tensor]
"""What flows, by name: each (B, tokens, channels) float32, one row per object."""

Velocity = Callable[[Latents, Tensor, Tensor, bool], tuple[Latents, Latents | None]]
"""``velocity(latents, time, step_size, guided)`` -> the conditional prediction and, if ``guided``, the unconditional
one (else None). ``time`` and ``step_size`` are (1,) float32 in the network's units, `TIME_SCALE` times the flow's."""

TIME_SCALE = 1000.0
"""The network sees times and step sizes times this (facebookresearch/sam-3d-objects, flow_matching/model.py)."""


def schedule(steps: int, rescale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(steps + 1,) times from 0 to 1: even ones u, bent to ``u / (1 + (rescale - 1) (1 - u))``, so that ``rescale`` > 1
    makes the steps near the noise smaller.

    The released model computes the times of the geometry in float64 and those of structured latents in float32; the
    difference of 2e-5 in the network's units is more than rounding in its time embedding.
    """
    even = torch.linspace(0, 1, steps + 1, dtype=dtype)
    return even / (1 + (rescale - 1) * (1 - even))


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per object. A later stage draws on from where the geometry stopped, as the released pipeline
    does."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(
    shapes: Mapping[str, tuple[int, int]], generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Latents:
    """Standard normal latents, ``shapes`` (tokens, channels) by name -> (B, tokens, channels) float32.

    Each object draws from its own generator, in sorted order of the names as the released model does, and always on the
    CPU: its noise depends neither on the batch it runs in nor on the device, and one object seeded with s gets what the
    released model draws on a CPU after ``torch.manual_seed(s)``.
    """
    objects = [
        {name: torch.randn(shapes[name], generator=generator) for name in sorted(shapes)} for generator in generators
    ]
    return {name: torch.stack([noise[name] for noise in objects]).to(device) for name in sorted(shapes)}


def interpolate(noise: Latents, data: Latents, time: Tensor) -> tuple[Latents, Latents]:
    """For training: noise x0, data x1, ``time`` (B,) in [0, 1] -> the state x_t and its target velocity x1 - x0."""
    t = time[:, None, None]
    state = {name: (1 - t) * noise[name] + t * x for name, x in data.items()}
    return state, {name: x - noise[name] for name, x in data.items()}


def guide(conditional: Latents, unconditional: Latents, strength: float) -> Latents:
    """Classifier-free guidance of every latent: ``(1 + w) conditional - w unconditional``."""
    return {name: (1 + strength) * v - strength * unconditional[name] for name, v in conditional.items()}


@torch.no_grad()
def sample(velocity: Velocity, noise: Latents, config: SamplerConfig, dtype: torch.dtype = torch.float64) -> Latents:
    """Integrates ``velocity`` from ``noise`` (t = 0) to the sample (t = 1) in ``config.steps`` Euler steps.

    ``dtype`` is that of the schedule (see `schedule`). Raises InputError if ``noise`` is empty.
    """
    if not noise or not all(len(x) for x in noise.values()):
        raise InputError("there is nothing to sample: give noise for at least one object", reason="no_objects")
    device = next(iter(noise.values())).device
    times = schedule(config.steps, config.rescale, dtype)
    network_times = (TIME_SCALE * times).float()
    guided = config.guided(network_times[:-1].tolist())
    # in shortcut mode the network is told 1 / steps even where a rescaled schedule steps otherwise, as released
    step_size = torch.full((1,), TIME_SCALE / config.steps if config.shortcut else 0.0, device=device)
    step_times = network_times.to(device)
    state = noise
    for i, dt in enumerate((times[1:] - times[:-1]).tolist()):
        conditional, unconditional = velocity(state, step_times[i : i + 1], step_size, guided[i])
        direction = conditional if unconditional is None else guide(conditional, unconditional, config.strength)
        state = {name: x + direction[name].float() * dt for name, x in state.items()}
    return state
