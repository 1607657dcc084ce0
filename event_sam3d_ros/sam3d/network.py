"""The whole network: condition stage and geometry head, from one configuration."""

from __future__ import annotations

from torch import Tensor, nn

from event_sam3d_ros.sam3d.condition import ConditionStage
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.geometry_direct import DirectHead, Geometry


class Network(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = ConditionStage(config)
        self.geometry = DirectHead(config)

    def forward(self, image: Tensor | None, event_image: Tensor | None, mask: Tensor) -> Geometry:
        """Crops of B objects, see `ConditionStage.forward` -> `Geometry` in each crop's frame."""
        return self.geometry(self.condition(image, event_image, mask))
