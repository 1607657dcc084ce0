"""From an observation to objects with the flow head: released preprocessing, sampling, and the decoder's cube in the
camera's world."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from event_sam3d_ros.preprocess import Crop, Observation
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction, surface_points
from event_sam3d_ros.sam3d.config import SamplerConfig
from event_sam3d_ros.sam3d.flow import seeded_generators
from event_sam3d_ros.sam3d.layout import ObjectPose, decode_poses, grid_centers
from event_sam3d_ros.sam3d.network import FlowNetwork
from event_sam3d_ros.sam3d.pointmap import (
    MonocularModel,
    Pointmap,
    object_pointmaps,
    pointmap_from_depth,
    pointmap_from_model,
)
from event_sam3d_ros.sam3d.preprocessing import object_inputs, scene_moments


class FlowPipeline:
    """``network`` computes on ``device`` in ``dtype``, into which its own weights are turned; with ``offload`` they
    stay in main memory and each stage comes to ``device`` for its turn. ``sampler``: None for the configuration's;
    ``seed``, ``memory`` (bytes) and ``monocular`` as in `Reconstructor`."""

    def __init__(
        self,
        network: FlowNetwork,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        memory: int | None = None,
        offload: bool = False,
        sampler: SamplerConfig | None = None,
        monocular: MonocularModel | None = None,
    ) -> None:
        self.network = network.to("cpu" if offload else device, dtype).eval()
        self.config = network.config
        self.sampler = sampler or self.config.flow.sampler
        self._device, self._seed, self._memory, self._monocular = device, seed, memory, monocular

    def __call__(self, observation: Observation, crops: list[Crop]) -> list[Reconstruction]:
        """The objects of a validated observation, in the order of ``crops``, of which only the labels count: the
        released preprocessing cuts its own. Those with nothing solid are left out."""
        return self._run(observation, crops, self.sampler)

    def warm_up(self, observation: Observation, crops: list[Crop]) -> None:
        """Runs the network, with a single step, on a scene that nobody wants the result of."""
        self._run(observation, crops, replace(self.sampler, steps=1))

    def _run(self, observation: Observation, crops: list[Crop], sampler: SamplerConfig) -> list[Reconstruction]:
        K = np.asarray(observation.K, dtype=np.float64)
        scene = self._scene(observation, K)
        objects = [self._seen_object(observation, crop.label, scene, K) for crop in crops]
        found = self._sample(observation, objects, None if scene is None else scene.points, sampler)
        reconstructions = []
        for one in objects:
            logits, pose = found[one.label]
            metric = one.is_shown and scene is not None and scene.metric
            reconstructions.append(reconstruct(observation, one.label, logits, pose, metric))
        return [reconstruction for reconstruction in reconstructions if reconstruction is not None]

    def _scene(self, observation: Observation, K: npt.NDArray[np.floating]) -> Pointmap | None:
        """The pointmap of what is measured or estimated, on the network's device."""
        scene = None
        if observation.depth is not None:
            scene = pointmap_from_depth(observation.depth, K)
        elif self._monocular is not None and observation.image is not None:
            scene = pointmap_from_model(self._monocular, observation.image, K)
        return None if scene is None else replace(scene, points=scene.points.to(self._device))

    def _seen_object(
        self, observation: Observation, label: int, scene: Pointmap | None, K: npt.NDArray[np.floating]
    ) -> _SeenObject:
        inside = observation.mask == label
        mask = torch.from_numpy(inside).to(self._device, torch.uint8) * 255
        (own,) = object_pointmaps(scene, [inside], K, self.config.preprocess.prior_size_m)
        # a plane for each object is kept no longer than it takes to know its scale
        moments = scene_moments(own.points.to(self._device), (mask > 0).float()) if own.prior else None
        return _SeenObject(label, mask, moments)

    @torch.inference_mode()
    def _sample(
        self, observation: Observation, objects: list[_SeenObject], points: Tensor | None, sampler: SamplerConfig
    ) -> dict[int, tuple[npt.NDArray[np.float32], ObjectPose]]:
        """By label, the logits (R, R, R), indexed x, y, z, and the pose in the optical frame.

        The network never saw a made-up pointmap: where one only stands in, it gets none, as when training dropped it.
        Inputs of all objects wait in main memory, outside of what ``memory`` bounds.
        """
        shown = [one.is_shown for one in objects]
        inputs = object_inputs(
            _tensor(observation.image, self._device),
            torch.stack([one.mask for one in objects]),
            [points] * len(objects) if points is not None and any(shown) else None,
            _tensor(observation.event_image, self._device),
            self.config.encoder.size,
            crop_factor=self.config.preprocess.crop_factor,
            store="cpu",
        )
        geometry = self.network(
            inputs.views,
            # labels begin at 1: object 1 gets what the released model draws after torch.manual_seed(seed)
            seeded_generators([self._seed + one.label - 1 for one in objects]),
            with_points=None if all(shown) else torch.tensor(shown),
            sampler=sampler,
            device=self._device,
            memory=self._memory,
        )
        latents = {name: latent.double().cpu().numpy() for name, latent in geometry.pose.items()}
        moments = [one.prior for one in objects]
        if inputs.pointmap_scale is not None and inputs.pointmap_shift is not None:
            own = zip(inputs.pointmap_scale, inputs.pointmap_shift, strict=True)
            moments = [prior or measured for prior, measured in zip(moments, own, strict=True)]
        known = zip(*filter(None, moments), strict=True)
        scale, shift = (torch.stack([x.double().cpu() for x in each]).numpy() for each in known)
        poses = decode_poses(latents, scale, shift)
        return {
            one.label: (grid, pose.turned())
            for one, grid, pose in zip(objects, geometry.logits.cpu().numpy(), poses, strict=True)
        }


