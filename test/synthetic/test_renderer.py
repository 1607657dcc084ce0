"""The renderer against what geometry says about a sphere and a box."""

import numpy as np
import pytest

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.synthetic.appearance import Light, Material
from event_sam3d_ros.synthetic.renderer import render
from event_sam3d_ros.synthetic.shapes import Shape, cell_centres

WHITE = Material(np.ones((2, 3)), np.zeros((0, 3)), np.zeros(0), False, 1.0, 0.0, 10.0)
LAMP = Light(np.array([0.0, 0.0, -1.0]), ambient=0.2, diffuse=0.8)
K = np.array([[200.0, 0, 63.5], [0, 200.0, 47.5], [0, 0, 1]])
WIDTH, HEIGHT = 128, 96
RADIUS, SCALE, DEPTH = 0.9, 0.2, 1.0
BLACK = np.zeros((1, HEIGHT, WIDTH, 3), np.float32)


def _shape(sdf, extent) -> Shape:
    return Shape(sdf.reshape(64, 64, 64).astype(np.float32), np.array(extent), WHITE, seed=0)


@pytest.fixture(scope="module")
def sphere() -> Shape:
    return _shape(np.linalg.norm(cell_centres(64).numpy(), axis=0) - RADIUS, [1.8] * 3)


@pytest.fixture(scope="module")
def box() -> Shape:
    """Half sides 0.9, 0.5, 0.2."""
    beyond = np.abs(cell_centres(64).numpy()) - np.array([[0.9], [0.5], [0.2]])
    distance = np.linalg.norm(np.maximum(beyond, 0), axis=0) + np.minimum(beyond.max(axis=0), 0)
    return _shape(distance, [1.8, 1.0, 0.4])


def _render(shape, rotation=None, position=(0.0, 0.0, DEPTH), light=LAMP, background=BLACK):
    rotation = np.eye(3) if rotation is None else rotation
    return render(shape, rotation[None], np.array([position]), SCALE, K, WIDTH, HEIGHT, light, background)


def test_sphere_has_its_outline_and_depth(sphere):
    seen = _render(sphere)
    metres = RADIUS * SCALE
    # The outline of a centred sphere is a circle whose radius is f tan(asin(r / d)).
    outline = 200.0 * np.tan(np.arcsin(metres / DEPTH))
    assert seen.alpha.sum() == pytest.approx(np.pi * outline**2, rel=0.01)
    assert (seen.alpha > 0.5).sum() == pytest.approx(np.pi * outline**2, rel=0.01)
    v, u = np.nonzero(seen.alpha[0] > 0.9)
    rays = np.stack([(u - K[0, 2]) / 200.0, (v - K[1, 2]) / 200.0, np.ones(len(u))], axis=1)
    along = rays[:, 2] * DEPTH / (rays**2).sum(axis=1)
    miss = DEPTH**2 - along**2 * (rays**2).sum(axis=1)
    expected = along - np.sqrt(np.maximum(metres**2 - miss, 0) / (rays**2).sum(axis=1))
    error = seen.depth[0, v, u] - expected
    assert np.abs(error).max() < 0.03 and np.median(np.abs(error)) < 0.0005


def test_edges_are_soft_and_the_outside_is_background(sphere):
    background = np.full((1, HEIGHT, WIDTH, 3), 0.25, np.float32)
    seen = _render(sphere, background=background)
    soft = (seen.alpha > 0.05) & (seen.alpha < 0.95)
    assert 50 < soft.sum() < 400
    outside = seen.alpha == 0
    assert np.all(seen.rgb[outside] == 0.25) and np.all(np.isinf(seen.depth[outside]))
    assert np.all(np.isfinite(seen.depth[~outside])) and np.all(np.isfinite(seen.rgb))


def test_moving_by_a_part_of_a_pixel_moves_the_alpha_centre_by_it(sphere):
    shift = 0.3 * DEPTH / 200.0
    u = np.arange(WIDTH)
    centres = []
    for x in (0.0, shift):
        alpha = _render(sphere, position=(x, 0.0, DEPTH)).alpha[0].sum(axis=0)
        centres.append((alpha * u).sum() / alpha.sum())
    assert centres[0] == pytest.approx(63.5, abs=0.03)
    assert centres[1] - centres[0] == pytest.approx(0.3, abs=0.05)


def test_the_side_towards_the_light_is_bright(sphere):
    lamp = Light(np.array([-1.0, 0.0, 0.0]), ambient=0.1, diffuse=0.9)
    grey = _render(sphere, light=lamp).rgb[0, 48, :, 0]
    assert grey[40] > 3 * grey[87]


def test_rotation_takes_object_axes_to_the_camera(box):
    # The object's long x axis turned onto the camera's y axis: the picture is taller than wide.
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for rotation, wide, tall in ((np.eye(3), 1.8, 1.0), (turn, 1.0, 1.8)):
        v, u = np.nonzero(_render(box, rotation).alpha[0] > 0.5)
        per_unit = SCALE * 200.0 / (DEPTH - 0.2 * SCALE)
        assert np.ptp(u) + 1 == pytest.approx(wide * per_unit, abs=1.5)
        assert np.ptp(v) + 1 == pytest.approx(tall * per_unit, abs=1.5)


def test_object_partly_out_of_view(sphere):
    seen = _render(sphere, position=(0.3, 0.0, DEPTH))
    assert seen.alpha[0, :, -1].max() == 1.0 and seen.alpha[0, :, :40].max() == 0.0


def test_object_behind_the_camera_is_refused(sphere):
    with pytest.raises(InputError) as error:
        _render(sphere, position=(0.0, 0.0, 0.1))
    assert error.value.reason == "behind_camera"
