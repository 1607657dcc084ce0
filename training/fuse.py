"""Stage 2: the gated fusion learns to give, from blurry RGB and events, what the network gives on the sharp frame.

``python -m training.fuse --data DIR --weights distilled.safetensors --out fused.safetensors``

Everything but the fusion is frozen. With ``--unfreeze`` it is the short finishing phase instead: everything is trained
against the truth, in all four input modes, so that missing events and missing RGB both keep working. Either continues
from a shipped model file as well.

The solid is compared by event_sam3d's focal cross-entropy and, beside it, by the plain one with dice, as against the
truth (`training.losses.teacher_loss`). The focal term nearly ignores cells that are almost right: alone it would leave
them where they are, on either side of the surface. The others pull there, too, and dice weighs a small solid like a
large one. The shipped weights were trained with both; what each gives was not measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.sam3d.network import Network
from training.engine import load_stage_input, train
from training.losses import geometry_loss, grid_iou, teacher_loss
from training.pictures import sheet
from training.pretrain import blacken
from training.settings import FINISHING_MODES, FuseConfig, arguments, command, prepare
from training.sources import open_batches


def fusion_loss(
    network: Network, batch: dict[str, Tensor], rng: np.random.Generator, stage: FuseConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        teacher = network(batch["degraded_sharp"], None, batch["degraded_true_mask"])
    image = blacken(batch["degraded_blurry"], stage.drop_image, rng)
    events = blacken(batch["degraded_events"], stage.drop_events, rng)
    geometry = network(image, events, batch["degraded_mask"])
    total, parts = teacher_loss(geometry, teacher)
    if "degraded_occupancy" in batch:  # recorded samples have no truth, and the loss needs none
        parts = {**parts, "iou": grid_iou(geometry.logits, batch["degraded_occupancy"]).mean()}
    return total, parts


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
    parser.add_argument(
        "--structure",
        type=Path,
        help="flow head, --unfreeze: the structure VAE of stage 0 (default: WEIGHTS with .structure.safetensors)",
    )
    options = parser.parse_args()
    config, model = prepare(options)
    if model.head == "flow":
        from training.flow.stages import fuse

        fuse(options, config, model)
        return
    network = load_stage_input(options.weights, model)
    name, stage, trained = (
        ("unfreeze", config.unfreeze, [network])
        if options.unfreeze
        else ("fuse", config.fuse, [network.condition.fusion])
    )

    def loss(batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if options.unfreeze:
            return finishing_loss(network, batch, rng)
        return fusion_loss(network, batch, rng, config.fuse)

    with open_batches(options.data, config.data, model, stage) as batches:
        train(
            name,
            network,
            trained,
            loss,
            batches,
            stage,
            options.out,
            options.device,
            held_out=batches.held_out,
            draw=lambda b: sheet(b, network(b["degraded_blurry"], b["degraded_events"], b["degraded_mask"])),
            tensorboard=options.tensorboard,
        )


if __name__ == "__main__":
    command(main)
