"""What fusion types, injection places, Tencode and distillation are worth: short runs at equal budget.

``python -m training.ablations --out DIR`` renders its own cases, trains all variants and writes ``DIR/table.md``.

Every variant has the shipped model's RGB encoder and geometry head, frozen; its event encoder starts from the RGB
encoder and is distilled (but in one variant), then its fusion is trained by stage 2, in as many steps for each. Judged
on held-out cases of the fast tier by IoU with the truth in the crop's grid. Such short runs show orders, not what a
whole training gives.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from event_sam3d_ros.events.representations import voxel_grid
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint
from event_sam3d_ros.sam3d.config import FusionConfig, ModelConfig
from event_sam3d_ros.sam3d.network import Network
from event_sam3d_ros.synthetic.world import STAMP_US, WINDOW_US, Case
from training import distill, fuse
from training.augmentations import AugmentationConfig
from training.datasets import MOTIONS, Batches, DataConfig, find_case, render, sample
from training.engine import train
from training.losses import grid_iou
from training.settings import DistillConfig, FuseConfig, command

# No pixel dropout: a black pixel means "no event" in Tencode alone.
AUGMENTATION = AugmentationConfig(pixel_dropout=0.0)
ROOT = Path(__file__).parent.parent
FIRST_SEED = 2_000_000  # objects that the shipped weights were not trained on
EVERYWHERE = FusionConfig()


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    fusion: FusionConfig = EVERYWHERE
    events: str = "tencode"
    distilled: bool = True


VARIANTS = (
    Variant("gated attention and convolution, at stem and blocks (nano)"),
    Variant("at blocks alone", replace(EVERYWHERE, stems=())),
    Variant("at the stem alone", replace(EVERYWHERE, blocks=())),
    Variant("at final tokens alone: gated", FusionConfig(stems=(), blocks=(), tokens="gated")),
    Variant("at final tokens alone: attn", FusionConfig(stems=(), blocks=(), tokens="attn")),
    Variant("at final tokens alone: cattn", FusionConfig(stems=(), blocks=(), tokens="cattn")),
    Variant("nano's places, voxel grid instead of Tencode", events="voxels"),
    Variant("nano's places, without distillation", distilled=False),
)


@dataclass(frozen=True)
class Budget:
    """Cases to train on and held out, and steps of ``batch_size`` of both stages."""

    cases: int
    held_out: int
    distill_steps: int
    fuse_steps: int
    batch_size: int = 16


def voxel_image(case: Case) -> NDArray[np.uint8]:
    """A voxel grid of three bins as an image (H, W, 3): grey for nothing, black and white at three deviations."""
    height, width = case.mask.shape
    first = STAMP_US - WINDOW_US // 2
    voxels = voxel_grid(case.events, first, first + WINDOW_US, width, height, 3, normalise=True)
    return np.rint(127.5 + voxels.transpose(1, 2, 0) * (127.5 / 3)).clip(0, 255).astype(np.uint8)


def render_both(out: Path, budget: Budget, model: ModelConfig, workers: int) -> None:
    """Renders ``out``/tencode and, from the same cases, ``out``/voxels: other event images, all else linked."""
    data = DataConfig(cases=budget.cases + budget.held_out, first_seed=FIRST_SEED)
    render(out / "tencode", data, model, workers)
    if (out / "voxels" / "progress.json").exists():
        return
    (out / "voxels").mkdir(exist_ok=True)
    events = [
        sample(replace(case, event_image=voxel_image(case)), model)["degraded_events"]
        for case in (find_case(index, data) for index in tqdm(range(data.cases), desc="voxel grids"))
    ]
    np.save(out / "voxels" / "degraded_events.npy", np.stack(events))
    for file in (out / "tencode").iterdir():
        if file.name not in ("degraded_events.npy", "progress.json"):
            os.link(file, out / "voxels" / file.name)
    os.link(out / "tencode" / "progress.json", out / "voxels" / "progress.json")  # last: all is there


def new_network(shipped: Network, fusion: FusionConfig) -> Network:
    """The shipped RGB encoder and head, the event encoder as stage 1 starts, and a fusion with closed gates."""
    network = Network(replace(shipped.config, fusion=fusion))
    network.condition.rgb_encoder.load_state_dict(shipped.condition.rgb_encoder.state_dict())
    network.condition.event_encoder.load_state_dict(shipped.condition.rgb_encoder.state_dict())
    network.geometry.load_state_dict(shipped.geometry.state_dict())
    return network


def train_variant(variant: Variant, shipped: Network, out: Path, budget: Budget, seed: int) -> tuple[Network, Batches]:
    """Both stages; the distilled event encoder is shared by the variants that can."""
    batches = Batches(
        out / variant.events, shipped.config, budget.batch_size, seed, budget.cases, AUGMENTATION, budget.held_out
    )
    network = new_network(shipped, EVERYWHERE)
    if variant.distilled:
        file = out / f"distilled_{variant.events}_{seed}.safetensors"
        stage = DistillConfig(steps=budget.distill_steps, warmup=20, batch_size=budget.batch_size, seed=seed)
        trained, loss = distill.trained_parts(network, stage), lambda b, r: distill.loss(network, b, r, stage)
        train("distill", network, trained, loss, batches, stage, file, "cpu")
        network, _ = load_checkpoint(file)
    torch.manual_seed(seed)
    fused = new_network(shipped, variant.fusion)
    fused.condition.event_encoder.load_state_dict(network.condition.event_encoder.state_dict())
    file = out / f"fused_{VARIANTS.index(variant)}_{seed}.safetensors"
    stage = FuseConfig(steps=budget.fuse_steps, learning_rate=5e-3, warmup=20, batch_size=budget.batch_size, seed=seed)
    trained, loss = [fused.condition.fusion], lambda b, r: fuse.fusion_loss(fused, b, r, stage)
    train("fuse", fused, trained, loss, batches, stage, file, "cpu")
    return load_checkpoint(file)[0], batches


@torch.no_grad()
def judge(network: Network, batches: Batches, budget: Budget) -> dict[str, tuple[NDArray, NDArray]]:
    """Per mode (sharp, blurry, fused): IoU and silhouette IoU of each held-out case of the fast tier."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for number in range(budget.held_out // budget.batch_size):
        rows = budget.cases + number * budget.batch_size + np.arange(budget.batch_size)
        hard = torch.from_numpy(np.array(MOTIONS)[rows % len(MOTIONS)] == "hard")
        batch = {name: tensor[hard] for name, tensor in batches.held_out(number).items()}
        inputs = {
            "sharp": (batch["degraded_sharp"], None, batch["degraded_true_mask"]),
            "blurry": (batch["degraded_blurry"], None, batch["degraded_mask"]),
            "fused": (batch["degraded_blurry"], batch["degraded_events"], batch["degraded_mask"]),
        }
        target = batch["degraded_occupancy"]
        for mode, views in inputs.items():
            logits = network(*views).logits
            silhouettes = grid_iou(logits.amax(1, keepdim=True), target.amax(1, keepdim=True))
            found.setdefault(mode, []).append((grid_iou(logits, target), silhouettes))
    return {mode: tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True)) for mode, parts in found.items()}


