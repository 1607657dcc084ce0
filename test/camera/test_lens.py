"""Rays of pixels against OpenCV's projection, and what lies outside of a lens model."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.camera.lens import lens_of, pixel_rays, project_rays
from event_sam3d_ros.camera.model import CameraModel

K = np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
LENSES = {
    "none": ("plumb_bob", ()),
    "plumb_bob": ("plumb_bob", (-0.3, 0.1, 0.001, -0.002, 0.02)),
    "four": ("plumb_bob", (-0.38, 0.19, 0.0005, 0.0007)),
    "rational_polynomial": ("rational_polynomial", (0.2, -0.1, 0.001, -0.001, 0.01, 0.4, -0.1, 0.02)),
    "equidistant": ("equidistant", (0.1, -0.02, 0.003, 0.0005)),
}


def project(name, rays):
    """OpenCV's pixels of rays [N,2]."""
    model, D = LENSES[name]
    points = np.column_stack([rays, np.ones(len(rays))])[:, None]
    function = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    return function(points, np.zeros(3), np.zeros(3), K, np.array(D or (0.0,) * 4))[0].reshape(-1, 2)


@pytest.mark.parametrize("name", LENSES)
def test_every_pixel_has_the_ray_that_opencv_projects_to_it(name):
    model, D = LENSES[name]
    rays = pixel_rays(CameraModel(K, D, 320, 240, model))
    assert rays.shape == (240, 320, 2) and rays.dtype == np.float32
    rows, columns = np.nonzero(np.isfinite(rays[..., 0]))
    assert len(rows) == 320 * 240
    pixels = project(name, rays[rows, columns].astype(float))
    assert np.abs(pixels - np.column_stack([columns, rows])).max() < 1e-3


@given(st.sampled_from(sorted(LENSES)), st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
def test_the_kernel_projects_as_opencv_does(name, x, y):
    model, D = LENSES[name]
    rays = np.array([[x, y]])
    assert np.allclose(project_rays(rays, lens_of(CameraModel(K, D, 320, 240, model))), project(name, rays), atol=1e-6)


def test_rays_beyond_the_reach_of_the_lens_model_are_not_folded_back_into_the_image():
    lens = lens_of(CameraModel(K, (-0.3, 0.0, 0.0, 0.0), 320, 240))  # r (1 - .3 r^2) turns round at r = 1.054
    assert lens[5] == pytest.approx(1 / np.sqrt(0.9))
    beyond = np.array([[1.7, 0.0]])
    assert 0 < (K[0, 0] * 1.7 * (1 - 0.3 * 1.7**2) + K[0, 2]) < 320  # where the bare formula would put it
    assert np.isnan(project_rays(beyond, lens)).all()
    assert np.isfinite(project_rays(np.array([[1.0, 0.0]]), lens)).all()
    assert np.isnan(project_rays(np.array([[np.nan, 0.0]]), lens)).all()


def test_pixels_without_a_ray_are_nan():
    # The lens turns round 0.703 focal lengths from the centre: 211 pixels, and the corners of 600x400 are further.
    camera = CameraModel([[300, 0, 300], [0, 300, 200], [0, 0, 1]], (-0.3, 0.0, 0.0, 0.0), 600, 400)
    rays = pixel_rays(camera)
    assert np.isnan(rays[0, 0]).all() and np.isnan(rays[-1, -1]).all()
    assert np.isfinite(rays[200, 300 - 205 : 300 + 205]).all()
