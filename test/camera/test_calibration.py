"""Calibration files: both layouts give the same cameras, and what is wrong with a file is said in one sentence."""

import copy as copy_module
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from event_sam3d_ros.camera.calibration import CameraPair, load_calibration, load_camera_info, load_rectification
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import CalibrationError

TURN = Rotation.from_rotvec((0.1, -0.2, 0.3))
SHIFT = (0.05, -0.01, 0.02)
TRANSFORM = np.eye(4)
TRANSFORM[:3, :3], TRANSFORM[:3, 3] = TURN.as_matrix(), SHIFT
D = [-0.3, 0.1, 0.001, -0.002]
OWN = {
    "event_camera": {"width": 640, "height": 480, "K": [500.0, 0, 320, 0, 501, 240, 0, 0, 1], "D": D},
    "rgb_camera": {
        "width": 800,
        "height": 600,
        "K": [[700, 0, 400], [0, 701, 300], [0, 0, 1]],
        "distortion_model": "equidistant",
        "D": [0.1, 0, 0, 0],
    },
    "rgb_from_events": {"translation": list(SHIFT), "rotation": TURN.as_quat().tolist()},
}
KALIBR = {
    "cam0": {
        "camera_model": "pinhole",
        "intrinsics": [500.0, 501, 320, 240],
        "distortion_model": "radtan",
        "distortion_coeffs": D,
        "resolution": [640, 480],
        "rostopic": "/events",
        "cam_overlaps": [1],
    },
    "cam1": {
        "camera_model": "pinhole",
        "intrinsics": [700, 701, 400, 300],
        "distortion_model": "equidistant",
        "distortion_coeffs": [0.1, 0, 0, 0],
        "resolution": [800, 600],
        "rostopic": "/camera",
        "T_cn_cnm1": TRANSFORM.tolist(),
    },
}


def written(tmp_path, content):
    path = tmp_path / "calibration.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(content, where, value):
    """A deep copy with one entry set, or taken out where the value is None."""
    copy = yaml.safe_load(yaml.safe_dump(content))
    *path, last = where.split("/")
    entry = copy
    for name in path:
        entry = entry[name]
    entry.pop(last) if value is None else entry.__setitem__(last, value)
    return copy


def check_pair(cameras, inverse=False):
    transform = np.linalg.inv(TRANSFORM) if inverse else TRANSFORM
    events, rgb = (cameras.rgb, cameras.events) if inverse else (cameras.events, cameras.rgb)
    assert np.allclose(cameras.rotation, transform[:3, :3]) and np.allclose(cameras.translation, transform[:3, 3])
    assert (events.width, events.height, events.model, events.D.tolist()) == (640, 480, "plumb_bob", D)
    assert (rgb.width, rgb.height, rgb.model, rgb.D.tolist()) == (800, 600, "equidistant", [0.1, 0, 0, 0])
    assert np.array_equal(events.K, [[500, 0, 320], [0, 501, 240], [0, 0, 1]])
    assert np.array_equal(rgb.K, [[700, 0, 400], [0, 701, 300], [0, 0, 1]])


def test_both_layouts_give_the_same_cameras(tmp_path):
    check_pair(load_calibration(written(tmp_path, OWN)))
    as_matrix = changed(OWN, "rgb_from_events/rotation", TURN.as_matrix().ravel().tolist())
    check_pair(load_calibration(written(tmp_path, as_matrix)))
    check_pair(load_calibration(written(tmp_path, KALIBR)))


def test_the_names_pick_the_cameras_of_a_chain(tmp_path):
    check_pair(load_calibration(written(tmp_path, KALIBR), "cam1", "cam0"), inverse=True)
    chain = {**KALIBR, "cam2": {**KALIBR["cam1"]}}
    cameras = load_calibration(written(tmp_path, chain), "cam0", "cam2")
    twice = TRANSFORM @ TRANSFORM
    assert np.allclose(cameras.rotation, twice[:3, :3]) and np.allclose(cameras.translation, twice[:3, 3])


