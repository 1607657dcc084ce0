"""The chains of both heads, object -> camera -> grid, checked as geometry, not as code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.sam3d.layout import (
    CropFrame,
    ObjectPose,
    decode_poses,
    encode_pose,
    object_rotation,
    turn,
    voxel_centers,
)

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


seeds = st.integers(0, 2**32 - 1)


def random_pose(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation = q * np.sign(np.diag(r))
    return ObjectPose(rotation * np.linalg.det(rotation), rng.normal(size=3), float(np.exp(rng.normal())))


@given(seeds)
def test_from_the_latents_to_the_object_and_back(seed):
    """Latents -> cube in the pointmap frame -> optical frame -> metric object frame, and all the way back."""
    rng = np.random.default_rng(seed)
    scene_scale, scene_shift = np.full(3, rng.uniform(0.1, 5)), rng.normal(size=3)
    pose = random_pose(rng)
    latents = {name: latent[None] for name, latent in encode_pose(pose, scene_scale, scene_shift).items()}
    assert {name: latent.shape for name, latent in latents.items()} == {
        "6drotation_normalized": (1, 1, 6),
        "scale": (1, 1, 3),
        "translation": (1, 1, 3),
        "translation_scale": (1, 1, 1),
    }
    (decoded,) = decode_poses(latents, scene_scale[None], scene_shift[None])
    np.testing.assert_allclose(decoded.rotation, pose.rotation, atol=1e-9)
    np.testing.assert_allclose(decoded.position, pose.position, atol=1e-9)
    assert decoded.scale == pytest.approx(pose.scale)

    cube = voxel_centers(rng.integers(0, 64, (30, 3)))
    in_pointmap = decoded.to_camera(cube)
    optical = decoded.turned()
    in_optical = optical.to_camera(cube)
    np.testing.assert_allclose(in_optical, turn(in_pointmap), atol=1e-9)
    np.testing.assert_allclose(optical.to_object(in_optical), cube, atol=1e-9)
    centred, size = optical.centred(cube)
    in_object = centred.to_object(in_optical)
    np.testing.assert_allclose(in_object.max(0), size / 2, atol=1e-9)
    np.testing.assert_allclose(in_object.min(0), -size / 2, atol=1e-9)
    np.testing.assert_allclose(centred.to_camera(in_object), in_optical, atol=1e-9)
    for rotation in (decoded.rotation, optical.rotation, centred.rotation):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)
    back = optical.turned()
    np.testing.assert_allclose(back.rotation, decoded.rotation, atol=1e-9)
    np.testing.assert_allclose(back.position, decoded.position, atol=1e-9)


def test_any_latents_make_a_rotation():
    rng = np.random.default_rng(0)
    latents = {name: rng.normal(size=(50, 1, n)) for name, n in (("6drotation_normalized", 6), ("translation", 3))}
    latents["scale"] = rng.normal(size=(50, 1, 3))
    poses = decode_poses(latents, np.ones((50, 3)), np.zeros((50, 3)))
    assert len(poses) == 50
    for pose in poses:
        np.testing.assert_allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(pose.rotation) == pytest.approx(1)


def test_an_upright_object_seen_from_the_front():
    """A pose that one can check by hand: 2 m ahead, 1 m to the right, 0.5 m below the camera, upright, 0.4 m large,
    its x axis pointing away from the camera."""
    # rows: where the camera's left, up and forward lie in the object frame (x away, y left, z up)
    rotation = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    optical = ObjectPose(rotation, np.array([-1.0, -0.5, 2.0]), 0.4).turned()
    np.testing.assert_allclose(optical.position, [1, 0.5, 2])
    np.testing.assert_allclose(optical.rotation @ [0, 0, 1], [0, -1, 0])  # up is against the optical frame's y
    np.testing.assert_allclose(optical.rotation @ [1, 0, 0], [0, 0, 1])
    np.testing.assert_allclose(optical.to_camera(np.array([0, 0, 0.5])), [1, 0.3, 2])


def test_the_scene_moves_and_scales_a_pose():
    latents = {
        "6drotation_normalized": np.zeros((1, 1, 6)),
        "scale": np.log([[[1.0, 2.0, 3.0]]]),
        "translation": np.array([[[1.0, 0.0, -1.0]]]),
    }
    (pose,) = decode_poses(latents, np.full((1, 3), 0.5), np.array([[0.0, 1.0, 2.0]]))
    np.testing.assert_allclose(pose.position, [0.5, 1.0, 1.5])
    assert pose.scale == pytest.approx(1.0)  # the mean of all three, times the scene's


def test_voxels_fill_the_cube():
    np.testing.assert_allclose(voxel_centers(np.array([0, 31, 63])), [-63 / 128, -1 / 128, 63 / 128])
    np.testing.assert_allclose(voxel_centers(np.array([0, 1]), resolution=2), [-0.25, 0.25])
