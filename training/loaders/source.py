"""A loader's moments as training samples: cut, varied, in batches, in the format of `training.datasets.Batches`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.preprocess import Crop
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.synthetic.sensing import degrade_mask
from training.augmentations import AugmentationConfig, augment, vary_crop, vary_events
from training.datasets import cut_pictures, object_crop, picture_tensor
from training.loaders.base import UNUSABLE, Loader, Moment

ATTEMPTS = 50  # moments in a row that may be unusable before a dataset counts as broken
PICTURES = frozenset(
    (
        "true_sharp",
        "true_mask",
        "degraded_sharp",
        "degraded_blurry",
        "degraded_events",
        "degraded_true_mask",
        "degraded_mask",
    )
)
"""The fields of a sample that has no truth."""
_SEEDS = 2**63


@dataclass(frozen=True)
class _Cut:
    """A moment's pictures as they are cut (`training.datasets.Pictures`)."""

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    event_image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    degraded_mask: NDArray[np.uint8]


def sample(
    moment: Moment, config: ModelConfig, rng: np.random.Generator, settings: AugmentationConfig
) -> dict[str, NDArray[np.uint8]]:
    """The fields of a sample without truth; its degraded mask is what a segmentation of the blurry frame might give.
    InputError where the object is too small."""
    degraded_mask = degrade_mask(moment.coverage, rng).astype(np.uint8)
    events = vary_events(moment.events, moment.window_us, rng, settings)
    pictures = _Cut(moment.sharp, moment.blurry, moment.event_image(events), moment.mask, degraded_mask)

    def crop(mask: NDArray[np.uint8]) -> Crop:
        return vary_crop(object_crop(mask, config), rng, settings)

    return cut_pictures(pictures, crop(moment.mask), crop(degraded_mask), config)


class RecordedSource:
    """Random samples of one dataset. They lack `training.datasets.TRUTH`: the dataset has none."""

    def __init__(
        self, loader: Loader, config: ModelConfig, settings: AugmentationConfig | None = None, workers: int = 1
    ) -> None:
        """``workers``: threads that read. InputError where the dataset has no samples."""
        self.loader, self.config, self.settings = loader, config, settings or AugmentationConfig()
        self.name, self.names = loader.name, PICTURES
        self.size = len(loader)
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(max(1, workers))

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """``count`` samples, different ones if there are as many; the same for the same state of ``rng``."""
        numbers = rng.choice(self.size, count, replace=count > self.size)
        samples = list(self._pool.map(self._one, numbers.tolist(), rng.integers(_SEEDS, size=count).tolist()))
        batch = {name: picture_tensor(np.stack([one[name] for one in samples])) for name in samples[0]}
        return augment(batch, rng, self.settings)

    def _one(self, number: int, seed: int) -> dict[str, NDArray[np.uint8]]:
        """The sample of a moment, or of the first after it that is whole."""
        first: EventSam3dError | None = None
        for attempt in range(min(ATTEMPTS, self.size)):
            rng = np.random.default_rng([seed, attempt])
            try:
                moment = self.loader.read((number + attempt) % self.size, rng)
                return sample(moment, self.config, rng, self.settings)
            except UNUSABLE as error:
                first = first or error
                with self._lock:
                    self.loader.leave_out(error)
        raise InputError(
            f"{self.name}: none of {min(ATTEMPTS, self.size)} samples in a row can be used; the first problem: {first}",
            reason="bad_dataset",
        )
