"""From stored cases to what the flow network sees and learns, by the preprocessing that runs on the robot.

A batch is a flat mapping of tensors with one row per object. Views carry a prefix, ``sharp.`` or ``blurry.``, before
the names of `preprocessing.ObjectInputs.views`; pointmaps belong to both. ``pose.<latent>`` are the targets of
`layout.encode_pose`, ``occupancy`` (B, 1, R, R, R) is 0 or 1 in the decoder's cube.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from training.datasets import Batches
from training.flow.samples import OCCUPANCY

POINTMAP_DROPOUT = 0.1  # of the released model's condition; here of whole batches, for their targets differ too
MIRRORED = 0.5

Row = Mapping[str, npt.NDArray]


class FlowBatches(Batches):
    """Random batches of stored cases with augmentation: a step's batch is the same for the same seed.

    ``estimated``: windows are those of the mask that was found in the blurry frame, and blurry frames and events are
    added (the event stages). Else (stage 0) half of the objects are cut by the true mask and half by the estimated one;
    of those, half also show the estimated one.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, batch_size: int, seed: int, cases: int, estimated: bool
    ) -> None:
        super().__init__(folder, config, batch_size, seed, cases)
        self.config, self.estimated = config, estimated

    def draw(self, count: int, rng: np.random.Generator, part: slice = slice(None)) -> dict[str, Tensor]:
        """``count`` different cases, of which the ``part`` is made."""
        rows = np.sort(rng.choice(self.rows, count, replace=False))
        seeds = rng.integers(2**63, size=count)
        with_points = rng.random() >= POINTMAP_DROPOUT
        examples = [
            self._example(row, with_points, np.random.default_rng(seed))
            for row, seed in zip(rows[part], seeds[part], strict=True)
        ]
        return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}

    def share(self, step: int, rank: int, count: int) -> dict[str, Tensor]:
        """One of ``count`` processes' part of the batch of a step."""
        return self.draw(self.batch_size, np.random.default_rng([self.seed, step]), slice(rank, None, count))

    def _example(self, index: int, with_points: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        row = augmented({name: store[index] for name, store in self.stores.items()}, rng)
        window, shown = "degraded_mask", "true_mask"
        if not self.estimated:
            if rng.random() < 0.5:
                window = "true_mask"
            elif rng.random() < 0.5:
                shown = "degraded_mask"
        return example(row, self.config, row[shown], row[window], with_points, blurry=self.estimated)


class ShapeBatches(FlowBatches):
    """The same without pictures and poses: what the structure VAE learns from."""

    def __init__(self, folder: Path, config: ModelConfig, batch_size: int, seed: int, cases: int) -> None:
        super().__init__(folder, config, batch_size, seed, cases, estimated=False)

    def _example(self, index: int, with_points: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        grid = occupancy(self.stores["occupancy"][index], self.config.flow.resolution)
        return {"occupancy": grid.flip(2) if rng.random() < MIRRORED else grid}


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
    size, prior_size = config.encoder.size, config.preprocess.prior_size_m
    K = row["K"].astype(np.float64)
    scene = pointmap_from_depth(row["depth"], K) if with_points else prior_pointmap(window, K, prior_size)
    around = _tensor(window)[None]
    inputs = object_inputs(_tensor(row["sharp"]), _tensor(mask)[None], [scene.points], None, size, around)
    assert inputs.pointmap_scale is not None and inputs.pointmap_shift is not None
    result = {f"sharp.{name}": view for name, view in inputs.views.items() if name not in POINTMAPS}
    if with_points:
        result |= {name: inputs.views[name] for name in POINTMAPS}
    if blurry:
        estimated = _tensor(row["degraded_mask"])[None]
        seen = object_inputs(_tensor(row["blurry"]), estimated, None, _tensor(row["events"]), size, around)
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


def augmented(row: Row, rng: np.random.Generator) -> dict[str, npt.NDArray]:
    """Mirrors half of the cases, and varies the colours of all."""
    result = mirrored(row) if rng.random() < MIRRORED else dict(row)
    gain = rng.uniform(0.8, 1.2, 3)
    for name in ("sharp", "blurry"):
        result[name] = (result[name] * gain).clip(0, 255).astype(np.uint8)
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
