"""What tests of the flow head share: a model that runs in milliseconds, numbers that hide nothing, inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.config import (
    EncoderConfig,
    FlowConfig,
    FlowHeadConfig,
    FusionConfig,
    ModelConfig,
    PointmapConfig,
    SamplerConfig,
    StructureConfig,
)

Module = TypeVar("Module", bound=nn.Module)

# No two widths are alike, but those that must be. Four of the five steps are guided.
TINY = ModelConfig(
    name="tiny",
    head="flow",
    encoder=EncoderConfig(28, 7, 3, 32, 3, 4, registers=2, stem=(), mask_token=True),
    fusion=FusionConfig(stems=(), blocks=(0, 2), heads=2),
    flow=FlowConfig(
        PointmapConfig(input_size=16, patch_size=4, width=16, heads=4),
        FlowHeadConfig(width=48, condition_width=32, depth=2, heads=4, mlp_ratio=2.0, resolution=4, channels=4),
        StructureConfig((16, 8, 4), 1, 1),
        SamplerConfig(steps=5),
    ),
)


@torch.no_grad()
def randomise(module: Module, std: float = 0.1) -> Module:
    """Adds random numbers to all that a file would hold, for what starts as zeros or ones hides mix-ups; only the
    gates of events stay closed. In evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        if not any(part.startswith("gate") for part in name.split(".")):
            tensor.add_(std * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def make_views(objects: int, events: bool = False, frames: int = 1) -> dict[str, Tensor]:
    """Random inputs of the condition stage, with a hole in the crops' points; ``frames``: rows of the full frame."""
    generator = torch.Generator().manual_seed(1)
    rows = {"image": (objects, 3), "mask": (objects, 1), "rgb_image_mask": (objects, 1), "rgb_image": (frames, 3)}
    rows |= {"pointmap": (objects, 3), "rgb_pointmap": (objects, 3)}
    if events:
        rows |= {"event_image": (objects, 3), "rgb_event_image": (frames, 3)}
    views = {name: torch.rand(*shape, 30, 30, generator=generator) for name, shape in rows.items()}
    views["pointmap"][:, :, :10, 5:15] = torch.nan
    return views


def assert_close(result: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """The same names, and numbers no further apart than ``tolerance`` times the largest, or than it where none is
    above 1."""
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        limit = tolerance * max(1.0, value.abs().max().item())
        torch.testing.assert_close(result[name], value, rtol=0, atol=limit, msg=lambda m, name=name: f"{name}: {m}")
