"""Images made of the events of a window in time.

| function           | result                          | a pixel says                                    |
| ------------------ | ------------------------------- | ----------------------------------------------- |
| `tencode`          | uint8   [height, width, 3] rgb  | polarity and age of its newest event            |
| `tencode_reference`| uint8   [height, width, 3] rgb  | the same, as event_sam3d's checkpoints know it  |
| `voxel_grid`       | float32 [bins, height, width]   | sum of polarities, spread over points in time   |
| `histogram`        | int32   [2, height, width]      | number of events, negative ones first           |
| `time_surface`     | float32 [2, height, width]      | decayed age of its newest event, per polarity   |

A window is half-open, [t0_us, t1_us), in microseconds on the sensor's clock. Events outside the window or the image are
ignored, and those inside may come in any order of time; where one event has to win a pixel, it is the newest, and of
two with the same time the later in the stream. All raise InputError for a window that is empty or runs backwards
(``bad_window``), and for an image without pixels (``bad_geometry``).
"""

from __future__ import annotations

import math
from operator import index

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events

_BLOCK = 1024  # events whose voxels and weights fit into the first-level cache


def tencode(events: Events, t0_us: int, t1_us: int, width: int, height: int) -> NDArray[np.uint8]:
    """Tencode image (Huang et al., "EventPoint", arXiv 2109.00210; also Depth AnyEvent, arXiv 2509.15224).

    With v = 1 - (t - t0) / (t1 - t0), a positive event gives (255, rint(255 v), 0), a negative one
    (0, rint(255 v), 255) with halves rounded to even; pixels without events stay black.
    """
    t0, t1, width, height = _check(t0_us, t1_us, width, height)
    inside, is_sorted = _inside(events, t0, t1, width, height)
    kernel = _tencode_sorted if is_sorted else _tencode_unsorted
    return kernel(inside.t, inside.x, inside.y, inside.p, t0, t1, width, height)


def tencode_reference(events: Events, width: int, height: int, white_background: bool = True) -> NDArray[np.uint8]:
    """Tencode image as event_sam3d makes it for its networks, for checkpoints that were trained there.

    Its time runs from the first to the last *event* instead of over a window's bounds, 255 v is cut off instead of
    rounded, and pixels without events are white (its MVSEC, CO3D, Replica and Objaverse data) or black (its RGBE data).
    For events in order of time every byte is that of its ``Tencode(height, width).convert`` on float64 tensors of
    microseconds, run on one thread and brought to uint8 as its data sets do.

    Where that code has no good answer, this one has: a single event, or events that all have the same time, get v = 1
    (there: NaN); no events give a picture of background alone; a pixel never mixes two events (there: with several
    threads it does, differently in every run); events that are out of order count as if they were sorted.
    """
    if len(events) == 0:
        first = last = 0
    else:
        first, last = int(events.t.min()), int(events.t.max())
    t0, t1, width, height = _check(first, last + 1, width, height)
    inside, _ = _inside(events, t0, t1, width, height)
    newest = _newest(inside.t, inside.x, inside.y, inside.p, t0, width, height)
    return _reference_colours(newest, max(last - first, 1), 255 if white_background else 0)


def voxel_grid(
    events: Events, t0_us: int, t1_us: int, width: int, height: int, bins: int = 5, normalise: bool = False
) -> NDArray[np.float32]:
    """Voxel grid (Zhu et al., CVPR 2019, arXiv 1812.08156, equation 2) over the window's bounds.

    An event at s = (bins - 1) (t - t0) / (t1 - t0) adds its polarity, +1 or -1, to the bins floor(s) and floor(s) + 1
    with the weights 1 - frac(s) and frac(s); a single bin takes all. ``normalise`` then brings the voxels that are not
    zero to mean 0 and standard deviation 1 (to mean 0 alone where all of them are equal).

    Weights are good to 1e-6. Raises InputError ``bad_bins`` for fewer than one bin, or 2**31 voxels and more.
    """
    t0, t1, width, height = _check(t0_us, t1_us, width, height)
    if not 1 <= bins < 2**31 / (width * height):
        raise InputError(
            f"voxel grid of {bins} bins at {width}x{height} is empty or larger than 8 GB: give other bins",
            reason="bad_bins",
        )
    # Made by numpy, not in the kernel: numpy asks for huge pages.
    grid = np.empty((index(bins), height, width), np.float32)
    _voxel_grid(events.t, events.x, events.y, events.p, t0, t1, grid)
    if normalise:
        _normalise(grid.reshape(-1))
    return grid


