"""One object in front of one background, seen by one camera: what stays the same while things move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from event_sam3d_ros.synthetic.appearance import Light, random_background, random_light
from event_sam3d_ros.synthetic.event_simulator import EventCameraParameters
from event_sam3d_ros.synthetic.renderer import Rendered, render
from event_sam3d_ros.synthetic.shapes import LONGEST_SIDE, Shape

SENSOR_WIDTH, SENSOR_HEIGHT = 346, 260
CROP_MARGIN = 1.2
"""Side of an object's crop over the longer side of its mask's bounding box."""


@dataclass(frozen=True)
class Poses:
    """N poses: rotation (N, 3, 3) object -> camera, position (N, 3) metres, background_shift (N, 2) pixels; float64."""

    rotation: np.ndarray
    position: np.ndarray
    background_shift: np.ndarray


@dataclass(frozen=True)
class Scene:
    """The object, its camera and its surroundings; `scale` in metres per grid unit, K (3, 3) of this window;
    `render_device` as in `WorldOptions`."""

    shape: Shape
    scale: float
    K: np.ndarray
    width: int
    height: int
    light: Light
    background: Tensor
    background_depth: np.ndarray
    image_noise: float
    event_camera: EventCameraParameters
    render_device: str = ""

    def images(self, poses: Poses, background: NDArray[np.float32] | None = None) -> Rendered:
        """Sharp images of these poses, before the scene's own background or another one (N or 1, H, W, 3)."""
        draw = render
        if self.render_device:
            from event_sam3d_ros.synthetic.torch_renderer import render_on

            draw = partial(render_on, self.render_device)
        return draw(
            self.shape,
            poses.rotation,
            poses.position,
            self.scale,
            self.K,
            self.width,
            self.height,
            self.light,
            self.background_pictures(poses.background_shift) if background is None else background,
        )

    def background_pictures(self, shift: np.ndarray) -> NDArray[np.float32]:
        """(N or 1, H, W, 3): the background's middle, moved by (N, 2) pixels; mirrored beyond its border."""
        high, wide = self.background.shape[1:]
        if (shift == shift[:1]).all():
            shift = shift[:1]
        shifts = torch.as_tensor(shift, dtype=torch.float32)
        x = torch.arange(self.width) + 0.5 + (wide - self.width) / 2 - shifts[:, :1]
        y = torch.arange(self.height) + 0.5 + (high - self.height) / 2 - shifts[:, 1:]
        size = (len(shifts), self.height, self.width)
        grid = torch.stack(
            [(2 * x / wide - 1)[:, None, :].expand(size), (2 * y / high - 1)[:, :, None].expand(size)], -1
        )
        picture = self.background[None].expand(len(shifts), -1, -1, -1)
        moved = F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)
        return moved.permute(0, 2, 3, 1).numpy()

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of camera points (..., 3) in metres."""
        return points[..., :2] / points[..., 2:] * self.K[[0, 1], [0, 1]] + self.K[:2, 2]

    def unproject(self, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Camera points (N, 3) in metres of pixels (N, 2) at depths (N,)."""
        rays = (pixels - self.K[:2, 2]) / self.K[[0, 1], [0, 1]]
        return np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depth[:, None]

    def surface_pixels(self, poses: Poses) -> np.ndarray:
        """(N, M, 2) pixels of points on the object's surface, hidden ones too."""
        points = self.shape.surface_points * self.scale
        return self.project(np.einsum("nij,mj->nmi", poses.rotation, points) + poses.position[:, None])


def viewing_rotation(rng: np.random.Generator) -> np.ndarray:
    """Object -> camera rotation (3, 3) of a camera that looks right at an upright object.

    Any yaw, elevation -10..70 degrees, roll +-10 degrees.
    """
    yaw, elevation, roll = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-10, 70)), np.deg2rad(rng.uniform(-10, 10))
    towards_camera = np.array([np.cos(elevation) * np.cos(yaw), np.cos(elevation) * np.sin(yaw), np.sin(elevation)])
    forward = -towards_camera
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(forward, right), forward])
    return Rotation.from_rotvec([0, 0, roll]).as_matrix() @ level


