"""Stage 0: trains the RGB network on sharp frames.

``python -m training.pretrain --data DIR --out pretrained.safetensors``

This stands in for the released SAM 3D weights at sizes for which there are none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.sam3d.network import Network
from training.datasets import Batches
from training.engine import train
from training.losses import geometry_loss
from training.settings import arguments, load_config


def loss(network: Network, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Half of the steps crop by the true mask, half by a degraded one; of those, half also see the degraded mask."""
    if rng.random() < 0.5:
        crop, mask = "true", batch["true_mask"]
    else:
        crop, mask = "degraded", batch["degraded_true_mask" if rng.random() < 0.5 else "degraded_mask"]
    geometry = network(batch[f"{crop}_sharp"], None, mask)
    return geometry_loss(geometry, batch[f"{crop}_occupancy"], batch[f"{crop}_up"])


def main() -> None:
    options = arguments(__doc__).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config, model = load_config(options.config)
    stage = config.pretrain
    torch.manual_seed(stage.seed)
    network = Network(model)
    batches = Batches(options.data, model, stage.batch_size, stage.seed, stage.cases)
    trained = [network.condition.rgb_encoder, network.geometry]
    train("pretrain", network, trained, lambda b, r: loss(network, b, r), batches, stage, options.out, options.device)


if __name__ == "__main__":
    main()
