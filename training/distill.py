"""Stage 1: the event encoder learns the RGB encoder's sharp features from event images.

``python -m training.distill --data DIR --weights pretrained.safetensors --out distilled.safetensors``

Teacher: the frozen RGB encoder on the sharp frame with the true mask. Student: the event encoder, initialised from the
teacher, on the Tencode image and the degraded mask of the same crop. Loss: L1 between features of stages and final
tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.sam3d.network import Network
from training.datasets import Batches
from training.engine import load_stage_input, train
from training.losses import feature_loss
from training.settings import arguments, load_config


def loss(network: Network, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    condition = network.condition
    stages = tuple(name.replace("_", ".") for name in condition.fusion.stages)
    with torch.no_grad():
        teacher = condition.rgb_encoder(torch.cat([batch["degraded_sharp"], batch["degraded_true_mask"]], dim=1))
    student = condition.event_encoder(torch.cat([batch["degraded_events"], batch["degraded_mask"]], dim=1))
    distance = feature_loss(student, teacher, stages)
    return distance, {"features": distance}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="model file of stage 0")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config, model = load_config(options.config)
    stage = config.distill
    network = load_stage_input(options.weights, model)
    network.condition.event_encoder.load_state_dict(network.condition.rgb_encoder.state_dict())
    batches = Batches(options.data, model, stage.batch_size, stage.seed, stage.cases)
    trained = [network.condition.event_encoder]
    train("distill", network, trained, lambda b, r: loss(network, b, r), batches, stage, options.out, options.device)


if __name__ == "__main__":
    main()
