"""Training samples: crops of synthetic cases, rendered once by all cores, kept as uint8 in memory-mapped files.

Each case gives two crops. ``true``: cut by the true mask, sharp frame. ``degraded``: cut by the mask that a
segmentation of the blurry frame would give, with the sharp and the blurry frame, the event image and both masks.
Targets belong to the crop.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.preprocess import Crop, crop_resize, object_crops
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.layout import grid_centers
from event_sam3d_ros.synthetic.options import DEFAULT_WORLD, WorldOptions
from event_sam3d_ros.synthetic.world import FIRST_TRAINING_OBJECT_SEED, Case, make_case
from event_sam3d_ros.worker_processes import end_with_parent
from training.augmentations import AugmentationConfig, augment
from training.flow import samples as flow_samples
from training.store import (
    PROGRESS,
    check_made_for,
    create_fields,
    made_for,
    open_fields,
    read_progress,
    world_settings,
    write_progress,
)

MOTIONS = ("easy", "medium", "hard", "hard", "still")
SEVERITIES = ("still", "easy", "medium", "hard")
CASES_PER_OBJECT = 2
PIXELS_PER_SUB_FRAME = 2.0  # coarser than evaluation's: blur and events at a 64 pixel crop hardly tell the difference
CHUNK = 64
ATTEMPTS = 5
RETRY_SEEDS = 2**60  # motion seeds of second attempts begin far above the cases' own numbers
SENSOR_SIDES = (32, 2048)
TRUTH = ("true_occupancy", "true_up", "degraded_occupancy", "degraded_up")
"""Fields that only data with 3D truth have; all others are pictures, which every dataset has."""


@dataclass(frozen=True)
class DataConfig:
    """``cases`` on windows of ``sensor`` x ``sensor`` pixels; ``first_seed``: object seed of the first case, none of a
    held-out object.

    ``stream``: nothing is stored; each stage renders new cases by ``workers`` processes while it trains. ``world``:
    other motions, occluders, meshes, flaws of the event camera.
    """

    cases: int = 10944
    sensor: int = 112
    first_seed: int = FIRST_TRAINING_OBJECT_SEED
    stream: bool = False
    workers: int = 2
    world: WorldOptions = DEFAULT_WORLD

    def __post_init__(self) -> None:
        if self.first_seed < FIRST_TRAINING_OBJECT_SEED:
            raise ConfigurationError(
                f"first_seed is {self.first_seed}: give {FIRST_TRAINING_OBJECT_SEED} or more, objects below are those "
                "that models are judged on"
            )
        if min(self.cases, self.workers) < 1:
            raise ConfigurationError(f"cases is {self.cases}, workers {self.workers}: give at least 1 of each")
        if not SENSOR_SIDES[0] <= self.sensor <= SENSOR_SIDES[1]:
            raise ConfigurationError(
                f"sensor is {self.sensor}: give the window's side, {SENSOR_SIDES[0]} to {SENSOR_SIDES[1]} pixels"
            )


def fields(config: ModelConfig, sensor: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> (shape, dtype) of everything that is stored for one case on a window of ``sensor`` pixels."""
    if config.head == "flow":
        return flow_samples.fields(sensor)
    size, grid = config.encoder.image_size, config.direct.resolution
    image, mask, packed = (size, size, 3), (size, size), (grid**3 // 8,)
    return {
        "true_sharp": (image, np.uint8),
        "true_mask": (mask, np.uint8),
        "true_occupancy": (packed, np.uint8),
        "true_up": ((3,), np.float32),
        "degraded_sharp": (image, np.uint8),
        "degraded_blurry": (image, np.uint8),
        "degraded_events": (image, np.uint8),
        "degraded_true_mask": (mask, np.uint8),
        "degraded_mask": (mask, np.uint8),
        "degraded_occupancy": (packed, np.uint8),
        "degraded_up": ((3,), np.float32),
    }


def crop_targets(case: Case, crop: Crop, config: ModelConfig) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The truth in a crop's grid: occupancy (D, H, W) uint8 and the object's up vector (3,) in the crop frame."""
    frame = crop.frame(case.K, config.direct.depth_range)
    centers = grid_centers(config.direct.resolution)
    w, v, u = np.meshgrid(centers, centers, centers, indexing="ij")
    reference = float(case.position @ frame.rotation[:, 2])
    points = frame.to_camera(np.stack([u, v, w], axis=-1), reference)
    local = ((points - case.position) @ case.rotation) / case.scale
    grid = torch.from_numpy(np.ascontiguousarray(local[..., ::-1], dtype=np.float32))[None]
    sdf = torch.as_tensor(case.shape.sdf, dtype=torch.float32)[None, None]
    distance = F.grid_sample(sdf, grid, align_corners=False, padding_mode="border")[0, 0].numpy()
    inside = (distance < 0) & (np.abs(local) < 1).all(-1)
    return inside.astype(np.uint8), (frame.rotation.T @ case.rotation[:, 2]).astype(np.float32)


class Pictures(Protocol):
    """What a sample's pictures are cut from, in one grid H x W: ``sharp``, ``blurry`` and ``event_image`` (H, W, 3)
    uint8, ``mask`` and ``degraded_mask`` (H, W) uint8, 0 or 1."""

    @property
    def sharp(self) -> npt.NDArray[np.uint8]: ...
    @property
    def blurry(self) -> npt.NDArray[np.uint8]: ...
    @property
    def event_image(self) -> npt.NDArray[np.uint8]: ...
    @property
    def mask(self) -> npt.NDArray[np.uint8]: ...
    @property
    def degraded_mask(self) -> npt.NDArray[np.uint8]: ...


def object_crop(mask: npt.NDArray[np.uint8], config: ModelConfig) -> Crop:
    """The crop of a mask's one object; InputError where it is too small."""
    crops = object_crops(mask, config.preprocess.crop_factor)
    if not crops:
        raise InputError("the object is too small to crop", reason="object_too_small")
    return crops[0]


def cut_pictures(source: Pictures, true: Crop, degraded: Crop, config: ModelConfig) -> dict[str, npt.NDArray[np.uint8]]:
    """All fields of a sample but the truth, see `fields`; ``true`` and ``degraded``: where its two crops lie."""
    size = config.encoder.image_size

    def cut(image: npt.NDArray, crop: Crop) -> npt.NDArray[np.uint8]:
        resized = crop_resize(image, crop, size).permute(1, 2, 0).numpy()
        return np.rint(resized).clip(0, 255).astype(np.uint8)

    return {
        "true_sharp": cut(source.sharp, true),
        "true_mask": cut(source.mask * 255, true)[..., 0],
        "degraded_sharp": cut(source.sharp, degraded),
        "degraded_blurry": cut(source.blurry, degraded),
        "degraded_events": cut(source.event_image, degraded),
        "degraded_true_mask": cut(source.mask * 255, degraded)[..., 0],
        "degraded_mask": cut(source.degraded_mask * 255, degraded)[..., 0],
    }


def sample(case: Case, config: ModelConfig) -> dict[str, npt.NDArray]:
    """Everything that training needs of a case; see `fields`."""
    if config.head == "flow":
        return flow_samples.sample(case)
    crops = {"true": object_crop(case.mask, config), "degraded": object_crop(case.degraded_mask, config)}
    result: dict[str, npt.NDArray] = dict(cut_pictures(case, crops["true"], crops["degraded"], config))
    for name, crop in crops.items():
        occupancy, up = crop_targets(case, crop, config)
        result[f"{name}_occupancy"] = np.packbits(occupancy.ravel())
        result[f"{name}_up"] = up
    return result


def render(folder: Path, data: DataConfig, config: ModelConfig, workers: int) -> None:
    """Renders all cases into ``folder``, resuming where an earlier run stopped."""
    if workers < 1:
        raise ConfigurationError(f"{workers} workers: give at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _made_for(data, config) | {"cases": data.cases}
    if (folder / PROGRESS).exists():
        progress = read_progress(folder)
        check_made_for(folder, progress, wanted)
    elif any(folder.glob("*.npy")):
        raise InputError(
            f"{folder} holds .npy files but no {PROGRESS}, so nobody knows what of: give another folder or delete it",
            reason="other_data",
        )
    else:
        progress = {**wanted, "done": []}
        write_progress(folder, progress)
    if not progress["done"]:
        create_fields(folder, fields(config, data.sensor), data.cases)
    stores = open_fields(folder, fields(config, data.sensor), data.cases, "r+")
    chunks = {start: min(CHUNK, data.cases - start) for start in range(0, data.cases, CHUNK)}
    left = {start: count for start, count in chunks.items() if start not in set(progress["done"])}
    ready = data.cases - sum(left.values())
    context = get_context("spawn" if data.world.render_device else None)  # CUDA can't go on in a forked process
    with (
        ProcessPoolExecutor(workers, context, end_with_parent) as pool,
        tqdm(total=data.cases, initial=ready, unit="case") as bar,
    ):
        jobs = ((start, count, data, config) for start, count in left.items())
        for start, samples in pool.map(_render_chunk, jobs):
            for i, one in enumerate(samples):
                for name, value in one.items():
                    stores[name][start + i] = value
            progress["done"].append(start)
            write_progress(folder, progress)
            bar.update(len(samples))


def _made_for(data: DataConfig, config: ModelConfig) -> dict[str, Any]:
    """What a folder's samples depend on, but for how many they are."""
    own = {"sensor": data.sensor, "first_seed": data.first_seed, "world": world_settings(data.world)}
    return own | made_for(config)


def _render_chunk(job: tuple[int, int, DataConfig, ModelConfig]) -> tuple[int, list[dict[str, npt.NDArray]]]:
    start, count, data, config = job
    torch.set_num_threads(1)
    return start, [render_case(start + i, data, config) for i in range(count)]


def render_case(
    index: int, data: DataConfig, config: ModelConfig, motions: tuple[str, ...] = MOTIONS
) -> dict[str, npt.NDArray]:
    """The sample of case ``index``, one row of each field; ``motions``: as `find_case`."""
    return sample(find_case(index, data, motions), config)


def find_case(index: int, data: DataConfig, motions: tuple[str, ...] = MOTIONS) -> Case:
    """Case ``index`` of these data, of ``motions`` by turns. InputError names its seed where none of a few motions
    leaves enough of the object in view."""
    seed, tier = data.first_seed + index // CASES_PER_OBJECT, motions[index % len(motions)]
    for attempt in range(ATTEMPTS):  # a rare case may leave the small sensor or shrink to nothing: another motion then
        case = make_case(
            seed,
            index + attempt * RETRY_SEEDS,
            tier,
            data.sensor,
            data.sensor,
            PIXELS_PER_SUB_FRAME,
            options=data.world,
        )
        if object_crops(case.mask, 1.0) and object_crops(case.degraded_mask, 1.0):
            return case
    raise InputError(
        f"case {index} (object seed {seed}, tier {tier}): in {ATTEMPTS} motions too little of the object is "
        "seen to cut it out; give a larger sensor, fewer occluders or another first_seed",
        reason="object_too_small",
    )


def motions_at(step: int, curriculum: int) -> tuple[str, ...]:
    """The motions of a step's cases: under a curriculum still and slow ones first, then ever faster ones."""
    if step >= curriculum:
        return MOTIONS
    slow = SEVERITIES[: 2 + (len(SEVERITIES) - 2) * step // curriculum]
    return tuple(motion for motion in MOTIONS if motion in slow)


class Batches:
    """Random batches of rendered samples with augmentation, as tensors ready for the network."""

    name = "rendered samples"

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        batch_size: int,
        seed: int,
        cases: int,
        augmentation: AugmentationConfig | None = None,
        validation: int = 0,
        curriculum: int = 0,
        data: DataConfig | None = None,
    ) -> None:
        """``cases``: how many of the folder's first cases to use, and ``validation`` of those after them, held out;
        InputError if they are not rendered yet, or for another model, or, where given, for other ``data``.
        ``curriculum``: steps over which faster motion joins in."""
        progress = read_progress(folder)
        check_made_for(folder, progress, made_for(config) if data is None else _made_for(data, config))
        missing = [start for start in range(0, cases + validation, CHUNK) if start not in set(progress["done"])]
        if missing or cases + validation > progress["cases"]:
            raise InputError(
                f"{folder} lacks cases from {min(missing, default=progress['cases'])} on: render them first",
                reason="no_data",
            )
        self.rows, self.curriculum = np.arange(cases), curriculum
        self.stores = open_fields(folder, fields(config, progress["sensor"]), progress["cases"])
        self.names = frozenset(self.stores)
        self.grid = config.direct.resolution
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        if len(self.allowed(0)) < batch_size:
            raise ConfigurationError(
                f"a batch of {batch_size} can't be drawn from {len(self.allowed(0))} cases: lower batch_size or render "
                "and use more cases" + (" (the curriculum begins with those of little motion)" if curriculum else "")
            )

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a step: the same for the same seed, so that a resumed run goes on exactly."""
        return self.draw(self.batch_size, np.random.default_rng([self.seed, step]), self.allowed(step))

    def allowed(self, step: int) -> npt.NDArray[np.int64]:
        """The rows that a step may draw, see `motions_at`."""
        return self.rows[np.isin(np.array(MOTIONS)[self.rows % len(MOTIONS)], motions_at(step, self.curriculum))]

    def draw(
        self, count: int, rng: np.random.Generator, rows: npt.NDArray[np.int64] | None = None
    ) -> dict[str, Tensor]:
        """``count`` different samples, from these rows or all."""
        drawn = np.sort(rng.choice(self.rows if rows is None else rows, count, replace=False))
        return augment(self._read(drawn), rng, self.augmentation)

    def held_out(self, number: int) -> dict[str, Tensor]:
        """Batch ``number`` of the held-out cases, which no step draws, as they are."""
        return self._read(len(self.rows) + np.arange(number * self.batch_size, (number + 1) * self.batch_size))

    def _read(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        return {name: to_tensor(name, store[rows], self.grid) for name, store in self.stores.items()}


def to_tensor(name: str, values: npt.NDArray, grid: int) -> Tensor:
    """The stored values (B, ...) of the field ``name`` as what the network takes or learns, float32."""
    if name.endswith("occupancy"):
        bits = np.unpackbits(values, axis=1)
        return torch.from_numpy(bits.reshape(-1, grid, grid, grid)).float()
    if name.endswith("up"):
        return torch.from_numpy(np.ascontiguousarray(values))
    return picture_tensor(values)


def picture_tensor(values: npt.NDArray[np.uint8]) -> Tensor:
    """Pictures (B, S, S, 3) or masks (B, S, S) uint8 -> (B, 3 or 1, S, S) float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).float() / 255
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor[:, None]
