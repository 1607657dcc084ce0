"""A second object that flies through the picture, before the first one or behind it.

As the flying occlusions that SAM 3D was trained with (SAM 3D Team, "SAM 3D: 3Dfy Anything in Images", 2025, appendix
B.2.1): pasted without regard to depth; 10-90 % of the object stay visible, at least 0.2 % of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.synthetic.motion import Trajectory, random_glide, random_wander
from event_sam3d_ros.synthetic.renderer import Rendered
from event_sam3d_ros.synthetic.scene import CROP_MARGIN, Placement, Poses, viewing_rotation
from event_sam3d_ros.synthetic.shapes import LONGEST_SIDE, Shape

VISIBLE_SHARE = (0.1, 0.9)
LEAST_OF_PICTURE = 0.002
SHARE_BEHIND = 1 / 3
_ATTEMPTS = 20


@dataclass(frozen=True)
class Seen:
    """N pictures of a scene: rgb (N, H, W, 3) linear light; alpha (N, H, W) coverage by what is visible of the object;
    whole (N, H, W) coverage by all of it; depth (N, H, W) metres of the object, others (N, H, W) of the second one, inf
    where there is none."""

    rgb: NDArray[np.float32]
    alpha: NDArray[np.float32]
    whole: NDArray[np.float32]
    depth: NDArray[np.float32]
    others: NDArray[np.float32]


@dataclass(frozen=True)
class Flyer:
    """The second object: where it is, how it moves, and whether it is before or behind the first."""

    start: Placement
    path: Trajectory
    in_front: bool

    def seen(self, scene: Placement, poses: Poses, times_us: np.ndarray) -> Seen:
        """Pictures of a placement's scene in these poses, with this object at times (N,) in us."""
        own = self.path.poses(self.start, times_us)
        if self.in_front:
            first = scene.scene.images(poses)
            second = self.start.scene.images(own, first.rgb)
            return Seen(second.rgb, first.alpha * (1 - second.alpha), first.alpha, first.depth, _solid_depth(second))
        second = self.start.scene.images(own, scene.scene.background_pictures(poses.background_shift))
        first = scene.scene.images(poses, second.rgb)
        return Seen(first.rgb, first.alpha, first.alpha, first.depth, _solid_depth(second))


def _solid_depth(images: Rendered) -> NDArray[np.float32]:
    return np.where(images.alpha > 0.5, images.depth, np.float32(np.inf))


def seen_alone(start: Placement, poses: Poses) -> Seen:
    """Pictures of a placement's scene without a second object."""
    images = start.scene.images(poses)
    return Seen(images.rgb, images.alpha, images.alpha, images.depth, np.full_like(images.depth, np.inf))


def flyer_in_case(shape: Shape, rng: np.random.Generator, start: Placement, share: float) -> Flyer | None:
    """An object for one case whose motion is `share`; None where no place was found at which it hides enough and not
    too much."""
    in_front = rng.random() >= SHARE_BEHIND
    path_share = share * rng.uniform(0.0, 1.5)
    for _ in range(_ATTEMPTS):
        angle, distance = rng.uniform(0, 2 * np.pi), start.side * rng.uniform(0.1, 0.9)
        pixel = start.pixel + distance * np.array([np.cos(angle), np.sin(angle)])
        depth = start.position[2] * (rng.uniform(0.5, 0.85) if in_front else rng.uniform(1.3, 1.8))
        placement = _placed(shape, rng, start, pixel, start.side * rng.uniform(0.4, 1.1), depth)
        glide = replace(random_glide(rng, start.side, path_share), background_velocity=np.zeros(2))
        flyer = Flyer(placement, glide, in_front)
        if not in_front or _hides_well(flyer, start):
            return flyer
    return None


def flyer_in_recording(shape: Shape, rng: np.random.Generator, start: Placement) -> Flyer:
    """An object half as large that drifts slowly across the whole view, always in front."""
    placement = _placed(shape, rng, start, start.pixel, 0.5 * start.side, 0.7 * start.position[2])
    return Flyer(placement, random_wander(rng, placement, speed=0.03), in_front=True)


def _placed(
    shape: Shape, rng: np.random.Generator, start: Placement, pixel: np.ndarray, side: float, depth: float
) -> Placement:
    """The shape at a pixel and a depth, of that size that its crop has about `side` pixels."""
    scale = side / CROP_MARGIN * depth / start.scene.K[0, 0] / LONGEST_SIDE
    scene = replace(start.scene, shape=shape, scale=float(scale))
    position = scene.unproject(pixel[None], np.array([depth]))[0]
    return Placement(scene, viewing_rotation(rng), position, pixel, side)


def _hides_well(flyer: Flyer, start: Placement) -> bool:
    now = np.zeros(1)
    poses = Poses(start.rotation[None], start.position[None], np.zeros((1, 2)))
    seen = flyer.seen(start, poses, now)
    visible, whole = (seen.alpha > 0.5).sum(), (seen.whole > 0.5).sum()
    low, high = VISIBLE_SHARE
    return bool(low * whole <= visible <= high * whole and visible >= LEAST_OF_PICTURE * seen.alpha[0].size)
