"""How objects and cameras move: poses of an object before a camera as functions of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from event_sam3d_ros.synthetic.scene import Placement, Poses

EXPOSURE_US = 30_000

FASTEST_SHARE = 0.25
"""The fastest tier's share of motion, which goes with the rotation and change of depth below during the exposure."""
_MAX_ROTATION = np.deg2rad(35.0)
_MAX_DEPTH_CHANGE = 0.15


class Trajectory(Protocol):
    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        """Poses at times (N,) in us relative to the first stamp; `start` is the pose there, or the middle of all."""
        ...


@dataclass(frozen=True)
class Glide:
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
class Wander:
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


@dataclass(frozen=True)
class Circle:
    """An object on a circle in space, as on a turning arm: it also turns about its own vertical axis.

    radius: metres. axes (2, 3): orthonormal, camera frame; they span the circle's plane. phase: radians at the first
    stamp; rate and spin: radians per second along the circle and about the object's z. through_start: `start` lies on
    the circle, else it is the centre.
    """

    radius: float
    axes: np.ndarray
    phase: float
    rate: float
    spin: float
    through_start: bool

    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        seconds = np.asarray(times_us, dtype=np.float64) * 1e-6
        offset = self._offset(seconds) - (self._offset(np.zeros(1)) if self.through_start else 0.0)
        about_z = np.outer(self.spin * seconds, [0.0, 0.0, 1.0])
        turned = start.rotation @ Rotation.from_rotvec(about_z).as_matrix()
        return Poses(turned, start.position + offset, np.zeros((len(seconds), 2)))

    def _offset(self, seconds: np.ndarray) -> np.ndarray:
        angle = self.phase + self.rate * seconds
        return self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ self.axes


@dataclass(frozen=True)
class Shake:
    """A camera that moves before an object at rest: it swings in each of its six directions.

    turn (3,) radians about its axes and walk (3,) metres along them, as largest deviations; frequency (hertz) and phase
    (radians) (6,) of these in order. The background moves as one far plane does: with a turn as fast as the object,
    with a walk slower.
    """

    turn: np.ndarray
    walk: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    def poses(self, start: Placement, times_us: np.ndarray) -> Poses:
        seconds = np.asarray(times_us, dtype=np.float64)[:, None] * 1e-6
        swing = np.sin(2 * np.pi * self.frequency * seconds + self.phase)
        to_camera = Rotation.from_rotvec(self.turn * swing[:, :3]).inv()
        walked = self.walk * swing[:, 3:]
        scene = start.scene
        far = to_camera.apply([0.0, 0.0, 1.0] - walked / _background_distance(start))
        shift = scene.project(far) - scene.K[:2, 2]
        return Poses(to_camera.as_matrix() @ start.rotation, to_camera.apply(start.position - walked), shift)


def _background_distance(start: Placement) -> float:
    """Metres to the background; a hundred where there is none within reach."""
    depth = start.scene.background_depth
    return float(np.median(depth)) if np.isfinite(depth).all() else 100.0


def path_lengths(points: np.ndarray) -> np.ndarray:
    """Lengths (...,) of the polylines through points (N, ..., 2) along the first axis."""
    return np.linalg.norm(np.diff(points, axis=0), axis=-1).sum(axis=0)


def walked_pixels(start: Placement, path: Trajectory, time_us: float) -> float:
    """Length in pixels of the path of the object's centre during the exposure around a time."""
    exposure = time_us + np.linspace(-EXPOSURE_US / 2, EXPOSURE_US / 2, 31)
    return float(path_lengths(start.scene.project(path.poses(start, exposure).position)))


def random_glide(rng: np.random.Generator, side: float, share: float) -> Glide:
    """Motion through one case: `share` of the crop's side per exposure."""
    speed = share / FASTEST_SHARE
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    axis = rng.normal(size=3)
    turn = axis / np.linalg.norm(axis) * rng.uniform(0, _MAX_ROTATION) * min(1.0, speed)
    drift = rng.normal(size=2) * 0.5 * (rng.random() < 0.35)
    return Glide(
        pixel_velocity=along * share * side,
        pixel_bend=across * share * side * rng.uniform(-0.25, 0.25),
        rotation_velocity=turn,
        depth_change=float(rng.uniform(-1, 1) * _MAX_DEPTH_CHANGE * min(1.0, speed)),
        background_velocity=drift * share * side,
    )


def random_wander(rng: np.random.Generator, start: Placement, speed: float) -> Wander:
    """Swinging across the view; `speed`: crop sides per exposure where the centre is fastest."""
    pixel_swing = _free_pixels(start)
    # The two axes of a swing are never fastest together for long; 1.2 accounts for the times when they nearly are.
    fastest = speed * start.side / (EXPOSURE_US * 1e-6) / 1.2
    across = fastest / (2 * np.pi * pixel_swing[0])
    turns = np.array([rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.45), rng.uniform(0.4, 0.6)])
    return Wander(
        pixel_swing=pixel_swing,
        turn_swing=np.deg2rad([12.0, 12.0, 70.0]),
        depth_swing=0.1,
        frequency=np.array([across, across * rng.uniform(0.6, 0.8), *turns, rng.uniform(0.2, 0.35)]),
        phase=rng.uniform(0, 2 * np.pi, 6),
    )


