"""What can be measured without a true shape: do results agree with the picture, with each other, with the camera?

Everything here compares a result with its own inputs or with the result before it, so good values are necessary, not
sufficient: a model that always gives the same sphere agrees with itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.evaluation.poses import CameraPose
from event_sam3d_ros.evaluation.solids import Floats, Solid

# Results further apart are not compared with each other.
LONGEST_GAP_NS = 1_000_000_000
EDGE_PX = 1.5  # what counts as on the outline
SURROUND_PX = 10.0  # what the outline is compared with
MIN_EVENT_PIXELS = 50
_SEARCH_LEVELS, _SEARCH_STEPS = 3, 7
_LARGEST_SHIFT = 0.5  # of the silhouette's larger side, during one window
_SMOOTHING_PX = 1.0


@dataclass(frozen=True)
class Previous:
    """The result before: what of it the next one is compared with. ``camera_pose``: None where it is not known."""

    stamp_ns: int
    solid: Solid
    metric: bool
    camera_pose: CameraPose | None


def agreement(
    solid: Solid, metric: bool, stamp_ns: int, camera_pose: CameraPose | None, before: Previous | None
) -> dict[str, float]:
    """How far a result agrees with the one before it of the same object, at most a second earlier.

    ``shape_agreement``: IoU of the two occupancy grids as they stand, each in its own object frame and cube; the
    object's heading is the camera's, so a camera that circles an object lowers it. ``world_step_m``: distance of the
    two centres in the world, m, only where both have a metric scale and the camera's poses are known; 0 for an object
    that stands still. ``world_step_deg``: the angle between the two up vectors in the world.
    """
    if before is None or not 0 < stamp_ns - before.stamp_ns <= LONGEST_GAP_NS:
        return {}
    both = int((solid.occupancy & before.solid.occupancy).sum())
    values = {"shape_agreement": both / int((solid.occupancy | before.solid.occupancy).sum())}
    if camera_pose is not None and before.camera_pose is not None:
        up = camera_pose.rotation @ solid.rotation[:, 2]
        up_before = before.camera_pose.rotation @ before.solid.rotation[:, 2]
        values["world_step_deg"] = float(np.degrees(np.arccos(np.clip(up @ up_before, -1.0, 1.0))))
        if metric and before.metric:
            step = camera_pose.apply(solid.position) - before.camera_pose.apply(before.solid.position)
            values["world_step_m"] = float(np.linalg.norm(step))
    return values


def overlap(drawn: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """IoU of two silhouettes (H, W), 0 where both are empty."""
    union = int((drawn | mask).sum())
    return int((drawn & mask).sum()) / union if union else 0.0


def edge_contrast(event_image: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> float | None:
    """How much of the motion-compensated events lies on the outline of a result's silhouette ``drawn`` (H, W).

    Events are the newest one of each pixel of the Tencode image (H, W, 3), its time read from the green channel. Those
    in the silhouette's box, widened by a quarter of its larger side, are moved to the window's middle by the one image
    velocity that makes the sum of their squared counts largest (contrast maximisation: Gallego et al., CVPR 2018).
    With E the mean count per pixel within 1.5 px of the outline and S that between 1.5 and 10 px of it, the result is
    (E - S) / (E + S): 1 all on the outline, 0 no more than beside it, below 0 less. None with fewer than 50 event
    pixels, or where outline or surroundings are outside the image.
    """
    box = _box(drawn)
    if box is None:
        return None
    events, silhouette = event_image[box], drawn[box].astype(np.uint8)
    rows, columns = np.nonzero(events.any(axis=2))
    if len(rows) < MIN_EVENT_PIXELS:
        return None
    since_middle = 0.5 - events[rows, columns, 1] / 255.0
    largest = _LARGEST_SHIFT * max(silhouette.shape)
    counts = _compensated(columns.astype(float), rows.astype(float), since_middle, silhouette.shape, largest)
    # Where the image cuts the silhouette there is no outline: erosion takes what is outside for inside.
    inner = cv2.erode(silhouette, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    edge = silhouette > inner
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near, beside = distance <= EDGE_PX, (distance > EDGE_PX) & (distance <= SURROUND_PX)
    if not edge.any() or not beside.any():
        return None
    on, off = float(counts[near].mean()), float(counts[beside].mean())
    return (on - off) / (on + off) if on + off > 0 else None


def _box(drawn: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """The silhouette's box, widened by a quarter of its larger side and at least by the surroundings."""
    rows, columns = np.nonzero(drawn)
    if not len(rows):
        return None
    side = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    margin = max(side // 4, int(SURROUND_PX) + 2)
    top, left = max(0, int(rows.min()) - margin), max(0, int(columns.min()) - margin)
    return slice(top, int(rows.max()) + margin + 1), slice(left, int(columns.max()) + margin + 1)


def _compensated(x: Floats, y: Floats, time: Floats, shape: tuple[int, ...], largest: float) -> NDArray[np.float32]:
    """Counts (h, w) of the events after the shift that makes them sharpest, from coarse to fine."""
    best, centre, width = None, np.zeros(2), largest
    for _ in range(_SEARCH_LEVELS):
        scored = []
        for dx in np.linspace(-width, width, _SEARCH_STEPS):
            for dy in np.linspace(-width, width, _SEARCH_STEPS):
                counts = _counts(x - (centre[0] + dx) * time, y - (centre[1] + dy) * time, shape)
                smooth = cv2.GaussianBlur(counts, (0, 0), _SMOOTHING_PX)
                scored.append((float((smooth * smooth).sum()), centre[0] + dx, centre[1] + dy, counts))
        _, vx, vy, best = max(scored, key=lambda one: one[0])
        centre, width = np.array([vx, vy]), 2 * width / (_SEARCH_STEPS - 1)
    assert best is not None
    return best


def _counts(x: Floats, y: Floats, shape: tuple[int, ...]) -> NDArray[np.float32]:
    columns, rows = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    inside = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
    flat = np.bincount(rows[inside] * shape[1] + columns[inside], minlength=shape[0] * shape[1])
    return flat.reshape(shape[0], shape[1]).astype(np.float32)
