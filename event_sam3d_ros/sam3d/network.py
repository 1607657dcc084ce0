"""Whole networks, each from one configuration: condition stage and geometry head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from event_sam3d_ros.sam3d.condition import ConditionStage, TokenConditionStage
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.embedder_fuser import batch_size
from event_sam3d_ros.sam3d.flow import Latents
from event_sam3d_ros.sam3d.geometry_direct import DirectHead, Geometry
from event_sam3d_ros.sam3d.geometry_flow import SHAPE, GeometryFlow
from event_sam3d_ros.sam3d.structure_vae import StructureDecoder, tokens_to_grid


class Network(nn.Module):
    """The network with the direct head, one pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = ConditionStage(config)
        self.geometry = DirectHead(config)

    def forward(self, image: Tensor | None, event_image: Tensor | None, mask: Tensor) -> Geometry:
        """Crops of B objects, see `ConditionStage.forward` -> `Geometry` in each crop's frame."""
        return self.geometry(self.condition(image, event_image, mask))


@dataclass(frozen=True)
class FlowGeometry:
    """``logits``: (B, R, R, R) occupancy in the decoder's cube, indexed x, y, z, > 0 is solid; ``pose``: the latents of
    `layout.decode_poses`, (B, 1, channels) by name. All float32."""

    logits: Tensor
    pose: Latents


class FlowNetwork(nn.Module):
    """The network with the flow head: SAM 3D's geometry stage, with an event branch where the configuration has one.

    The weights may be of any floating type (``.to(dtype)``), which is what is computed in. ``device`` is where: with
    the weights elsewhere (a GPU's memory is short), each stage is brought there for its turn and sent back.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        flow = config.flow
        fusion = config.fusion if config.fusion.anywhere else None
        self.condition = TokenConditionStage(config.encoder, flow.pointmap, fusion)
        self.flow = GeometryFlow(flow.transformer)
        self.decoder = StructureDecoder(
            flow.structure.channels, flow.transformer.channels, flow.structure.blocks, flow.structure.middle_blocks
        )

    def forward(
        self,
        views: Mapping[str, Tensor],
        generators: Sequence[torch.Generator],
        dropped: Collection[str] = (),
        sampler: SamplerConfig | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ) -> FlowGeometry:
        """``views``: `preprocessing.ObjectInputs.views` of B objects; ``generators``: one per object
        (`flow.seeded_generators`); ``dropped``: see `EmbedderFuser.forward`; ``sampler``: None for the configuration's;
        ``device``: None for the weights'; ``memory``: bytes that objects may take beside the weights, None for no
        limit: more objects than fit are sampled and decoded in turn, at least one at a time.
        """
        device = torch.device(device) if device is not None else next(self.parameters()).device
        dtype = next(self.parameters()).dtype
        count = batch_size(views)
        with _placed(self.condition, device):
            tokens = self.condition({name: view.to(device, dtype) for name, view in views.items()}, dropped)
        per_object = self.flow.memory_per_object(tokens.shape[1])
        size = count if memory is None else max(1, min(count, memory // per_object))
        parts: list[Latents] = []
        with _placed(self.flow, device):
            for first in range(0, count, size):
                chosen = slice(first, first + size)
                sampling = sampler or self.config.flow.sampler
                parts.append(self.flow.sample(tokens[chosen], generators[chosen], sampling))
        with _placed(self.decoder, device):
            grids = [self.decoder(tokens_to_grid(part[SHAPE]).to(dtype)).float()[:, 0] for part in parts]
        pose = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != SHAPE}
        return FlowGeometry(torch.cat(grids), pose)


@contextmanager
def _placed(stage: nn.Module, device: torch.device) -> Iterator[None]:
    """Has a stage's weights on ``device`` meanwhile."""
    home = next(stage.parameters()).device
    if home != device:
        stage.to(device)
    try:
        yield
    finally:
        if home != device:
            stage.to(home)


def build(config: ModelConfig) -> Network | FlowNetwork:
    """The network that a configuration describes, with random weights."""
    return Network(config) if config.head == "direct" else FlowNetwork(config)
