"""The import of the official weights expects the official files' tensors."""

from dataclasses import replace
from pathlib import Path

import torch

from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.import_released import NO_FUSION, SOURCES
from event_sam3d_ros.sam3d.network import FlowNetwork

FULL = Path(__file__).parents[2] / "config" / "models" / "full.yaml"


def test_released_size_has_the_released_tensors(manifest):
    with torch.device("meta"):
        network = FlowNetwork(replace(ModelConfig.from_yaml(FULL), fusion=NO_FUSION))
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    released = {}
    for name, source in (("ss_condition_embedder", 0), ("ss_generator", 0), ("ss_decoder", 1)):
        for key, (shape, _) in manifest(name).items():
            theirs, mine = next(part for part in SOURCES[source].parts.items() if key.startswith(part[0]))
            released[mine + key.removeprefix(theirs)] = shape
    assert ours == released
