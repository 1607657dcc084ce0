"""Sphere tracing of a shape's distance grid, for many poses at once, with soft silhouettes.

Frames: object points x in grid units map to the camera's optical frame by p = R (x * scale) + t, in metres; the pixel
of p is K p / p_z, and pixel (u, v) = (0, 0) is the centre of the first pixel. Compiled for the CPU, where each ray ends
on its own: several times faster than steps over whole arrays of rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.synthetic.appearance import Light
from event_sam3d_ros.synthetic.shapes import Shape

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Rendered:
    """N pictures, float32: rgb (N, H, W, 3) linear light; alpha (N, H, W) the object's coverage in [0, 1]; depth
    (N, H, W) metres of the object along the optical axis, inf where alpha is zero."""

    rgb: Float
    alpha: Float
    depth: Float


@njit(cache=True, nogil=True, fastmath=True, inline="always")
def _distance(sdf, x, y, z):  # type: ignore[no-untyped-def]
    """Trilinear sample of the grid (R, R, R) over [-1, 1]^3; beyond it the border's value."""
    last = sdf.shape[0] - 1
    half = np.float32(0.5 * sdf.shape[0])
    one, zero, end = np.float32(1.0), np.float32(0.0), np.float32(last - 1e-3)
    x = min(max((x + one) * half - np.float32(0.5), zero), end)
    y = min(max((y + one) * half - np.float32(0.5), zero), end)
    z = min(max((z + one) * half - np.float32(0.5), zero), end)
    i, j, k = int(x), int(y), int(z)
    a, b, c = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    low = (sdf[i, j, k] * (one - c) + sdf[i, j, k + 1] * c) * (one - b) + (
        sdf[i, j + 1, k] * (one - c) + sdf[i, j + 1, k + 1] * c
    ) * b
    high = (sdf[i + 1, j, k] * (one - c) + sdf[i + 1, j, k + 1] * c) * (one - b) + (
        sdf[i + 1, j + 1, k] * (one - c) + sdf[i + 1, j + 1, k + 1] * c
    ) * b
    return low * (one - a) + high * a


@njit(cache=True, nogil=True, fastmath=True)
def _trace(sdf, half, origins, from_pixel, boxes, focal, width, height):  # type: ignore[no-untyped-def]
    """Coverage and ray parameter (N, H, W) of the first hit, or of where a ray comes nearest to the surface.

    The solid is made half a pixel thinner (at the ray's depth), so that a ray that hits it covers its pixel fully, and
    one that misses by up to a pixel covers a part: unbiased to the true silhouette. Steps are 5 % shorter than the
    distance, because trilinear interpolation and blended distances overestimate a little.
    """
    count = origins.shape[0]
    cover = np.zeros((count, height, width), np.float32)
    parameter = np.zeros((count, height, width), np.float32)
    for n in range(count):
        ox, oy, oz = origins[n]
        m = from_pixel[n]
        for v in range(max(boxes[n, 1], 0), min(boxes[n, 3], height - 1) + 1):
            for u in range(max(boxes[n, 0], 0), min(boxes[n, 2], width - 1) + 1):
                dx = m[0, 0] * u + m[0, 1] * v + m[0, 2]
                dy = m[1, 0] * u + m[1, 1] * v + m[1, 2]
                dz = m[2, 0] * u + m[2, 1] * v + m[2, 2]
                near, far = np.float32(0.0), np.float32(1e9)
                for origin, direction, reach in ((ox, dx, half[0]), (oy, dy, half[1]), (oz, dz, half[2])):
                    slope = np.float32(1.0) / (direction if abs(direction) > 1e-9 else np.float32(1e-9))
                    first, second = (-reach - origin) * slope, (reach - origin) * slope
                    near = max(near, min(first, second))
                    far = min(far, max(first, second))
                stride = np.float32(0.95) / np.sqrt(dx * dx + dy * dy + dz * dz)
                t, best, best_t = near, np.float32(1e9), near
                for _ in range(96):
                    if t >= far:
                        break
                    distance = _distance(sdf, ox + dx * t, oy + dy * t, oz + dz * t)
                    pixel = t / focal
                    if distance < best * pixel:
                        best, best_t = distance / pixel, t
                        if best < -0.4:
                            best = np.float32(-0.5)
                            break
                    t += max(distance + np.float32(0.5) * pixel, np.float32(0.1) * pixel) * stride
                cover[n, v, u] = min(max(np.float32(0.5) - best, np.float32(0.0)), np.float32(1.0))
                parameter[n, v, u] = best_t
    return cover, parameter


