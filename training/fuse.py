"""Stage 2: the gated fusion learns to give, from blurry RGB and events, what the network gives on the sharp frame.

``python -m training.fuse --data DIR --weights distilled.safetensors --out fused.safetensors``

Everything but the fusion is frozen. With ``--unfreeze`` it is the short finishing phase instead: everything is trained
against the truth, in all four input modes, so that missing events and missing RGB both keep working.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.sam3d.network import Network
from training.datasets import Batches
from training.engine import load_stage_input, train
from training.losses import geometry_loss, grid_iou, teacher_loss
from training.settings import arguments, load_config

FINISHING_MODES = {"fused": 0.5, "sharp": 0.25, "blurry": 0.1, "events": 0.15}


def fusion_loss(
    network: Network, batch: dict[str, Tensor], rng: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        teacher = network(batch["degraded_sharp"], None, batch["degraded_true_mask"])
    geometry = network(batch["degraded_blurry"], batch["degraded_events"], batch["degraded_mask"])
    total, parts = teacher_loss(geometry, teacher)
    return total, {**parts, "iou": grid_iou(geometry.logits, batch["degraded_occupancy"]).mean()}


def finishing_loss(
    network: Network, batch: dict[str, Tensor], rng: np.random.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    mode = rng.choice(list(FINISHING_MODES), p=list(FINISHING_MODES.values()))
    crop = "true" if mode == "sharp" else "degraded"
    mask = batch[f"{crop}_mask"]
    image = {"sharp": batch["true_sharp"], "events": None}.get(mode, batch["degraded_blurry"])
    events = batch["degraded_events"] if mode in ("fused", "events") else None
    total, parts = geometry_loss(network(image, events, mask), batch[f"{crop}_occupancy"], batch[f"{crop}_up"])
    return total, {f"{mode}_iou": parts["iou"]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--weights", type=Path, required=True, help="model file of stage 1 (with --unfreeze: of stage 2)"
    )
    parser.add_argument(
        "--unfreeze", action="store_true", help="the finishing phase: train everything against the truth"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config, model = load_config(options.config)
    network = load_stage_input(options.weights, model)
    name, stage, loss, trained = (
        ("unfreeze", config.unfreeze, finishing_loss, [network])
        if options.unfreeze
        else ("fuse", config.fuse, fusion_loss, [network.condition.fusion])
    )
    batches = Batches(options.data, model, stage.batch_size, stage.seed, stage.cases)
    train(name, network, trained, lambda b, r: loss(network, b, r), batches, stage, options.out, options.device)


if __name__ == "__main__":
    main()
