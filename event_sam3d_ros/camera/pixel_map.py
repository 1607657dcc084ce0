"""Which pixels of two cameras show the same point, and events carried over from one camera's grid to the other's.

A point that a pixel sees along its ray (x, y, 1) at depth z lies at A (x, y, 1) z + b in the other camera, in metres of
its optical frame: A is the rotation and b the translation. A homography is the case b = 0, z = 1 with any regular A.

Pixels are paired from both sides, because either camera may be the finer one: every pixel of the camera with depth
with the nearest pixel of the other that sees the same surface, then every pixel of the other with its nearest pixel
back. So an event is shown at all RGB pixels that it covers, and no event pixel is lost where RGB pixels are larger.
What the other camera sees is found with a z-buffer. Nothing is invented where depth is unknown: those pixels have no
partner, unless a fallback depth is given, and then they are paired among themselves only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.camera.calibration import CameraPair
from event_sam3d_ros.camera.lens import lens_of, pixel_rays, to_pixel
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import CalibrationError, InputError
from event_sam3d_ros.events.events import Events

# Depths of one surface differ by less than this share from a pixel to its neighbour and from camera to camera; depth
# cameras err by 1 to 3 %, and what stands before something else is usually nearer by more.
_SAME_SURFACE = 0.05
_MAX_FOOTPRINT = 32.0  # pixels from a splat's centre; surfaces seen more edge-on than that stay open


@dataclass(frozen=True)
class MappedEvents:
    """Events in the RGB camera's grid, in stream order; one event appears once for each RGB pixel that it covers.

    unknown_depth  events that were dropped because no depth is known at their pixel
    outside        events that were dropped because the RGB camera does not see their point: it is outside of its image,
                   hidden behind something, or the pixel has no ray in the lens model
    """

    events: Events
    unknown_depth: int
    outside: int

    @property
    def dropped(self) -> int:
        """Events that are not shown."""
        return self.unknown_depth + self.outside


class PixelMap:
    """The RGB pixels of every event pixel.

    event_size, rgb_size  (width, height)
    offsets  int32 [We * He + 1]  the partners of event pixel i = row * We + column are targets[offsets[i]:offsets[i+1]]
    targets  int32 [P]            row * Wrgb + column of RGB pixels
    known    bool  [We * He]      whether the depth of the event pixel is known (always, for a homography)
    """

    def __init__(
        self, event_size: tuple[int, int], rgb_size: tuple[int, int], pairs: NDArray[np.int32], known: NDArray[np.bool_]
    ) -> None:
        self.event_size, self.rgb_size = event_size, rgb_size
        self.offsets, self.targets = _sorted_by_event_pixel(pairs, event_size[0] * event_size[1])
        self.known: NDArray[np.bool_] = np.ascontiguousarray(known, np.bool_).ravel()

    def map(self, events: Events) -> MappedEvents:
        """The events in the RGB camera's grid; those outside of the event camera's grid count as outside."""
        *fields, unknown, outside = _map_events(
            events.t, events.x, events.y, events.p, self.offsets, self.targets, self.known,
            self.event_size[0], self.event_size[1], self.rgb_size[0],
        )  # fmt: skip
        return MappedEvents(Events(*fields), int(unknown), int(outside))


class PixelMapper:
    """Makes the maps of one pair of cameras; the rays of all pixels are computed once."""

    def __init__(self, cameras: CameraPair) -> None:
        self.cameras = cameras
        self._rays = {"events": pixel_rays(cameras.events), "rgb": pixel_rays(cameras.rgb)}
        self._lenses = {"events": lens_of(cameras.events), "rgb": lens_of(cameras.rgb)}

    def by_homography(self) -> PixelMap:
        """For scenes so far away that the distance between the cameras does not count, or for a plane.

        The cameras' homography if one was given, else that of their rotation, H = K_rgb R K_events^-1.
        """
        cameras = self.cameras
        if cameras.homography is None:
            matrix = cameras.rotation
        else:
            # A homography has no sign: that of the matrix is chosen so that the middle of the image is in front.
            middle = cameras.homography[2] @ (cameras.events.width / 2, cameras.events.height / 2, 1)
            matrix = np.linalg.inv(cameras.rgb.K) @ (cameras.homography * np.sign(middle)) @ cameras.events.K
        depth = np.ones((cameras.events.height, cameras.events.width), np.float32)
        pairs, _ = self._pair("events", depth, matrix, np.zeros(3), _SAME_SURFACE)
        return self._made(pairs, "events", np.ones(depth.size, np.bool_))

    def by_depth(self, depth: NDArray, of: str = "rgb", fallback_m: float = 0.0) -> PixelMap:
        """From a depth image [H,W] in metres along the optical axis of the camera ``of``: "rgb" or "events".

        Its grid is that camera's, lens distortion included. Values that are not finite or not positive are unknown;
        with ``fallback_m`` > 0 pixels of unknown depth are taken to be that far away. Raises InputError
        ``size_mismatch`` for an image of another size and CalibrationError ``no_extrinsics`` for cameras of which only
        a homography is known.
        """
        cameras = self.cameras
        if cameras.homography is not None:
            raise CalibrationError(
                "the calibration gives a homography, which holds for one distance only: to align by depth give the "
                "cameras' intrinsics and the transform between them",
                reason="no_extrinsics",
            )
        own: CameraModel = getattr(cameras, of)
        if depth.shape != (own.height, own.width):
            raise InputError(
                f"the depth image of the {of} camera is {'x'.join(map(str, depth.shape[::-1]))}, its calibration "
                f"{own.width}x{own.height} pixels: give depth in that camera's grid",
                reason="size_mismatch",
            )
        measured = np.ascontiguousarray(np.where(np.isfinite(depth) & (depth > 0), depth, 0), np.float32)
        rotation, translation = cameras.rotation, cameras.translation
        if of == "rgb":
            rotation, translation = rotation.T, -rotation.T @ translation
        pairs, seen = self._pair(of, measured, rotation, translation, _SAME_SURFACE)
        known = measured if of == "events" else seen
        if fallback_m > 0:
            rest = np.where(measured > 0, np.float32(0), np.float32(fallback_m))
            seen_rest = np.where(seen > 0, np.float32(0), np.float32(fallback_m))
            more, _ = self._pair(of, rest, rotation, translation, np.inf, seen_rest)
            return self._made(np.concatenate([pairs, more]), of, np.ones(known.size, np.bool_))
        return self._made(pairs, of, known > 0)

    def _pair(
        self,
        source: str,
        depth: NDArray[np.float32],
        matrix: NDArray[np.float64],
        shift: NDArray[np.float64],
        tolerance: float,
        seen: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Pairs [P,2] (pixel of ``source``, pixel of the other camera) and the depth that the other camera sees."""
        target = "rgb" if source == "events" else "events"
        matrix = np.ascontiguousarray(matrix)  # each memory layout would be compiled anew
        there = _positions(self._rays[source], depth, matrix, shift, self._lenses[target])
        if seen is None:
            seen = _z_buffer(there, *self._rays[target].shape[:2])
        inverse = np.ascontiguousarray(np.linalg.inv(matrix))
        back = _positions(self._rays[target], seen, inverse, -inverse @ shift, self._lenses[source])
        return _pairs(there, depth, back, seen, tolerance), seen

    def _made(self, pairs: NDArray[np.int32], source: str, known: NDArray[np.bool_]) -> PixelMap:
        events, rgb = self.cameras.events, self.cameras.rgb
        in_order = pairs if source == "events" else np.ascontiguousarray(pairs[:, ::-1])
        return PixelMap((events.width, events.height), (rgb.width, rgb.height), in_order, known)


