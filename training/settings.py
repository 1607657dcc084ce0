"""The settings of all stages, read from YAML (unknown keys are refused), and the options of their commands."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, excerpt
from event_sam3d_ros.sam3d.checkpoint import PRECISIONS
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict
from training.augmentations import AugmentationConfig
from training.datasets import DataConfig
from training.loaders.settings import DatasetConfig, require_truth

FINISHING_MODES = {"fused": 0.5, "sharp": 0.25, "blurry": 0.1, "events": 0.15}
"""Of the finishing phase: the share of the steps that each input mode gets."""
ECHO_S = 5.0


@dataclass(frozen=True)
class StageConfig:
    """One stage's schedule: ``steps`` of ``batch_size`` samples, drawn from the first ``cases`` rendered ones.

    ``learning_rate`` is AdamW's; ``matrix_learning_rate`` Muon's, in spectral norm per step. See `make_optimizers`.
    ``precision``: fp32, or autocast to bf16 or fp16 (with loss scaling). ``curriculum``: steps over which faster motion
    joins in, 0 for all from the start. ``validation``: rendered cases after the first ``cases`` that are held out. With
    ``validate_every`` steps the model file holds the averaged weights that were best on them, and the stage stops early
    after ``patience`` validations without a better one (0: never). ``picture_every``: steps between sample pictures.
    ``datasets``: what the samples come from, by weight (datasets.md); empty: from the rendered ones alone.
    ``augmentation``: how they are varied.
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
    precision: str = "fp32"
    curriculum: int = 0
    save_every: int = 500
    validation: int = 0
    validate_every: int = 0
    patience: int = 0
    picture_every: int = 0
    seed: int = 0
    datasets: tuple[DatasetConfig, ...] = ()
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision is {self.precision!r}; known are {', '.join(PRECISIONS)}")
        if min(self.cases, self.steps, self.batch_size, self.save_every) < 1:
            raise ConfigurationError("cases, steps, batch_size and save_every must be at least 1")
        _between(self, 0, math.inf, "learning_rate", "matrix_learning_rate", "weight_decay", "warmup", "curriculum")
        _between(self, 0, math.inf, "validation", "validate_every", "patience", "picture_every", "seed")
        _between(self, 0, 1, "ema")
        if not self.clip > 0:
            raise ConfigurationError(f"clip must be positive, not {self.clip}")
        if self.validate_every and self.validation < self.batch_size:
            raise ConfigurationError(
                f"validate_every needs held-out cases: set validation to at least batch_size ({self.batch_size})"
            )
        if self.patience and not self.validate_every:
            raise ConfigurationError("patience counts validations: set validate_every")


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """``blurry``: share of the steps on degraded masks that see the blurry frame; ``drop_image``: share of the samples
    whose image is black, so that the mask alone gives a shape, too."""

    blurry: float = 0.0
    drop_image: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _between(self, 0, 1, "blurry", "drop_image")


@dataclass(frozen=True)
class DistillConfig(StageConfig):
    """``stems``, ``blocks``: stages whose features are compared beside the final tokens; both empty: those that the
    fusion reads. ``attention``: weigh each token by the attention that the teacher's class token pays it. ``trained``:
    "all" of the event encoder, or "parts": its patch embedding (with the stem), the MLPs of the compared blocks and the
    norm that the projection to condition tokens follows."""

    stems: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    attention: bool = False
    trained: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained not in ("all", "parts"):
            raise ConfigurationError(f"trained is {self.trained!r}; known are 'all' and 'parts'")


@dataclass(frozen=True)
class FuseConfig(StageConfig):
    """Modality dropout: ``drop_events``, ``drop_image``: shares of the samples whose event image or RGB is black.

    It teaches the fusion what to do beside a camera that delivers, but shows nothing: a dark frame, no change for the
    events. An input that is missing altogether never meets the fusion, neither here nor on the robot: RGB alone runs
    the RGB encoder, events alone the event encoder. Both are frozen in this stage, so that it can't change these two
    modes; the finishing phase trains them.
    """

    drop_events: float = 0.0
    drop_image: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _between(self, 0, 1, "drop_events", "drop_image")


@dataclass(frozen=True)
class TrainingConfig:
    """``model``: path of a model configuration, relative to the training configuration's file. Of the flow head's stage
    0, ``pretrain`` is flow matching, between ``structure`` (its VAE) and ``shortcut``."""

    model: str = "../../config/models/nano.yaml"
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    unfreeze: StageConfig = field(default_factory=StageConfig)
    structure: StageConfig = field(default_factory=StageConfig)
    shortcut: StageConfig = field(default_factory=StageConfig)

    def __post_init__(self) -> None:
        for stage in ("pretrain", "unfreeze", "structure", "shortcut"):
            require_truth(stage, getattr(self, stage).datasets)


def _between(config: StageConfig, low: float, high: float, *names: str) -> None:
    """Requires these settings to be finite numbers from ``low`` to ``high``."""
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ConfigurationError(f"{name} must be {limits}, not {value}")


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> str:
    """The first setting in which two nested mappings differ: "a.b is 1 there, but 2 here"; empty if they agree."""
    for name in {**here, **there}:
        one, other = there.get(name), here.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            difference = first_difference(one, other, f"{within}{name}.")
            if difference:
                return difference
        elif one != other:
            return f"{within}{name} is {excerpt(str(one))} there, but {excerpt(str(other))} here"
    return ""


def load_config(path: Path) -> tuple[TrainingConfig, ModelConfig]:
    """Reads a training configuration and the model configuration that it names; ConfigurationError on unknown keys."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigurationError(f"cannot read the training configuration {path}: {place}{error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ConfigurationError(f"cannot read the training configuration {path}: {why}") from error
    config = from_dict(TrainingConfig, data, where=str(path))
    return config, ModelConfig.from_yaml(path.parent / config.model)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all stages share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "config" / "nano.yaml")
    parser.add_argument("--data", type=Path, help="folder of rendered samples (training.render); not for streams")
    parser.add_argument(
        "--out", type=Path, required=True, help="model file to write; the state to resume lies beside it"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = torch's choice")
    parser.add_argument("--tensorboard", type=Path, help="folder of event files to write (needs tensorboard)")
    return parser


def prepare(options: argparse.Namespace) -> tuple[TrainingConfig, ModelConfig]:
    """What a command begins with: what it can't do without, the number of threads and the configuration."""
    _check_device(options.device)
    _make_folder(options.out)
    if options.threads:
        torch.set_num_threads(options.threads)
    return load_config(options.config)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"--device {excerpt(name)} is not known: give cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = f"sees {torch.cuda.device_count()} GPUs" if torch.backends.cuda.is_built() else "is built without CUDA"
        raise ConfigurationError(f"--device {name} can't be used: this torch {why}; give --device cpu")


def _make_folder(out: Path) -> None:
    """Makes the folder that ``out`` shall be in."""
    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder: give the model file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out {out}: its folder can't be made ({error.strerror})") from error
    if not os.access(out.parent, os.W_OK):
        raise ConfigurationError(f"--out {out}: nothing can be written to its folder")


def command(main: Callable[[], None]) -> None:
    """Runs a command; what is wrong with its input becomes one line and exit code 2.

    Of several processes the first says it. The others wait: where all stopped for the same reason, they are ended
    meanwhile; where one alone stopped, it must be heard.
    """
    try:
        main()
    except EventSam3dError as error:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
            time.sleep(ECHO_S)
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
