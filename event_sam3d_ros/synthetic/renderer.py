"""Sphere tracing of a shape's distance grid, for many poses at once, with soft silhouettes.

Frames: object points x in grid units map to the camera's optical frame by p = R (x * scale) + t, in metres; the pixel of
p is K p / p_z, and pixel (u, v) = (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from event_sam3d_ros.synthetic.appearance import Light
from event_sam3d_ros.synthetic.shapes import Shape

# Rays of a block of pixels walk together until the surface is as near as the block is wide, then each on its own.
_BLOCK = 4
_BLOCK_CONE = 0.5 * _BLOCK * 2.0**0.5 + 1.0
_BLOCK_STEPS = 14
_PIXEL_STEPS = 16
# Trilinear interpolation and blended distances overestimate a little, so steps are a little shorter.
_RELAXATION = 0.95
# A ray this deep inside (in pixels at its depth) has full coverage.
_FULL_COVER = -0.4


@dataclass(frozen=True)
class Rendered:
    """rgb (N, H, W, 3) float32 linear light, zero where alpha is zero, not multiplied by alpha; alpha (N, H, W) float32
    coverage in [0, 1]; depth (N, H, W) float32 metres along the optical axis, inf where alpha is zero."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


@dataclass
class _Rays:
    """M rays: pose index (M,) and, in grid units of the object frame, origin (M, 3) and direction (M, 3), whose
    component along the optical axis is 1, so that the ray parameter is the depth divided by the scale."""

    pose: Tensor
    origin: Tensor
    direction: Tensor
    near: Tensor
    far: Tensor

    def select(self, index: Tensor) -> _Rays:
        return _Rays(*(getattr(self, name)[index] for name in ("pose", "origin", "direction", "near", "far")))


