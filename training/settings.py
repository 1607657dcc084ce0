"""The settings of all stages, read from YAML (unknown keys are refused), and the options of their commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError
from event_sam3d_ros.sam3d.checkpoint import PRECISIONS
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict
from training.augmentations import AugmentationConfig
from training.datasets import DataConfig
from training.loaders.settings import DatasetConfig, require_truth


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
    """Modality dropout: ``drop_events``, ``drop_image``: shares of the samples whose event image or RGB is black."""

    drop_events: float = 0.0
    drop_image: float = 0.0


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


def load_config(path: Path) -> tuple[TrainingConfig, ModelConfig]:
    """Reads a training configuration and the model configuration that it names; ConfigurationError on unknown keys."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the training configuration {path}: {error}") from error
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
    """What a command begins with: the number of threads and the configuration."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return load_config(options.config)


def command(main: Callable[[], None]) -> None:
    """Runs a command; what is wrong with its input becomes one line and exit code 2."""
    try:
        main()
    except EventSam3dError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
