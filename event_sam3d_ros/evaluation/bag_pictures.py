"""A frame as a picture: what the camera and the events saw, and what every model and mode made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.evaluation.bag_log import whole_file
from event_sam3d_ros.evaluation.metrics import silhouette
from event_sam3d_ros.evaluation.replay import ReplayedFrame
from event_sam3d_ros.evaluation.solids import Floats, Solid
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.tracking import TrackedFrame

Picture = NDArray[np.uint8]

_TILE, _GAP, _HEAD, _COLUMNS = 220, 6, 22, 4
_JPEG_QUALITY = 88
_MASK, _TRUTH, _RESULT = (255, 220, 0), (215, 40, 215), (255, 120, 0)
_PAPER, _INK, _BACKDROP = (255, 255, 255), (40, 40, 40), (238, 240, 243)
_SIDE_DEG = 65.0


def draw_frame(
    frame: ReplayedFrame, found: Mapping[tuple[str, str], TrackedFrame], truth: Mapping[int, Solid]
) -> Picture:
    """RGB picture: the frame with the mask's outline, its events, then for each model and mode the result's outline
    over the frame and its points from the side. Truth is purple. ``frame.observation`` is given."""
    whole = frame.observation
    assert whole is not None
    height, width = whole.mask.shape
    true = [silhouette(solid, whole.K, width, height) for solid in truth.values()]
    window = _window(whole, true)
    photo = whole.image if whole.image is not None else np.zeros((height, width, 3), np.uint8)
    labels = [(whole.mask == label) for label in np.unique(whole.mask[whole.mask > 0])]
    tiles = [("frame, mask", _outlined(photo, window, [(labels, _MASK), (true, _TRUTH)]))]
    if whole.event_image is not None:
        tiles.append((f"{frame.event_count} events", _outlined(whole.event_image, window, [(true, _TRUTH)])))
    for (model, mode), tracked in found.items():
        solids = [Solid.from_reconstruction(one) for one in tracked.reconstructions]
        drawn = [silhouette(solid, whole.K, width, height) for solid in solids]
        tiles.append((f"{model} {mode}", _outlined(photo, window, [(true, _TRUTH), (drawn, _RESULT)])))
        tiles.append(("from the side", _side(tracked, truth)))
    rows, columns = -(-len(tiles) // _COLUMNS), min(len(tiles), _COLUMNS)
    height, width = rows * (_HEAD + _TILE) + _GAP, columns * (_TILE + _GAP) + _GAP
    page = np.full((height, width, 3), _PAPER, np.uint8)
    for number, (title, tile) in enumerate(tiles):
        left = _GAP + number % _COLUMNS * (_TILE + _GAP)
        top = _HEAD + number // _COLUMNS * (_HEAD + _TILE)
        page[top : top + _TILE, left : left + _TILE] = tile
        cv2.putText(page, title, (left, top - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return page


def write_picture(path: Path, picture: Picture) -> None:
    """JPEG of an RGB picture; it appears when it is whole. OSError if there is no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with whole_file(path) as partial:
        partial.write_bytes(data.tobytes())


def _window(whole: Observation, true: Sequence[NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Left, top and side of the square around the objects and a margin, pixels."""
    rows, columns = np.nonzero(np.any([whole.mask > 0, *true], axis=0))
    if not len(rows):
        return 0.0, 0.0, float(max(whole.mask.shape))
    side = 1.6 * max(np.ptp(rows) + 1, np.ptp(columns) + 1)
    return float(columns.min() + columns.max() - side) / 2, float(rows.min() + rows.max() - side) / 2, float(side)


def _outlined(
    picture: Picture,
    window: tuple[float, float, float],
    outlines: Sequence[tuple[Sequence[NDArray[np.bool_]], tuple[int, int, int]]],
) -> Picture:
    left, top, side = window
    scale = _TILE / side
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    tile = cv2.warpAffine(picture, move, (_TILE, _TILE), flags=cv2.INTER_LINEAR, borderValue=_BACKDROP)
    for masks, color in outlines:
        for mask in masks:
            moved = cv2.warpAffine(mask.astype(np.uint8) * 255, move, (_TILE, _TILE), flags=cv2.INTER_LINEAR)
            lines, _ = cv2.findContours((moved > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, lines, -1, color, 1, cv2.LINE_AA)
    return tile.astype(np.uint8)


def _side(tracked: TrackedFrame, truth: Mapping[int, Solid]) -> Picture:
    """Points turned about the vertical through each object's own centre; truth at the result's size, for the scale
    may be unknown."""
    tile = np.full((_TILE, _TILE, 3), _BACKDROP, np.uint8)
    for one, label in zip(tracked.reconstructions, tracked.labels, strict=True):
        if label in truth:
            true = truth[label]
            _dots(tile, (true.to_camera(true.surface[:3000]) - true.position) / true.side, _TRUTH)
        _dots(tile, (one.points - one.position) / float(np.max(one.size)), _RESULT)
    return tile


def _dots(tile: Picture, points: Floats, color: tuple[int, int, int]) -> None:
    angle = np.radians(_SIDE_DEG)
    across = points[:, 0] * np.cos(angle) - points[:, 2] * np.sin(angle)
    pixels = np.rint(np.stack([across, points[:, 1]], axis=1) * _TILE * 0.6 + _TILE / 2).astype(int)
    inside = ((pixels >= 0) & (pixels < _TILE)).all(axis=1)
    tile[pixels[inside, 1], pixels[inside, 0]] = color
