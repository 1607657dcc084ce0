"""The picture of a run: what the camera saw, what the events saw, what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from event_sam3d_ros.demo.results import FrameResult, ObjectResult, RunResult
from event_sam3d_ros.demo.scene import RecordingScene
from event_sam3d_ros.demo.truth import TrueObject
from event_sam3d_ros.evaluation.replay import ReplayedFrame
from event_sam3d_ros.evaluation.solids import Floats

Picture = NDArray[np.uint8]  # RGB here; OpenCV gets BGR when the file is written

ROWS = 4
_TILE = 280
_GAP = 10
_HEAD = 92
_FOOT = 30
_PAPER, _INK, _PALE, _BACKDROP = (255, 255, 255), (30, 33, 38), (120, 126, 135), (236, 238, 241)
_COLORS = ((242, 142, 43), (78, 121, 167), (89, 161, 79), (225, 87, 89), (176, 122, 161), (118, 183, 178))
_AXES = ((214, 39, 40), (44, 160, 44), (31, 119, 180))
_SIDE_VIEW_DEG, _FROM_ABOVE_DEG = 65.0, 20.0
_LIGHT = np.array([-0.35, -0.55, -0.76])  # towards the light, camera axes (y is down)
_NEIGHBOURS = 14

Cloud = tuple[Floats, tuple[int, int, int]]  # points (N, 3) in the camera frame, colour


def draw_overview(path: Path, run: RunResult, scene: RecordingScene, truth: Mapping[int, TrueObject] | None) -> None:
    """One row for each of a few frames, and their columns' headings."""
    results = [result for result in chosen_rows(run.results) if result.stamp_ns in scene.frames]
    rows = [_row(result, scene, truth) for result in results]
    count = max(len(row) for row in rows)
    width = count * _TILE + (count + 1) * _GAP
    page = np.full((_HEAD + len(rows) * (_TILE + _FOOT + _GAP) + _GAP, width, 3), _PAPER, np.uint8)
    _text(page, "event_sam3d_ros", (_GAP, 30), 0.75, _INK, bold=True)
    reconstructions = f"{run.reconstruction_count} reconstructions from {run.frames} frames, model {run.model}"
    _text(page, reconstructions, (_GAP + 235, 30), 0.5, _PALE)
    titles = ["camera frame, mask", "events of 50 ms", "reconstruction, pose", "from the side", "truth, same side"]
    for column, title in enumerate(titles[:count]):
        _text(page, title, (_GAP + column * (_TILE + _GAP), _HEAD - 22), 0.55, _INK)
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        top = _HEAD - 10 + number * (_TILE + _FOOT + _GAP)
        for column, tile in enumerate(row):
            left = _GAP + column * (_TILE + _GAP)
            page[top : top + _TILE, left : left + _TILE] = tile
        _text(page, _caption(result, scene), (_GAP, top + _TILE + 20), 0.45, _PALE)
    cv2.imwrite(str(path), page[..., ::-1])


def chosen_rows(results: Sequence[FrameResult]) -> list[FrameResult]:
    """Frames for the picture: those with objects, evenly over the run, without its very ends."""
    results = [result for result in results if result.objects]
    if len(results) <= ROWS:
        return list(results)
    places = (np.arange(ROWS) + 0.5) / ROWS * len(results)
    return [results[int(place)] for place in places]


def _row(result: FrameResult, scene: RecordingScene, truth: Mapping[int, TrueObject] | None) -> list[Picture]:
    frame = scene.frames[result.stamp_ns]
    window = _window(frame)
    found: list[Cloud] = [(item.points.astype(np.float64), _color(item.id)) for item in result.objects]
    row = [_photo_tile(frame, window), _event_tile(frame, window)]
    row.append(_camera_tile(frame, window, scene.K, result.objects, found))
    row.append(_side_tile(found))
    if truth:
        true: list[Cloud] = []
        for id_, item in truth.items():
            if result.stamp_ns in item.poses:
                true.append((item.surface(result.stamp_ns), _color(id_)))
        row.append(_side_tile(true))
    return row


