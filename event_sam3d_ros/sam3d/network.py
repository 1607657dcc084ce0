"""Whole networks, each from one configuration: condition stage and geometry head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import ConfigurationError
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
    the weights elsewhere (a GPU's memory is short), each stage is copied there for its turn.
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
        with_points: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ) -> FlowGeometry:
        """``views``: `preprocessing.ObjectInputs.views` of B objects; ``generators``: one per object
        (`flow.seeded_generators`); ``dropped``, ``with_points``: see `EmbedderFuser.forward`; ``sampler``: None for the
        configuration's; ``device``: None for the weights'; ``memory``: bytes that objects may take beside the weights,
        None for no limit: more objects than fit go through each stage in turn, at least one at a time.
        """
        device = resolved(device, next(self.parameters()).device)
        sampler = sampler or self.config.flow.sampler
        count = batch_size(views)
        at_once = count if memory is None else max(1, min(count, memory // self.memory_per_object))
        chunks = [slice(first, first + at_once) for first in range(0, count, at_once)]
        with _placed(self.condition, device):
            tokens = [
                self.condition(
                    _rows(views, chunk, device), dropped, None if with_points is None else with_points[chunk]
                )
                for chunk in chunks
            ]
        with _placed(self.flow, device):
            parts = [
                self.flow.sample(condition, generators[chunk], sampler)
                for condition, chunk in zip(tokens, chunks, strict=True)
            ]
        with _placed(self.decoder, device):
            dtype = next(self.decoder.parameters()).dtype
            grids = [self.decoder(tokens_to_grid(part[SHAPE]).to(dtype)).float()[:, 0] for part in parts]
        pose = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != SHAPE}
        return FlowGeometry(torch.cat(grids), pose)

    @property
    def memory_per_object(self) -> int:
        """Bytes that one object takes beside the weights where it takes most: while it is sampled, or, in small
        networks, while its pointmaps are embedded."""
        fuser = self.condition.fuser
        return max(self.flow.memory_per_object(fuser.tokens), fuser.pointmap_memory_per_object)


def resolved(device: torch.device | str | None, home: torch.device) -> torch.device:
    """The device that a call names, for weights that are at ``home``: "cuda" is whichever GPU they are on."""
    device = home if device is None else torch.device(device)
    return home if device.index is None and device.type == home.type else device


def _rows(views: Mapping[str, Tensor], chunk: slice, device: torch.device) -> dict[str, Tensor]:
    """The inputs of some of the objects, on ``device``; what all objects share stays as it is.

    They stay float32: the embedders go to their own type in their own place, points after their projection.
    """
    return {name: (view if len(view) == 1 else view[chunk]).to(device) for name, view in views.items()}


@contextmanager
def _placed(stage: nn.Module, device: torch.device) -> Iterator[None]:
    """Has a stage's tensors on ``device`` meanwhile.

    Those at home are put back as they were instead of copied back: nothing changed them, and the way back would take
    as long as the way there.
    """
    if next(stage.parameters()).device == device:
        yield
        return
    tables: list[dict[str, Any]] = [
        table for module in stage.modules() for table in (module._parameters, module._buffers)
    ]
    home = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: tensor.detach().to(device) for name, tensor in table.items() if tensor is not None})
        yield
    finally:
        for table, tensors in zip(tables, home, strict=True):
            table.update(tensors)


def build(config: ModelConfig) -> Network | FlowNetwork:
    """The network that a configuration describes, with random weights."""
    return Network(config) if config.head == "direct" else FlowNetwork(config)


def build_empty(config: ModelConfig) -> Network | FlowNetwork:
    """The same on the meta device: without memory for weights. ConfigurationError where nothing can be built."""
    try:
        with torch.device("meta"):
            return build(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigurationError(f"no network can be built of the configuration {config.name!r}: {why}") from error