def row(name: str, found: list[dict[str, tuple[NDArray, NDArray]]]) -> str:
    """Means over seeds of fused minus blurry, with the standard error over cases of a paired comparison, and the share
    of what blur cost that came back."""
    cells = []
    for metric in range(2):
        gain = np.mean([seed["fused"][metric] - seed["blurry"][metric] for seed in found], axis=0)
        lost = np.mean(found[0]["sharp"][metric] - found[0]["blurry"][metric])
        error = gain.std() / np.sqrt(len(gain))
        cells += [f"{gain.mean():+.4f} ± {error:.4f}", f"{gain.mean() / lost:.0%}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for cases, models and the table; it is resumed")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/event-sam3d-nano.safetensors")
    parser.add_argument("--cases", type=int, default=1280)
    parser.add_argument("--held-out", type=int, default=320)
    parser.add_argument("--distill-steps", type=int, default=200)
    parser.add_argument("--fuse-steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    shipped, info = load_checkpoint(options.weights)
    budget = Budget(options.cases, options.held_out, options.distill_steps, options.fuse_steps)
    options.out.mkdir(parents=True, exist_ok=True)
    render_both(options.out, budget, shipped.config, options.workers)
    lines = [
        "| variant | iou: fused - blurry | recovered | outline: fused - blurry | recovered |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        trained = [train_variant(variant, shipped, options.out, budget, seed) for seed in range(options.seeds)]
        found = [judge(network, batches, budget) for network, batches in trained]
        lines.append(row(variant.name, found))
        means = {mode: [round(float(v.mean()), 4) for v in values] for mode, values in found[0].items()}
        print(lines[-1], json.dumps(means), flush=True)
    table = "\n".join([*lines, "", f"From weights {info['sha256'][:12]}; {budget}, {options.seeds} seeds.", ""])
    (options.out / "table.md").write_text(table)


if __name__ == "__main__":
    command(main)
