"""A loader's moments as training samples: cut, varied, in batches, in the formats of rendered ones."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.preprocess import Crop
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.preprocessing import object_inputs
from event_sam3d_ros.synthetic.sensing import degrade_mask
from training.augmentations import AugmentationConfig, augment, vary_crop, vary_events
from training.datasets import cut_pictures, object_crop, picture_tensor
from training.loaders.base import UNUSABLE, Loader, Moment

ATTEMPTS = 50  # moments, at random, that may be unusable before a dataset counts as broken
AHEAD = 2  # batches that are read before they are asked for
_SEEDS = 2**63

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Frames:
    """What a moment shows, ready to be cut (`training.datasets.Pictures`): images (H, W, 3) uint8, masks (H, W) 0/1."""

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    event_image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    degraded_mask: NDArray[np.uint8]


def frames(moment: Moment, rng: np.random.Generator, settings: AugmentationConfig) -> Frames:
    """A moment's frames. Its degraded mask is what a segmentation of the blurry frame might give."""
    degraded_mask = degrade_mask(moment.coverage, rng).astype(np.uint8)
    events = vary_events(moment.events, moment.window_us, rng, settings)
    return Frames(moment.sharp, moment.blurry, moment.event_image(events), moment.mask, degraded_mask)


def crops(seen: Frames, config: ModelConfig, rng: np.random.Generator, settings: AugmentationConfig) -> Batch:
    """A batch of one sample of the direct head: the fields of `training.datasets.Batches` but `TRUTH`. InputError where
    the object is too small."""
    true, degraded = (_crop(mask, config, rng, settings) for mask in (seen.mask, seen.degraded_mask))
    cut = cut_pictures(seen, true, degraded, config)
    return augment({name: picture_tensor(value[None]) for name, value in cut.items()}, rng, settings)


def _crop(mask: NDArray[np.uint8], config: ModelConfig, rng: np.random.Generator, settings: AugmentationConfig) -> Crop:
    return vary_crop(object_crop(mask, config), rng, settings)


def views(seen: Frames, config: ModelConfig, rng: np.random.Generator, settings: AugmentationConfig) -> Batch:
    """A batch of one sample of the flow head: the views ``sharp.`` and ``blurry.`` of `training.flow.batches`, without
    pointmaps (there is no depth), poses and occupancy. Windows are placed as on the robot: ``settings.crop`` is not
    for them."""
    whole = {
        "degraded_sharp": seen.sharp,
        "degraded_blurry": seen.blurry,
        "degraded_events": seen.event_image,
        "degraded_true_mask": seen.mask * np.uint8(255),
        "degraded_mask": seen.degraded_mask * np.uint8(255),
    }
    varied = augment({name: picture_tensor(value[None]) for name, value in whole.items()}, rng, settings)
    sharp, blurry, events, mask, degraded = ((varied[name][0] * 255).round().byte() for name in whole)
    size, factor = config.encoder.size, config.preprocess.crop_factor
    shown = {
        "sharp": object_inputs(sharp.permute(1, 2, 0), mask, None, None, size, degraded, factor),
        "blurry": object_inputs(
            blurry.permute(1, 2, 0), degraded, None, events.permute(1, 2, 0), size, degraded, factor
        ),
    }
    return {f"{frame}.{name}": view for frame, inputs in shown.items() for name, view in inputs.views.items()}


class RecordedSource:
    """Random samples of one dataset; they have no truth. A step's batch follows from the seed and the step alone, and
    each sample's variation from its own seed, so that several processes that share a batch see the samples that one
    process would."""

    def __init__(
        self,
        loader: Loader,
        config: ModelConfig,
        batch_size: int,
        seed: int,
        pool: Executor,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        """``pool``: threads that read. InputError where the dataset has no samples."""
        self.loader, self.config, self.pool = loader, config, pool
        self.batch_size, self.seed, self.size = batch_size, seed, len(loader)
        self.augmentation = augmentation or AugmentationConfig()
        self._waiting: dict[int, list[Future[Batch]]] = {}
        self._lock = Lock()

    def __call__(self, step: int) -> Batch:
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, count: int) -> Batch:
        """The part of a step's batch that process ``rank`` of ``count`` takes; the next ones are begun."""
        for ahead in range(step, step + 1 + AHEAD):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._begin(ahead, rank, count)
        return stacked([future.result() for future in self._waiting.pop(step)])

    def _begin(self, step: int, rank: int, count: int) -> list[Future[Batch]]:
        rng = np.random.default_rng([self.seed, step])
        numbers = rng.choice(self.size, self.batch_size, replace=self.batch_size > self.size)
        seeds = rng.integers(_SEEDS, size=self.batch_size)
        mine = slice(rank, None, count)
        return [self.pool.submit(self._one, int(n), int(s)) for n, s in zip(numbers[mine], seeds[mine], strict=True)]

    def _one(self, number: int, seed: int) -> Batch:
        """The sample of a moment, or, where it can't be used, of others at random: its neighbours may share its lot."""
        make = views if self.config.head == "flow" else crops
        first: EventSam3dError | None = None
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([seed, attempt])
            try:
                moment = self.loader.read(int(rng.integers(self.size)) if attempt else number, rng)
                return make(frames(moment, rng, self.augmentation), self.config, rng, self.augmentation)
            except UNUSABLE as error:
                first = first or error
                with self._lock:
                    self.loader.leave_out(error)
        raise InputError(
            f"{self.loader.name}: none of {ATTEMPTS} samples, drawn at random, can be used; the first problem: {first}",
            reason="bad_dataset",
        )


def stacked(parts: list[Batch]) -> Batch:
    """Batches as one, with the fields that all of them have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in names}