def test_a_homography_needs_no_intrinsics(tmp_path):
    matrix = [1.2, 0, 3, 0, 1.1, -4, 1e-5, 0, 1]
    content = {"homography": matrix, **{name: {"width": 64, "height": 48} for name in ("event_camera", "rgb_camera")}}
    cameras = load_calibration(written(tmp_path, content))
    assert cameras.homography.ravel().tolist() == matrix
    assert not cameras.events.is_distorted and np.array_equal(cameras.rgb.K, np.eye(3))


BAD = [
    (OWN, "rgb_camera", None, "no entry rgb_camera"),
    (OWN, "rgb_from_events", None, "no entry rgb_from_events"),
    (OWN, "event_camera/K", None, "no entry K"),
    (OWN, "event_camera/K", [1.0, 2.0], "K is .*give 9 finite numbers"),
    (OWN, "event_camera/K", ["a"] * 9, "K is .*give numbers"),
    (OWN, "event_camera/K", [float("nan")] * 9, "give 9 finite numbers"),
    (OWN, "event_camera/width", 0, "event_camera: .*0x480"),
    (OWN, "event_camera/width", 10.5, "event_camera: 10.5 x 480.0 is no size"),
    (OWN, "event_camera/distortion_model", "fov", "event_camera: distortion model 'fov'"),
    (OWN, "event_camera/intrinsics", [1], "event_camera has an entry intrinsics that means nothing: known are width"),
    (OWN, "events", {}, "the file has an entry events that means nothing"),
    (OWN, "rgb_from_events/rotation", [1, 1, 0, 0], "neither a unit quaternion"),
    (OWN, "rgb_from_events/rotation", [2, 0, 0, 0, 2, 0, 0, 0, 2], "is no rotation"),
    (OWN, "rgb_from_events/rotation", [1, 0, 0, 0, 1, 0, 0, 0, -1], "is no rotation"),
    (OWN, "rgb_from_events/translation", [1, 2], "give 3 finite numbers"),
    (OWN, "homography", [0] * 9, "homography .*has an inverse"),
    (KALIBR, "cam1", None, "no entry cam1"),
    (KALIBR, "cam0/camera_model", "omni", "cam0 has camera_model omni"),
    (KALIBR, "cam0/distortion_model", "fov", "distortion_model fov"),
    (KALIBR, "cam0/intrinsics", None, "no entry intrinsics"),
    (KALIBR, "cam0/distortion_coeffs", [1.0], "give 4 finite numbers"),
    (KALIBR, "cam1/T_cn_cnm1", None, "no entry T_cn_cnm1"),
    (KALIBR, "cam1/T_cn_cnm1", [[0] * 4] * 4, "T_cn_cnm1 of cam1 is no rigid transform"),
]


@pytest.mark.parametrize("content, where, value, sentence", BAD)
def test_a_bad_entry_is_named_with_its_file(tmp_path, content, where, value, sentence):
    path = written(tmp_path, changed(content, where, value))
    with pytest.raises(CalibrationError, match=f"calibration {path}: .*{sentence}") as error:
        load_calibration(path)
    assert error.value.reason == "bad_calibration"


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "neither event_camera"),
        ("[1, 2]", "neither event_camera"),
        ("a: [1", "is not YAML"),
        ("\x00", "is not YAML"),
        ("cam0: 3", "no entry cam0 with entries"),
    ],
)
def test_what_is_no_calibration_is_said_to_be_none(tmp_path, content, sentence):
    with pytest.raises(CalibrationError, match=sentence) as error:
        load_calibration(written(tmp_path, content))
    assert error.value.reason == "bad_calibration"


