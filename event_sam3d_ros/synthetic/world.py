"""Cases and recordings of a procedural world, with exact truth.

`make_case` gives one moment: a sharp and a blurry frame, the events around it, masks, depth and the pose. Everything
follows from the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.synthetic.appearance import encode_gamma
from event_sam3d_ros.synthetic.event_simulator import EventSimulator, log_intensity
from event_sam3d_ros.synthetic.scene import (
    SENSOR_HEIGHT,
    SENSOR_WIDTH,
    Placement,
    Poses,
    Scene,
    crop_side,
    random_placement,
)
from event_sam3d_ros.synthetic.sensing import degrade_mask, exposure_weights, noisy_depth
from event_sam3d_ros.synthetic.shapes import Shape, random_shape

HELD_OUT_OBJECT_SEEDS = range(200)
"""Objects that no training may see; training takes seeds from FIRST_TRAINING_OBJECT_SEED on."""
FIRST_TRAINING_OBJECT_SEED = 1_000_000

TIERS = {"still": (0.0, 0.0), "easy": (0.03, 0.06), "medium": (0.08, 0.13), "hard": (0.16, 0.25)}
"""Motion of the object's centre during the exposure, as a share of its crop's side."""

EXPOSURE_US = 30_000
WINDOW_US = 50_000
STAMP_US = 1_000_000
"""Mid-exposure of every case's frame on the sensor's clock."""

# The fastest tier's share of motion goes with this much rotation and change of depth during the exposure.
_FASTEST = 0.25
_MAX_ROTATION = np.deg2rad(35.0)
_MAX_DEPTH_CHANGE = 0.15


@dataclass(frozen=True)
class Case:
    """One moment of one object. Images are (H, W, ...); the camera frame is the optical frame, in metres.

    sharp, blurry: uint8 RGB. events: times in us, window [stamp - 25 ms, stamp + 25 ms). event_image: their Tencode.
    mask: uint8 0/1, true at the stamp. degraded_mask: uint8 0/1, as found on the blurred frame. depth: float32 metres,
    noisy, 0 = hole. K (3, 3), rotation (3, 3) object -> camera, position (3,): the object's centre, size (3,): along
    the object's axes; all float64, at the stamp. scale: metres per grid unit of `shape`. motion_share: path of the
    centre's image during the exposure over the crop side of the true mask.
    """

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    events: Events
    event_image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    degraded_mask: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K: NDArray[np.float64]
    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    size: NDArray[np.float64]
    scale: float
    shape: Shape
    stamp_us: int
    exposure_us: int
    motion_share: float


@dataclass(frozen=True)
class _Motion:
    """Motion around the stamp; velocities are per exposure.

    pixel_velocity (2,) and pixel_bend (2,) pixels: centre = pixel + velocity s + bend s^2 with s in exposures;
    rotation_velocity (3,) radians, camera frame; depth_change: relative; background_velocity (2,) pixels.
    """

    pixel_velocity: np.ndarray
    pixel_bend: np.ndarray
    rotation_velocity: np.ndarray
    depth_change: float
    background_velocity: np.ndarray

    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        """Poses at times (N,) relative to the stamp."""
        s = (np.asarray(times_us, dtype=np.float64) / EXPOSURE_US)[:, None]
        pixel = start.pixel + self.pixel_velocity * s + self.pixel_bend * s**2
        ray = np.concatenate([(pixel - start.scene.K[:2, 2]) / start.scene.K[[0, 1], [0, 1]], np.ones_like(s)], axis=1)
        turned = Rotation.from_rotvec(self.rotation_velocity * s).as_matrix() @ start.rotation
        depth = start.position[2] * (1 + self.depth_change * s)
        return Poses(turned, ray * depth, self.background_velocity * s)


def _tier_share(tier: str | float, rng: np.random.Generator) -> float:
    fraction = float(rng.uniform(0.05, 0.92))  # off the ends: the true mask's crop differs a little from the estimate
    if isinstance(tier, str):
        low, high = TIERS[tier]
        return low + fraction * (high - low)
    return float(tier)


def _random_motion(rng: np.random.Generator, side: float, share: float) -> _Motion:
    speed = share / _FASTEST
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    axis = rng.normal(size=3)
    turn = axis / np.linalg.norm(axis) * rng.uniform(0, _MAX_ROTATION) * min(1.0, speed)
    drift = rng.normal(size=2) * 0.5 * (rng.random() < 0.35)
    return _Motion(
        pixel_velocity=along * share * side,
        pixel_bend=across * share * side * rng.uniform(-0.25, 0.25),
        rotation_velocity=turn,
        depth_change=float(rng.uniform(-1, 1) * _MAX_DEPTH_CHANGE * min(1.0, speed)),
        background_velocity=drift * share * side,
    )


def _path_lengths(points: np.ndarray) -> np.ndarray:
    """Lengths (...,) of the polylines through points (N, ..., 2) along the first axis."""
    return np.linalg.norm(np.diff(points, axis=0), axis=-1).sum(axis=0)


def _sub_frame_count(scene: Scene, poses: Poses, longest_step: float, least: int) -> int:
    """An odd number of sub-frames such that no surface point moves more than `longest_step` pixels between two."""
    return 2 * int(np.ceil(max(_path_lengths(scene.surface_pixels(poses)).max() / longest_step, least - 1) / 2)) + 1


def _photo(linear: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera's 8-bit image (H, W, 3) of linear light."""
    image = encode_gamma(linear)
    if noise > 0:
        grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255 * noise)
        image = np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)
    return image


