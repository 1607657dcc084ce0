"""Draws a saved sequence: ``python scripts/draw_sequence.py SEQUENCE PICTURE``.

Above, frames spread over the sequence with the masks in the colours of their tracks. Below, the same moments from
above: the objects' points in the world, the way of each object through all frames, and the camera's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from event_sam3d_ros.sequence import Sequence, load_sequence
from event_sam3d_ros.viewer.pictures import color_of

SHOWN, WIDTH, PANEL, MARGIN = 5, 960, 300, 24
TILT_DEG = 35.0  # of the look from above
INK, PAPER, FAINT = (40, 40, 40), (250, 250, 250), (150, 150, 150)


def draw(sequence: Sequence) -> np.ndarray:
    """The picture, uint8 [H,W,3] in RGB."""
    shown = np.unique(np.linspace(0, len(sequence) - 1, SHOWN).round().astype(int))
    frames = np.hstack([_frame(sequence, int(i), WIDTH // len(shown)) for i in shown])
    return np.vstack([frames, _from_above(sequence, shown, frames.shape[1])])


def _frame(sequence: Sequence, index: int, width: int) -> np.ndarray:
    frame = sequence[index]
    picture, tracks = frame.rgb.copy(), frame.track_mask()
    for item in frame.objects:
        outlines, _ = cv2.findContours((tracks == item.id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, color_of(item.id), 2)
    size = (width, round(width * picture.shape[0] / picture.shape[1]))
    picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    seconds = (frame.stamp_ns - sequence[0].stamp_ns) / 1e9
    names = ", ".join(f"object {item.id}" for item in frame.objects) or "no object"
    _write(picture, f"{seconds:.2f} s: {names}", (6, 14), (255, 255, 255))
    return picture


def _from_above(sequence: Sequence, shown: np.ndarray, width: int) -> np.ndarray:
    """An orthographic look along the world's axes of the first camera, turned down."""
    view = _view(sequence[0].camera_to_world)
    clouds = [(item.id, item.points @ view.T) for i in shown for item in sequence[int(i)].objects]
    ways: dict[int, list[np.ndarray]] = {}
    for frame in sequence:
        for item in frame.objects:
            ways.setdefault(item.id, []).append(view @ item.pose[:3, 3])
    camera = [view @ frame.camera_to_world[:3, 3] for frame in sequence if frame.pose_known]
    everything = np.vstack([*(cloud for _, cloud in clouds), *(np.array(way) for way in ways.values()), *camera])
    low, high = everything.min(0)[:2], everything.max(0)[:2]
    scale = min((width - 2 * MARGIN) / (high - low)[0], (PANEL - 3 * MARGIN) / (high - low)[1])
    panel = np.full((PANEL, width, 3), PAPER, np.uint8)

    def place(points: np.ndarray) -> np.ndarray:
        centred = (points[:, :2] - (low + high) / 2) * scale
        return np.rint(centred + (width / 2, PANEL / 2)).astype(int)

    for track, cloud in clouds:
        pixels = place(cloud[np.argsort(-cloud[:, 2])])
        panel[pixels[:, 1], pixels[:, 0]] = np.add(color_of(track), 255) // 2
    for track, way in ways.items():
        cv2.polylines(panel, [place(np.array(way))], False, color_of(track), 2, cv2.LINE_AA)
    if camera:
        cv2.polylines(panel, [place(np.array(camera))], False, INK, 2, cv2.LINE_AA)
    cv2.line(panel, (MARGIN, PANEL - 10), (MARGIN + round(0.1 * scale), PANEL - 10), INK, 2)
    _write(panel, "0.1 m", (MARGIN, PANEL - 16), INK)
    _write(panel, f"{len(sequence)} frames, {len(ways)} track{'s' * (len(ways) != 1)}", (6, 14), FAINT)
    return panel


def _view(camera_to_world: np.ndarray) -> np.ndarray:
    """(3, 3): world to the picture's right, down and away, for a camera behind the first one that looks down."""
    tilt = np.deg2rad(TILT_DEG)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return turn @ camera_to_world[:3, :3].T


def _write(picture: np.ndarray, text: str, place: tuple[int, int], color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, color, 1, cv2.LINE_AA)


if __name__ == "__main__":
    cv2.imwrite(sys.argv[2], draw(load_sequence(Path(sys.argv[1])))[..., ::-1])