@dataclass(frozen=True)
class _SeenObject:
    """``mask``: (H, W) uint8, 255 inside; ``prior``: scale and shift of its stand-in pointmap, None where the scene's
    pointmap shows it."""

    label: int
    mask: Tensor
    prior: tuple[Tensor, Tensor] | None

    @property
    def is_shown(self) -> bool:
        return self.prior is None


def reconstruct(
    observation: Observation, label: int, logits: npt.NDArray[np.float32], pose: ObjectPose, metric: bool
) -> Reconstruction | None:
    """One object from its ``logits`` (R, R, R), indexed x, y, z in the decoder's cube, and the cube's ``pose`` in the
    optical frame; None if nothing is solid."""
    if not (logits > 0).any():
        return None
    in_cube = surface_points(logits)[:, ::-1] / 2  # it takes grids indexed w, v, u, from -1 to 1
    points = pose.to_camera(in_cube)
    centred, size = pose.centred(in_cube)
    return Reconstruction(
        id=label,
        score=expected_iou(logits),
        metric=metric,
        occupancy=object_occupancy(logits, in_cube),
        points=points.astype(np.float32),
        colors=projected_colors(observation, points),
        position=np.asarray(centred.position, dtype=np.float64),
        quaternion=Rotation.from_matrix(centred.rotation).as_quat(),
        size=np.asarray(size, dtype=np.float64),
    )


def expected_iou(logits: npt.NDArray[np.float32]) -> float:
    """The IoU that the decoder itself expects of its solid, taking its probabilities p at their word:
    the sum of p over the solid, over the size of the solid plus the sum of p outside."""
    solid = logits > 0
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return float(p[solid].sum() / (solid.sum() + p[~solid].sum()))


def object_occupancy(logits: npt.NDArray[np.float32], in_cube: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Resamples the cube's logits into the object frame: (64, 64, 64) bool, a cube around the box of the surface points
    ``in_cube`` (N, 3) with the box's longest edge."""
    low, high = in_cube.min(0), in_cube.max(0)
    offsets = grid_centers(OCCUPANCY_RESOLUTION) * ((high - low).max() / 2)
    x, y, z = ((low + high)[axis] / 2 + offsets for axis in range(3))
    # grid_sample wants positions from -1 to 1, the last axis of the volume first
    positions = np.stack(np.meshgrid(x, y, z, indexing="ij")[::-1], axis=-1) * 2
    sampled = F.grid_sample(
        torch.from_numpy(np.ascontiguousarray(logits))[None, None],
        torch.from_numpy(positions.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    inside = (np.abs(positions) <= 1).all(-1)
    return (sampled[0, 0] > 0).numpy() & inside


def projected_colors(observation: Observation, points: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """The colour of the pixel that each point (N, 3) of the optical frame projects to: (N, 3) uint8; grey beside the
    image, behind the camera and without an RGB image."""
    colors = np.full((len(points), 3), 128, dtype=np.uint8)
    if observation.image is None:
        return colors
    height, width = observation.mask.shape
    front = points[:, 2] > 1e-6
    pixels = points[front] @ np.asarray(observation.K, dtype=np.float64).T
    columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).T
    seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    colors[np.flatnonzero(front)[seen]] = observation.image[rows[seen].astype(int), columns[seen].astype(int)]
    return colors


def _tensor(image: npt.NDArray[np.uint8] | None, device: torch.device) -> Tensor | None:
    return None if image is None else torch.from_numpy(np.ascontiguousarray(image)).to(device)