def make_case(
    object_seed: int,
    motion_seed: int,
    tier: str | float,
    width: int = SENSOR_WIDTH,
    height: int = SENSOR_HEIGHT,
    pixels_per_sub_frame: float = 1.0,
) -> Case:
    """The case of these seeds.

    tier: "still", "easy", "medium", "hard", or the share of motion itself. Tiers share everything but the speed. The
    same object has the same size in all cases. pixels_per_sub_frame: larger is faster and coarser; keep 1 to evaluate.
    """
    shape = random_shape(object_seed)
    rng = np.random.default_rng((object_seed, motion_seed, 0xCA5E))
    share = _tier_share(tier, rng)
    start = random_placement(shape, rng, width, height, reach=share, background_margin=2 * share)
    motion = _random_motion(rng, start.side, share)
    scene = start.scene

    half = WINDOW_US / 2
    probe = motion.poses(start, np.linspace(-half, half, 7))
    count = _sub_frame_count(scene, probe, pixels_per_sub_frame, least=5 if share == 0 else 11)
    times = np.linspace(-half, half, count)
    images = scene.images(motion.poses(start, times))
    middle = count // 2

    weights = exposure_weights(times, -EXPOSURE_US / 2, EXPOSURE_US / 2)
    blurred = np.tensordot(weights, images.rgb, axes=1)
    blurred_alpha = np.tensordot(weights, images.alpha, axes=1)
    stamps = STAMP_US + np.rint(times).astype(np.int64)
    events = EventSimulator(height, width, scene.event_camera, rng).run(log_intensity(images.rgb), stamps)
    mask = images.alpha[middle] > 0.5
    true_depth = np.where(mask, images.depth[middle], scene.background_depth)
    path = scene.project(motion.poses(start, np.linspace(-EXPOSURE_US / 2, EXPOSURE_US / 2, 31)).position)
    return Case(
        sharp=_photo(images.rgb[middle], scene.image_noise, rng),
        blurry=_photo(blurred, scene.image_noise, rng),
        events=events,
        event_image=tencode(events, STAMP_US - WINDOW_US // 2, STAMP_US + WINDOW_US // 2, width, height),
        mask=mask.astype(np.uint8),
        degraded_mask=degrade_mask(blurred_alpha, rng).astype(np.uint8),
        depth=noisy_depth(true_depth, rng),
        K=scene.K,
        rotation=start.rotation,
        position=start.position,
        size=shape.extent * scene.scale,
        scale=scene.scale,
        shape=shape,
        stamp_us=STAMP_US,
        exposure_us=EXPOSURE_US,
        motion_share=float(_path_lengths(path)) / crop_side(mask),
    )
