"""The condition stage: image and event crops of an object -> features for the geometry head.

The RGB encoder sees the crop and its mask; the event encoder, the same network trained to give the RGB encoder's sharp
features from a Tencode image, sees the events and the mask. What is given decides the mode: RGB alone runs the plain
network and the event branch costs nothing; events alone are decoded from the event encoder's features; both are fused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.event_fusion import EventFusion
from event_sam3d_ros.sam3d.vit import Features, VisionTransformer


class ConditionStage(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rgb_encoder = VisionTransformer(config.encoder)
        self.event_encoder = VisionTransformer(config.encoder)
        self.fusion = EventFusion(config.encoder, config.fusion)

    def forward(self, image: Tensor | None, event_image: Tensor | None, mask: Tensor) -> Features:
        """``image``, ``event_image``: (B, 3, S, S) float in [0, 1] or None; ``mask``: (B, 1, S, S) float in [0, 1].

        Raises InputError if both are None.
        """
        if event_image is None:
            if image is None:
                raise InputError("neither an RGB nor an event image is given; give at least one", reason="no_input")
            return self.rgb_encoder(torch.cat([image, mask], dim=1))
        events: Features = self.event_encoder(torch.cat([event_image, mask], dim=1))
        if image is None:
            return events
        return self.rgb_encoder(
            torch.cat([image, mask], dim=1), inject=lambda stage, x: self.fusion(stage, x, events.stages[stage])
        )
