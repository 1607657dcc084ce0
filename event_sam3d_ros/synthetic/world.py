"""Cases and recordings of a procedural world, with exact truth.

`make_case` gives one moment: a sharp and a blurry frame, the events around it, masks, depth and the pose. Everything
follows from the seeds. `sequence` gives a recording of any length, frame by frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
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
FRAME_RATE_HZ = 30
STAMP_US = 1_000_000
"""Mid-exposure of a case's frame and of a recording's first one on the sensor's clock."""

# The fastest tier's share of motion goes with this much rotation and change of depth during the exposure.
_FASTEST = 0.25
_MAX_ROTATION = np.deg2rad(35.0)
_MAX_DEPTH_CHANGE = 0.15


@dataclass(frozen=True)
class Frame:
    """One frame of one object with the truth at its stamp. Images are (H, W, ...); the camera frame is the optical
    frame, in metres.

    sharp, blurry: uint8 RGB. events: times in us. mask: uint8 0/1, true at the stamp. degraded_mask: uint8 0/1, as
    found on the blurred frame. depth: float32 metres, noisy, 0 = hole. K (3, 3), rotation (3, 3) object -> camera,
    position (3,): the object's centre, size (3,): along the object's axes; all float64, at the stamp. scale: metres per
    grid unit of `shape`. motion_share: path of the centre's image during the exposure over the crop side of the mask.
    """

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    events: Events
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
class Case(Frame):
    """A frame with the events of [stamp - 25 ms, stamp + 25 ms) and their Tencode image (H, W, 3) uint8."""

    event_image: NDArray[np.uint8]


class _Trajectory(Protocol):
    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        """Poses at times (N,) in us relative to STAMP_US; `start` is the pose there, or the middle of all poses."""
        ...


@dataclass(frozen=True)
class _Glide:
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
        s = (np.asarray(times_us, dtype=np.float64) / EXPOSURE_US)[:, None]
        pixel = start.pixel + self.pixel_velocity * s + self.pixel_bend * s**2
        turned = Rotation.from_rotvec(self.rotation_velocity * s).as_matrix() @ start.rotation
        depth = start.position[2] * (1 + self.depth_change * s[:, 0])
        return Poses(turned, start.scene.unproject(pixel, depth), self.background_velocity * s)


@dataclass(frozen=True)
class _Wander:
    """An endless smooth path: each quantity swings with its own frequency (hertz) and phase (radians).

    pixel_swing (2,) pixels, turn_swing (3,) radians about the object's own axes, depth_swing relative; frequency and
    phase (6,) of these six in order.
    """

    pixel_swing: np.ndarray
    turn_swing: np.ndarray
    depth_swing: float
    frequency: np.ndarray
    phase: np.ndarray

    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        seconds = np.asarray(times_us, dtype=np.float64)[:, None] * 1e-6
        swing = np.sin(2 * np.pi * self.frequency * seconds + self.phase)
        pixel = start.pixel + self.pixel_swing * swing[:, :2]
        turned = start.rotation @ Rotation.from_rotvec(self.turn_swing * swing[:, 2:5]).as_matrix()
        depth = start.position[2] * (1 + self.depth_swing * swing[:, 5])
        return Poses(turned, start.scene.unproject(pixel, depth), np.zeros((len(seconds), 2)))


def _tier_share(tier: str | float, rng: np.random.Generator) -> float:
    fraction = float(rng.uniform(0.05, 0.92))  # off the ends: the true mask's crop differs a little from the estimate
    if isinstance(tier, str):
        if tier not in TIERS:
            raise InputError(
                f"tier {tier!r} is not known: take one of {', '.join(TIERS)} or a number", reason="bad_tier"
            )
        low, high = TIERS[tier]
        return low + fraction * (high - low)
    if not 0 <= tier <= _FASTEST * 1.2:
        raise InputError(f"share of motion {tier} is outside 0-{_FASTEST * 1.2:g}", reason="bad_tier")
    return float(tier)


def _random_glide(rng: np.random.Generator, side: float, share: float) -> _Glide:
    speed = share / _FASTEST
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    axis = rng.normal(size=3)
    turn = axis / np.linalg.norm(axis) * rng.uniform(0, _MAX_ROTATION) * min(1.0, speed)
    drift = rng.normal(size=2) * 0.5 * (rng.random() < 0.35)
    return _Glide(
        pixel_velocity=along * share * side,
        pixel_bend=across * share * side * rng.uniform(-0.25, 0.25),
        rotation_velocity=turn,
        depth_change=float(rng.uniform(-1, 1) * _MAX_DEPTH_CHANGE * min(1.0, speed)),
        background_velocity=drift * share * side,
    )


