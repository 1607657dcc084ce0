"""One picture that shows what a reconstruction was made of and what came out."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction

_MASK_COLOR, _BOX_COLOR = (255, 255, 0), (255, 150, 0)
_EVENT_SHARE = 0.6
# Corners of a box are numbered by the bits of x, y, z: edges join numbers that differ in one bit.
_EDGES = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]


def draw(observation: Observation, reconstructions: Sequence[Reconstruction]) -> NDArray[np.uint8]:
    """RGB picture [H,W,3] uint8: frame, events over it, outlines of the masks, projected boxes with their ids."""
    height, width = observation.mask.shape
    picture = np.zeros((height, width, 3), np.uint8) if observation.image is None else observation.image.copy()
    if observation.event_image is not None:
        hit = observation.event_image.any(axis=2)
        mixed = _EVENT_SHARE * observation.event_image[hit] + (1 - _EVENT_SHARE) * picture[hit]
        picture[hit] = mixed.astype(np.uint8)
    for label in np.unique(observation.mask[observation.mask > 0]):
        solid = (observation.mask == label).astype(np.uint8)
        outlines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _MASK_COLOR, 1)
    for reconstruction in reconstructions:
        _draw_box(picture, observation.K, reconstruction)
    return picture


def box_corners(reconstruction: Reconstruction) -> NDArray[np.float64]:
    """The eight corners [8,3] of the object's box in the camera frame, metres; bits 1, 2, 4 of the row: x, y, z."""
    signs = np.array([[1 if row & bit else -1 for bit in (1, 2, 4)] for row in range(8)])
    rotation = Rotation.from_quat(reconstruction.quaternion)
    return rotation.apply(signs * np.asarray(reconstruction.size) / 2) + reconstruction.position


def _draw_box(picture: NDArray[np.uint8], K: NDArray, reconstruction: Reconstruction) -> None:
    corners = box_corners(reconstruction)
    if corners[:, 2].min() <= 0:  # reaches behind the camera: no picture of it
        return
    projected = corners @ np.asarray(K).T
    pixels = np.rint(np.clip(projected[:, :2] / projected[:, 2:], -1e4, 1e4)).astype(int)
    for a, b in _EDGES:
        cv2.line(picture, pixels[a].tolist(), pixels[b].tolist(), _BOX_COLOR, 1, cv2.LINE_AA)
    place = pixels[:, 0].min(), max(8, pixels[:, 1].min() - 3)
    text = f"{reconstruction.id} {reconstruction.score:.2f}"
    cv2.putText(picture, text, tuple(map(int, place)), cv2.FONT_HERSHEY_SIMPLEX, 0.35, _BOX_COLOR, 1, cv2.LINE_AA)
