"""Pixels of a real lens to rays and back, for kernels.

Rays are written as (x, y) = (X / Z, Y / Z) in the camera's optical frame; pixels have their origin at the centre of the
upper left one. Distortion as OpenCV defines it (documentation of calib3d: ``projectPoints`` and ``fisheye``).
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from event_sam3d_ros.camera.model import CameraModel

# A ray that does not come back to its pixel within this many pixels is not the pixel's ray: the inversion went astray.
_ROUND_TRIP_PIXELS = 0.05
_NONE, _POLYNOMIAL, _EQUIDISTANT = 0, 1, 2
_RATIONAL_LENGTH = 8  # k1 k2 p1 p2 k3 k4 k5 k6


def lens_of(camera: CameraModel) -> NDArray[np.float64]:
    """The camera as one array for kernels: fx fy cx cy, kind of distortion, largest radius, eight coefficients."""
    K, kind = camera.K, _NONE
    coefficients = np.zeros(_RATIONAL_LENGTH)
    if camera.is_distorted:
        kind = _EQUIDISTANT if camera.model == "equidistant" else _POLYNOMIAL
        coefficients[: camera.D.size] = camera.D
    limit = _largest_radius(kind, coefficients)
    return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2], kind, limit, *coefficients])


def _largest_radius(kind: int, c: NDArray[np.float64]) -> float:
    """Radius sqrt(x**2 + y**2) up to which the distorted radius grows with it.

    Beyond it the polynomial folds rays from outside the field of view back into the image. With s = r**2 the distorted
    radius is r N(s) / D(s), whose derivative has the sign of (N + 2 s N') D - 2 s N D'; for a fisheye the same holds in
    the angle, which ends at 90 degrees.
    """
    if kind == _NONE:
        return float("inf")
    s, denominator = Polynomial([0, 1]), Polynomial([1.0])
    if kind == _EQUIDISTANT:
        numerator = Polynomial([1, *c[:4]])
    else:
        numerator = Polynomial([1, c[0], c[1], c[4]])
        denominator = Polynomial([1, c[5], c[6], c[7]])
    slope = (numerator + 2 * s * numerator.deriv()) * denominator - 2 * s * numerator * denominator.deriv()
    roots = np.concatenate([slope.trim().roots(), denominator.trim().roots()])
    real = roots[np.abs(roots.imag) < 1e-9].real
    limit = float(np.sqrt(min(real[real > 0], default=np.inf)))
    if kind == _EQUIDISTANT:
        return float(np.tan(limit)) if limit < np.pi / 2 else float("inf")
    return limit


@njit(cache=True, nogil=True, error_model="numpy")
def to_pixel(x, y, lens):  # type: ignore[no-untyped-def]
    """Column and row (float64) of the ray (x, y); NaN where the lens model does not reach."""
    r2 = x * x + y * y
    if not r2 < lens[5] * lens[5]:
        return np.nan, np.nan
    if lens[4] == _EQUIDISTANT:
        r = np.sqrt(r2)
        angle = np.arctan(r)
        a2 = angle * angle
        bent = angle * (1.0 + a2 * (lens[6] + a2 * (lens[7] + a2 * (lens[8] + a2 * lens[9]))))
        scale = bent / r if r > 1e-9 else 1.0
        x, y = x * scale, y * scale
    elif lens[4] == _POLYNOMIAL:
        k1, k2, p1, p2, k3, k4, k5, k6 = lens[6:14]
        radial = (1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        bent_x = x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x)
        y = y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y
        x = bent_x
    return lens[0] * x + lens[2], lens[1] * y + lens[3]


def pixel_rays(camera: CameraModel) -> NDArray[np.float32]:
    """Rays of all pixels, float32 [H,W,2]; NaN where the lens model has none (a fisheye's corners, for example)."""
    rows, columns = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
    lens = lens_of(camera)
    rays: NDArray
    if not camera.is_distorted:
        rays = ((pixels - lens[2:4]) / lens[:2]).reshape(-1, 2)
    else:
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-9)
        undistort = cv2.fisheye.undistortPoints if camera.model == "equidistant" else cv2.undistortPoints
        K = np.array([[lens[0], 0, lens[2]], [0, lens[1], lens[3]], [0, 0, 1]])  # OpenCV leaves skew out as well
        rays = undistort(pixels, K, camera.D, criteria=criteria).reshape(-1, 2)
        wrong = np.abs(project_rays(rays, lens) - pixels.reshape(-1, 2)).max(axis=1)
        rays[~(wrong < _ROUND_TRIP_PIXELS)] = np.nan
    return rays.reshape(camera.height, camera.width, 2).astype(np.float32)


def rectified_pixels(camera: CameraModel, rectified: CameraModel | None = None) -> NDArray[np.float32]:
    """Column and row that each pixel has in the rectified image, float32 [H,W,2]: a table for events.

    NaN where the lens model has no ray. The rectified image has the K of ``rectified``, or without it that of the
    camera, as in `CameraModel.rectify`.
    """
    K = (rectified or camera).K
    return (pixel_rays(camera) * K[[0, 1], [0, 1]] + K[:2, 2]).astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def project_rays(rays, lens):  # type: ignore[no-untyped-def]
    """Pixels float64 [N,2] (column, row) of rays [N,2]; NaN where the lens model does not reach."""
    pixels = np.empty((rays.shape[0], 2), np.float64)
    for i in range(rays.shape[0]):
        pixels[i, 0], pixels[i, 1] = to_pixel(rays[i, 0], rays[i, 1], lens)
    return pixels
