"""Scenes with known answers, seen by real lenses: what each pixel sees, and where that is in the other camera."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from event_sam3d_ros.camera.calibration import CameraPair
from event_sam3d_ros.camera.lens import lens_of, pixel_rays, project_rays
from event_sam3d_ros.camera.model import CameraModel

# That of the DAVIS240C of the Event Camera Dataset, and a wide fisheye.
DAVIS = ([[199.1, 0, 132.2], [0, 198.8, 110.7], [0, 0, 1]], (-0.3684, 0.1500, -0.0003, -0.0006, 0.0), 240, 180)
FISHEYE = ([[210.0, 0, 158], [0, 209, 122], [0, 0, 1]], (0.05, -0.01, 0.002, 0.0), 320, 240, "equidistant")


def pinhole(width, height, focal):
    return CameraModel([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], (), width, height)


def pair(events, rgb, rotation_vector=(0, 0, 0), translation=(0, 0, 0), homography=None):
    """Cameras by rotation vector (radians) and translation (metres) from the event camera to the RGB camera."""
    return CameraPair(events, rgb, Rotation.from_rotvec(rotation_vector).as_matrix(), translation, homography)


class Scene:
    """A wall, normal . p = distance in the event camera's frame, and at most one sphere (centre, radius) before it."""

    def __init__(self, normal=(0, 0, 1), distance=2.0, sphere=None):
        self.normal, self.distance, self.sphere = np.array(normal, float), distance, sphere

    def look(self, origin, directions):
        """Ray parameter of the first hit (inf if none) and whether it is the sphere, for rays [..., 3]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.distance - self.normal @ origin) / (directions @ self.normal)
        t = np.where(t > 0, t, np.inf)
        on_sphere = np.zeros(t.shape, bool)
        if self.sphere is not None:
            centre, radius = self.sphere
            offset = origin - np.array(centre)
            a, b = (directions**2).sum(-1), directions @ offset
            root = b**2 - a * (offset @ offset - radius**2)
            near = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
            on_sphere = (near > 0) & (near < t)
            t = np.where(on_sphere, near, t)
        return t, on_sphere


def views(scene, cameras):
    """For both cameras: depth [H,W], whether the sphere is seen, and pixel [H,W,2] of the point in the other camera.

    The last is NaN where the other camera does not see the point: hidden, behind it, or outside of its lens model.
    """
    R, t = cameras.rotation, cameras.translation
    placed = {"events": (np.eye(3), np.zeros(3)), "rgb": (R.T, -R.T @ t)}  # to the event camera's frame
    found = {}
    for name, other in (("events", "rgb"), ("rgb", "events")):
        camera = getattr(cameras, name)
        rays = pixel_rays(camera).astype(float)
        directions = np.concatenate([rays, np.ones(rays.shape[:2] + (1,))], -1)
        turn, origin = placed[name]
        depth, on_sphere = scene.look(origin, directions @ turn.T)
        points = origin + (directions * np.where(np.isfinite(depth), depth, np.nan)[..., None]) @ turn.T
        turn, origin = placed[other]
        there = (points - origin) @ turn  # inverse rotation
        first, _ = scene.look(origin, points - origin)
        with np.errstate(invalid="ignore", divide="ignore"):
            visible = (there[..., 2] > 0) & (first > 1 - 1e-6)
            pixels = project_rays((there[..., :2] / there[..., 2:]).reshape(-1, 2), lens_of(getattr(cameras, other)))
        pixels = np.where(visible[..., None], pixels.reshape(rays.shape), np.nan)
        found[name] = np.where(np.isfinite(depth), depth, 0).astype(np.float32), on_sphere, pixels
    return found


def pairs_of(pixel_map):
    """(column, row) of the event pixel and of the RGB pixel of all pairs of a map, each int [P,2]."""
    events = np.repeat(np.arange(pixel_map.offsets.size - 1), np.diff(pixel_map.offsets))
    (width, _), (rgb_width, _) = pixel_map.event_size, pixel_map.rgb_size
    return (
        np.stack([events % width, events // width], -1),
        np.stack([pixel_map.targets % rgb_width, pixel_map.targets // rgb_width], -1),
    )


def inside(pixels, camera, margin):
    """Whether positions [...,2] are in a camera's image, at least ``margin`` pixels from its border."""
    with np.errstate(invalid="ignore"):
        return ((pixels > margin - 0.5) & (pixels < np.array((camera.width, camera.height)) - 0.5 - margin)).all(-1)
