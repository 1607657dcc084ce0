"""From an observation to objects with the flow head: released preprocessing, sampling, and the decoder's cube in the
camera's world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from event_sam3d_ros.preprocess import Crop, Observation
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction, surface_points
from event_sam3d_ros.sam3d.config import SamplerConfig
from event_sam3d_ros.sam3d.embedder_fuser import POINTMAPS
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
from event_sam3d_ros.sam3d.preprocessing import ObjectInputs, object_inputs


class FlowPipeline:
    """``network`` computes on ``device`` in ``dtype``; with ``offload`` its weights stay where they are and each stage
    comes there for its turn. ``seed``, ``memory`` (bytes) and ``monocular`` as in `Reconstructor`."""

    def __init__(
        self,
        network: FlowNetwork,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        memory: int | None = None,
        offload: bool = False,
        monocular: MonocularModel | None = None,
    ) -> None:
        self.network = network.to("cpu" if offload else device, dtype).eval()
        self.config = network.config
        self._device, self._seed, self._memory, self._monocular = device, seed, memory, monocular

    def __call__(self, observation: Observation, crops: list[Crop]) -> list[Reconstruction]:
        """The objects of a validated observation, in the order of ``crops``, of which only the labels count: the
        released preprocessing cuts its own. Those with nothing solid are left out."""
        return self._run(observation, crops, self.config.flow.sampler)

    def warm_up(self, observation: Observation, crops: list[Crop]) -> None:
        """Runs the network, with a single step, on a scene that nobody wants the result of."""
        self._run(observation, crops, replace(self.config.flow.sampler, steps=1))

    def _run(self, observation: Observation, crops: list[Crop], sampler: SamplerConfig) -> list[Reconstruction]:
        labels = [crop.label for crop in crops]
        masks = np.stack([np.where(observation.mask == label, np.uint8(255), np.uint8(0)) for label in labels])
        K = np.asarray(observation.K, dtype=np.float64)
        maps = object_pointmaps(self._scene(observation, K), list(masks), K, self.config.preprocess.prior_size_m)
        inputs = object_inputs(
            _tensor(observation.image),
            torch.from_numpy(masks),
            [one.points for one in maps],
            _tensor(observation.event_image),
            self.config.encoder.size,
        )
        logits, poses = self._sample(inputs, maps, sampler)
        found = [
            reconstruct(observation, label, grid, pose, one.metric)
            for label, grid, pose, one in zip(labels, logits, poses, maps, strict=True)
        ]
        return [reconstruction for reconstruction in found if reconstruction is not None]

    def _scene(self, observation: Observation, K: npt.NDArray[np.floating]) -> Pointmap | None:
        if observation.depth is not None:
            return pointmap_from_depth(observation.depth, K)
        if self._monocular is not None and observation.image is not None:
            return pointmap_from_model(self._monocular, observation.image, K)
        return None

    @torch.inference_mode()
    def _sample(
        self, inputs: ObjectInputs, maps: list[Pointmap], sampler: SamplerConfig
    ) -> tuple[list[npt.NDArray[np.float32]], list[ObjectPose]]:
        """Logits (R, R, R), indexed x, y, z, and the pose in the optical frame of every object.

        The network never saw a made-up pointmap: where one only stands in, it is dropped, as it was in training.
        """
        assert inputs.pointmap_scale is not None and inputs.pointmap_shift is not None
        logits: dict[int, npt.NDArray[np.float32]] = {}
        poses: dict[int, ObjectPose] = {}
        for is_prior in (False, True):
            rows = [i for i, one in enumerate(maps) if one.prior == is_prior]
            if not rows:
                continue
            geometry = self.network(
                {name: view if len(view) == 1 else view[rows] for name, view in inputs.views.items()},
                seeded_generators([self._seed] * len(rows)),  # an object's noise must not depend on the others
                dropped=POINTMAPS if is_prior else (),
                sampler=sampler,
                device=self._device,
                memory=self._memory,
            )
            latents = {name: latent.double().cpu().numpy() for name, latent in geometry.pose.items()}
            scale, shift = (x[rows].double().numpy() for x in (inputs.pointmap_scale, inputs.pointmap_shift))
            for row, grid, pose in zip(
                rows, geometry.logits.cpu().numpy(), decode_poses(latents, scale, shift), strict=True
            ):
                logits[row], poses[row] = grid, pose.turned()
        return [logits[i] for i in range(len(maps))], [poses[i] for i in range(len(maps))]


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


def _tensor(image: npt.NDArray[np.uint8] | None) -> Tensor | None:
    return None if image is None else torch.from_numpy(np.ascontiguousarray(image))