@njit(cache=True, nogil=True, error_model="numpy")
def _positions(rays, depth, matrix, shift, lens):  # type: ignore[no-untyped-def]
    """Where the other camera sees each pixel's point: float32 [H,W,3] column, row, depth; NaN where it can't."""
    height, width = depth.shape
    found = np.full((height, width, 3), np.float32(np.nan))
    for row in range(height):
        for column in range(width):
            z = np.float64(depth[row, column])
            if not z > 0.0:
                continue
            x, y = np.float64(rays[row, column, 0]) * z, np.float64(rays[row, column, 1]) * z
            there = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + shift[2]
            if not there > 1e-9:
                continue
            found[row, column, 0], found[row, column, 1] = to_pixel(
                (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + shift[0]) / there,
                (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + shift[1]) / there,
                lens,
            )
            found[row, column, 2] = there
    return found


@njit(cache=True, nogil=True, inline="always")
def _step(points, row, column, i, j):  # type: ignore[no-untyped-def]
    """Distance to a neighbour along both axes of the other image; 0 if there is none on the same surface."""
    if i < 0 or j < 0 or i >= points.shape[0] or j >= points.shape[1]:
        return 0.0, 0.0
    z = points[row, column, 2]
    if not abs(points[i, j, 2] - z) <= _SAME_SURFACE * z:
        return 0.0, 0.0
    du, dv = abs(points[i, j, 0] - points[row, column, 0]), abs(points[i, j, 1] - points[row, column, 1])
    return (du, dv) if du >= 0.0 and dv >= 0.0 else (0.0, 0.0)  # a neighbour may have no position


@njit(cache=True, nogil=True)
def _half_sides(points, row, column):  # type: ignore[no-untyped-def]
    """Half of what a pixel covers in the other image, per axis: as far as halfway to its neighbours, at least half."""
    right_u, right_v = _step(points, row, column, row, column + 1)
    left_u, left_v = _step(points, row, column, row, column - 1)
    below_u, below_v = _step(points, row, column, row + 1, column)
    above_u, above_v = _step(points, row, column, row - 1, column)
    half_u = 0.5 * (max(right_u, left_u) + max(below_u, above_u))
    half_v = 0.5 * (max(right_v, left_v) + max(below_v, above_v))
    return min(max(half_u, 0.5), _MAX_FOOTPRINT), min(max(half_v, 0.5), _MAX_FOOTPRINT)