def _random_wander(rng: np.random.Generator, start: Placement, speed: float) -> _Wander:
    view = np.array([start.scene.width, start.scene.height])
    pixel_swing = np.maximum(view / 2 - 0.65 * start.side, 0.05 * view)
    # The two axes of a swing are never fastest together for long; 1.2 accounts for the times when they nearly are.
    fastest = speed * start.side / (EXPOSURE_US * 1e-6) / 1.2
    across = fastest / (2 * np.pi * pixel_swing[0])
    turns = np.array([rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.45), rng.uniform(0.4, 0.6)])
    return _Wander(
        pixel_swing=pixel_swing,
        turn_swing=np.deg2rad([12.0, 12.0, 70.0]),
        depth_swing=0.1,
        frequency=np.array([across, across * rng.uniform(0.6, 0.8), *turns, rng.uniform(0.2, 0.35)]),
        phase=rng.uniform(0, 2 * np.pi, 6),
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


def _take_frame(
    start: Placement,
    path: _Trajectory,
    times_us: NDArray[np.int64],
    stamp_us: int,
    simulator: EventSimulator,
    seen_first: bool,
    rng: np.random.Generator,
) -> Frame:
    """The frame at `stamp_us`, which must be one of the rising `times_us` (N,) of its sub-frames, and the events
    between these; `seen_first`: the simulator has seen the first of them before."""
    scene = start.scene
    images = scene.images(path.poses(start, times_us - STAMP_US))
    middle = int(np.searchsorted(times_us, stamp_us))
    weights = exposure_weights(times_us, stamp_us - EXPOSURE_US / 2, stamp_us + EXPOSURE_US / 2)
    blurred = np.tensordot(weights, images.rgb, axes=1)
    blurred_alpha = np.tensordot(weights, images.alpha, axes=1)
    first = int(seen_first)
    events = simulator.run(log_intensity(images.rgb[first:]), times_us[first:])
    mask = images.alpha[middle] > 0.5
    true_depth = np.where(mask, images.depth[middle], scene.background_depth)
    exposure = stamp_us - STAMP_US + np.linspace(-EXPOSURE_US / 2, EXPOSURE_US / 2, 31)
    walked = _path_lengths(scene.project(path.poses(start, exposure).position))
    pose = path.poses(start, np.array([stamp_us - STAMP_US]))
    return Frame(
        sharp=_photo(images.rgb[middle], scene.image_noise, rng),
        blurry=_photo(blurred, scene.image_noise, rng),
        events=events,
        mask=mask.astype(np.uint8),
        degraded_mask=degrade_mask(blurred_alpha, rng).astype(np.uint8),
        depth=noisy_depth(true_depth, rng),
        K=scene.K,
        rotation=pose.rotation[0],
        position=pose.position[0],
        size=scene.shape.extent * scene.scale,
        scale=scene.scale,
        shape=scene.shape,
        stamp_us=stamp_us,
        exposure_us=EXPOSURE_US,
        motion_share=float(walked) / crop_side(mask),
    )


def _sub_frame_times(
    start: Placement, path: _Trajectory, begin: int, stamp: int, end: int, step: float, least: int
) -> NDArray[np.int64]:
    """Times (N,) us from `begin` to `end` with `stamp` among them; `step`, `least` as in `_sub_frame_count`."""
    probe = path.poses(start, np.linspace(begin, end, 7) - STAMP_US)
    half = _sub_frame_count(start.scene, probe, step, least) // 2
    times = np.concatenate([np.linspace(begin, stamp, half + 1), np.linspace(stamp, end, half + 1)[1:]])
    return np.rint(times).astype(np.int64)


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
    Raises InputError (`bad_tier`) for a tier of another name or a share outside 0-0.3.
    """
    shape = random_shape(object_seed)
    rng = np.random.default_rng((object_seed, motion_seed, 0xCA5E))
    share = _tier_share(tier, rng)
    start = random_placement(shape, rng, width, height, reach=share, background_margin=2 * share)
    path = _random_glide(rng, start.side, share)
    begin, end = STAMP_US - WINDOW_US // 2, STAMP_US + WINDOW_US // 2
    least = 5 if share == 0 else 11
    times = _sub_frame_times(start, path, begin, STAMP_US, end, pixels_per_sub_frame, least)
    simulator = EventSimulator(height, width, start.scene.event_camera, rng)
    frame = _take_frame(start, path, times, STAMP_US, simulator, False, rng)
    return Case(**vars(frame), event_image=tencode(frame.events, begin, end, width, height))


def sequence(
    object_seed: int,
    motion_seed: int,
    duration_s: float,
    width: int = SENSOR_WIDTH,
    height: int = SENSOR_HEIGHT,
    speed: float = 0.2,
) -> Iterator[Frame]:
    """A continuous recording: frames at 30 Hz of an object that swings about before a camera at rest.

    speed: the largest motion of the centre during an exposure in crop sides; the object slows down where it turns. It
    stays in view. A frame's `events` are those from the middle between it and the frame before to the middle between it
    and the next, so that all frames' events together are one gapless stream. Nothing is kept between frames but the
    event camera's state, so recordings may be long.
    """
    rng = np.random.default_rng((object_seed, motion_seed, 0x5E9))
    # A reach without bounds puts the object into the middle of the view.
    start = random_placement(random_shape(object_seed), rng, width, height, reach=np.inf, background_margin=0.0)
    path = _random_wander(rng, start, speed)
    simulator = EventSimulator(height, width, start.scene.event_camera, rng)
    count = round(duration_s * FRAME_RATE_HZ)
    stamps = STAMP_US + np.rint(np.arange(-1, count + 1) * 1e6 / FRAME_RATE_HZ).astype(np.int64)
    borders = (stamps[1:] + stamps[:-1]) // 2
    for i in range(count):
        begin, stamp, end = int(borders[i]), int(stamps[i + 1]), int(borders[i + 1])
        times = _sub_frame_times(start, path, begin, stamp, end, step=1.0, least=7)
        yield _take_frame(start, path, times, stamp, simulator, i > 0, rng)
