"""Says what the datasets of a training configuration hold, and draws some of it, before hours are spent on them.

``python -m training.loaders.check --config my.yaml --out DIR``

For every dataset that a stage names: samples and sequences found, and of some samples all over it, how many can be used
and why the others can't. ``DIR/<number>_<kind>.png`` has a row per sample: sharp frame, blurry frame, events, the mask
and the mask that a segmentation of the blurry frame might give. Object, colours and events must lie on one another.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from training.augmentations import AugmentationConfig
from training.loaders.base import UNUSABLE, Loader
from training.loaders.mixture import open_loader
from training.loaders.settings import RENDERED, DatasetConfig
from training.loaders.source import Frames, frames
from training.monitor import png
from training.settings import TrainingConfig, command, load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="training configuration with datasets")
    parser.add_argument("--samples", type=int, default=8, help="how many to read of each dataset")
    parser.add_argument("--out", type=Path, help="folder of pictures to write")
    options = parser.parse_args()
    config, model = load_config(options.config)
    datasets = named(config)
    if not datasets:
        raise ConfigurationError(f"{options.config} names no datasets but rendered samples: nothing to check")
    for number, settings in enumerate(datasets):
        sheet = check(settings, model, options.samples)
        if options.out and sheet is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{number}_{settings.kind}.png").write_bytes(png(sheet))


def named(config: TrainingConfig) -> list[DatasetConfig]:
    """The datasets with files of their own that any stage names, each once."""
    stages = (config.distill, config.fuse)
    return list(dict.fromkeys(entry for stage in stages for entry in stage.datasets if entry.kind != RENDERED))


def check(settings: DatasetConfig, model: ModelConfig, count: int) -> NDArray[np.uint8] | None:
    """Prints what a dataset holds; the picture (H, W, 3) of ``count`` samples, None where none can be used."""
    try:
        loader = open_loader(settings, model)
        sequences = len({id(sequence) for sequence, _ in loader.index})
    except InputError as error:
        print(f"{settings.kind}: {error}")
        return None
    print(f"{settings.kind} {settings.root}: {len(loader)} samples in {sequences} sequences{_said(loader.left_out)}")
    loader.left_out.clear()
    rows = [row for number in _spread(len(loader), count) if (row := _row(loader, number)) is not None]
    print(f"  {len(rows)} of {min(count, len(loader))} samples that were read can be used{_said(loader.left_out)}")
    return np.concatenate(rows) if rows else None


def _spread(length: int, count: int) -> list[int]:
    return sorted({int(number) for number in np.linspace(0, length - 1, min(count, length))})


def _row(loader: Loader, number: int) -> NDArray[np.uint8] | None:
    rng = np.random.default_rng(number)
    try:
        return _drawn(frames(loader.read(number, rng), rng, AugmentationConfig()))
    except UNUSABLE as error:
        loader.leave_out(error)
        return None


def _drawn(seen: Frames) -> NDArray[np.uint8]:
    masks = [np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1) for mask in (seen.mask, seen.degraded_mask)]
    return np.concatenate([seen.sharp, seen.blurry, seen.event_image, *masks], axis=1)


def _said(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    return f"; left out: {reasons}" if reasons else ""


if __name__ == "__main__":
    command(main)
