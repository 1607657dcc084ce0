"""The one call that everybody uses: `Observation` in, `Reconstruction`s out."""

from __future__ import annotations

import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import CheckpointError, ConfigurationError, InputError
from event_sam3d_ros.preprocess import Crop, NetworkInput, Observation, network_input, object_crops
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.geometry_direct import Geometry
from event_sam3d_ros.sam3d.layout import CropFrame, grid_centers, object_rotation
from event_sam3d_ros.sam3d.network import Network

OCCUPANCY_RESOLUTION = 64
_SHIPPED = "event-sam3d-*.safetensors"


@dataclass(frozen=True)
class Reconstruction:
    """One object, in the camera's optical frame.

    ``id``: the mask's label; ``score``: 0..1, the IoU that the network expects of its shape; ``metric``: True if the
    scale comes from depth, else size and distance rest on the model's prior size and only their ratio means anything;
    ``occupancy``: (64, 64, 64) bool, indexed [x, y, z] in the object frame, a cube of side max(size) around the centre,
    z up; ``points``: (N, 3) float32 on the surface, metres, camera frame; ``colors``: (N, 3) uint8 RGB; ``position``:
    (3,) the box's centre, metres; ``quaternion``: (4,) x, y, z, w, object -> camera; ``size``: (3,) the box's extents
    along the object's axes, metres.
    """

    id: int
    score: float
    metric: bool
    occupancy: npt.NDArray[np.bool_]
    points: npt.NDArray[np.float32]
    colors: npt.NDArray[np.uint8]
    position: npt.NDArray[np.float64]
    quaternion: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]


class Reconstructor:
    """A loaded model. Calls are independent of each other; one instance must not be called from two threads at once.

    ``device``: "auto" (CUDA where there is a GPU, else CPU), "cpu", "cuda", "cuda:1"; ``precision``: "auto" (bf16 on
    CUDA, fp32 on the CPU), "fp32", "bf16", "fp16"; ``seed`` is used by sampling geometry heads only, the direct head
    has none.
    """

    def __init__(
        self, network: Network, info: dict[str, Any], device: str = "auto", precision: str = "auto", seed: int = 0
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(precision, self.device)
        self.network = network.to(self.device).eval()
        self.config: ModelConfig = network.config
        self.seed = seed
        self.info: dict[str, Any] = {
            "name": self.config.name,
            **info,
            "window_ms": self.config.preprocess.window_ms,
            "min_events": self.config.preprocess.min_events,
            "crop_size": self.config.encoder.image_size,
            "occupancy_resolution": OCCUPANCY_RESOLUTION,
            "parameters": sum(p.numel() for p in network.parameters()),
        }

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "nano", device: str = "auto", precision: str = "auto", seed: int = 0
    ) -> Reconstructor:
        """Loads a shipped model by name or a file by path. Raises CheckpointError, ConfigurationError."""
        network, info = load_checkpoint(find_weights(name_or_path))
        return cls(network, info, device, precision, seed)

    def __call__(self, observation: Observation) -> list[Reconstruction]:
        """Reconstructs every object of the mask, by ascending label.

        An object is left out if its mask is under 3 pixels wide or high or the network finds nothing solid; InputError,
        with a reason, if the observation can't be used or no object remains.
        """
        observation.validate()
        crops = object_crops(observation.mask, self.config.preprocess.crop_factor)
        if not crops:
            raise InputError("every object in the mask is under 3 pixels wide or high", reason="object_too_small")
        geometry = self._infer(network_input(observation, crops, self.config))
        found = [self._reconstruct(observation, crop, geometry, i) for i, crop in enumerate(crops)]
        reconstructions = [r for r in found if r is not None]
        if not reconstructions:
            raise InputError("the network finds nothing solid behind the mask", reason="nothing_solid")
        return reconstructions

    def warm_up(self) -> None:
        """Runs the network once on a blank scene: a process's first call takes many times as long as later ones."""
        side = 2 * self.config.encoder.image_size
        blank = np.zeros((side, side, 3), np.uint8)
        mask = np.pad(np.ones((side // 2, side // 2), np.uint8), side // 4)
        observation = Observation(blank, mask, blank, np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]]))
        crops = object_crops(mask, self.config.preprocess.crop_factor)
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


def find_weights(name_or_path: str | Path) -> Path:
    """A shipped model's name -> its file, else the path itself.

    Searched: the installed share folder (in a source tree its ``weights/``), then ``$EVENT_SAM3D_WEIGHTS``, if set.
    """
    name = f"event-sam3d-{name_or_path}.safetensors"
    folders = [share_folder() / "weights"]
    if os.environ.get("EVENT_SAM3D_WEIGHTS"):
        folders.append(Path(os.environ["EVENT_SAM3D_WEIGHTS"]))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = sorted({file.stem.removeprefix("event-sam3d-") for one in folders for file in one.glob(_SHIPPED)})
    kind = "model file" if path.suffix == ".safetensors" or path.name != str(name_or_path) else "model"
    raise CheckpointError(
        f"there is no {kind} {str(name_or_path)!r}: give the path of a .safetensors file or a name "
        f"({', '.join(known) or 'none is installed'}); EVENT_SAM3D_WEIGHTS may name a folder with more models",
        reason="no_checkpoint",
    )


def share_folder() -> Path:
    """The folder that holds weights/, config/, launch/ and data/: the source tree, or the installed share folder."""
    source = Path(__file__).resolve().parent.parent
    if (source / "weights").is_dir():
        return source
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) + [sysconfig.get_path("data")]
    for prefix in prefixes:
        share = Path(prefix) / "share" / "event_sam3d_ros"
        if prefix and (share / "weights").is_dir():
            return share
    return source


def largest_component(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """Keeps the largest connected solid of a grid of logits (D, H, W), the other ones' cells set to just below zero;
    None if nothing is solid."""
    labels, count = ndimage.label(logits > 0)
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.where((labels > 0) & (labels != largest), np.float32(-1e-3), logits)


def surface_points(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(D, H, W) logits -> (N, 3) grid coordinates u, v, w of the zero crossings along the three axes.

    These are the vertices of marching cubes, interpolated linearly between cell centres; a solid that touches the
    grid's border ends half a cell outside it.
    """
    padded = np.pad(logits, 1, constant_values=-1e-3)
    resolution = logits.shape[0]
    solid = padded > 0
    found = []
    for axis in range(3):
        first, second = _shifted(solid, axis)
        index = np.argwhere(first != second)
        if len(index) == 0:
            continue
        after = index.copy()
        after[:, axis] += 1
        a, b = padded[tuple(index.T)].astype(np.float64), padded[tuple(after.T)].astype(np.float64)
        position = index.astype(np.float64)
        position[:, axis] += a / (a - b)
        found.append(position)
    cells = np.concatenate(found) - 1  # undo the padding
    return (((cells + 0.5) * (2 / resolution)) - 1)[:, ::-1]  # (w, v, u) -> (u, v, w)


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


def _shifted(grid: npt.NDArray[np.bool_], axis: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Two views of the grid, the second one cell further along the axis."""
    first, second = [slice(None)] * 3, [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return grid[tuple(first)], grid[tuple(second)]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigurationError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:N", reason="bad_device")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigurationError(
            f"device {name!r} was asked for, but torch finds {count} CUDA GPUs; give auto or cpu", reason="bad_device"
        )
    return device


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision not in known:
        raise ConfigurationError(
            f"precision {precision!r} is unknown; give auto, {', '.join(known)}", reason="bad_precision"
        )
    return known[precision]
