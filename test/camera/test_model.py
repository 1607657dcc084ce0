"""Calibration: what is refused, what binning and region of interest do, rectification against OpenCV's projection."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import CalibrationError, InputError

K = np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
D = (-0.3, 0.1, 0.001, -0.002, 0.02)


def camera_info(**changes):
    fields = {
        "k": K.ravel(),
        "d": D,
        "p": np.hstack([K + 1, np.zeros((3, 1))]).ravel(),
        "width": 320,
        "height": 240,
        "distortion_model": "plumb_bob",
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"k": np.zeros(9)}, "not_calibrated"),
        ({"k": -K.ravel()}, "bad_calibration"),
        ({"k": np.full(9, np.nan)}, "bad_calibration"),
        ({"width": 0}, "bad_calibration"),
        ({"distortion_model": "made_up"}, "bad_calibration"),
        ({"d": D[:3]}, "bad_calibration"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(changes, reason):
    with pytest.raises(CalibrationError) as error:
        CameraModel.from_camera_info(camera_info(**changes))
    assert error.value.reason == reason


def test_rectified_images_keep_their_projection_matrix_and_lose_the_distortion():
    model = CameraModel.from_camera_info(camera_info(), already_rectified=True)
    assert np.array_equal(model.K, K + 1)
    assert not model.is_distorted


def test_region_of_interest_and_binning_move_the_same_point_to_its_new_pixel():
    roi = SimpleNamespace(x_offset=40, y_offset=20, width=200, height=160)
    model = CameraModel.from_camera_info(camera_info(roi=roi, binning_x=2, binning_y=4))
    assert (model.width, model.height) == (100, 40)
    point = np.array([0.1, -0.05, 1.0])
    full = (K @ point)[:2]
    # A pixel covers [u - .5, u + .5): its left border moves to 0 with the region, then shrinks with the binning.
    expected = (full - (40, 20) + 0.5) / (2, 4) - 0.5
    assert np.allclose((model.K @ point)[:2], expected)


@pytest.mark.parametrize("name, coefficients", [("plumb_bob", D), ("equidistant", (0.1, -0.02, 0.003, 0.0))])
def test_rectification_puts_a_point_where_the_pinhole_sees_it(name, coefficients):
    model = CameraModel(K, coefficients, 320, 240, name)
    point = np.array([[[0.4, -0.3, 1.0]]])
    project = cv2.fisheye.projectPoints if name == "equidistant" else cv2.projectPoints
    distorted = project(point, np.zeros(3), np.zeros(3), K, np.array(coefficients))[0].ravel()
    image = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(image, tuple(np.rint(distorted).astype(int).tolist()), 3, (255, 255, 255), -1)
    rows, columns = np.nonzero(model.rectify(image, nearest=False)[..., 0] > 127)
    expected = (K @ point.ravel())[:2]
    assert np.allclose((columns.mean(), rows.mean()), expected, atol=1.0)
    assert np.linalg.norm(expected - distorted) > 3


def test_nearest_keeps_labels_and_types():
    model = CameraModel(K, D, 320, 240)
    labels = np.random.default_rng(0).integers(0, 1000, (240, 320)).astype(np.uint16)
    rectified = model.rectify(labels, nearest=True)
    assert rectified.dtype == np.uint16
    assert set(np.unique(rectified)) <= set(np.unique(labels)) | {0}


def test_without_distortion_the_image_is_handed_back_as_it_is():
    image = np.zeros((240, 320), np.float32)
    assert CameraModel(K, (0.0,) * 5, 320, 240).rectify(image, nearest=True) is image
    assert CameraModel(K, (), 320, 240, "").rectify(image, nearest=True) is image


def test_another_size_is_refused_in_words():
    with pytest.raises(InputError, match="321x240.*320x240") as error:
        CameraModel(K, D, 320, 240).rectify(np.zeros((240, 321)), nearest=True)
    assert error.value.reason == "size_mismatch"


def test_points_become_a_depth_image_and_the_nearest_wins():
    model = CameraModel(K, (), 320, 240)
    ray = np.linalg.inv(K) @ (200, 50, 1)
    nan = (np.nan, 0, 1)
    points = np.array([ray * 2, ray * 1.5, nan, (0, 0, -1), (100, 0, 1)], np.float32)
    depth = model.depth_image(points)
    assert depth[50, 200] == pytest.approx(1.5)
    assert np.count_nonzero(depth) == 1
