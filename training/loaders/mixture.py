"""Several datasets as one source of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig
from training.augmentations import AugmentationConfig
from training.loaders.base import Loader
from training.loaders.co3d import Co3d
from training.loaders.event_replica import EventReplica
from training.loaders.mvsec import Mvsec
from training.loaders.objaverse import Objaverse
from training.loaders.rgbe_seg import RgbeSeg
from training.loaders.settings import RENDERED, DatasetConfig
from training.loaders.source import Batch, RecordedSource, stacked

LOADERS: dict[str, type[Loader]] = {
    "mvsec": Mvsec,
    "co3d": Co3d,
    "objaverse": Objaverse,
    "event_replica": EventReplica,
    "rgbe_seg": RgbeSeg,
}


class Mixture:
    """Each batch is one batch of every source, after one another, with the fields that all of them have: where one
    source has no truth in 3D, there is none.

    The sources are those of the engine (`training.engine.BatchSource`): functions of the step, some with a method
    ``share(step, rank, count)``. ``held_out``: of the rendered samples among them, None where there are none.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        sizes: Sequence[int],
        held_out: Callable[[int], Batch] | None = None,
    ) -> None:
        """``sizes``: samples in a batch of each source."""
        self.sources, self.sizes, self.held_out = list(sources), list(sizes), held_out
        self._begins = np.cumsum([0, *sizes[:-1]]).tolist()

    def __call__(self, step: int) -> Batch:
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, count: int) -> Batch:
        """Samples ``rank``, ``rank + count``, ... of a step's batch: process ``rank``'s of ``count``.
        ConfigurationError where a source has fewer samples than there are processes, and some would see other fields
        than others."""
        if min(self.sizes) < count:
            raise ConfigurationError(
                f"a dataset gives {min(self.sizes)} samples of a batch, too few for {count} processes: give it a "
                "larger weight, or a larger batch_size"
            )
        parts = []
        for source, begin in zip(self.sources, self._begins, strict=True):
            first = (rank - begin) % count
            if hasattr(source, "share"):
                part = source.share(step, first, count)
            else:
                part = {name: tensor[first::count] for name, tensor in source(step).items()}
            parts.append(part)
        return stacked(parts)


def sizes(datasets: Sequence[DatasetConfig], batch_size: int) -> list[int]:
    """How many samples of a batch come from each dataset: shares by weight, rounded so that they add up (largest
    remainders). ConfigurationError where one would never get any."""
    weights = np.array([entry.weight for entry in datasets])
    exact = batch_size * weights / weights.sum()
    result = np.floor(exact).astype(int)
    result[np.argsort(result - exact, kind="stable")[: batch_size - result.sum()]] += 1
    if not result.all():
        entry = datasets[int(result.argmin())]
        raise ConfigurationError(
            f"of {batch_size} samples in a batch none would come from {entry.kind}, whose weight is {entry.weight}: "
            "give a larger weight, or a larger batch_size"
        )
    return result.tolist()


def open_loader(settings: DatasetConfig, model: ModelConfig) -> Loader:
    """The loader of a dataset; InputError where its root is missing."""
    return LOADERS[settings.kind](settings, model)


def open_mixture(
    datasets: Sequence[DatasetConfig],
    config: ModelConfig,
    batch_size: int,
    seed: int,
    rendered: Callable[[int], Any],
    pool: Executor,
    augmentation: AugmentationConfig,
) -> Mixture:
    """The batches of a stage that names its data. ``rendered(batch_size)`` opens the rendered samples, which may be
    named once."""
    if sum(entry.kind == RENDERED for entry in datasets) > 1:
        raise ConfigurationError(f"{RENDERED} is named twice among the datasets: add up the weights")
    sources, held_out, counts = [], None, sizes(datasets, batch_size)
    for number, (entry, count) in enumerate(zip(datasets, counts, strict=True)):
        if entry.kind == RENDERED:
            source = rendered(count)
            held_out = source.held_out
        else:
            loader = open_loader(entry, config)
            source = RecordedSource(loader, config, count, seed * len(datasets) + number, pool, augmentation)
        sources.append(source)
    return Mixture(sources, counts, held_out)