def _free_pixels(start: Placement) -> np.ndarray:
    """How far (2,) an object in the middle of the view may go in x and y without leaving it."""
    view = np.array([start.scene.width, start.scene.height])
    return np.maximum(view / 2 - 0.65 * start.side, 0.05 * view)


def _tilted_plane(rng: np.random.Generator) -> np.ndarray:
    """Two axes (2, 3) of a plane tilted by up to 60 degrees against the image."""
    along, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1) * np.deg2rad(60.0)
    c, s = np.cos(along), np.sin(along)
    return np.array([[c, s, 0.0], [-s * np.cos(tilt), c * np.cos(tilt), np.sin(tilt)]])


def circle_through_case(rng: np.random.Generator, start: Placement, share: float) -> Trajectory:
    """A piece of a circle of 0.4-1.2 crop sides radius."""
    pixels = rng.uniform(0.4, 1.2) * start.side
    radius = pixels * _metres_per_pixel(start)
    axes, phase = _tilted_plane(rng), rng.uniform(0, 2 * np.pi)
    spin = rng.uniform(-1, 1) * _MAX_ROTATION * min(1.0, share / FASTEST_SHARE) / (EXPOSURE_US * 1e-6)
    way = rng.choice([-1.0, 1.0])

    def make(pixels_per_s: float) -> Circle:
        return Circle(radius, axes, phase, way * pixels_per_s / pixels, spin, through_start=True)

    return _at_speed(make, start, share)


def circle_in_view(rng: np.random.Generator, start: Placement, speed: float) -> Circle:
    """An endless circle around the middle of the view; `speed` as in `random_wander`."""
    pixels = float(_free_pixels(start).min())
    rate = rng.choice([-1.0, 1.0]) * speed * start.side / pixels / (EXPOSURE_US * 1e-6)
    radius = pixels * _metres_per_pixel(start)
    axes, phase, spin = _tilted_plane(rng), rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 2.5)
    return Circle(radius, axes, phase, float(rate), spin, through_start=False)


def shake_through_case(rng: np.random.Generator, start: Placement, share: float) -> Trajectory:
    """A camera shaken at 1-3 Hz, at its fastest at the stamp."""
    direction = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(direction), np.sin(direction)])
    frequency = np.repeat(rng.uniform(1.0, 3.0), 6)
    turned, roll, forward = rng.uniform(0.3, 1.0), rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3)

    def make(pixels_per_s: float) -> Shake:
        swing = along * pixels_per_s / (2 * np.pi * frequency[0])
        return _shake(start, swing, turned, roll * share / FASTEST_SHARE, forward, frequency, np.zeros(6))

    return _at_speed(make, start, share)


def shake_in_view(rng: np.random.Generator, start: Placement, speed: float) -> Shake:
    """An endlessly swinging camera; `speed` as in `random_wander`."""
    swing = _free_pixels(start)
    across = speed * start.side / (EXPOSURE_US * 1e-6) / 1.2 / (2 * np.pi * swing[0])
    along_y = across * rng.uniform(0.6, 0.8)
    frequency = np.array([along_y, across, rng.uniform(0.3, 0.5), across, along_y, rng.uniform(0.2, 0.35)])
    phase = rng.uniform(0, 2 * np.pi, 6)
    phase[3], phase[4] = phase[1], phase[0]  # walking and turning act together
    return _shake(start, swing, rng.uniform(0.3, 0.8), 0.1, 0.3, frequency, phase)


def _shake(
    start: Placement,
    pixel_swing: np.ndarray,
    turned: float,
    roll: float,
    forward: float,
    frequency: np.ndarray,
    phase: np.ndarray,
) -> Shake:
    """A camera whose motion swings the object by `pixel_swing` (2,), a part `turned` of it by turning, the rest by
    walking; roll in radians; forward: walk along the optical axis per walk of the whole swing."""
    focal = start.scene.K[0, 0]
    x, y = pixel_swing
    sideways = pixel_swing * _metres_per_pixel(start)
    turn = np.array([y * turned / focal, -x * turned / focal, roll])
    walk = -np.append(sideways * (1 - turned), forward * np.linalg.norm(sideways))
    return Shake(turn, walk, frequency, phase)


def _metres_per_pixel(start: Placement) -> float:
    return float(start.position[2] / start.scene.K[0, 0])


def _at_speed(make: Callable[[float], Trajectory], start: Placement, share: float) -> Trajectory:
    """The path whose centre moves by `share` crop sides during the exposure around the first stamp; `make` gives one
    for about so many pixels per second."""
    wanted = share * start.side
    speed = wanted / (EXPOSURE_US * 1e-6)
    for _ in range(4 if share else 0):
        speed *= wanted / walked_pixels(start, make(speed), 0.0)
    return make(speed)
