"""Solids: one piece, centred, with distances that sphere tracing can trust."""

import numpy as np
import pytest
from scipy import ndimage

from event_sam3d_ros.synthetic.shapes import LONGEST_SIDE, cell_centres, random_shape

SEEDS = range(500, 540)
CELL = 2 / 64


@pytest.mark.parametrize("seed", SEEDS)
def test_shape_is_one_centred_piece_of_the_right_size(seed):
    shape = random_shape(seed)
    assert shape.sdf.shape == (64, 64, 64) and shape.sdf.dtype == np.float32
    assert ndimage.label(shape.occupancy)[1] == 1
    inside = np.argwhere(shape.occupancy)
    low, high = (inside.min(axis=0) * CELL - 1), ((inside.max(axis=0) + 1) * CELL - 1)
    np.testing.assert_allclose((low + high) / 2, 0, atol=1.5 * CELL)
    np.testing.assert_allclose(high - low, shape.extent, atol=2 * CELL)
    assert shape.extent.max() == pytest.approx(LONGEST_SIDE, abs=CELL)


def test_distance_outside_is_a_bound_of_the_true_distance():
    # Few cells may exceed it: interpolation and the ellipsoid's closed form are approximations.
    for seed in SEEDS[:10]:
        shape = random_shape(seed)
        true = ndimage.distance_transform_edt(~shape.occupancy) * CELL
        outside = ~shape.occupancy
        excess = shape.sdf[outside] - true[outside]
        assert np.quantile(excess, 0.99) < 0.75 * CELL


def test_same_seed_same_shape_and_other_seed_another():
    first = random_shape(501)
    random_shape.cache_clear()
    again = random_shape(501)
    assert first is not again
    np.testing.assert_array_equal(first.sdf, again.sdf)
    np.testing.assert_array_equal(first.material.colours, again.material.colours)
    assert (random_shape(502).occupancy != first.occupancy).mean() > 0.01


def test_shapes_are_varied():
    fill = [random_shape(seed).occupancy.mean() for seed in SEEDS]
    assert np.std(fill) > 0.03
    assert len({random_shape(seed).material.multiply for seed in SEEDS}) == 2


def test_surface_points_lie_on_the_surface():
    shape = random_shape(503)
    assert 200 < len(shape.surface_points) < 700
    assert np.abs(shape.distance(shape.surface_points)).max() < 0.51 * CELL


def test_distance_between_cells_is_interpolated():
    shape = random_shape(504)
    centres = cell_centres(64).numpy().T.reshape(64, 64, 64, 3)
    between = (centres[10, 20, 30] + centres[11, 20, 30]) / 2
    expected = (shape.sdf[10, 20, 30] + shape.sdf[11, 20, 30]) / 2
    assert shape.distance(between[None])[0] == pytest.approx(expected, abs=1e-5)
