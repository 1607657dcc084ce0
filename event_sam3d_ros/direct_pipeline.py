"""From an observation to objects with the direct head: crops, one pass, and the crops' solids in the camera's world."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from event_sam3d_ros.preprocess import Crop, NetworkInput, Observation, network_input
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction, largest_component, surface_points
from event_sam3d_ros.sam3d.geometry_direct import Geometry
from event_sam3d_ros.sam3d.layout import CropFrame, grid_centers, object_rotation
from event_sam3d_ros.sam3d.network import Network


class DirectPipeline:
    """``network`` computes on ``device``; by autocast in ``dtype`` where that is not float32."""

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype) -> None:
        self.network, self.device, self.dtype = network.to(device).eval(), device, dtype
        self.config = network.config

    def __call__(self, observation: Observation, crops: list[Crop]) -> list[Reconstruction]:
        """The objects of a validated observation, in the order of ``crops``; those with nothing solid are left out."""
        geometry = self._infer(network_input(observation, crops, self.config))
        found = [self._reconstruct(observation, crop, geometry, i) for i, crop in enumerate(crops)]
        return [reconstruction for reconstruction in found if reconstruction is not None]

    def warm_up(self, observation: Observation, crops: list[Crop]) -> None:
        """Runs the network on a scene that nobody wants the result of."""
        self._infer(network_input(observation, crops, self.config))

    @torch.inference_mode()
    def _infer(self, inputs: NetworkInput) -> Geometry:
        """Runs the network; the result is float32 on the CPU, its logits upsampled to 64^3."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(self.device)

        mask = inputs.mask.to(self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            geometry = self.network(move(inputs.image), move(inputs.event_image), mask)
        size = (OCCUPANCY_RESOLUTION,) * 3
        logits = F.interpolate(geometry.logits.float()[:, None], size, mode="trilinear", align_corners=False)[:, 0]
        return Geometry(logits.cpu(), geometry.up.float().cpu(), geometry.score.float().cpu())

    def _reconstruct(self, observation: Observation, crop: Crop, geometry: Geometry, i: int) -> Reconstruction | None:
        logits = largest_component(geometry.logits[i].numpy())
        if logits is None:
            return None
        frame = crop.frame(observation.K, self.config.direct.depth_range)
        uvw = surface_points(logits)
        rotation = object_rotation(frame.rotation @ geometry.up[i].numpy(), frame.rotation[:, 2])
        points = frame.to_camera(uvw, 1.0)  # at unit reference depth: everything scales with it
        in_object = points @ rotation
        low, high = in_object.min(0), in_object.max(0)
        size = high - low
        reference = measured_reference(logits, frame, crop, observation)
        scale = self.config.preprocess.prior_size_m / size.max() if reference is None else reference
        center = rotation @ (low + high) / 2
        return Reconstruction(
            id=crop.label,
            score=float(torch.sigmoid(geometry.score[i])),
            metric=reference is not None,
            occupancy=object_occupancy(logits, frame, rotation, center, size),
            points=(points * scale).astype(np.float32),
            colors=point_colors(observation, crop, uvw),
            position=center * scale,
            quaternion=Rotation.from_matrix(rotation).as_quat(),
            size=size * scale,
        )


def measured_reference(
    logits: npt.NDArray[np.float32], frame: CropFrame, crop: Crop, observation: Observation
) -> float | None:
    """The reference depth (metres) at which the predicted front surface lies on the measured depth; None without depth.

    Each column that is solid gives one estimate from the depth pixel under it; their median stands against background
    that a bad mask lets in. Fewer than 10 columns with depth count as none.
    """
    if observation.depth is None:
        return None
    resolution = logits.shape[0]
    v_index, u_index = np.nonzero((logits > 0).any(0))
    front = np.argmax(logits[:, v_index, u_index] > 0, axis=0)
    centers = grid_centers(resolution)
    uv = np.stack([centers[u_index], centers[v_index]], axis=-1)
    pixels = np.rint(np.asarray(frame.center) + uv * (crop.side / 2)).astype(int)
    height, width = observation.mask.shape
    inside = ((pixels >= 0) & (pixels < (width, height))).all(-1)
    uv, front, pixels = uv[inside], front[inside], pixels[inside]
    depth = observation.depth[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    known = np.isfinite(depth) & (depth > 0) & (observation.mask[pixels[:, 1], pixels[:, 0]] == crop.label)
    if known.sum() < 10:
        return None
    w = centers[front[known]] - 1 / resolution  # the cell's near face
    return float(np.median(frame.reference_of(depth[known], uv[known], w)))


def object_occupancy(
    logits: npt.NDArray[np.float32],
    frame: CropFrame,
    rotation: npt.NDArray[np.floating],
    center: npt.NDArray[np.floating],
    size: npt.NDArray[np.floating],
) -> npt.NDArray[np.bool_]:
    """Resamples the crop's grid (D, H, W) into the object frame: (64, 64, 64) bool, cube of side max(size), at unit
    reference.
    """
    centers = grid_centers(OCCUPANCY_RESOLUTION) * (size.max() / 2)
    cube = np.stack(np.meshgrid(centers, centers, centers, indexing="ij"), axis=-1)
    uvw = frame.to_grid(cube @ rotation.T + center, 1.0)
    # grid_sample wants x, y, z of a (D, H, W) volume, which u, v, w are
    sampled = F.grid_sample(
        torch.from_numpy(np.ascontiguousarray(logits))[None, None],
        torch.from_numpy(uvw.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return (sampled[0, 0] > 0).numpy()


def point_colors(observation: Observation, crop: Crop, uvw: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """The colour of the pixel in front of each point: (N, 3) uint8. Hidden points take the colour before them; without
    an RGB image all are grey.
    """
    if observation.image is None:
        return np.full((len(uvw), 3), 128, dtype=np.uint8)
    center = (crop.side - 1) / 2
    local = np.clip(np.rint(center + uvw[:, :2] * (crop.side / 2)), 0, crop.side - 1).astype(int)
    height, width = observation.mask.shape
    x = np.clip(local[:, 0] + crop.x0, 0, width - 1)
    y = np.clip(local[:, 1] + crop.y0, 0, height - 1)
    return observation.image[y, x]