def _caption(result: FrameResult, scene: RecordingScene) -> str:
    seconds = (result.stamp_ns - scene.stamps[0]) / 1e9
    text = f"t = {seconds:.2f} s   {result.event_count} events in 50 ms"
    if result.latency_ms is not None:
        text += f"   result after {result.latency_ms:.0f} ms"
    sizes = [
        f"object {item.id}: {100 * item.size.max():.0f} cm, {np.linalg.norm(item.position):.2f} m away"
        for item in result.objects
        if item.metric
    ]
    return "   ".join([text, *sizes])


def _window(frame: ReplayedFrame) -> tuple[float, float, float]:
    """Left, top and side of the square around all masks, with a margin, inside the image where it can be."""
    assert frame.observation is not None
    height, width = frame.observation.mask.shape
    rows, columns = np.nonzero(frame.observation.mask)
    side = min(1.5 * max(np.ptp(rows), np.ptp(columns)) + 8.0, float(max(height, width)))

    def begin(places: NDArray[np.intp], size: int) -> float:
        wanted = (places.min() + places.max() - side) / 2
        return (size - side) / 2 if side > size else float(np.clip(wanted, 0, size - side))

    return begin(columns, width), begin(rows, height), side


def _to_tile(
    image: Picture, window: tuple[float, float, float], interpolation: int, outside: tuple[int, ...] = _BACKDROP
) -> Picture:
    left, top, side = window
    zoom = _TILE / side
    # pixel centres: tile = (pixel - left + 0.5) * zoom - 0.5
    matrix = np.array([[zoom, 0, (0.5 - left) * zoom - 0.5], [0, zoom, (0.5 - top) * zoom - 0.5]])
    tile = cv2.warpAffine(image, matrix, (_TILE, _TILE), flags=interpolation, borderValue=outside)
    return np.asarray(tile, dtype=np.uint8)


def _photo_tile(frame: ReplayedFrame, window: tuple[float, float, float]) -> Picture:
    observation = frame.observation
    assert observation is not None and observation.image is not None
    tile = _to_tile(observation.image, window, cv2.INTER_LINEAR)
    for label in np.unique(observation.mask[observation.mask > 0]):
        mask = _to_tile((observation.mask == label).astype(np.uint8) * 255, window, cv2.INTER_LINEAR, (0,))
        contours, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, (255, 255, 255), 3, cv2.LINE_AA)
        cv2.drawContours(tile, contours, -1, _color(int(label)), 2, cv2.LINE_AA)
    return tile


