"""Cases and recordings of a procedural world, with exact truth.

`make_case` gives one moment: a sharp and a blurry frame, the events around it, masks, depth and the pose. Everything
follows from the seeds. `sequence` gives a recording of any length, frame by frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.synthetic.appearance import encode_gamma
from event_sam3d_ros.synthetic.event_simulator import EventSimulator, log_intensity
from event_sam3d_ros.synthetic.motion import (
    EXPOSURE_US,
    FASTEST_SHARE,
    Trajectory,
    circle_in_view,
    circle_through_case,
    path_lengths,
    random_glide,
    random_wander,
    shake_in_view,
    shake_through_case,
    walked_pixels,
)
from event_sam3d_ros.synthetic.occluder import Flyer, flyer_in_case, flyer_in_recording, seen_alone
from event_sam3d_ros.synthetic.options import DEFAULT_WORLD, WorldOptions
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
from event_sam3d_ros.synthetic.shapes import Shape

HELD_OUT_OBJECT_SEEDS = range(200)
"""Objects that no training may see; training takes seeds from FIRST_TRAINING_OBJECT_SEED on."""
FIRST_TRAINING_OBJECT_SEED = 1_000_000

TIERS = {"still": (0.0, 0.0), "easy": (0.03, 0.06), "medium": (0.08, 0.13), "hard": (0.16, 0.25)}
"""Motion of the object's centre during the exposure, as a share of its crop's side."""

WINDOW_US = 50_000
FRAME_RATE_HZ = 30
STAMP_US = 1_000_000
"""Mid-exposure of a case's frame and of a recording's first one on the sensor's clock."""


@dataclass(frozen=True)
class Frame:
    """One frame of one object with the truth at its stamp. Images are (H, W, ...); the camera frame is the optical
    frame, in metres.

    sharp, blurry: uint8 RGB. events: times in us. mask: uint8 0/1, true at the stamp, what is visible; in recordings it
    is empty where another object hides this one. degraded_mask: uint8 0/1, as found on the blurred frame. depth:
    float32 metres, noisy, 0 = hole. K (3, 3), rotation (3, 3) object -> camera, position (3,): the object's centre,
    size (3,): along the object's axes; all float64, at the stamp. scale: metres per grid unit of `shape`. motion_share:
    path of the centre's image during the exposure over the crop side of the whole object's mask.
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


def _tier_share(tier: str | float, rng: np.random.Generator) -> float:
    fraction = float(rng.uniform(0.05, 0.92))  # off the ends: the true mask's crop differs a little from the estimate
    if isinstance(tier, str):
        if tier not in TIERS:
            raise InputError(
                f"tier {tier!r} is not known: take one of {', '.join(TIERS)} or a number", reason="bad_tier"
            )
        low, high = TIERS[tier]
        return low + fraction * (high - low)
    if not 0 <= tier <= FASTEST_SHARE * 1.2:
        raise InputError(f"share of motion {tier} is outside 0-{FASTEST_SHARE * 1.2:g}", reason="bad_tier")
    return float(tier)


def _sub_frame_count(scene: Scene, poses: Poses, longest_step: float, least: int) -> int:
    """An odd number of sub-frames such that no surface point moves more than `longest_step` pixels between two."""
    return 2 * int(np.ceil(max(path_lengths(scene.surface_pixels(poses)).max() / longest_step, least - 1) / 2)) + 1


def _photo(linear: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera's 8-bit image (H, W, 3) of linear light."""
    image = encode_gamma(linear)
    if noise > 0:
        grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(255 * noise)
        image = np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)
    return image


