"""One training loop for all stages: Muon and AdamW, cosine schedule with warm-up, EMA, resumable."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict
from event_sam3d_ros.sam3d.network import Network
from training.datasets import Batches, DataConfig
from training.muon import Muon

MIN_HIDDEN = 32  # channels in and out; first layers have fewer, and so have all last ones but LAST_LAYER
LAST_LAYER = "columns"
_LAYERS = (nn.Conv2d, nn.Linear)

LossFunction = Callable[[dict[str, Tensor], np.random.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class StageConfig:
    """One stage's schedule: ``steps`` of ``batch_size`` samples, drawn from the first ``cases`` rendered ones.

    ``learning_rate`` is AdamW's; ``matrix_learning_rate`` Muon's, in spectral norm per step. See `make_optimizers`.
    """

    cases: int = 10944
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.02
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.998
    save_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """``model``: path of a model configuration, relative to the training configuration's file."""

    model: str = "../../config/models/nano.yaml"
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    distill: StageConfig = field(default_factory=StageConfig)
    fuse: StageConfig = field(default_factory=StageConfig)
    unfreeze: StageConfig = field(default_factory=StageConfig)


def load_config(path: Path) -> tuple[TrainingConfig, ModelConfig]:
    """Reads a training configuration and the model configuration that it names; ConfigurationError on unknown keys."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the training configuration {path}: {error}") from error
    config = from_dict(TrainingConfig, data, where=str(path))
    return config, ModelConfig.from_yaml(path.parent / config.model)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all stages share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "config" / "nano.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder of rendered samples (training.render)")
    parser.add_argument(
        "--out", type=Path, required=True, help="model file to write; the state to resume lies beside it"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice")
    return parser


def load_stage_input(path: Path, config: ModelConfig) -> Network:
    """The network that an earlier stage wrote; it must have the configuration that is trained now."""
    network, _ = load_checkpoint(path)
    if network.config != config:
        raise CheckpointError(
            f"{path} was made for another configuration than the one given", reason="wrong_checkpoint"
        )
    return network


def train(
    name: str,
    network: Network,
    trained: Sequence[nn.Module],
    loss_function: LossFunction,
    batches: Batches,
    stage: StageConfig,
    out: Path,
    device: str,
) -> None:
    """Trains the modules ``trained`` of ``network`` and writes the averaged (EMA) weights to ``out``.

    A state file beside ``out`` is taken up. All random choices depend on the stage's seed and the step, so a resumed
    run goes on as if it had not stopped.
    """
    network.to(device).train()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parameters = [parameter for module in trained for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizers = make_optimizers(trained, stage)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _learning_rate(step, stage)) for o in optimizers]
    averaged = [p.detach().clone() for p in parameters]
    state_file = out.with_suffix(".state")
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        for optimizer, schedule, saved in zip(optimizers, schedules, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        averaged, first = state["averaged"], state["step"]
    means: dict[str, float] = {}
    with tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=name, mininterval=5) as bar:
        for step in bar:
            batch = {key: value.to(device) for key, value in batches(step).items()}
            loss, parts = loss_function(batch, np.random.default_rng([stage.seed, 1, step]))
            network.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, stage.clip)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            decay = min(stage.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
            for key, value in parts.items():
                value = value.detach()
                means[key] = 0.98 * means.get(key, float(value)) + 0.02 * float(value)
            if step % 20 == 0:
                bar.set_postfix_str(" ".join(f"{k}={v:.3f}" for k, v in means.items()))
            if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
                _save(network, optimizers, schedules, parameters, averaged, step + 1, state_file, out, name)


def make_optimizers(trained: Sequence[nn.Module], stage: StageConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weights of hidden convolutions and linear layers, AdamW for all else (biases, norms, gates,
    embeddings, first and last layers), as Muon's authors recommend. From scratch it needs about half the samples that
    AdamW alone needs here."""
    layers = [named for module in trained for named in module.named_modules() if isinstance(named[1], _LAYERS)]
    matrices = [
        layer.weight
        for name, layer in layers
        if min(layer.weight.shape[:2]) >= MIN_HIDDEN and not name.endswith(LAST_LAYER)
    ]
    chosen = {id(matrix) for matrix in matrices}
    others = [p for module in trained for p in module.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=stage.matrix_learning_rate, weight_decay=stage.weight_decay / 2),
        torch.optim.AdamW(others, lr=stage.learning_rate, weight_decay=stage.weight_decay),
    ]


def _save(network, optimizers, schedules, parameters, averaged, step, state_file: Path, out: Path, name: str) -> None:
    """Writes the state to resume from and the averaged model, each whole or not at all."""
    state = {
        "network": network.state_dict(),
        "optimizers": [
            {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            for optimizer, schedule in zip(optimizers, schedules, strict=True)
        ],
        "averaged": averaged,
        "step": step,
    }
    temporary = state_file.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(state_file)
    current = [p.detach().clone() for p in parameters]
    _assign(parameters, averaged)
    save_checkpoint(
        temporary,
        network,
        {"tag": name, "version": "0.1.0", "licence": "Apache-2.0", "steps": str(step)},
        torch.float32,
    )
    temporary.replace(out)
    _assign(parameters, current)


def _assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _learning_rate(step: int, stage: StageConfig) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
