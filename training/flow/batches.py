"""From stored cases to what the flow network sees and learns, by the preprocessing that runs on the robot.

A batch is a flat mapping of tensors with one row per object. Views carry a prefix, ``sharp.`` or ``blurry.``, before
the names of `preprocessing.ObjectInputs.views`; pointmaps belong to both. ``pose.<latent>`` are the targets of
`layout.encode_pose`, ``occupancy`` (B, 1, R, R, R) is 0 or 1 in the decoder's cube.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.embedder_fuser import POINTMAPS
from event_sam3d_ros.sam3d.flow import Latents
from event_sam3d_ros.sam3d.layout import ObjectPose, encode_pose
from event_sam3d_ros.sam3d.pointmap import pointmap_from_depth, prior_pointmap
from event_sam3d_ros.sam3d.preprocessing import object_inputs
from training.augmentations import AugmentationConfig, augment
from training.datasets import Batches, DataConfig, picture_tensor
from training.flow.samples import OCCUPANCY
from training.sources import Stream

POINTMAP_DROPOUT = 0.1  # of the released model's condition; here of whole batches, for their targets differ too

Row = Mapping[str, npt.NDArray]


SHOWS = ("shapes", "sharp", "blurry")
"""What batches hold: occupancy alone, for the structure VAE; the sharp frame, for stage 0, where half of the objects
are cut by the true mask and half by the one that was found in the blurry frame, and half of those also show the latter;
all, cut by the mask that was found, for the event stages."""


class FlowBatches(Batches):
    """Random batches of stored cases with augmentation: a step's batch is the same for the same seed.

    ``shows``: one of `SHOWS`; the rest as `Batches`.
    """

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
        shows: str = "blurry",
    ) -> None:
        super().__init__(folder, config, batch_size, seed, cases, augmentation, validation, curriculum, data)
        self.config, self.shows = config, shows

    def __call__(self, step: int) -> dict[str, Tensor]:
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, count: int) -> dict[str, Tensor]:
        """The part of a step's batch that process ``rank`` of ``count`` takes."""
        rng = np.random.default_rng([self.seed, step])
        rows = np.sort(rng.choice(self.allowed(step), self.batch_size, replace=False))
        return self.read(rows[rank::count], has_points(self.seed, step), (self.seed, step))

    def held_out(self, number: int) -> dict[str, Tensor]:
        rows = len(self.rows) + np.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return self.read(rows, True)

    def read(
        self, rows: npt.NDArray[np.int64], with_points: bool, seeds: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """The batch of these rows, with pointmaps or without, varied by ``seeds``; None: as they are."""
        examples = []
        for row in rows:
            values = {name: np.array(store[row]) for name, store in self.stores.items()}
            rng = None if seeds is None else np.random.default_rng([*seeds, 1, row])
            examples.append(make_example(values, self.config, self.shows, with_points, rng, self.augmentation))
        return {name: torch.cat([one[name] for one in examples]) for name in examples[0]}


class FlowStream(Stream):
    """The same of cases that are rendered while the network trains."""

    def __init__(
        self,
        data: DataConfig,
        config: ModelConfig,
        batch_size: int,
        seed: int,
        pool: Executor,
        augmentation: AugmentationConfig | None = None,
        curriculum: int = 0,
        shows: str = "blurry",
    ) -> None:
        super().__init__(data, config, batch_size, seed, pool, augmentation, curriculum)
        self.shows = shows

    def _sample(self, case: int, values: dict[str, npt.NDArray], augmented: bool) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, case]) if augmented else None
        with_points = not augmented or has_points(self.seed, case // self.batch_size)
        return make_example(values, self.config, self.shows, with_points, rng, self.augmentation)


def has_points(seed: int, step: int) -> bool:
    """Whether the batch of a step has pointmaps."""
    return np.random.default_rng([seed, step, 2]).random() >= POINTMAP_DROPOUT


def make_example(
    row: Row,
    config: ModelConfig,
    shows: str,
    with_points: bool,
    rng: np.random.Generator | None,
    settings: AugmentationConfig | None,
) -> dict[str, Tensor]:
    """A batch of one stored case, varied by ``rng``; None: as it is."""
    settings = settings or AugmentationConfig()
    if shows == "shapes":
        grid = occupancy(row["occupancy"], config.flow.resolution)
        return {"occupancy": grid.flip(2) if rng is not None and rng.random() < settings.flip else grid}
    window, mask = ("degraded_mask" if shows == "blurry" else "true_mask"), "true_mask"
    if rng is not None:
        row = varied(row, rng, settings)
        if shows == "sharp" and rng.random() < 0.5:
            window = "degraded_mask"
            mask = "degraded_mask" if rng.random() < 0.5 else "true_mask"
    return example(row, config, row[mask], row[window], with_points, blurry=shows == "blurry")


def example(
    row: Row,
    config: ModelConfig,
    mask: npt.NDArray[np.uint8],
    window: npt.NDArray[np.uint8],
    with_points: bool = True,
    blurry: bool = True,
) -> dict[str, Tensor]:
    """The batch of one case (`samples.sample`), each tensor with one row.

    ``sharp.`` shows ``mask``, ``blurry.`` the estimated one with the events; both in the window of ``window``, by which
    pointmaps are normalised too; masks are (H, W) uint8. Without points the pose is relative to the prior's plane.
    """
    size, prior_size, factor = config.encoder.size, config.preprocess.prior_size_m, config.preprocess.crop_factor
    K = row["K"].astype(np.float64)
    scene = pointmap_from_depth(row["depth"], K) if with_points else prior_pointmap(window, K, prior_size)
    around = _tensor(window)[None]
    inputs = object_inputs(_tensor(row["sharp"]), _tensor(mask)[None], [scene.points], None, size, around, factor)
    assert inputs.pointmap_scale is not None and inputs.pointmap_shift is not None
    result = {f"sharp.{name}": view for name, view in inputs.views.items() if name not in POINTMAPS}
    if with_points:
        result |= {name: inputs.views[name] for name in POINTMAPS}
    if blurry:
        estimated = _tensor(row["degraded_mask"])[None]
        seen = object_inputs(_tensor(row["blurry"]), estimated, None, _tensor(row["events"]), size, around, factor)
        result |= {f"blurry.{name}": view for name, view in seen.views.items()}
    # an image alone can't tell how far and how large: the truth, moved along its rays into the prior's plane
    stretch = 1.0 if with_points else float(scene.points[2].nanmean()) / float(row["position"][2])
    pose = true_pose(row, stretch)
    latents = encode_pose(pose, inputs.pointmap_scale[0].double().numpy(), inputs.pointmap_shift[0].double().numpy())
    result |= {f"pose.{name}": torch.from_numpy(latent).float()[None] for name, latent in latents.items()}
    return result | {"occupancy": occupancy(row["occupancy"], config.flow.resolution)}


def true_pose(row: Row, stretch: float = 1.0) -> ObjectPose:
    """The decoder's cube in the pointmap frame, scaled by ``stretch`` about the camera."""
    rotation, position = row["rotation"].astype(np.float64), row["position"].astype(np.float64)
    return ObjectPose(rotation, position * stretch, float(row["size"].max()) * stretch).turned()


def occupancy(packed: npt.NDArray[np.uint8], resolution: int) -> Tensor:
    """(1, 1, R, R, R) float 0 and 1 from the stored bits; R divides 64, a coarse cell is solid if half of it is."""
    grid = torch.from_numpy(np.unpackbits(packed).reshape((OCCUPANCY,) * 3)).float()[None, None]
    return (F.avg_pool3d(grid, OCCUPANCY // resolution) >= 0.5).float()


def varied(row: Row, rng: np.random.Generator, settings: AugmentationConfig) -> dict[str, npt.NDArray]:
    """The case, mirrored by chance, and its whole frames varied as batches of crops are (`augment`)."""
    result = mirrored(row) if rng.random() < settings.flip else dict(row)
    frames = {f"degraded_{name}": picture_tensor(result[name][None]) for name in ("sharp", "blurry", "events")}
    for name, frame in augment(frames, rng, replace(settings, flip=0.0)).items():
        result[name.removeprefix("degraded_")] = (frame[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return result


def mirrored(row: Row) -> dict[str, npt.NDArray]:
    """The case seen in a mirror beside the camera: x of the camera and x of the object change their signs together, so
    that the rotation between them stays one."""
    result = dict(row)
    for name in ("sharp", "blurry", "events", "true_mask", "degraded_mask", "depth"):
        result[name] = np.ascontiguousarray(row[name][:, ::-1])
    mirror = np.array([-1.0, 1.0, 1.0])
    result["K"] = row["K"].copy()
    result["K"][0, 2] = row["depth"].shape[1] - 1 - row["K"][0, 2]
    result["rotation"] = row["rotation"] * mirror[:, None] * mirror
    result["position"] = row["position"] * mirror
    grid = np.unpackbits(row["occupancy"]).reshape((OCCUPANCY,) * 3)
    result["occupancy"] = np.packbits(grid[::-1].ravel())
    return result


def views(batch: Mapping[str, Tensor], frame: str, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The condition stage's inputs of ``frame``, "sharp" or "blurry", with the batch's pointmaps if it has any."""
    prefix = f"{frame}."
    seen = {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}
    seen |= {name: batch[name] for name in POINTMAPS if name in batch}
    return {name: tensor for name, tensor in seen.items() if name not in without}


def pose_latents(batch: Mapping[str, Tensor]) -> Latents:
    """The targets of the pose by latent, (B, 1, channels)."""
    return {name.removeprefix("pose."): tensor for name, tensor in batch.items() if name.startswith("pose.")}


def _tensor(image: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(image))
