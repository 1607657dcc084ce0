"""Stage 0: trains the RGB network on sharp frames.

``python -m training.pretrain --data DIR --out pretrained.safetensors``

This stands in for the released SAM 3D weights at sizes for which there are none. ``--weights`` continues from a model
file, a shipped one for instance, with a fresh optimizer. The flow head's phases are in `training.flow.stages`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.sam3d.network import Network
from training.distributed import whole_batch
from training.engine import load_stage_input, train
from training.losses import geometry_loss
from training.pictures import sheet
from training.settings import PretrainConfig, arguments, command, prepare
from training.sources import open_batches


def loss(
    network: Network, batch: dict[str, Tensor], rng: np.random.Generator, stage: PretrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half of the steps crop by the true mask, half by a degraded one; of those, half also see the degraded mask."""
    image = "sharp"
    if rng.random() < 0.5:
        crop, mask = "true", batch["true_mask"]
    else:
        crop, mask = "degraded", batch["degraded_true_mask" if rng.random() < 0.5 else "degraded_mask"]
        if stage.blurry and rng.random() < stage.blurry:
            image = "blurry"
    seen = blacken(batch[f"{crop}_{image}"], stage.drop_image, rng)
    return geometry_loss(network(seen, None, mask), batch[f"{crop}_occupancy"], batch[f"{crop}_up"])


def blacken(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Images (B, C, H, W) with this share of them, by chance, black: a camera that gives nothing."""
    if not share:
        return images
    count, own = whole_batch(len(images))
    kept = torch.from_numpy(rng.random(count)[own] >= share).to(images)
    return images * kept[:, None, None, None]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=Path, help="model file to continue from")
    options = parser.parse_args()
    config, model = prepare(options)
    if model.head == "flow":
        from training.flow.stages import pretrain

        pretrain(options, config, model)
        return
    stage = config.pretrain
    torch.manual_seed(stage.seed)
    network = load_stage_input(options.weights, model) if options.weights else Network(model)
    with open_batches(options.data, config.data, model, stage) as batches:
        train(
            "pretrain",
            network,
            [network.condition.rgb_encoder, network.geometry],
            lambda b, r: loss(network, b, r, stage),
            batches,
            stage,
            options.out,
            options.device,
            held_out=batches.held_out,
            draw=lambda b: sheet(b, network(b["degraded_sharp"], None, b["degraded_true_mask"])),
            tensorboard=options.tensorboard,
        )


if __name__ == "__main__":
    command(main)