def turn_towards(ray: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes the optical axis onto a ray (3,): how an object off the axis is seen."""
    axis = np.cross([0.0, 0.0, 1.0], ray / np.linalg.norm(ray))
    sine = float(np.linalg.norm(axis))
    return Rotation.from_rotvec(axis / sine * np.arcsin(sine) if sine > 1e-9 else np.zeros(3)).as_matrix()


def crop_side(mask: np.ndarray) -> float:
    """1.2 x the longer side of the bounding box of a mask (H, W) that is not empty, pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return CROP_MARGIN * float(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)


@dataclass(frozen=True)
class Placement:
    """Where the object is at the stamp: rotation (3, 3), position (3,) metres, pixel (2,), crop side in pixels."""

    scene: Scene
    rotation: np.ndarray
    position: np.ndarray
    pixel: np.ndarray
    side: float


def random_placement(
    shape: Shape, rng: np.random.Generator, width: int, height: int, reach: float, background_margin: float
) -> Placement:
    """The shape at a random place in view of a random camera.

    A sensor smaller than 346x260 is a window of that one: same focal length, principal point moved. `reach`: how far
    the object's centre moves from where it is at the stamp, in crop sides; it is kept in view where that is possible.
    """
    sensor = np.maximum([SENSOR_WIDTH, SENSOR_HEIGHT], [width, height])
    size = np.array([width, height])
    focal = float(rng.uniform(0.9, 1.6)) * sensor[0]
    centre = sensor / 2 - 0.5 + rng.normal(0, 3, 2)
    shortest = float(min(width, height))
    side = float(rng.uniform(min(60.0, 0.4 * shortest), min(150.0, 0.76 * shortest)))

    keep = np.minimum(side * (0.5 / CROP_MARGIN + reach), size / 2)
    in_window = rng.uniform(keep, size - keep + 1e-9)
    corner = np.clip(np.rint(rng.uniform(0, sensor - size + 1) - 0.5), 0, sensor - size)
    pixel = in_window + corner
    ray = np.append((pixel - centre) / focal, 1.0)
    rotation = turn_towards(ray) @ viewing_rotation(rng)
    longest = np.exp(np.random.default_rng((shape.seed, 0x512E)).uniform(np.log(0.08), np.log(0.4)))
    scale = longest / LONGEST_SIDE

    position = _distance(shape, rotation, scale, focal, side, ray) * ray
    K = np.array([[focal, 0, centre[0] - corner[0]], [0, focal, centre[1] - corner[1]], [0, 0, 1]])
    margin = 2 * int(np.ceil(background_margin * side)) + 4
    scene = Scene(
        shape=shape,
        scale=float(scale),
        K=K,
        width=width,
        height=height,
        light=random_light(rng),
        background=random_background(rng, height + margin, width + margin),
        background_depth=_background_depth(rng, width, height, float(position[2]), float(longest)),
        image_noise=float(rng.uniform(0.0, 0.015)),
        event_camera=EventCameraParameters(
            threshold_on=float(rng.uniform(0.15, 0.35)),
            threshold_off=float(rng.uniform(0.15, 0.35)),
            shot_noise_rate_hz=float(rng.uniform(0.0, 0.4)),
        ),
    )
    return Placement(scene, rotation, position, in_window, side)


def _distance(shape: Shape, rotation: np.ndarray, scale: float, focal: float, side: float, ray: np.ndarray) -> float:
    """Depth in metres at which the object's crop side is `side` pixels."""
    points = shape.surface_points @ rotation.T * scale
    depth = CROP_MARGIN * focal * np.ptp(points[:, :2], axis=0).max() / side
    for _ in range(4):
        seen = points + depth * ray
        box = focal * np.ptp(seen[:, :2] / seen[:, 2:], axis=0).max() + 1
        depth *= CROP_MARGIN * box / side
        depth = max(depth, 1.2 * float(np.abs(points[:, 2]).max()))
    return float(depth)


def _background_depth(rng: np.random.Generator, width: int, height: int, depth: float, longest: float) -> np.ndarray:
    """(H, W) float32 metres of a slanted plane behind the object; inf (no return) in a third of the scenes."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    inverse = 1.0 / (depth * rng.uniform(1.3, 3.0) + longest)
    slant = rng.uniform(-0.3, 0.3, 2)
    plane = 1.0 / np.minimum(inverse * (1 + slant[0] * x + slant[1] * y), 1.0 / (depth + 1.2 * longest))
    return np.full((height, width), np.inf, np.float32) if rng.random() < 0.33 else plane.astype(np.float32)