def _event_tile(frame: ReplayedFrame, window: tuple[float, float, float]) -> Picture:
    assert frame.observation is not None
    image = frame.observation.event_image
    if image is None:
        tile = np.full((_TILE, _TILE, 3), _BACKDROP, np.uint8)
        _text(tile, "too few events", (70, _TILE // 2), 0.55, _PALE)
        return tile
    return _to_tile(image, window, cv2.INTER_NEAREST)


def _camera_tile(
    frame: ReplayedFrame,
    window: tuple[float, float, float],
    K: Floats,
    items: Sequence[ObjectResult],
    clouds: Sequence[Cloud],
) -> Picture:
    """The points over the faded frame, with each object's axes."""
    assert frame.observation is not None and frame.observation.image is not None
    photo = _to_tile(frame.observation.image, window, cv2.INTER_LINEAR)
    tile = (0.25 * photo + 0.75 * np.array(_BACKDROP)).astype(np.uint8)
    left, top, side = window
    zoom = _TILE / side

    def project(points: Floats) -> Floats:
        pixels = points @ np.asarray(K).T
        pixels = pixels[:, :2] / pixels[:, 2:]
        return (pixels - (left, top) + 0.5) * zoom - 0.5

    parts = [(project(points), points[:, 2], _shaded(points, color)) for points, color in clouds]
    _splat(tile, parts)
    for item in items:
        axes = Rotation.from_quat(item.quaternion).as_matrix().T * item.size.max() * 0.6 + item.position
        origin, *ends = project(np.vstack([item.position, axes]))
        for end, color in zip(ends, _AXES, strict=True):
            cv2.arrowedLine(tile, _point(origin), _point(end), color, 2, cv2.LINE_AA, tipLength=0.15)
    return tile


def _side_tile(clouds: Sequence[Cloud]) -> Picture:
    """All points from the side and a little above, without perspective, filling the tile."""
    tile = np.full((_TILE, _TILE, 3), _BACKDROP, np.uint8)
    if not clouds:
        return tile
    everything = np.vstack([points for points, _ in clouds])
    centre = (everything.min(0) + everything.max(0)) / 2
    turn = Rotation.from_euler("yx", [_SIDE_VIEW_DEG, _FROM_ABOVE_DEG], degrees=True).as_matrix()
    turned = (everything - centre) @ turn.T
    low, high = turned[:, :2].min(0), turned[:, :2].max(0)
    zoom = 0.8 * _TILE / float((high - low).max())
    parts = []
    for points, color in clouds:
        view = (points - centre) @ turn.T
        parts.append(((view[:, :2] - (low + high) / 2) * zoom + _TILE / 2, view[:, 2], _shaded(view, color)))
    _splat(tile, parts)
    return tile


def _splat(tile: Picture, parts: Sequence[tuple[Floats, Floats, NDArray[np.uint8]]]) -> None:
    """Paints points (pixels (N, 2), depth (N,), colours (N, 3)) as discs without gaps, the nearest on top."""
    pixels = np.vstack([part[0] for part in parts])
    depth = np.concatenate([part[1] for part in parts])
    radius = _disc_radius(pixels)
    offsets = np.argwhere(np.hypot(*np.indices((2 * radius + 1,) * 2) - radius) <= radius + 0.3) - radius
    colors = np.vstack([part[2] for part in parts])
    far_to_near = np.argsort(-depth, kind="stable")
    places = np.rint(pixels[far_to_near]).astype(int)[:, None] + offsets
    inside = ((places >= 0) & (places < _TILE)).all(-1)
    columns, rows = places[inside].T
    tile[rows, columns] = np.repeat(colors[far_to_near][:, None], len(offsets), axis=1)[inside]


def _disc_radius(pixels: Floats) -> int:
    """Pixels. Front and back overlap in the picture, so twice the neighbours of one sheet are asked for."""
    distances = cKDTree(pixels).query(pixels, k=min(9, len(pixels)))[0]
    return int(np.clip(np.ceil(0.9 * np.percentile(distances[:, -1], 95)), 2, 5))


def _shaded(points: Floats, color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Lambert shading with normals from the nearest neighbours, turned to the viewer (who looks along +z)."""
    neighbours = points[cKDTree(points).query(points, k=min(_NEIGHBOURS, len(points)))[1]]
    centred = neighbours - neighbours.mean(1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))[1][:, :, 0]
    normals *= -np.sign(normals[:, 2:] + 1e-12)
    light = 0.35 + 0.65 * np.clip(normals @ _LIGHT, 0, 1)
    return np.clip(np.array(color) * light[:, None] * 1.1, 0, 255).astype(np.uint8)


def _color(id_: int) -> tuple[int, int, int]:
    return _COLORS[(id_ - 1) % len(_COLORS)]


def _point(pixel: Floats) -> tuple[int, int]:
    return int(round(float(pixel[0]))), int(round(float(pixel[1])))


def _text(
    image: Picture, text: str, place: tuple[int, int], scale: float, color: tuple[int, int, int], bold: bool = False
) -> None:
    font = cv2.FONT_HERSHEY_DUPLEX if bold else cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(image, text, place, font, scale, color, 1, cv2.LINE_AA)