@njit(cache=True, nogil=True, fastmath=True)
def _surface(sdf, origins, from_pixel, parameter, hits):  # type: ignore[no-untyped-def]
    """Point, unit normal and ray direction (M, 3) and ray parameter on the surface (M,) at flat pixel indices (M,)."""
    _, height, width = parameter.shape
    points = np.empty((hits.size, 3), np.float32)
    normals = np.empty((hits.size, 3), np.float32)
    directions = np.empty((hits.size, 3), np.float32)
    depths = np.empty(hits.size, np.float32)
    step = np.float32(1.5 / sdf.shape[0])
    for i in range(hits.size):
        n, rest = divmod(hits[i], height * width)
        v, u = divmod(rest, width)
        t = parameter[n, v, u]
        ox, oy, oz = origins[n]
        m = from_pixel[n]
        dx = m[0, 0] * u + m[0, 1] * v + m[0, 2]
        dy = m[1, 0] * u + m[1, 1] * v + m[1, 2]
        dz = m[2, 0] * u + m[2, 1] * v + m[2, 2]
        x, y, z = ox + dx * t, oy + dy * t, oz + dz * t
        nx = _distance(sdf, x + step, y, z) - _distance(sdf, x - step, y, z)
        ny = _distance(sdf, x, y + step, z) - _distance(sdf, x, y - step, z)
        nz = _distance(sdf, x, y, z + step) - _distance(sdf, x, y, z - step)
        inverse = np.float32(1.0) / (np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-9))
        nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
        # Rays end half a pixel inside; one Newton step takes the point onto the surface.
        distance = min(max(_distance(sdf, x, y, z), np.float32(-0.1)), np.float32(0.1))
        t -= distance / min(nx * dx + ny * dy + nz * dz, np.float32(-0.2))
        points[i, 0], points[i, 1], points[i, 2] = ox + dx * t, oy + dy * t, oz + dz * t
        normals[i, 0], normals[i, 1], normals[i, 2] = nx, ny, nz
        directions[i, 0], directions[i, 1], directions[i, 2] = dx, dy, dz
        depths[i] = t
    return points, normals, directions, depths


def _boxes(rotation: np.ndarray, translation: np.ndarray, half: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Bounding rectangles (N, 4) int64 u0 v0 u1 v1 (inclusive) of the projected boxes of half sides `half` metres."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = (signs * half) @ rotation.transpose(0, 2, 1) + translation[:, None]
    if corners[..., 2].min() <= 0:
        raise InputError("the object reaches behind the camera: move it away from it", reason="behind_camera")
    projected = corners @ intrinsics.T
    pixel = projected[..., :2] / projected[..., 2:]
    return np.concatenate([np.floor(pixel.min(axis=1)) - 1, np.ceil(pixel.max(axis=1)) + 1], axis=1).astype(np.int64)


def _unit(vectors: Float) -> Float:
    return vectors / np.sqrt(np.einsum("mi,mi->m", vectors, vectors))[:, None]


def _shade(shape: Shape, light: Light, to_light: Float, points: Float, normals: Float, directions: Float) -> Float:
    """Lambert, ambient and a weak Blinn-Phong highlight, (M, 3) linear light; `to_light` (M, 3) in the object frame."""
    to_eye = -_unit(directions)
    lambert = np.maximum(np.einsum("mi,mi->m", normals, to_light), 0)
    facing = np.maximum(np.einsum("mi,mi->m", normals, to_eye), 0)
    highlight = np.maximum(np.einsum("mi,mi->m", normals, _unit(to_light + to_eye)), 0) ** np.float32(
        shape.material.shininess
    )
    brightness = light.ambient * (0.75 + 0.25 * facing) + light.diffuse * lambert
    gloss = light.diffuse * shape.material.specular * highlight
    return shape.material.albedo(points) * brightness[:, None] + gloss[:, None]


def render(
    shape: Shape,
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    scale: float,
    intrinsics: NDArray[np.float64],
    width: int,
    height: int,
    light: Light,
    background: Float,
) -> Rendered:
    """Pictures of the shape in N poses before a background (N or 1, H, W, 3) in linear light.

    rotation (N, 3, 3) and translation (N, 3): object -> camera optical frame, metres; scale in metres per grid unit;
    intrinsics (3, 3). Raises InputError (`behind_camera`) where the object is not wholly in front
    of the camera.
    """
    half = shape.extent / 2
    focal = float(intrinsics[0, 0] + intrinsics[1, 1]) / 2
    boxes = _boxes(rotation, translation, half * scale, intrinsics)
    origins = (-np.einsum("nij,ni->nj", rotation, translation) / scale).astype(np.float32)
    from_pixel = (rotation.transpose(0, 2, 1) @ np.linalg.inv(intrinsics)).astype(np.float32)
    # Rays are followed where they pass the box by less than two pixels.
    margin = 2.0 * float(translation[:, 2].max()) / scale / focal
    reach = (half + margin).astype(np.float32)
    cover, parameter = _trace(shape.sdf, reach, origins, from_pixel, boxes, np.float32(focal), width, height)

    hits = np.flatnonzero(cover)
    points, normals, directions, depths = _surface(shape.sdf, origins, from_pixel, parameter, hits)
    to_light = (light.direction @ rotation).astype(np.float32)[hits // (height * width)]
    rgb = np.empty((*cover.shape, 3), np.float32)
    rgb[:] = background
    pixels = rgb.reshape(-1, 3)
    colour = _shade(shape, light, to_light, points, normals, directions)
    pixels[hits] += cover.reshape(-1)[hits][:, None] * (colour - pixels[hits])
    depth = np.full(cover.size, np.inf, np.float32)
    depth[hits] = depths * scale
    return Rendered(rgb, cover, depth.reshape(cover.shape))
