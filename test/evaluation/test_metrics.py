import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation import metrics
from event_sam3d_ros.evaluation.solids import Solid

angles = st.floats(-180, 180)
shifts = st.tuples(*[st.floats(-0.3, 0.3)] * 3)


def moved(solid: Solid, rotation=None, shift=(0, 0, 0), scale=1.0) -> Solid:
    """The solid turned about the camera, shifted and scaled about the camera, in this order."""
    rotation = np.eye(3) if rotation is None else rotation
    return Solid(
        solid.occupancy,
        rotation @ solid.rotation,
        scale * (rotation @ solid.position + np.array(shift)),
        scale * solid.size,
    )


def test_a_solid_agrees_with_itself(hammer, K):
    mask = metrics.silhouette(hammer, K, 346, 260).astype(np.uint8)
    result = metrics.evaluate(dataclasses.replace(hammer), hammer, mask, K, metric=True, subset=True)
    perfect = dict.fromkeys(("iou", "viou_surface", "f1@0.01", "f1@0.05", "iou_camera", "mask_iou", "add_s@0.1"), 1.0)
    perfect |= {"iou3d_box": 1.0, "chamfer": 0.0, "add_s": 0.0, "up_error_deg": 0.0, "emd": 0.0, "icp_rot": 0.0}
    assert result == pytest.approx(perfect, abs=1e-5)


def test_metric_columns_only_where_depth_gives_the_scale(hammer, K):
    mask = metrics.silhouette(hammer, K, 346, 260).astype(np.uint8)
    without = metrics.evaluate(hammer, hammer, mask, K)
    assert {"add_s", "add_s@0.1", "iou3d_box", "emd", "icp_rot"}.isdisjoint(without)


def test_sphere_against_cube(sphere, cube):
    result = metrics.shape_metrics(sphere, cube)
    assert result["iou"] == pytest.approx(np.pi / 6, abs=0.01)
    assert metrics.shape_metrics(cube, sphere)["iou"] == pytest.approx(np.pi / 6, abs=0.01)
    # the cube's surface is 1..sqrt(3) from the centre: on average 1.2797, so 0.2797 from the sphere
    assert result["chamfer"] == pytest.approx((0.2797 + mean_distance_of_sphere_to_cube()) / 2, abs=0.02)


