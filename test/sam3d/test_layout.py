"""The chain object -> camera -> crop -> grid, checked as geometry, not as code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.sam3d.layout import CropFrame, object_rotation

frames = st.builds(
    lambda f, cx, cy, x, y, side: CropFrame(
        np.array([[f, 0, cx], [0, f * 1.02, cy], [0, 0, 1.0]]), (x, y), side, depth_range=1.25
    ),
    st.floats(150, 800),
    st.floats(100, 250),
    st.floats(80, 180),
    st.floats(-20, 366),
    st.floats(-20, 280),
    st.floats(8, 200),
)
vectors = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.1)


@given(frames)
def test_the_crop_frame_is_a_rotation_onto_the_centre_ray(frame):
    rotation = frame.rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    ray = np.linalg.inv(frame.K) @ [*frame.center, 1]
    np.testing.assert_allclose(rotation[:, 2], ray / np.linalg.norm(ray), atol=1e-9)


@given(frames, st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_grid_to_camera_and_back(frame, reference, seed):
    uvw = np.random.default_rng(seed).uniform(-1, 1, (20, 3))
    back = frame.to_grid(frame.to_camera(uvw, reference), reference)
    np.testing.assert_allclose(back, uvw, atol=1e-7)


@given(frames, st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_a_measured_depth_gives_the_reference_back(frame, reference, seed):
    uvw = np.random.default_rng(seed).uniform(-1, 1, (20, 3))
    depth = frame.to_camera(uvw, reference)[:, 2]
    np.testing.assert_allclose(frame.reference_of(depth, uvw[:, :2], uvw[:, 2]), reference, rtol=1e-9)


def test_columns_project_onto_their_pixels():
    frame = CropFrame(np.array([[300.0, 0, 170], [0, 300, 130], [0, 0, 1]]), (220.0, 60.0), 90.0, 1.25)
    points = frame.to_camera(np.array([[1.0, -1.0, w] for w in (-1, 0, 1)]), 0.7)
    pixels = points @ frame.K.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], [[265.0, 15.0]] * 3)
    assert (np.diff(points[:, 2]) > 0).all()


@given(vectors, vectors)
def test_object_rotation_has_z_up_and_faces_along_the_ray(up, ray):
    rotation = object_rotation(up, ray)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation[:, 2], up / np.linalg.norm(up), atol=1e-9)
    assert rotation[:, 0] @ (ray / np.linalg.norm(ray)) > -1e-3


def test_looking_straight_down_takes_the_image_up_direction():
    np.testing.assert_allclose(object_rotation(np.array([0, 0, -1.0]), np.array([0, 0, 1.0]))[:, 0], [0, -1, 0])
