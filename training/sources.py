"""Where batches come from: rendered samples on disk, a stream rendered while the network trains, or datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.worker_processes import end_with_parent
from training.augmentations import AugmentationConfig, augment
from training.datasets import MOTIONS, Batches, DataConfig, motions_at, render_case, to_tensor
from training.loaders.settings import RENDERED
from training.settings import StageConfig

if TYPE_CHECKING:
    from training.loaders.mixture import Mixture

AHEAD = 4  # batches that are rendered before they are asked for
_CASES_OF_A_SEED = 10**8
_FIRST_HELD_OUT = _CASES_OF_A_SEED - 10**6


@contextmanager
def open_batches(
    folder: Path | None, data: DataConfig, config: ModelConfig, stage: StageConfig, shows: str = "blurry"
) -> Iterator[Batches | Stream | Mixture]:
    """The batches of a stage: from ``folder``, or, with ``stream: true`` in the data's settings, rendered meanwhile, or
    from the datasets that the stage names. ``shows``: of the flow head's batches, see `training.flow.batches.SHOWS`."""
    _check_augmentation(config, stage)
    with ExitStack() as stack:

        def rendered(batch_size: int) -> Batches | Stream:
            return _rendered(folder, data, config, replace(stage, batch_size=batch_size), shows, stack)

        if stage.datasets:
            from training.loaders.mixture import open_mixture

            pool = stack.enter_context(ThreadPoolExecutor(data.workers))
            stack.callback(pool.shutdown, cancel_futures=True)
            yield open_mixture(stage.datasets, config, stage.batch_size, stage.seed, rendered, pool, stage.augmentation)
        else:
            yield rendered(stage.batch_size)


def _check_augmentation(config: ModelConfig, stage: StageConfig) -> None:
    """ConfigurationError for variations that none of the stage's data can have."""
    recorded = any(entry.kind != RENDERED for entry in stage.datasets)
    settings = {name: getattr(stage.augmentation, name) for name in ("crop", "event_dropout", "time_reversal")}
    without = [name for name, value in settings.items() if value and not recorded]
    if without:
        raise ConfigurationError(
            f"augmentation: {', '.join(without)} is for recorded datasets alone, rendered samples are cut already: "
            "leave it out, or name such datasets"
        )
    if settings["crop"] and config.head == "flow":
        raise ConfigurationError("augmentation: crop is for the direct head alone: leave it out")


def _begin_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _rendered(
    folder: Path | None, data: DataConfig, config: ModelConfig, stage: StageConfig, shows: str, stack: ExitStack
) -> Batches | Stream:
    """Rendered samples; what has to be closed goes on the ``stack``."""
    rendered: Callable[..., Batches] = partial(Batches, augmentation=stage.augmentation)
    streamed: Callable[..., Stream] = partial(Stream, augmentation=stage.augmentation)
    if config.head == "flow":
        from training.flow.batches import FlowBatches, FlowStream

        rendered = partial(FlowBatches, augmentation=stage.augmentation, shows=shows)
        streamed = partial(FlowStream, augmentation=stage.augmentation, shows=shows)
    if data.stream:
        pool = stack.enter_context(ProcessPoolExecutor(data.workers, get_context("spawn"), _begin_worker))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return streamed(data, config, stage.batch_size, stage.seed, pool, curriculum=stage.curriculum)
    if folder is None:
        raise ConfigurationError("give --data, the folder of rendered samples, or set `stream: true` in the data")
    return rendered(
        folder,
        config,
        stage.batch_size,
        stage.seed,
        stage.cases,
        validation=stage.validation,
        curriculum=stage.curriculum,
        data=data,
    )


class Stream:
    """Batches of cases that no step sees twice; they are rendered by worker processes, used once and not kept.

    A step's batch follows from the seed and the step alone, and each sample's augmentation from its own number, so that
    several processes that share a batch see the samples that one process would.
    """

    def __init__(
        self,
        data: DataConfig,
        config: ModelConfig,
        batch_size: int,
        seed: int,
        pool: Executor,
        augmentation: AugmentationConfig | None = None,
        curriculum: int = 0,
    ) -> None:
        """``curriculum``: steps over which faster motion joins in."""
        self.augmentation, self.curriculum = augmentation, curriculum
        self.data, self.config, self.batch_size, self.seed, self.pool = data, config, batch_size, seed, pool
        self.waiting: dict[int, list[Future[dict[str, npt.NDArray]]]] = {}
        self.kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, step: int) -> dict[str, Tensor]:
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, count: int) -> dict[str, Tensor]:
        """The part of a step's batch that process ``rank`` of ``count`` takes; the next ones are begun."""
        numbers = {s: range(s * self.batch_size + rank, (s + 1) * self.batch_size, count) for s in _next(step)}
        for ahead, cases in numbers.items():
            if ahead not in self.waiting:
                self.waiting[ahead] = [self._begin(case, motions_at(ahead, self.curriculum)) for case in cases]
        parts = [
            self._sample(case, future.result(), augmented=True)
            for case, future in zip(numbers[step], self.waiting.pop(step), strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def held_out(self, number: int) -> dict[str, Tensor]:
        """Batch ``number`` of cases that no step sees; these few are kept."""
        if number not in self.kept:
            first = _FIRST_HELD_OUT + number * self.batch_size
            begun = {case: self._begin(case, MOTIONS) for case in range(first, first + self.batch_size)}
            parts = [self._sample(case, future.result(), augmented=False) for case, future in begun.items()]
            self.kept[number] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self.kept[number]

    def _begin(self, case: int, motions: tuple[str, ...]) -> Future[dict[str, npt.NDArray]]:
        return self.pool.submit(render_case, self.seed * _CASES_OF_A_SEED + case, self.data, self.config, motions)

    def _sample(self, case: int, values: dict[str, npt.NDArray], augmented: bool) -> dict[str, Tensor]:
        grid = self.config.direct.resolution
        batch = {name: to_tensor(name, np.asarray(value)[None], grid) for name, value in values.items()}
        return augment(batch, np.random.default_rng([self.seed, case]), self.augmentation) if augmented else batch


def _next(step: int) -> range:
    return range(step, step + 1 + AHEAD)
