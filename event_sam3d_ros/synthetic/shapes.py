"""Procedural solids as signed-distance grids: 1-7 primitives joined, blended and cut, always one connected solid.

Coordinates are grid units: the cube [-1, 1]^3, z up. Distances are bounds (never larger than the true distance outside,
up to interpolation), which is what sphere tracing needs. Distance formulas are the usual closed forms of constructive
solid geometry; those that are not exact are scaled by their gradient so that they stay lower bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from event_sam3d_ros.synthetic.appearance import Material, random_material

LONGEST_SIDE = 1.8
"""Longest side of a shape's bounding box in grid units; leaves a margin of 0.1 to the border of the grid."""

# The cube in which shapes are put together, before they are centred and scaled.
_WORKSHOP_HALF = 1.7
_WORKSHOP_RESOLUTION = 40

Distance = Callable[[Tensor], Tensor]
"""Signed distance of points (3, M) -> (M,), negative inside."""


@dataclass(frozen=True)
class Shape:
    """A solid with its surface colours.

    sdf: (R, R, R) float32 indexed [x, y, z], sampled at cell centres of [-1, 1]^3, negative inside, grid units.
    extent: (3,) float64, sides of the solid's bounding box, which is centred at the origin; the longest is about 1.8.
    """

    sdf: np.ndarray
    extent: np.ndarray
    material: Material
    seed: int

    @property
    def resolution(self) -> int:
        return int(self.sdf.shape[0])

    @cached_property
    def occupancy(self) -> np.ndarray:
        """(R, R, R) bool, true inside."""
        return self.sdf < 0

    @cached_property
    def surface_points(self) -> np.ndarray:
        """(M, 3) float32, about 300 points on the surface, grid units; the same at every call."""
        cell = 2.0 / self.resolution
        index = np.argwhere(np.abs(self.sdf) < 0.5 * cell)
        index = index[:: max(1, len(index) // 300)]
        return ((index + 0.5) * cell - 1.0).astype(np.float32)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Trilinear signed distance at points (M, 3) in grid units -> (M,) float32."""
        index = (np.asarray(points, dtype=np.float64).T + 1.0) * (self.resolution / 2.0) - 0.5
        return ndimage.map_coordinates(self.sdf, index, order=1, mode="nearest")


def cell_centres(resolution: int, half: float = 1.0) -> Tensor:
    """Centres of the cells of the cube [-half, half]^3, (3, R^3) float32 in [x, y, z] order."""
    axis = (torch.arange(resolution, dtype=torch.float32) + 0.5) * (2.0 * half / resolution) - half
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)


# --- primitives: points (3, M) -> (M,) ------------------------------------------------------------------------------


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum(dim=0).sqrt_()


def _column(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))[:, None]


def _rounded_box(p: Tensor, half: np.ndarray, radius: float) -> Tensor:
    q = p.abs() - _column(half - radius)
    return _length(q.clamp_min(0)) + q.amax(dim=0).clamp_max(0) - radius


def _ellipsoid(p: Tensor, radii: np.ndarray) -> Tensor:
    unit = p / _column(radii)
    value = _length(unit)
    return (value - 1.0) * value / _length(unit / _column(radii)).clamp_min(1e-4)


def _superquadric(p: Tensor, radii: np.ndarray, exponent: int) -> Tensor:
    # (f - 1) / |grad f| with f the weighted p-norm: f is convex, so this never overestimates the distance outside.
    unit = p.abs() / _column(radii)
    lower = unit.pow(exponent - 1)
    total = (lower * unit).sum(dim=0).clamp_min(1e-12)
    value = total.pow(1.0 / exponent)
    gradient = _length(lower / _column(radii)) * value / total
    return (value - 1.0) / gradient.clamp_min(1e-4)


def _lengthwise(side: Tensor, height: Tensor, radius: float) -> Tensor:
    """Distance to a prism of cross-section distance `side` and distance `height` beyond its ends, edges rounded."""
    a, b = side + radius, height + radius
    return (a.clamp_min(0).square() + b.clamp_min(0).square()).sqrt_() + torch.maximum(a, b).clamp_max(0) - radius


def _cylinder(p: Tensor, radius: float, half: float, rounding: float) -> Tensor:
    return _lengthwise(_length(p[:2]) - radius, p[2].abs() - half, rounding)


def _torus(p: Tensor, ring: float, tube: float) -> Tensor:
    return ((_length(p[:2]) - ring).square() + p[2].square()).sqrt_() - tube


def _revolution(p: Tensor, radii: np.ndarray, half: float) -> Tensor:
    """Surface of revolution whose radius is piecewise linear in z through `radii` (two of them make a cone)."""
    knots = len(radii) - 1
    along = ((p[2] / half + 1.0) * (0.5 * knots)).clamp(0, knots - 1e-4)
    index = along.long()
    table = torch.as_tensor(radii, dtype=torch.float32)
    profile = torch.lerp(table[index], table[index + 1], along - index)
    slope = float(np.abs(np.diff(radii)).max()) * knots / (2.0 * half)
    return torch.maximum((_length(p[:2]) - profile) / float(np.hypot(1.0, slope)), p[2].abs() - half)


def _polygon_extrusion(p: Tensor, angles: np.ndarray, radii: np.ndarray, half: float, rounding: float) -> Tensor:
    """A convex polygon (half-planes at `radii` along `angles`) extruded along z."""
    normals = torch.as_tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1), dtype=torch.float32)
    side = (normals @ p[:2] - _column(radii)).amax(dim=0)
    return _lengthwise(side, p[2].abs() - half, rounding)


def _star_extrusion(p: Tensor, radius: float, lobes: int, depth: float, half: float) -> Tensor:
    """A star or flower r(angle) = radius (1 + depth cos(lobes angle)) extruded along z."""
    profile = radius * (1.0 + depth * torch.cos(lobes * torch.atan2(p[1], p[0])))
    side = (_length(p[:2]) - profile) / float(np.hypot(1.0, 1.5 * depth * lobes))
    return torch.maximum(side, p[2].abs() - half)


def _random_box(rng: np.random.Generator) -> Distance:
    half = rng.uniform(0.2, 0.7, 3)
    return partial(_rounded_box, half=half, radius=float(rng.uniform(0.02, 0.6) * half.min()))


def _random_ellipsoid(rng: np.random.Generator) -> Distance:
    return partial(_ellipsoid, radii=rng.uniform(0.25, 0.75, 3))


def _random_superquadric(rng: np.random.Generator) -> Distance:
    return partial(_superquadric, radii=rng.uniform(0.25, 0.7, 3), exponent=int(rng.choice([3, 4, 6])))


def _random_cylinder(rng: np.random.Generator) -> Distance:
    radius, half = float(rng.uniform(0.2, 0.6)), float(rng.uniform(0.15, 0.8))
    return partial(_cylinder, radius=radius, half=half, rounding=float(rng.uniform(0.02, 0.5) * min(radius, half)))


def _random_torus(rng: np.random.Generator) -> Distance:
    return partial(_torus, ring=float(rng.uniform(0.35, 0.6)), tube=float(rng.uniform(0.13, 0.25)))


def _random_cone(rng: np.random.Generator) -> Distance:
    radii = rng.permutation([rng.uniform(0.05, 0.25), rng.uniform(0.35, 0.65)])
    return partial(_revolution, radii=radii, half=float(rng.uniform(0.3, 0.75)))


def _random_revolution(rng: np.random.Generator) -> Distance:
    return partial(
        _revolution, radii=rng.uniform(0.15, 0.6, int(rng.integers(4, 7))), half=float(rng.uniform(0.4, 0.8))
    )


def _random_extrusion(rng: np.random.Generator) -> Distance:
    half = float(rng.uniform(0.15, 0.6))
    if rng.random() < 0.4:
        lobes, depth = int(rng.integers(3, 7)), float(rng.uniform(0.1, 0.3))
        return partial(_star_extrusion, radius=float(rng.uniform(0.4, 0.6)), lobes=lobes, depth=depth, half=half)
    corners = int(rng.integers(3, 8))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.15, 0.15, corners)) / corners
    radii = rng.uniform(0.25, 0.6) * rng.uniform(0.85, 1.15, corners)
    return partial(_polygon_extrusion, angles=angles, radii=radii, half=half, rounding=float(rng.uniform(0.01, 0.08)))


_PRIMITIVES = (
    _random_box,
    _random_ellipsoid,
    _random_superquadric,
    _random_cylinder,
    _random_torus,
    _random_cone,
    _random_revolution,
    _random_extrusion,
)

# --- putting them together ------------------------------------------------------------------------------------------


def _random_orientation(rng: np.random.Generator, upright: float) -> np.ndarray:
    """A rotation: one of the axes upright with probability `upright`, else uniform."""
    if rng.random() < upright:
        return np.roll(np.eye(3), int(rng.choice(3, p=[0.6, 0.2, 0.2])), axis=1)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def _place(
    p: Tensor, distance: Distance, rotation: np.ndarray, centre: np.ndarray, size: float, fold: np.ndarray
) -> Tensor:
    """Distance of a primitive that is scaled, rotated and moved; `fold` mirrors it in the planes x = 0 and y = 0."""
    folded = torch.stack([p[i].abs() if i < 2 and fold[i] else p[i] for i in range(3)])
    local = torch.as_tensor(rotation.T / size, dtype=torch.float32) @ (folded - _column(centre))
    return distance(local) * size


def _union(a: Tensor, b: Tensor, blend: float) -> Tensor:
    """Union; `blend` > 0 rounds the seam over about that length (polynomial smooth minimum)."""
    joined = torch.minimum(a, b)
    if blend > 0:
        joined = joined - (blend - (a - b).abs()).clamp_min(0).square() / (4.0 * blend)
    return joined


def _subtract(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, -b)


def _open_shell(p: Tensor, body: Tensor, thickness: float, top: float) -> Tensor:
    """A body hollowed to a wall of `thickness` and cut off above z = `top`: cups, bowls, open boxes."""
    return torch.maximum(_subtract(body, body + thickness), p[2] - top)


Step = Callable[[Tensor, Tensor], Tensor]
"""One construction step: points (3, M) and the distance so far (M,) -> the new distance (M,)."""


def _is_sound(distance: Tensor, previous: Tensor) -> bool:
    """True when the solid is still one piece and has kept most of what it had (on the workshop's coarse grid)."""
    side = _WORKSHOP_RESOLUTION
    solid = (distance < 0).numpy().reshape(side, side, side)
    return int(solid.sum()) > 0.35 * int((previous < 0).sum()) and ndimage.label(solid)[1] == 1


def _random_part(rng: np.random.Generator, grid: Tensor, solid: Tensor) -> Step:
    """Another primitive that begins at the surface of the solid so far, joined to it or cut out of it."""
    near_surface = torch.nonzero((solid < -0.02) & (solid > -0.2))[:, 0]
    anchor = grid[:, near_surface[int(rng.integers(len(near_surface)))]].numpy()
    fold = rng.random(2) < 0.25
    anchor = np.where(np.append(fold, False), np.abs(anchor), anchor)
    distance = _PRIMITIVES[int(rng.integers(len(_PRIMITIVES)))](rng)
    rotation = _random_orientation(rng, upright=0.65)
    size = float(rng.uniform(0.45, 0.95))
    cut, blend = rng.random() < 0.25, float(rng.uniform(0.06, 0.2)) * (rng.random() < 0.4)

    def step(p: Tensor, so_far: Tensor) -> Tensor:
        part = _place(p, distance, rotation, anchor, size, fold)
        return _subtract(so_far, part) if cut else _union(so_far, part, blend)

    return step


def _random_steps(rng: np.random.Generator) -> tuple[list[Step], Tensor]:
    """Construction steps of a connected solid and its distance on the workshop grid (M,)."""
    grid = cell_centres(_WORKSHOP_RESOLUTION, _WORKSHOP_HALF)
    body = _PRIMITIVES[int(rng.integers(len(_PRIMITIVES)))](rng)
    rotation, size = _random_orientation(rng, upright=0.9), float(rng.uniform(0.9, 1.3))
    no_fold = np.zeros(2, dtype=bool)
    steps: list[Step] = [lambda p, _: _place(p, body, rotation, np.zeros(3), size, no_fold)]
    solid = steps[0](grid, grid[0])
    candidates = int(rng.choice(7, p=[0.12, 0.2, 0.22, 0.18, 0.13, 0.09, 0.06]))
    if rng.random() < 0.2:
        thickness = float(rng.uniform(0.17, 0.25))
        z_top = float(grid[2][solid < 0].max())
        shell = partial(_open_shell, thickness=thickness, top=z_top - 1.3 * thickness)
        hollow = shell(grid, solid)
        if _is_sound(hollow, solid):
            steps.append(lambda p, so_far: shell(p, so_far))
            solid = hollow
    for _ in range(candidates):
        step = _random_part(rng, grid, solid)
        changed = step(grid, solid)
        if _is_sound(changed, solid):
            steps.append(step)
            solid = changed
    return steps, solid


def _bounds(points: Tensor, distance: Tensor, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the solid.

    An inside point at depth d has solid around it up to d, so point + depth reaches the surface between cells.
    """
    shell = (distance < 0) & (distance > -1.5 * cell)
    inside, depth = points[:, shell], -distance[shell]
    return (inside - depth).amin(dim=1).double().numpy(), (inside + depth).amax(dim=1).double().numpy()


def _evaluate(steps: list[Step], points: Tensor) -> Tensor:
    distance = points[0]
    for step in steps:
        distance = step(points, distance)
    return distance


def _sample(
    steps: list[Step], resolution: int, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Distance grid (R, R, R) and extent (3,) of the solid, centred and scaled; low, high: its rough box before.

    Away from the surface the distance is interpolated from a grid of half the resolution, which saves most of the time.
    The workshop's grid misses thin ends, so the box is measured again and the sampling repeated until it fits; a step
    that leaves more than one piece on the fine grid is taken back. None for the rare solid whose box does not settle.
    """
    coarse, points, cell = cell_centres(resolution // 2), cell_centres(resolution), 2.0 / resolution
    for attempt in range(10):
        centre, enlarge = (low + high) / 2, LONGEST_SIDE / float((high - low).max())
        distance = _evaluate(steps, coarse / enlarge + _column(centre)) * enlarge
        if attempt:
            blocks = distance.reshape(1, 1, *[resolution // 2] * 3)
            distance = F.interpolate(blocks, scale_factor=2, mode="trilinear", align_corners=False).reshape(-1)
            band = torch.nonzero(distance.abs() < 4 * cell)[:, 0]
            distance[band] = _evaluate(steps, points[:, band] / enlarge + _column(centre)) * enlarge
        lower, upper = _bounds(points if attempt else coarse, distance, cell if attempt else 2 * cell)
        low, high = lower / enlarge + centre, upper / enlarge + centre
        off = max(np.abs(lower + upper).max() / 2, abs((upper - lower).max() - LONGEST_SIDE))
        if not attempt or off > 0.4 * cell:
            continue
        sdf = distance.reshape(resolution, resolution, resolution).numpy()
        if ndimage.label(sdf < 0)[1] == 1:
            return sdf, upper - lower
        if len(steps) == 1:
            break
        steps = steps[:-1]
    return None


@lru_cache(maxsize=16)
def random_shape(seed: int, resolution: int = 64) -> Shape:
    """The solid of this seed: upright, connected, centred and of longest side 1.8 to within a cell of the grid."""
    rng = np.random.default_rng((seed, 0x5A))
    workshop = cell_centres(_WORKSHOP_RESOLUTION, _WORKSHOP_HALF)
    sampled = None
    with torch.no_grad():
        while sampled is None:
            steps, coarse = _random_steps(rng)
            low, high = _bounds(workshop, coarse, 2 * _WORKSHOP_HALF / _WORKSHOP_RESOLUTION)
            sampled = _sample(steps, resolution, low, high)
    sdf, extent = sampled
    return Shape(sdf=sdf, extent=extent, material=random_material(rng), seed=seed)