def mean_distance_of_sphere_to_cube() -> float:
    directions = np.random.default_rng(0).normal(size=(200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float((1 - np.abs(directions).max(1)).mean())


def test_half_a_box(make_solid, cube):
    half = make_solid(lambda p: np.abs(p[:, 2]) < 0.5, size=(0.2, 0.2, 0.1))
    assert metrics.shape_metrics(half, cube)["iou"] == pytest.approx(0.5, abs=0.02)


def test_normalisation_takes_out_the_margin_of_the_cube(make_solid, cube):
    small = make_solid(lambda p: (np.abs(p - [0.2, 0, -0.1]) < 0.5).all(1))
    assert metrics.shape_metrics(small, cube)["iou"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("angle", [8, 15])
def test_icp_turns_a_prediction_back(hammer, angle):
    turned = Solid.from_function(
        hammer.contains,
        hammer.rotation @ Rotation.from_euler("xyz", [0, 0, angle], degrees=True).as_matrix(),
        hammer.to_camera(hammer.cells),
        margin=0.005,
    )
    in_object_frame = dataclasses.replace(turned, rotation=hammer.rotation)  # hides from the second start where it was
    assert metrics.shape_metrics(in_object_frame, hammer)["iou"] > 0.85
    assert metrics.shape_metrics(turned, hammer)["iou"] > 0.93  # the camera frames still agree


def test_emd_of_a_shift_is_its_length_and_does_not_depend_on_the_order():
    points = np.random.default_rng(0).uniform(-1, 1, (600, 3))
    shift = np.array([0.02, -0.01, 0.03])  # short against the spacing of the points: each goes to its own image
    shuffled = np.random.default_rng(1).permutation(points[:512]) + shift
    assert metrics.emd(points, shuffled) == pytest.approx(np.linalg.norm(shift))
    assert metrics.emd(points, points + [5.0, 0, 0]) == pytest.approx(5)  # translation is optimal for any convex cost
    assert metrics.emd(points, points) == 0


def test_emd_sees_what_chamfer_does_not(sphere):
    """Mass in the wrong place: both sets cover the same two spots, with other shares of the points."""
    near = np.zeros((512, 3))
    half, tenth = near.copy(), near.copy()
    half[:256, 0] = 1.0
    tenth[:51, 0] = 1.0
    assert metrics.emd(half, tenth) == pytest.approx((256 - 51) / 512)


@pytest.mark.parametrize("angle", [0, 12, 25])
def test_icp_rot_is_the_angle_that_is_left(hammer, angle):
    turn = Rotation.from_euler("xyz", [0, angle * 0.6, angle * 0.8], degrees=True)
    turned = dataclasses.replace(hammer, rotation=hammer.rotation @ turn.as_matrix())
    expected = np.rad2deg(turn.magnitude())
    assert metrics.icp_rot(turned, hammer) == pytest.approx(expected, abs=3)
    assert metrics.shape_metrics(turned, hammer, subset=True)["icp_rot"] == metrics.icp_rot(turned, hammer)


def test_a_sphere_has_no_rotation_to_correct_by_much(sphere):
    turn = Rotation.from_euler("xyz", [40, 50, 60], degrees=True).as_matrix()
    turned = dataclasses.replace(sphere, rotation=sphere.rotation @ turn)
    assert metrics.icp_rot(turned, sphere) < 5  # the paper's way: a symmetric object looks right as it stands


def test_surface_voxels_of_nested_spheres_and_of_a_shift(make_solid, sphere, cube):
    """Voxels of the surface, not of the volume: 64 cells along [-1, 1]."""
    assert metrics.shape_metrics(sphere, cube)["viou_surface"] < 0.15  # volumes: 0.52
    points = sphere.normalised.points
    cell = 2 / metrics.VOXELS
    assert metrics._voxel_iou(points, points) == 1
    assert metrics._voxel_iou(points, points + [3 * cell, 0, 0]) < 0.25
    plane = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).reshape(-1, 2) * cell - 1 + cell / 2
    flat = np.column_stack([plane, np.full(len(plane), cell / 2)])
    half = flat[flat[:, 0] < 0]
    assert metrics._voxel_iou(flat, half) == pytest.approx(0.5)
    assert metrics._voxel_iou(flat, flat + [0, 0, cell]) == 0


@settings(max_examples=6)
@given(angles, angles, shifts, st.floats(0.3, 3))
def test_shape_metrics_ignore_pose_and_scale(hammer, cube, yaw, pitch, shift, scale):
    rotation = Rotation.from_euler("yx", [yaw, pitch], degrees=True).as_matrix()
    assert metrics.shape_metrics(moved(hammer, rotation, shift, scale), hammer)["iou"] == pytest.approx(1, abs=1e-6)


@settings(max_examples=6)
@given(st.floats(0.4, 2.5))
def test_iou_camera_ignores_the_scale_alone(hammer, scale):
    assert metrics.iou_camera(moved(hammer, scale=scale), hammer) > 0.97
    aside = moved(hammer, shift=(0.1, 0, 0), scale=scale)
    assert metrics.iou_camera(aside, hammer) < 0.6


@settings(max_examples=6)
@given(angles, angles, angles, shifts)
def test_metric_distances_do_not_depend_on_the_camera(hammer, cube, a, b, c, shift):
    rotation = Rotation.from_euler("xyz", [a, b, c], degrees=True).as_matrix()
    pairs = [(hammer, cube), (moved(hammer, rotation, shift), moved(cube, rotation, shift))]
    for function in (metrics.add_s, metrics.iou3d_box, metrics.up_error_deg):
        first, second = (function(*pair) for pair in pairs)
        assert first == pytest.approx(second, abs=1e-3)


def test_add_s_of_spheres_in_one_another(make_solid, sphere):
    larger = make_solid(lambda p: (p**2).sum(1) <= 1, size=(0.26, 0.26, 0.26))
    assert metrics.add_s(larger, sphere) == pytest.approx(0.03 / 0.2, abs=0.01)
    assert metrics.depth_metrics(larger, sphere)["add_s@0.1"] == 0
    assert metrics.depth_metrics(make_solid(lambda p: (p**2).sum(1) <= 1, size=(0.23,) * 3), sphere)["add_s@0.1"] == 1
    near = moved(sphere, shift=(0.01, 0, 0))
    assert metrics.depth_metrics(near, sphere)["add_s@0.1"] == 1


def test_box_iou_of_shifted_and_turned_cubes(cube):
    along = cube.rotation @ np.array([0.1, 0, 0])
    assert metrics.iou3d_box(moved(cube, shift=along), cube) == pytest.approx(1 / 3, abs=0.01)
    assert metrics.iou3d_box(moved(cube, shift=(0.5, 0, 0)), cube) == 0
    turn = cube.rotation @ Rotation.from_euler("z", 45, degrees=True).as_matrix()
    octagon = 2 * (np.sqrt(2) - 1)  # share of a square that the square turned by 45 degrees covers
    turned = dataclasses.replace(cube, rotation=turn)
    assert metrics.iou3d_box(turned, cube) == pytest.approx(octagon / (2 - octagon), abs=0.01)


@given(st.floats(0, 180))
def test_up_error(cube, angle):
    tilt = Rotation.from_euler("x", angle, degrees=True).as_matrix()
    tilted = dataclasses.replace(cube, rotation=cube.rotation @ tilt)
    assert metrics.up_error_deg(tilted, cube) == pytest.approx(angle, abs=1e-3)
    spun = cube.rotation @ Rotation.from_euler("z", angle, degrees=True).as_matrix()
    assert metrics.up_error_deg(dataclasses.replace(cube, rotation=spun), cube) == pytest.approx(0, abs=1e-3)


def test_silhouette_of_a_sphere(make_solid, K):
    ball = make_solid(lambda p: (p**2).sum(1) <= 1, position=(0, 0, 1.0))
    picture = metrics.silhouette(ball, K, 346, 260)
    rows, columns = np.nonzero(picture)
    radius = 400 * 0.1 / np.sqrt(1 - 0.1**2)
    assert picture.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert (columns.mean(), rows.mean()) == pytest.approx((172.5, 129.5), abs=0.2)


def test_mask_iou_against_half_of_the_silhouette(sphere, K):
    mask = metrics.silhouette(sphere, K, 346, 260).astype(np.uint8)
    half = mask.copy()
    half[:, : int(np.nonzero(mask)[1].mean() + 0.5)] = 0
    assert metrics.mask_iou(sphere, half, K) == pytest.approx(0.5, abs=0.02)
    assert metrics.mask_iou(sphere, mask * 7, K) == 1


def test_silhouette_beyond_the_picture_and_behind_the_camera(sphere, K):
    def at(*position):
        return dataclasses.replace(sphere, position=np.array(position))

    assert not metrics.silhouette(at(5.0, 0, 1), K, 346, 260).any()
    assert not metrics.silhouette(at(0, 0, -1.0), K, 346, 260).any()
    assert metrics.silhouette(at(0, 0, 0.05), K, 346, 260).all()


def test_bad_input_is_refused(sphere, K):
    mask = np.zeros((260, 346), np.uint8)
    with pytest.raises(InputError) as refused:
        metrics.mask_iou(sphere, mask, K)
    assert refused.value.reason == "empty_mask"
    with pytest.raises(InputError) as refused:
        metrics.mask_iou(sphere, np.ones((2, 3, 4), np.uint8), K)
    assert refused.value.reason == "bad_mask"
    with pytest.raises(InputError) as refused:
        metrics.mask_iou(sphere, mask + 1, np.zeros((3, 3)))
    assert refused.value.reason == "bad_intrinsics"
