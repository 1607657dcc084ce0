"""Solids whose volume, surface and pictures are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.sam3d.layout import object_rotation

Inside = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="session")
def make_solid() -> Callable[..., Solid]:
    """A solid from ``inside`` ((N, 3) in [-1, 1] -> (N,) bool), which reaches from -1 to 1 along some axis."""

    def make(inside: Inside, position=(0.1, 0.05, 1.0), up=(0.1, -1.0, -0.3), size=(0.2, 0.2, 0.2)) -> Solid:
        cells = (np.indices((64,) * 3).reshape(3, -1).T + 0.5) / 32 - 1
        rotation = object_rotation(np.array(up), np.array(position))
        return Solid(inside(cells).reshape((64,) * 3), rotation, np.array(position), np.array(size))

    return make


@pytest.fixture(scope="session")
def sphere(make_solid) -> Solid:
    """Radius 0.1 m."""
    return make_solid(lambda p: (p**2).sum(1) <= 1)


@pytest.fixture(scope="session")
def cube(make_solid) -> Solid:
    """Side 0.2 m."""
    return make_solid(lambda p: np.ones(len(p), dtype=bool))


@pytest.fixture(scope="session")
def hammer(make_solid) -> Solid:
    """No symmetry: a shaft along x with a head at one end, which leans to one side."""
    shaft = np.array([1.0, 0.25, 0.25])

    def inside(p: np.ndarray) -> np.ndarray:
        head = (p[:, 0] > 0.5) & (p[:, 1] > -0.3) & (p[:, 1] < 0.75) & (np.abs(p[:, 2]) < 0.5)
        return (np.abs(p) < shaft).all(1) | head

    return make_solid(inside)


@pytest.fixture(scope="session")
def K() -> np.ndarray:
    """Camera matrix of a 346 x 260 picture."""
    return np.array([[400.0, 0, 172.5], [0, 400, 129.5], [0, 0, 1]])