def histogram(events: Events, t0_us: int, t1_us: int, width: int, height: int) -> NDArray[np.int32]:
    """Number of events of each pixel: negative ones in the first plane, positive ones in the second."""
    t0, t1, width, height = _check(t0_us, t1_us, width, height)
    inside, _ = _inside(events, t0, t1, width, height)
    return _histogram(inside.x, inside.y, inside.p, width, height)


def time_surface(
    events: Events, t0_us: int, t1_us: int, width: int, height: int, tau_us: float = 30_000.0
) -> NDArray[np.float32]:
    """Time surface with exponential decay (Lagorce et al., "HOTS", TPAMI 2017), seen from the end of the window.

    exp((t - t1) / tau) of the pixel's newest negative event in the first plane, of its newest positive one in the
    second; 0 where there is none. Raises InputError ``bad_tau`` unless tau_us is positive and finite.
    """
    t0, t1, width, height = _check(t0_us, t1_us, width, height)
    if not (tau_us > 0 and math.isfinite(tau_us)):
        raise InputError(f"time surface can't decay with tau_us = {tau_us}: give a positive time", reason="bad_tau")
    inside, _ = _inside(events, t0, t1, width, height)
    return _time_surface(inside.t, inside.x, inside.y, inside.p, t1, width, height, float(tau_us))


