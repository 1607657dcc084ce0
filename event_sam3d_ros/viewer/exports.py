"""What a user takes away: the objects of a frame as a coloured point cloud, and the picture as it is."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from event_sam3d_ros.demo.results import ply_bytes
from event_sam3d_ros.viewer.frames import ViewObject
from event_sam3d_ros.viewer.pictures import Picture


def objects_as_ply(items: Iterable[ViewObject]) -> bytes:
    """Binary PLY of the objects' points in the world, metres."""
    points, colors = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)]
    for item in items:
        points.append(item.points @ item.pose[:3, :3].T + item.pose[:3, 3])
        colors.append(item.colors)
    return ply_bytes(np.concatenate(points), np.concatenate(colors))


def as_png(picture: Picture) -> bytes:
    """PNG of an RGB picture."""
    _, data = cv2.imencode(".png", picture[..., 2::-1])
    return data.tobytes()