@njit(cache=True, nogil=True)
def _z_buffer(points, height, width):  # type: ignore[no-untyped-def]
    """Depth float32 [height,width] of what the other camera sees first; 0 where nothing is known."""
    depth = np.zeros((height, width), np.float32)
    for row in range(points.shape[0]):
        for column in range(points.shape[1]):
            u, v, z = points[row, column]
            if not (u > -_MAX_FOOTPRINT and v > -_MAX_FOOTPRINT):
                continue
            if not (u < width + _MAX_FOOTPRINT and v < height + _MAX_FOOTPRINT):
                continue
            half_u, half_v = _half_sides(points, row, column)
            first, last = max(0, int(np.ceil(u - half_u))), min(width - 1, int(np.floor(u + half_u)))
            for i in range(max(0, int(np.ceil(v - half_v))), min(height - 1, int(np.floor(v + half_v))) + 1):
                for j in range(first, last + 1):
                    if depth[i, j] == 0 or z < depth[i, j]:
                        depth[i, j] = z
    return depth


@njit(cache=True, nogil=True)
def _partner(point, seen, tolerance):  # type: ignore[no-untyped-def]
    """Flat index of the pixel nearest to a position, or -1 if it has no depth or sees something that is nearer."""
    if not (point[0] > -0.5 and point[1] > -0.5):
        return -1
    height, width = seen.shape
    if not (point[0] < width - 0.5 and point[1] < height - 0.5):
        return -1
    row, column = int(np.floor(point[1] + 0.5)), int(np.floor(point[0] + 0.5))
    if seen[row, column] > 0 and point[2] <= seen[row, column] * (1.0 + tolerance):
        return row * width + column
    return -1


@njit(cache=True, nogil=True)
def _pairs(there, depth, back, seen, tolerance):  # type: ignore[no-untyped-def]
    """Pairs int32 [P,2] of source and target pixels, each once: see the head of this file."""
    height, width = depth.shape
    partner = np.full(depth.size, -1, np.int32)
    pairs = np.empty((depth.size + seen.size, 2), np.int32)
    count = 0
    for row in range(height):
        for column in range(width):
            target = _partner(there[row, column], seen, tolerance)
            if target >= 0:
                i = row * width + column
                partner[i] = target
                pairs[count, 0], pairs[count, 1] = i, target
                count += 1
    for row in range(seen.shape[0]):
        for column in range(seen.shape[1]):
            source = _partner(back[row, column], depth, tolerance)
            target = row * seen.shape[1] + column
            if source >= 0 and partner[source] != target:
                pairs[count, 0], pairs[count, 1] = source, target
                count += 1
    return pairs[:count].copy()


@njit(cache=True, nogil=True)
def _sorted_by_event_pixel(pairs, pixels):  # type: ignore[no-untyped-def]
    """Offsets int32 [pixels + 1] and targets int32 [P] of pairs (event pixel, RGB pixel): a counting sort."""
    offsets = np.zeros(pixels + 1, np.int32)
    for i in range(pairs.shape[0]):
        offsets[pairs[i, 0] + 1] += 1
    for i in range(pixels):
        offsets[i + 1] += offsets[i]
    place = offsets.copy()
    targets = np.empty(pairs.shape[0], np.int32)
    for i in range(pairs.shape[0]):
        targets[place[pairs[i, 0]]] = pairs[i, 1]
        place[pairs[i, 0]] += 1
    return offsets, targets


@njit(cache=True, nogil=True)
def _map_events(t, x, y, p, offsets, targets, known, width, height, rgb_width):  # type: ignore[no-untyped-def]
    size, unknown, outside = 0, 0, 0
    for i in range(t.size):
        if x[i] >= width or y[i] >= height:
            outside += 1
            continue
        pixel = np.int64(y[i]) * width + x[i]
        covered = offsets[pixel + 1] - offsets[pixel]
        size += covered
        if covered == 0:
            if known[pixel]:
                outside += 1
            else:
                unknown += 1
    mapped_t, mapped_x = np.empty(size, np.int64), np.empty(size, np.uint16)
    mapped_y, mapped_p = np.empty(size, np.uint16), np.empty(size, np.uint8)
    n = 0
    for i in range(t.size):
        if x[i] >= width or y[i] >= height:
            continue
        pixel = np.int64(y[i]) * width + x[i]
        for j in range(offsets[pixel], offsets[pixel + 1]):
            mapped_t[n], mapped_p[n] = t[i], p[i]
            mapped_x[n], mapped_y[n] = targets[j] % rgb_width, targets[j] // rgb_width
            n += 1
    return mapped_t, mapped_x, mapped_y, mapped_p, unknown, outside
