"""Draws docs/images/two_cameras.png: ``python scripts/draw_two_cameras.py docs/images/two_cameras.png``.

A ball before a wall, both with a checked pattern, seen by an event camera with a bent lens and by an RGB camera 12 cm
beside it. Shown on the RGB picture: the events where they would lie by image size alone, by homography, and by depth.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from event_sam3d_ros.camera.calibration import CameraPair
from event_sam3d_ros.camera.lens import pixel_rays
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.pixel_map import PixelMapper
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode

EVENT_CAMERA = CameraModel([[210, 0, 119], [0, 210, 90], [0, 0, 1]], (-0.37, 0.15, 0.0, 0.0), 240, 180)
RGB_CAMERA = CameraModel([[340, 0, 199.5], [0, 340, 149.5], [0, 0, 1]], (), 400, 300)
ROTATION, TRANSLATION = Rotation.from_rotvec((0.01, 0.03, 0.02)).as_matrix(), np.array((0.12, 0.0, 0.0))
BALL, RADIUS, WALL = np.array((-0.08, 0.0, 1.0)), 0.22, 2.2  # in the event camera's frame, metres
THRESHOLD = 0.15  # of brightness, for an event
LABELS = ("scaled to the size", "homography", "depth")


def render(camera: CameraModel, rotation: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and depth, float32 [H,W], of a camera at ``origin``; ``rotation`` takes its rays to the scene."""
    rays = pixel_rays(camera).astype(float)
    own = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], -1)
    rays = own @ rotation.T
    offset = origin - BALL
    a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - RADIUS**2
    root = b**2 - a * c
    to_ball, to_wall = (-b - np.sqrt(np.maximum(root, 0))) / a, (WALL - origin[2]) / rays[..., 2]
    on_ball = root > 0
    depth = np.where(on_ball, to_ball, to_wall)
    points = origin + rays * depth[..., None]
    size = np.where(on_ball, 0.09, 0.35)
    checks = np.floor(points / size[..., None])[..., :2].sum(-1) % 2
    light = np.where(on_ball, 0.55 + 0.4 * checks, 0.2 + 0.2 * checks)
    return light.astype(np.float32), depth.astype(np.float32)


def make_events() -> Events:
    """Events of a short move of the event camera to the right and down."""
    before, after = (render(EVENT_CAMERA, np.eye(3), np.array((s, s, 0.0)))[0] for s in (-0.004, 0.004))
    change = cv2.GaussianBlur(after, (3, 3), 0.7) - cv2.GaussianBlur(before, (3, 3), 0.7)
    rows, columns = np.nonzero(np.abs(change) > THRESHOLD * 0.5)
    positive = (change[rows, columns] > 0).astype(np.uint8)
    return Events(np.zeros(len(rows), np.int64), columns.astype(np.uint16), rows.astype(np.uint16), positive)


def draw() -> np.ndarray:
    """The picture, uint8 [H,W,3] in RGB."""
    light, depth = render(RGB_CAMERA, ROTATION.T, -ROTATION.T @ TRANSLATION)
    picture = np.repeat((255 * light).astype(np.uint8)[..., None], 3, -1)
    events = make_events()
    mapper = PixelMapper(CameraPair(EVENT_CAMERA, RGB_CAMERA, ROTATION, TRANSLATION))
    scaled = cv2.resize(tencode(events, 0, 1, 240, 180), (400, 300), interpolation=cv2.INTER_NEAREST)
    maps = mapper.by_homography(), mapper.by_depth(depth)
    panels = []
    for label, image in zip(
        LABELS, [scaled, *(tencode(m.map(events).events, 0, 1, 400, 300) for m in maps)], strict=True
    ):
        panel = np.where(image.any(-1, keepdims=True), image, picture)
        panel = np.ascontiguousarray(panel)
        cv2.putText(panel, label, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
        panels.append(panel)
    return np.hstack(panels)


if __name__ == "__main__":
    cv2.imwrite(sys.argv[1], draw()[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
