"""The renderer in torch, for many poses of many shapes at once on any device: on a GPU, where the other one can't run.

The same sphere tracing, half-pixel silhouettes and shading as renderer.py, step by step over all rays that are still
under way; the pictures agree up to the order of roundings. On a CPU renderer.py is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.synthetic.appearance import Light
from event_sam3d_ros.synthetic.renderer import Rendered
from event_sam3d_ros.synthetic.shapes import Shape

_STEPS = 96
_AT_ONCE = 2**22  # pixels of the pictures that `render_on` renders at a time
_CORNERS = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


@dataclass(frozen=True)
class RenderedBatch:
    """N pictures, float32 on the device: rgb (N, H, W, 3) linear light; alpha (N, H, W) the object's coverage in [0,
    1]; depth (N, H, W) metres of the object along the optical axis, inf where alpha is zero."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


class ShapeBatch:
    """Shapes on a device: S distance grids of one resolution, their materials and half sides."""

    def __init__(self, shapes: Sequence[Shape], device: str | torch.device = "cpu"):
        """InputError (`size_mismatch`) for grids of different resolutions."""
        if len({shape.resolution for shape in shapes}) != 1:
            raise InputError("shapes of a batch need grids of one resolution", reason="size_mismatch")

        def tensor(values: list[np.ndarray] | list[float]) -> Tensor:
            return torch.as_tensor(np.stack([np.asarray(v, dtype=np.float32) for v in values]), device=device)

        self.device = torch.device(device)
        self.resolution = shapes[0].resolution
        self.sdf = tensor([shape.sdf for shape in shapes]).reshape(-1)
        self.half = tensor([shape.extent / 2 for shape in shapes])
        materials = [shape.material for shape in shapes]
        self.colours = tensor([material.colours for material in materials])
        self.contrast, self.specular, self.shininess = (
            tensor([float(getattr(material, name)) for material in materials])
            for name in ("contrast", "specular", "shininess")
        )
        self.multiply = torch.tensor([material.multiply for material in materials], device=device)
        self.is_plain = torch.tensor([not len(material.phases) for material in materials], device=device)
        # Waves that a material lacks: sin(0) adds nothing, sin(pi / 2) multiplies by one.
        most = max(1, *(len(material.phases) for material in materials))
        frequencies = [np.vstack([m.frequencies, np.zeros((most - len(m.phases), 3))]) for m in materials]
        fill = [np.pi / 2 if material.multiply else 0.0 for material in materials]
        phases = [np.append(m.phases, np.full(most - len(m.phases), f)) for m, f in zip(materials, fill, strict=True)]
        self.frequencies, self.phases = tensor(frequencies), tensor(phases)

    def distance(self, which: Tensor, points: Tensor) -> Tensor:
        """Trilinear distance (M,) of shapes `which` (M,) at points (M, 3); beyond the grid its border's value."""
        resolution = self.resolution
        cells = ((points + 1) * (resolution / 2) - 0.5).clamp(0, resolution - 1 - 1e-3)
        low = cells.long()
        share = (cells - low)[:, None]
        corners = _CORNERS.to(points.device)
        i, j, k = (low[:, None] + corners).unbind(-1)
        values = self.sdf[((which[:, None] * resolution + i) * resolution + j) * resolution + k]
        return (values * torch.where(corners > 0, share, 1 - share).prod(-1)).sum(-1)

    def albedo(self, which: Tensor, points: Tensor) -> Tensor:
        """Surface colours (M, 3)."""
        waves = torch.sin((self.frequencies[which] @ points[..., None])[..., 0] + self.phases[which])
        pattern = torch.where(self.multiply[which], waves.prod(-1), waves.sum(-1))
        mix = torch.sigmoid(self.contrast[which] * pattern).masked_fill(self.is_plain[which], 0.0)
        first, second = self.colours[which].unbind(1)
        return torch.lerp(first, second, mix[:, None])