def test_files_that_cannot_be_read_and_cameras_that_kalibr_does_not_name(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(CalibrationError, match="can't be read") as error:
            load_calibration(path)
        assert error.value.reason == "no_calibration"
    with pytest.raises(CalibrationError, match="'camera' is no camera of a Kalibr file|no entry camera"):
        load_calibration(written(tmp_path, KALIBR), "camera")


def test_a_pair_checks_what_it_is_given():
    camera = CameraModel([[60, 0, 32], [0, 60, 24], [0, 0, 1]], (), 64, 48)
    with pytest.raises(CalibrationError, match="no translation"):
        CameraPair(camera, camera, np.eye(3), (0, np.nan, 0))
    with pytest.raises(CalibrationError, match="no rotation"):
        CameraPair(camera, camera, np.eye(4), (0, 0, 0))
    with pytest.raises(CalibrationError, match="100000x48 pixels is none"):
        CameraPair(camera, CameraModel(camera.K, (), 100_000, 48), np.eye(3), (0, 0, 0))
    with pytest.raises(CalibrationError, match="16000x16000 pixels is none, or too large: .* 34 million"):
        CameraPair(camera, CameraModel(camera.K, (), 16_000, 16_000), np.eye(3), (0, 0, 0))


ROS = {
    "image_width": 640,
    "image_height": 480,
    "camera_matrix": {"rows": 3, "cols": 3, "data": [500.0, 0, 320, 0, 501, 240, 0, 0, 1]},
    "distortion_model": "plumb_bob",
    "distortion_coefficients": {"rows": 1, "cols": 4, "data": D},
}


def test_one_camera_is_read_as_ros_writes_it(tmp_path):
    camera = load_camera_info(written(tmp_path, ROS))
    assert (camera.width, camera.height, camera.D.tolist(), camera.K[1, 1]) == (640, 480, D, 501)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("7", "it has no entries"),
        (changed(ROS, "camera_matrix", None), "no entry camera_matrix"),
        (changed(ROS, "camera_matrix/data", [1, 2]), "data is .*give 9 finite numbers"),
        (changed(ROS, "image_width", "wide"), "image_width is 'wide': give numbers"),
        (changed(ROS, "camera_matrix/data", [0] * 9), "not calibrated"),
    ],
)
def test_what_is_wrong_with_the_calibration_of_one_camera_is_said(tmp_path, content, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        load_camera_info(written(tmp_path, content))


def test_the_rectified_camera_has_the_projection_matrix_of_the_file(tmp_path):
    P = {"rows": 3, "cols": 4, "data": [450.0, 0, 318, 0, 0, 455, 241, 0, 0, 0, 1, 0]}
    camera, rectified = load_rectification(written(tmp_path, {**ROS, "projection_matrix": P}))
    assert camera.is_distorted and not rectified.is_distorted
    assert rectified.K.tolist() == [[450, 0, 318], [0, 455, 241], [0, 0, 1]]
    assert np.array_equal(load_rectification(written(tmp_path, ROS))[1].K, camera.K)
    with pytest.raises(CalibrationError, match="projection_matrix.*not calibrated"):
        load_rectification(written(tmp_path, {**ROS, "projection_matrix": {"data": [0] * 12}}))
    with pytest.raises(CalibrationError, match="640x400000000 pixels is none"):
        load_rectification(written(tmp_path, {**ROS, "image_height": 400_000_000}))
    turned = {"data": [0, -1, 0, 1, 0, 0, 0, 0, 1]}
    with pytest.raises(CalibrationError, match="as of a stereo camera"):
        load_rectification(written(tmp_path, {**ROS, "rectification_matrix": turned}))


def test_the_layout_in_the_documentation_can_be_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs/cameras.md").read_text()
    cameras = load_calibration(written(tmp_path, text.split("```yaml\n")[1].split("```")[0]))
    assert (cameras.events.width, cameras.rgb.width, cameras.translation[0]) == (640, 1280, 0.08)


LEAVES = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=5), inner), max_leaves=12
)
PLACES = [
    *((OWN, place) for place in ("event_camera", "rgb_camera/K", "rgb_camera/D", "rgb_from_events/rotation")),
    *((OWN, place) for place in ("event_camera/width", "event_camera/distortion_model", "homography")),
    *((KALIBR, place) for place in ("cam0", "cam1/T_cn_cnm1", "cam1/intrinsics", "cam0/distortion_coeffs")),
    *((KALIBR, place) for place in ("cam0/resolution", "cam0/camera_model", "cam1")),
]


@given(st.sampled_from(PLACES), ANYTHING)
def test_whatever_stands_in_a_file_it_is_read_or_refused(place, value):
    content, where = place
    copy = copy_module.deepcopy(content)
    *path, last = where.split("/")
    entry = copy
    for name in path:
        entry = entry[name]
    entry[last] = value
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), copy)
        try:
            cameras = load_calibration(path)
        except CalibrationError as error:
            assert str(path) in str(error) and error.reason in ("bad_calibration", "not_calibrated")
        else:
            assert cameras.events.width > 0