def _check(t0_us: int, t1_us: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The arguments as plain integers; InputError for a window without duration or an image without pixels."""
    t0, t1 = index(t0_us), index(t1_us)
    if t1 <= t0:
        raise InputError(f"event window [{t0}, {t1}) us has no duration: give t0 < t1", reason="bad_window")
    if width < 1 or height < 1:
        raise InputError(f"event image of {width}x{height} has no pixels: give its size", reason="bad_geometry")
    return t0, t1, index(width), index(height)


def _inside(events: Events, t0: int, t1: int, width: int, height: int) -> tuple[Events, bool]:
    """The events inside the window and the image, which are all that the kernels below can bear; whether sorted."""
    if len(events) == 0:
        return events, True
    t_min, t_max, x_max, y_max, is_sorted = events.extent()
    # Mostly all of them are: what a buffer cuts out for a window, of the camera that the image belongs to.
    if t_min < t0 or t_max >= t1 or x_max >= width or y_max >= height:
        t, x, y = events.t, events.x, events.y
        events = events[(t >= t0) & (t < t1) & (x < width) & (y < height)]
    return events, is_sorted


@njit(cache=True, nogil=True)
def _pixel(x, y, width):  # type: ignore[no-untyped-def]
    """Number of a pixel, row by row. Unsigned, because numba looks at every signed index for being negative."""
    return np.uint64(y) * np.uint64(width) + np.uint64(x)


@njit(cache=True, nogil=True, error_model="numpy")
def _green(elapsed, span):  # type: ignore[no-untyped-def]
    # One rounding only, of an exact quotient: halves are exact for every span below 2**44 us.
    return np.uint8(np.rint(255.0 * (span - elapsed) / span))


@njit(cache=True, nogil=True, error_model="numpy")
def _tencode_sorted(t, x, y, p, t0, t1, width, height):  # type: ignore[no-untyped-def]
    # From the newest event back, so that the first to reach a pixel is the one that it shows, and the many others cost
    # no more than a look.
    image = np.zeros((height, width, 3), np.uint8)
    bytes_of_image = image.reshape(-1)
    seen = np.zeros(height * width, np.uint8)
    span = t1 - t0
    for back in range(1, t.size + 1):
        i = np.uint64(t.size - back)
        k = _pixel(x[i], y[i], width)
        if not seen[k]:
            seen[k] = 1
            red = np.uint64(3) * k
            bytes_of_image[red + np.uint64(1)] = _green(t[i] - t0, span)
            bytes_of_image[red if p[i] else red + np.uint64(2)] = 255
    return image


@njit(cache=True, nogil=True, error_model="numpy")
def _tencode_unsorted(t, x, y, p, t0, t1, width, height):  # type: ignore[no-untyped-def]
    newest = _newest(t, x, y, p, t0, width, height)
    image = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            key = newest[row, column]
            if key >= 0:
                image[row, column, 1] = _green(key >> 1, t1 - t0)
                image[row, column, 0 if key & 1 else 2] = 255
    return image


@njit(cache=True, nogil=True)
def _newest(t, x, y, p, t0, width, height):  # type: ignore[no-untyped-def]
    """Twice the time since t0 of each pixel's newest event, plus 1 where it is positive; -1 where there is none."""
    # Time and polarity share one number, so that no pixel can mix two events.
    newest = np.full((height, width), -1, np.int64)
    for i in range(t.size):
        elapsed = t[i] - t0
        if elapsed >= newest[y[i], x[i]] >> 1:
            newest[y[i], x[i]] = elapsed << 1 | (p[i] != 0)
    return newest


@njit(cache=True, nogil=True, error_model="numpy")
def _reference_colours(newest, span, background):  # type: ignore[no-untyped-def]
    height, width = newest.shape
    image = np.empty((height, width, 3), np.uint8)
    full = np.float32(255)
    for row in range(height):
        for column in range(width):
            key = newest[row, column]
            if key < 0:
                image[row, column] = background
            else:
                # The steps and types of event_sam3d, because the last of them cuts off what the others have rounded.
                green = np.float32(255.0 * (1.0 - (key >> 1) / span)) / full * full
                image[row, column, 0] = 255 if key & 1 else 0
                image[row, column, 1] = np.uint8(green)
                image[row, column, 2] = 0 if key & 1 else 255
    return image


@njit(cache=True, nogil=True, error_model="numpy")
def _voxel_grid(t, x, y, p, t0, t1, grid):  # type: ignore[no-untyped-def]
    # A block of events at a time: first what can be computed for several at once, loops split by the types that they
    # look at; then what has to wait for memory. Events outside add 0 to the first voxel.
    bins, height, width = grid.shape
    grid[:] = 0
    voxels = grid.reshape(-1)
    plane, columns, last = np.int32(height * width), np.int32(width), np.int32(max(bins - 2, 0))
    to_right = np.uint64(plane if bins > 1 else 0)
    shift = 0  # 31 bits of a long window's time are more than float32 can tell apart
    while (t1 - t0) >> shift >= 1 << 31:
        shift += 1
    bins_per_tick = np.float32((bins - 1) / (t1 - t0) * (1 << shift))
    ticks, inside, voxel = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    on_left, on_right = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(0, t.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, t.size))
        ts, xs, ys, ps = t[block], x[block], y[block], p[block]
        for j in range(ts.size):
            inside[j] = (ts[j] >= t0) & (ts[j] < t1)
            ticks[j] = (ts[j] - t0) >> shift
        for j in range(ts.size):
            inside[j] &= (xs[j] < width) & (ys[j] < height)
            voxel[j] = np.int32(ys[j]) * columns + np.int32(xs[j])
        for j in range(ts.size):
            position = np.float32(ticks[j]) * bins_per_tick
            left = min(np.int32(position), last)
            sign = np.float32(inside[j] * (np.int32(2) * np.int32(ps[j] != 0) - np.int32(1)))
            on_right[j] = (position - np.float32(left)) * sign
            on_left[j] = sign - on_right[j]
            voxel[j] = (voxel[j] + left * plane) * inside[j]
        for j in range(ts.size):
            k = np.uint64(voxel[j])
            voxels[k] += on_left[j]
            voxels[k + to_right] += on_right[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _normalise(voxels):  # type: ignore[no-untyped-def]
    count, total = 0, 0.0
    for i in range(voxels.size):
        count += voxels[i] != 0
        total += voxels[i]
    mean = total / max(count, 1)
    squares = 0.0
    for i in range(voxels.size):
        if voxels[i] != 0:
            squares += (voxels[i] - mean) ** 2
    deviation = np.sqrt(squares / max(count, 1))
    scale = 1.0 / deviation if deviation > 0 else 1.0
    for i in range(voxels.size):
        if voxels[i] != 0:
            voxels[i] = (voxels[i] - mean) * scale


@njit(cache=True, nogil=True)
def _histogram(x, y, p, width, height):  # type: ignore[no-untyped-def]
    counts = np.zeros((2, height, width), np.int32)
    flat = counts.reshape(-1)
    plane = np.uint64(height * width)
    for i in range(x.size):
        flat[_pixel(x[i], y[i], width) + plane * np.uint64(p[i] != 0)] += 1
    return counts


@njit(cache=True, nogil=True, error_model="numpy")
def _time_surface(t, x, y, p, t1, width, height, tau):  # type: ignore[no-untyped-def]
    # Age of the newest event, 0 where there is none: no event of the half-open window has age 0.
    ages = np.zeros(2 * height * width, np.int64)
    plane = np.uint64(height * width)
    for i in range(t.size):
        k = _pixel(x[i], y[i], width) + plane * np.uint64(p[i] != 0)
        age = t1 - t[i]
        if ages[k] == 0 or age < ages[k]:
            ages[k] = age
    surface = np.zeros((2, height, width), np.float32)
    values = surface.reshape(-1)
    for k in range(ages.size):
        if ages[k]:
            values[k] = np.exp(-ages[k] / tau)
    return surface