@dataclass(frozen=True)
class _Play:
    """What happens before the cameras: the object with its path, and another one that may fly by."""

    start: Placement
    path: Trajectory
    flyer: Flyer | None

    def frame(
        self,
        times_us: NDArray[np.int64],
        stamp_us: int,
        simulator: EventSimulator,
        seen_first: bool,
        rng: np.random.Generator,
    ) -> Frame:
        """The frame at `stamp_us`, which must be one of the rising `times_us` (N,) of its sub-frames, and the events
        between these; `seen_first`: the simulator has seen the first of them before."""
        start, path, scene = self.start, self.path, self.start.scene
        times = times_us - STAMP_US
        poses = path.poses(start, times)
        images = self.flyer.seen(start, poses, times) if self.flyer else seen_alone(start, poses)
        middle = int(np.searchsorted(times_us, stamp_us))
        weights = exposure_weights(times_us, stamp_us - EXPOSURE_US / 2, stamp_us + EXPOSURE_US / 2)
        blurred = np.tensordot(weights, images.rgb, axes=1)
        blurred_alpha = np.tensordot(weights, images.alpha, axes=1)
        first = int(seen_first)
        events = simulator.run(log_intensity(images.rgb[first:]), times_us[first:])
        mask = images.alpha[middle] > 0.5
        behind = np.minimum(images.others[middle], scene.background_depth)
        true_depth = np.where(mask, images.depth[middle], behind)
        pose = path.poses(start, np.array([stamp_us - STAMP_US]))
        hidden = self.flyer is not None and not blurred_alpha.any()
        return Frame(
            sharp=_photo(images.rgb[middle], scene.image_noise, rng),
            blurry=_photo(blurred, scene.image_noise, rng),
            events=events,
            mask=mask.astype(np.uint8),
            degraded_mask=(mask if hidden else degrade_mask(blurred_alpha, rng)).astype(np.uint8),
            depth=noisy_depth(true_depth, rng),
            K=scene.K,
            rotation=pose.rotation[0],
            position=pose.position[0],
            size=scene.shape.extent * scene.scale,
            scale=scene.scale,
            shape=scene.shape,
            stamp_us=stamp_us,
            exposure_us=EXPOSURE_US,
            motion_share=walked_pixels(start, path, stamp_us - STAMP_US) / crop_side(images.whole[middle] > 0.5),
        )

    def sub_frame_times(self, begin: int, stamp: int, end: int, step: float, least: int) -> NDArray[np.int64]:
        """Times (N,) us from `begin` to `end` with `stamp` among them; `step`, `least` as in `_sub_frame_count`."""
        probe = np.linspace(begin, end, 7) - STAMP_US
        half = _sub_frame_count(self.start.scene, self.path.poses(self.start, probe), step, least) // 2
        if self.flyer:
            flyer = self.flyer.start
            half = max(half, _sub_frame_count(flyer.scene, self.flyer.path.poses(flyer, probe), step, least) // 2)
        times = np.concatenate([np.linspace(begin, stamp, half + 1), np.linspace(stamp, end, half + 1)[1:]])
        return np.rint(times).astype(np.int64)


def _with_options(options: WorldOptions, start: Placement) -> Placement:
    camera = options.event_camera(start.scene.event_camera)
    return replace(start, scene=replace(start.scene, event_camera=camera, render_device=options.render_device))


def make_case(
    object_seed: int,
    motion_seed: int,
    tier: str | float,
    width: int = SENSOR_WIDTH,
    height: int = SENSOR_HEIGHT,
    pixels_per_sub_frame: float = 1.0,
    options: WorldOptions = DEFAULT_WORLD,
) -> Case:
    """The case of these seeds.

    tier: "still", "easy", "medium", "hard", or the share of motion itself. Tiers share everything but the speed. The
    same object has the same size in all cases. pixels_per_sub_frame: larger is faster and coarser; keep 1 to evaluate.
    Raises InputError (`bad_tier`) for a tier of another name or a share outside 0-0.3.
    """
    return case_of(options.shape(object_seed), motion_seed, tier, width, height, pixels_per_sub_frame, options)


def case_of(
    shape: Shape,
    motion_seed: int,
    tier: str | float,
    width: int = SENSOR_WIDTH,
    height: int = SENSOR_HEIGHT,
    pixels_per_sub_frame: float = 1.0,
    options: WorldOptions = DEFAULT_WORLD,
) -> Case:
    """The case of a shape, which need not be one of the world's own; else as `make_case`."""
    rng = np.random.default_rng((shape.seed, motion_seed, 0xCA5E))
    others = np.random.default_rng((shape.seed, motion_seed, 0x0CC1))  # choices that the default world does not make
    share = _tier_share(tier, rng)
    start = random_placement(shape, rng, width, height, reach=share, background_margin=2 * share)
    start = _with_options(options, start)
    motion = options.motion_of(others)
    if motion == "circle":
        path = circle_through_case(rng, start, share)
    elif motion == "camera":
        path = shake_through_case(rng, start, share)
    else:
        path = random_glide(rng, start.side, share)
    flyer = None
    if others.random() < options.occluded:
        flyer = flyer_in_case(options.shape(_other_seed(shape, others)), others, start, share)
    play = _Play(start, path, flyer)
    begin, end = STAMP_US - WINDOW_US // 2, STAMP_US + WINDOW_US // 2
    least = 5 if share == 0 else 11
    times = play.sub_frame_times(begin, STAMP_US, end, pixels_per_sub_frame, least)
    simulator = EventSimulator(height, width, start.scene.event_camera, rng)
    frame = play.frame(times, STAMP_US, simulator, False, rng)
    return Case(**vars(frame), event_image=tencode(frame.events, begin, end, width, height))


def _other_seed(shape: Shape, rng: np.random.Generator) -> int:
    """Seed of a second object; held-out objects stay among themselves, so that no training sees one."""
    if shape.seed in HELD_OUT_OBJECT_SEEDS:
        return int(rng.integers(len(HELD_OUT_OBJECT_SEEDS)))
    return FIRST_TRAINING_OBJECT_SEED + int(rng.integers(1_000_000))


def sequence(
    object_seed: int,
    motion_seed: int,
    duration_s: float,
    width: int = SENSOR_WIDTH,
    height: int = SENSOR_HEIGHT,
    speed: float = 0.2,
    pixels_per_sub_frame: float = 1.0,
    options: WorldOptions = DEFAULT_WORLD,
) -> Iterator[Frame]:
    """A continuous recording: frames at 30 Hz of an object that swings about before a camera at rest, or as `options`
    say; endless where `duration_s` is infinite.

    speed: the largest motion of the centre during an exposure in crop sides; the object slows down where it turns. It
    stays in view. A frame's `events` are those from the middle between it and the frame before to the middle between it
    and the next, so that all frames' events together are one gapless stream. Nothing is kept between frames but the
    event camera's state, so recordings may be long.
    """
    rng = np.random.default_rng((object_seed, motion_seed, 0x5E9))
    others = np.random.default_rng((object_seed, motion_seed, 0x0CC1))
    shape = options.shape(object_seed)
    motion = options.motion_of(others)
    # A reach without bounds puts the object into the middle of the view. A camera that moves sees more background.
    margin = 1.0 if motion == "camera" else 0.0
    start = random_placement(shape, rng, width, height, reach=np.inf, background_margin=margin)
    start = _with_options(options, start)
    path: Trajectory
    if motion == "circle":
        path = circle_in_view(rng, start, speed)
    elif motion == "camera":
        path = shake_in_view(rng, start, speed)
    else:
        path = random_wander(rng, start, speed)
    flyer = None
    if others.random() < options.occluded:
        flyer = flyer_in_recording(options.shape(_other_seed(shape, others)), others, start)
    play = _Play(start, path, flyer)
    simulator = EventSimulator(height, width, start.scene.event_camera, rng)
    numbers = itertools.count() if np.isinf(duration_s) else range(round(duration_s * FRAME_RATE_HZ))
    for i in numbers:
        before, stamp, after = (_stamp_us(number) for number in (i - 1, i, i + 1))
        begin, end = (before + stamp) // 2, (stamp + after) // 2
        times = play.sub_frame_times(begin, stamp, end, pixels_per_sub_frame, least=7)
        yield play.frame(times, stamp, simulator, i > 0, rng)


def _stamp_us(number: int) -> int:
    return STAMP_US + round(number * 1e6 / FRAME_RATE_HZ)
