"""What things look like: surface colours as a function of the object's own coordinates, light, and backgrounds.

Colours are linear light in [0, 1] until `encode_gamma` at the very end (gamma 2.2).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GAMMA = 2.2


@dataclass(frozen=True)
class Material:
    """Two colours mixed by a pattern of sine waves: solid, stripes, checker or smooth noise.

    colours: (2, 3) linear light. frequencies: (J, 3) radians per grid unit. phases: (J,). The waves are multiplied
    (checker) or summed; `contrast` is the steepness of the mix. J = 0 is one solid colour.
    """

    colours: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray
    multiply: bool
    contrast: float
    specular: float
    shininess: float

    def albedo(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colour (M, 3) at object points (M, 3) in grid units."""
        first, second = self.colours.astype(np.float32)
        if not len(self.phases):
            return np.broadcast_to(first, points.shape)
        waves = np.sin(points @ self.frequencies.T.astype(np.float32) + self.phases.astype(np.float32))
        pattern = waves.prod(axis=1) if self.multiply else waves.sum(axis=1)
        mix = 1.0 / (1.0 + np.exp(np.float32(-self.contrast) * pattern))
        return first + mix[:, None] * (second - first)


@dataclass(frozen=True)
class Light:
    """direction: (3,) unit vector towards the light, camera optical frame; strengths in linear light."""

    direction: np.ndarray
    ambient: float
    diffuse: float


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) linear-light colour, from dark grey to bright and saturated."""
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.9), rng.uniform(0.25, 1.0))
    return np.asarray(colour) ** GAMMA


def random_material(rng: np.random.Generator) -> Material:
    """Solid (35 %), stripes (20 %), checker (15 %) or smooth noise (30 %)."""
    kind = rng.choice(["solid", "stripes", "checker", "noise"], p=[0.35, 0.2, 0.15, 0.3])
    if kind == "solid":
        frequencies = np.zeros((0, 3))
    elif kind == "checker":
        frequencies = np.eye(3) * rng.uniform(4.0, 10.0)
    else:
        directions = rng.normal(size=(1 if kind == "stripes" else 4, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        frequencies = directions * rng.uniform(4.0, 14.0, (len(directions), 1))
    return Material(
        colours=np.stack([random_colour(rng), random_colour(rng)]),
        frequencies=frequencies,
        phases=rng.uniform(0, 2 * np.pi, len(frequencies)),
        multiply=kind == "checker",
        contrast=float(rng.uniform(0.7, 2.0) if kind == "noise" else rng.uniform(4.0, 20.0)),
        specular=float(rng.uniform(0.0, 0.35)),
        shininess=float(rng.uniform(8.0, 60.0)),
    )


def random_light(rng: np.random.Generator) -> Light:
    """A light from above, the camera's side or the object's sides, never from right behind the object."""
    direction = np.array([rng.uniform(-1.0, 1.0), rng.uniform(-1.2, 0.2), rng.uniform(-1.0, -0.1)])
    ambient = float(rng.uniform(0.15, 0.4))
    return Light(direction / np.linalg.norm(direction), ambient, float(rng.uniform(0.6, 1.0)) * (1.1 - ambient))


def _smooth_noise(rng: np.random.Generator, cells: int, height: int, width: int) -> Tensor:
    """(1, height, width) float32 in about [0, 1]: random values on a coarse grid, enlarged smoothly."""
    grid = torch.from_numpy(rng.random((1, 1, cells, cells), dtype=np.float32))
    return F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0]


def random_background(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """A linear-light picture (3, height, width) float32: colour gradients, clutter with edges, and fine texture."""

    def colour() -> Tensor:
        return torch.from_numpy(random_colour(rng)).float()[:, None, None]

    picture = torch.lerp(colour(), colour(), _smooth_noise(rng, int(rng.integers(2, 6)), height, width))
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    for _ in range(int(rng.integers(0, 7))):
        cx, cy, angle = rng.random(3) * [1, 1, np.pi]
        a, b = rng.uniform(0.02, 0.35, 2)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        outside = torch.maximum(u.abs() / a, v.abs() / b) if rng.random() < 0.6 else (u / a) ** 2 + (v / b) ** 2
        cover = ((1.0 - outside) * min(a, b) * min(height, width) * 0.5 + 0.5).clamp(0, 1)
        picture = torch.lerp(picture, colour(), cover)
    if rng.random() < 0.6:
        fine = _smooth_noise(rng, int(rng.integers(12, max(13, height // 3))), height, width)
        picture = picture * torch.lerp(torch.ones(1), 2.0 * fine, float(rng.uniform(0.1, 0.7)))
    return picture.clamp(0.003, 1.0)


def encode_gamma(linear: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Linear light -> uint8 by gamma 2.2, clipped."""
    return np.rint(np.clip(linear, 0, 1) ** np.float32(1.0 / GAMMA) * np.float32(255.0)).astype(np.uint8)
