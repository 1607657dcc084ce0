"""Pictures and points of the viewer: tracks in colours, masks over a frame, events in space and time."""

from __future__ import annotations

from colorsys import hsv_to_rgb

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.viewer.frames import evenly

Picture = NDArray[np.uint8]

_POSITIVE, _NEGATIVE = np.array([220, 40, 40], np.uint8), np.array([40, 80, 230], np.uint8)
_MASK_SHARE = 0.45


def color_of(track: int) -> tuple[int, int, int]:
    """The same colour for a track wherever it is drawn; neighbours differ most (golden ratio)."""
    red, green, blue = hsv_to_rgb(0.08 + track * 0.618 % 1.0, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def with_masks(rgb: Picture, tracks: NDArray[np.integer] | None, shown: set[int] | None = None) -> Picture:
    """The frame with tracks in their colours (``shown``: these alone) and outlined."""
    picture = rgb.copy()
    if tracks is None:
        return picture
    for track in np.unique(tracks[tracks > 0]).tolist():
        if shown is not None and track not in shown:
            continue
        inside = tracks == track
        picture[inside] = ((1 - _MASK_SHARE) * picture[inside] + _MASK_SHARE * np.array(color_of(track))).astype(
            np.uint8
        )
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, color_of(track), 1)
    return picture


def event_points(image: Picture, limit: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A Tencode image as points (N, 3): x right and y down as shares of the width, from the middle, and the age of each
    pixel's newest event as a share of the window, 0 at its end; with colours (N, 3), red for positive events, blue for
    negative ones. At most ``limit``, evenly chosen."""
    height, width = image.shape[:2]
    rows, columns = np.nonzero(image[..., 0] | image[..., 2])
    chosen = evenly(len(rows), limit)
    rows, columns = rows[chosen], columns[chosen]
    pixels = image[rows, columns]
    x, y = (columns + 0.5) / width - 0.5, (rows + 0.5 - height / 2) / width
    points = np.stack([x, y, pixels[:, 1] / 255], axis=1).astype(np.float32)
    positive = (pixels[:, 0] > pixels[:, 2])[:, None]
    return points, np.where(positive, _POSITIVE, _NEGATIVE)
