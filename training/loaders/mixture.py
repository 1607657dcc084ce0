"""Several datasets as one source of batches, and what a training configuration names."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from training.augmentations import AugmentationConfig
from training.loaders.base import Loader
from training.loaders.co3d import Co3d
from training.loaders.event_replica import EventReplica
from training.loaders.mvsec import Mvsec
from training.loaders.objaverse import Objaverse
from training.loaders.rgbe_seg import RgbeSeg
from training.loaders.settings import DatasetConfig
from training.loaders.source import RecordedSource

LOADERS: dict[str, type[Loader]] = {
    "mvsec": Mvsec,
    "co3d": Co3d,
    "objaverse": Objaverse,
    "event_replica": EventReplica,
    "rgbe_seg": RgbeSeg,
}


class Source(Protocol):
    """Samples of one kind: ``names`` are the fields that a batch of them has, ``name`` is for messages."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> frozenset[str]: ...

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """``count`` samples; the same for the same state of ``rng``."""
        ...


class Mixture:
    """Batches from several sources, a sample's source being drawn by weight.

    A batch has the fields that all sources have: with one source without truth in 3D there is none. Each step's batch
    follows from the seed and the step alone, as that of `training.datasets.Batches`.
    """

    def __init__(self, sources: list[tuple[Source, float]], batch_size: int, seed: int) -> None:
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources], np.float64)
        self.weights = weights / weights.sum()
        self.names = frozenset.intersection(*(source.names for source in self.sources))
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a step: samples in the order of the sources."""
        return self._batch(self.batch_size, np.random.default_rng([self.seed, step]))

    def share(self, step: int, rank: int, count: int) -> dict[str, Tensor]:
        """What one of ``count`` processes has to do of a step: as many samples, drawn by itself, so that no process
        reads files for another. They are other samples than those of the step in a single process."""
        return self._batch(self.batch_size // count, np.random.default_rng([self.seed, step, rank]))

    def _batch(self, size: int, rng: np.random.Generator) -> dict[str, Tensor]:
        counts = rng.multinomial(size, self.weights)
        parts = [source.draw(int(n), rng) for source, n in zip(self.sources, counts, strict=True) if n]
        return {name: torch.cat([part[name] for part in parts]) for name in sorted(self.names)}


def require(stage: str, names: Collection[str], sources: Collection[Source]) -> None:
    """InputError where a stage needs fields that one of the sources lacks."""
    for source in sources:
        if missing := sorted(set(names) - source.names):
            raise InputError(
                f"{stage} needs {', '.join(missing)}, which {source.name} has not: use data without truth in "
                "distill or fuse, which learn from the network's own view of sharp frames, and rendered samples here",
                reason="no_truth",
            )


def open_loader(settings: DatasetConfig, model: ModelConfig) -> Loader:
    """The loader of a dataset; InputError where its root is missing."""
    return LOADERS[settings.kind](settings, model)


def open_sources(
    datasets: Collection[DatasetConfig], rendered: Source, model: ModelConfig, augmentation: AugmentationConfig
) -> list[tuple[Source, float]]:
    """The sources that ``datasets`` name, with their weights; ``rendered`` stands for those of kind "rendered"."""
    workers = os.cpu_count() or 1
    return [
        (
            RecordedSource(open_loader(entry, model), model, augmentation, workers)
            if entry.kind in LOADERS
            else rendered,
            entry.weight,
        )
        for entry in datasets
    ]