class _Camera:
    """The poses as seen from the object: ray origins (N, 3) and the linear map from pixel to direction (N, 3, 3)."""

    def __init__(self, rotation: Tensor, translation: Tensor, scale: float, intrinsics: np.ndarray):
        inverse = torch.as_tensor(np.linalg.inv(intrinsics), dtype=torch.float32, device=rotation.device)
        self.origin = -(translation[:, None, :] @ rotation)[:, 0] / scale
        self.from_pixel = rotation.transpose(1, 2) @ inverse
        self.focal = float(intrinsics[0, 0] + intrinsics[1, 1]) / 2

    def rays(self, pose: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        basis = self.from_pixel[pose]
        direction = basis[:, :, 0] * u[:, None] + basis[:, :, 1] * v[:, None] + basis[:, :, 2]
        return self.origin[pose], direction


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear samples of (C, R, R, R) at points (M, 3) in grid units -> (C, M)."""
    grid = points.flip(1)[None, None, None]
    return F.grid_sample(volume[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0, 0]


def _pixel_boxes(rotation: Tensor, translation: Tensor, half: Tensor, scale: float, intrinsics: np.ndarray) -> Tensor:
    """Bounding rectangles (N, 4) u0 v0 u1 v1 of the projected boxes; all corners must be in front of the camera."""
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], device=half.device)
    corners = (signs * half * scale) @ rotation.transpose(1, 2) + translation[:, None]
    projected = corners @ torch.as_tensor(intrinsics, dtype=torch.float32, device=half.device).T
    pixel = projected[..., :2] / projected[..., 2:].clamp_min(1e-3)
    return torch.cat([pixel.amin(dim=1), pixel.amax(dim=1)], dim=1)


def _block_rays(camera: _Camera, boxes: Tensor, half: Tensor, width: int, height: int) -> tuple[_Rays, Tensor, Tensor]:
    """Rays through the centres of those blocks of pixels that see the object's (enlarged) box; and block columns, rows."""
    columns = torch.arange(0, width, _BLOCK, device=boxes.device) + 0.5 * (_BLOCK - 1)
    rows = torch.arange(0, height, _BLOCK, device=boxes.device) + 0.5 * (_BLOCK - 1)
    reach = 0.5 * _BLOCK + 1.0
    in_column = (columns > boxes[:, :1] - reach) & (columns < boxes[:, 2:3] + reach)
    in_row = (rows > boxes[:, 1:2] - reach) & (rows < boxes[:, 3:] + reach)
    pose, row, column = torch.nonzero(in_row[:, :, None] & in_column[:, None, :], as_tuple=True)
    origin, direction = camera.rays(pose, columns[column], rows[row])
    centre_depth = -(origin * direction).sum(dim=1) / direction.square().sum(dim=1)
    enlarged = half + (_BLOCK_CONE * centre_depth / camera.focal)[:, None]
    safe = torch.where(direction.abs() < 1e-9, torch.full_like(direction, 1e-9), direction)
    first, second = (-enlarged - origin) / safe, (enlarged - origin) / safe
    near = torch.minimum(first, second).amax(dim=1).clamp_min(0.0)
    far = torch.maximum(first, second).amin(dim=1)
    seen = torch.nonzero(near < far)[:, 0]
    rays = _Rays(pose, origin, direction, near, far).select(seen)
    return rays, column[seen], row[seen]


def _march(volume: Tensor, rays: _Rays, focal: float, cone: float, stop: float, steps: int) -> tuple[Tensor, Tensor]:
    """Walks along the rays; returns the smallest distance to the surface in pixels (M,) and the parameter there (M,).

    Each step is as long as the solid, enlarged by `cone` pixels, is far away; a ray ends where the distance is below
    `stop` pixels, or beyond its far end.
    """
    best = torch.full_like(rays.near, torch.inf)
    best_t = rays.near.clone()
    active = torch.arange(len(best), device=best.device)
    origin, direction, t, far = rays.origin, rays.direction, rays.near, rays.far
    stride = _RELAXATION / direction.square().sum(dim=1).sqrt()
    for step in range(steps):
        distance = _sample(volume, origin + direction * t[:, None])[0]
        pixel = t / focal
        pixels = distance / pixel
        closer = pixels < best[active]
        index = active[closer]
        best[index] = pixels[closer]
        best_t[index] = t[closer]
        if step == steps - 1:
            break
        t = t + (distance + cone * pixel).clamp_min(0.1 * pixel) * stride
        keep = torch.nonzero((pixels > stop) & (t < far))[:, 0]
        if not len(keep):
            break
        active, origin, direction, t, far, stride = (a[keep] for a in (active, origin, direction, t, far, stride))
    return best, best_t


def _shade(shape: Shape, light: Light, rotation: Tensor, rays: _Rays, points: Tensor, normals: Tensor) -> Tensor:
    """Lambert, ambient and a weak Blinn-Phong highlight, (M, 3) linear light."""
    towards = torch.as_tensor(light.direction, dtype=torch.float32, device=points.device)
    to_light = (rotation.transpose(1, 2) @ towards)[rays.pose]
    to_eye = -F.normalize(rays.direction, dim=1)
    lambert = (normals * to_light).sum(dim=1).clamp_min(0)
    halfway = F.normalize(to_light + to_eye, dim=1)
    highlight = (normals * halfway).sum(dim=1).clamp_min(0).pow(shape.material.shininess) * shape.material.specular
    facing = 0.75 + 0.25 * (normals * to_eye).sum(dim=1).clamp_min(0)
    brightness = light.ambient * facing + light.diffuse * lambert
    return shape.material.albedo(points) * brightness[:, None] + (light.diffuse * highlight)[:, None]


@torch.no_grad()
def render(
    shape: Shape,
    rotation: Tensor,
    translation: Tensor,
    scale: float,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    light: Light,
) -> Rendered:
    """Pictures of the shape in N poses, on the device of `rotation`.

    rotation (N, 3, 3) and translation (N, 3) float32, object -> camera optical frame, metres; scale in metres per grid
    unit; intrinsics (3, 3) without skew. The whole object must be in front of the camera.
    """
    device, count = rotation.device, len(rotation)
    field = shape.field.to(device)
    half = torch.as_tensor(shape.extent / 2, dtype=torch.float32, device=device)
    camera = _Camera(rotation, translation, scale, intrinsics)
    boxes = _pixel_boxes(rotation, translation, half, scale, intrinsics)

    blocks, column, row = _block_rays(camera, boxes, half, width, height)
    near, start = _march(field[:1], blocks, camera.focal, -_BLOCK_CONE, _BLOCK_CONE, _BLOCK_STEPS)
    seen = torch.nonzero(near < 2 * _BLOCK_CONE)[:, 0]
    blocks = blocks.select(seen)
    blocks.near = (start[seen] - 1e-3).clamp_min(0)

    offsets = torch.arange(_BLOCK, device=device)
    shape_of_block = (len(seen), _BLOCK, _BLOCK)
    u = (column[seen, None, None] * _BLOCK + offsets).expand(shape_of_block).reshape(-1)
    v = (row[seen, None, None] * _BLOCK + offsets[:, None]).expand(shape_of_block).reshape(-1)
    in_view = torch.nonzero((u < width) & (v < height))[:, 0]
    rays = blocks.select(in_view // (_BLOCK * _BLOCK))
    u, v = u[in_view], v[in_view]
    rays.origin, rays.direction = camera.rays(rays.pose, u.float(), v.float())
    pixels, t = _march(field[:1], rays, camera.focal, 0.5, _FULL_COVER, _PIXEL_STEPS)
    cover = torch.where(pixels < _FULL_COVER + 0.1, torch.ones_like(pixels), (0.5 - pixels).clamp(0, 1))

    hit = torch.nonzero(cover > 0)[:, 0]
    rays, t = rays.select(hit), t[hit]
    flat = (rays.pose * height + v[hit]) * width + u[hit]
    points = rays.origin + rays.direction * t[:, None]
    sample = _sample(field, points)
    normals = F.normalize(sample[1:].T, dim=1)
    colour = _shade(shape, light, rotation, rays, points, normals)
    # Rays stop half a pixel off the surface; one Newton step takes the depth onto it.
    towards = (normals * rays.direction).sum(dim=1).clamp_max(-0.2)
    depth = (t - sample[0].clamp(-0.1, 0.1) / towards) * scale

    rgb = torch.zeros(count * height * width, 3, device=device).index_copy_(0, flat, colour)
    alpha = torch.zeros(count * height * width, device=device).index_copy_(0, flat, cover[hit])
    distance = torch.full((count * height * width,), torch.inf, device=device).index_copy_(0, flat, depth)
    size = (count, height, width)
    return Rendered(rgb.reshape(*size, 3), alpha.reshape(size), distance.reshape(size))