def render_on(
    device: str,
    shape: Shape,
    rotation: np.ndarray,
    translation: np.ndarray,
    scale: float,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    light: Light,
    background: np.ndarray,
) -> Rendered:
    """`renderer.render` on a torch device, some pictures at a time. ConfigurationError (`no_device`) where torch can't
    use the device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"render_device is {device}, but torch finds no CUDA device: leave render_device out", reason="no_device"
        )
    shapes, parts = ShapeBatch([shape], device), []
    pictures = np.broadcast_to(background, (len(rotation), height, width, 3))
    count = max(1, _AT_ONCE // (width * height))
    for first in range(0, len(rotation), count):
        some = slice(first, first + count)
        n = len(rotation[some])
        batch = render_batch(
            shapes,
            torch.zeros(n, dtype=torch.long),
            torch.as_tensor(rotation[some]),
            torch.as_tensor(translation[some]),
            torch.full((n,), scale, dtype=torch.float64),
            torch.as_tensor(intrinsics).expand(n, 3, 3),
            [light] * n,
            torch.from_numpy(pictures[some].copy()),
        )
        parts.append([value.cpu().numpy() for value in (batch.rgb, batch.alpha, batch.depth)])
    return Rendered(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def render_batch(
    shapes: ShapeBatch,
    which: Tensor,
    rotation: Tensor,
    translation: Tensor,
    scale: Tensor,
    intrinsics: Tensor,
    lights: Sequence[Light],
    background: Tensor,
) -> RenderedBatch:
    """N pictures, each of the shape `which` (N,) in a pose of its own before a background (N, H, W, 3), linear light.

    rotation (N, 3, 3), translation (N, 3): object -> camera optical frame, metres; scale (N,) metres per grid unit;
    intrinsics (N, 3, 3) pixels; float64 on any device. lights: N. Raises InputError (`behind_camera`) where an object
    is not wholly in front of its camera.
    """
    device = shapes.device
    which, rotation, translation, scale, intrinsics = (
        value.to(device) for value in (which, rotation, translation, scale, intrinsics)
    )
    half = shapes.half[which]
    if bool((translation[:, 2] <= scale * (rotation[:, 2].abs() * half).sum(-1)).any()):
        raise InputError("the object reaches behind the camera: move it away from it", reason="behind_camera")
    count, height, width = background.shape[:3]
    focal = (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2
    origins = (-(rotation.mT @ translation[..., None])[..., 0] / scale[:, None]).float()
    from_pixel = (rotation.mT @ torch.linalg.inv(intrinsics)).float()
    margin = (2 * translation[:, 2] / scale / focal).float()

    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).float().reshape(-1, 3)
    directions = (pixels @ from_pixel.mT).reshape(-1, 3)
    picture = torch.arange(count, device=device).repeat_interleave(height * width)
    near, far = _span(origins[picture], directions, (half + margin[:, None])[picture])
    rays = torch.nonzero(near < far)[:, 0]
    cover, parameter = _trace(
        shapes, which[picture[rays]], origins[picture[rays]], directions[rays], near[rays], far[rays],
        focal.float()[picture[rays]],
    )  # fmt: skip
    hit = cover > 0
    rays, cover, parameter = rays[hit], cover[hit], parameter[hit]
    picture = picture[rays]
    points, normals, along = _surface(shapes, which[picture], origins[picture], directions[rays], parameter)

    rgb = background.to(device, torch.float32, copy=True).reshape(-1, 3)
    colour = _shade(shapes, which, lights, rotation, picture, points, normals, directions[rays])
    rgb[rays] += cover[:, None] * (colour - rgb[rays])
    alpha, depth = torch.zeros(len(rgb), device=device), torch.full((len(rgb),), torch.inf, device=device)
    alpha[rays], depth[rays] = cover, along * scale.float()[picture]
    size = (count, height, width)
    return RenderedBatch(rgb.reshape(*size, 3), alpha.reshape(size), depth.reshape(size))


def _span(origins: Tensor, directions: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters (M,) at which rays enter and leave the boxes of half sides `reach` (M, 3) around the origin."""
    slope = 1 / torch.where(directions.abs() > 1e-9, directions, 1e-9)
    first, second = (-reach - origins) * slope, (reach - origins) * slope
    return torch.minimum(first, second).amax(-1).clamp_min(0), torch.maximum(first, second).amin(-1)


def _trace(
    shapes: ShapeBatch, which: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor]:
    """Coverage and ray parameter (M,) of the first hit, or of where a ray comes nearest; see `renderer._trace`."""
    stride = 0.95 / directions.norm(dim=-1)
    t, best, best_t = near.clone(), torch.full_like(near, 1e9), near.clone()
    active = torch.arange(len(t), device=t.device)
    for _ in range(_STEPS):
        if not len(active):
            break
        now = t[active]
        distance = shapes.distance(which[active], origins[active] + directions[active] * now[:, None])
        pixel = now / focal[active]
        ratio = distance / pixel
        nearer = ratio < best[active]
        best[active] = torch.where(nearer, ratio, best[active])
        best_t[active] = torch.where(nearer, now, best_t[active])
        t[active] = now + torch.maximum(distance + 0.5 * pixel, 0.1 * pixel) * stride[active]
        active = active[(best[active] >= -0.4) & (t[active] < far[active])]
    best = torch.where(best < -0.4, -0.5, best)
    return (0.5 - best).clamp(0, 1), best_t


def _surface(
    shapes: ShapeBatch, which: Tensor, origins: Tensor, directions: Tensor, parameter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points and unit normals (M, 3) on the surface and the ray parameter (M,) there."""
    points = origins + directions * parameter[:, None]
    steps = torch.eye(3, device=points.device) * (1.5 / shapes.resolution)
    slopes = [shapes.distance(which, points + step) - shapes.distance(which, points - step) for step in steps]
    gradient = torch.stack(slopes, dim=-1)
    normals = gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-9)
    # Rays end half a pixel inside; one Newton step takes the point onto the surface.
    distance = shapes.distance(which, points).clamp(-0.1, 0.1)
    parameter = parameter - distance / (normals * directions).sum(-1).clamp_max(-0.2)
    return origins + directions * parameter[:, None], normals, parameter


def _shade(
    shapes: ShapeBatch,
    which: Tensor,
    lights: Sequence[Light],
    rotation: Tensor,
    picture: Tensor,
    points: Tensor,
    normals: Tensor,
    directions: Tensor,
) -> Tensor:
    """Lambert, ambient and a weak Blinn-Phong highlight, (M, 3) linear light."""
    device = points.device
    towards = torch.as_tensor(np.stack([light.direction for light in lights]), device=device)
    ambient = torch.tensor([light.ambient for light in lights], device=device)[picture]
    diffuse = torch.tensor([light.diffuse for light in lights], device=device)[picture]
    to_light = (towards[:, None] @ rotation)[:, 0].float()[picture]
    to_eye = -torch.nn.functional.normalize(directions, dim=-1)
    halfway = torch.nn.functional.normalize(to_light + to_eye, dim=-1)
    lambert, facing, glance = ((normals * to).sum(-1).clamp_min(0) for to in (to_light, to_eye, halfway))
    own = which[picture]
    brightness = ambient * (0.75 + 0.25 * facing) + diffuse * lambert
    gloss = diffuse * shapes.specular[own] * glance ** shapes.shininess[own]
    return shapes.albedo(own, points) * brightness[:, None] + gloss[:, None]
