"""An event camera and an RGB camera, and the files that say how they stand to each other.

Own layout (YAML); lengths in metres, pixels as in CameraInfo. Instead of ``rgb_from_events`` a ``homography`` may be
given, and then ``K`` may be left out of cameras without distortion:

    event_camera: {width: 640, height: 480, K: [fx, 0, cx, 0, fy, cy, 0, 0, 1], distortion_model: plumb_bob, D: [..]}
    rgb_camera: {width: ..., height: ..., K: ..., distortion_model: ..., D: ...}
    rgb_from_events:            # takes points from the event camera's optical frame to the RGB camera's
      translation: [x, y, z]
      rotation: [x, y, z, w]    # quaternion, or a 3x3 matrix as nine numbers
    homography: [nine numbers]  # takes rectified event pixels to rectified RGB pixels

Kalibr's camchain (wiki of ethz-asl/kalibr, "YAML formats"): cameras ``cam0``, ``cam1`` ... with ``camera_model``
pinhole, ``intrinsics`` [fu, fv, pu, pv], ``distortion_model`` radtan, equidistant or none, ``distortion_coeffs``,
``resolution`` [width, height] and, from the second on, ``T_cn_cnm1``: the 4x4 matrix that takes points of the camera
before to this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import CalibrationError

# The maps hold every pixel of both cameras, and take some 80 bytes for each while they are made.
_MAX_SIDE, _MAX_PIXELS = 16384, 1 << 25
_KALIBR_LENSES = {"radtan": ("plumb_bob", 4), "equidistant": ("equidistant", 4), "none": ("plumb_bob", 0)}


@dataclass(frozen=True)
class CameraPair:
    """Two calibrated cameras.

    events, rgb  the cameras
    rotation     float64 [3,3]         takes points of the event camera's optical frame to the RGB camera's:
    translation  float64 [3], metres   p_rgb = rotation p_events + translation
    homography   float64 [3,3] or None  takes rectified event pixels to rectified RGB pixels, and then the two above
                 do not count

    Raises CalibrationError ``bad_calibration`` for a matrix that is no rotation, a homography without inverse, or an
    image that is too large to be one.
    """

    events: CameraModel
    rgb: CameraModel
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    homography: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for camera in (self.events, self.rgb):
            _check_size(camera)
        object.__setattr__(self, "rotation", np.array(self.rotation, np.float64))
        object.__setattr__(self, "translation", np.array(self.translation, np.float64))
        if self.rotation.shape != (3, 3) or not (
            np.allclose(self.rotation @ self.rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(self.rotation) > 0
        ):
            raise CalibrationError(
                f"{self.rotation.tolist()} between the cameras is no rotation: give a unit quaternion or an "
                "orthonormal 3x3 matrix",
                reason="bad_calibration",
            )
        if self.translation.shape != (3,) or not np.isfinite(self.translation).all():
            raise CalibrationError(
                f"{self.translation.tolist()} is no translation between the cameras: give x, y, z in metres",
                reason="bad_calibration",
            )
        if self.homography is not None:
            object.__setattr__(self, "homography", _regular(np.array(self.homography, np.float64)))


def _check_size(camera: CameraModel) -> None:
    if max(camera.width, camera.height) > _MAX_SIDE or camera.width * camera.height > _MAX_PIXELS:
        raise CalibrationError(
            f"a camera of {camera.width}x{camera.height} pixels is none, or too large: sides up to {_MAX_SIDE} and "
            f"{_MAX_PIXELS / 1e6:.0f} million pixels are possible",
            reason="bad_calibration",
        )


def _regular(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The homography, unless it has no inverse: then CalibrationError."""
    if matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix) == 3:
        return matrix
    raise CalibrationError(
        f"the homography {matrix.tolist()} can't be used: give a 3x3 matrix that has an inverse",
        reason="bad_calibration",
    )


def load_calibration(path: str | Path, event_camera: str = "cam0", rgb_camera: str = "cam1") -> CameraPair:
    """Two cameras from a YAML file in one of the layouts above; the names pick the cameras of a Kalibr file.

    Raises CalibrationError: ``no_calibration`` where the file can't be read, ``bad_calibration`` where it can't be
    understood, saying which entry.
    """
    content = _read(path)
    try:
        if isinstance(content, Mapping) and "event_camera" in content:
            return _own(content)
        if isinstance(content, Mapping) and any(str(name).startswith("cam") for name in content):
            return _kalibr(content, event_camera, rgb_camera)
        raise CalibrationError(
            "it has neither event_camera and rgb_camera nor the cameras cam0, cam1 of Kalibr", reason="bad_calibration"
        )
    except CalibrationError as error:
        raise CalibrationError(f"calibration {path}: {error}", reason=error.reason) from error


def load_camera_info(path: str | Path) -> CameraModel:
    """One camera from a YAML file as ROS's camera_calibration writes it; raises as `load_calibration` does."""
    content = _read(path)
    try:
        if not isinstance(content, Mapping):
            raise CalibrationError("it has no entries", reason="bad_calibration")
        width, height = (_numbers(content, name, 1)[0] for name in ("image_width", "image_height"))
        K = _numbers(_mapping(content, "camera_matrix"), "data", 9)
        D = _numbers(_mapping(content, "distortion_coefficients"), "data", None)
        return _camera("the camera", K, D, width, height, str(content.get("distortion_model", "plumb_bob")))
    except CalibrationError as error:
        raise CalibrationError(f"calibration {path}: {error}", reason=error.reason) from error


def load_rectification(path: str | Path) -> tuple[CameraModel, CameraModel]:
    """A camera as `load_camera_info` reads it, and the one without distortion that sees image_proc's image_rect.

    That one has the intrinsics of ``projection_matrix``, or where the file has none those of the camera. A file of a
    stereo camera, whose image_rect is turned by ``rectification_matrix``, is ``bad_calibration``.
    """
    camera, content, K = load_camera_info(path), _read(path), None
    try:
        _check_size(camera)
        if "rectification_matrix" in content:
            turn = _numbers(_mapping(content, "rectification_matrix"), "data", 9)
            if not np.allclose(turn, np.eye(3).ravel(), atol=1e-6):
                raise CalibrationError(
                    "its rectification_matrix turns the image, as of a stereo camera: calibrate the camera by itself",
                    reason="bad_calibration",
                )
        if "projection_matrix" in content:
            K = _numbers(_mapping(content, "projection_matrix"), "data", 12).reshape(3, 4)[:, :3]
        return camera, _camera("projection_matrix", camera.K if K is None else K, (), camera.width, camera.height, "")
    except CalibrationError as error:
        raise CalibrationError(f"calibration {path}: {error}", reason=error.reason) from error


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"calibration {path} can't be read: {error}", reason="no_calibration") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise CalibrationError(f"calibration {path} is not YAML: {where}", reason="bad_calibration") from error


def _own(content: Mapping[str, Any]) -> CameraPair:
    _known(content, "the file", ("event_camera", "rgb_camera", "rgb_from_events", "homography"))
    homography = None
    rotation, translation = np.eye(3), np.zeros(3)
    if "homography" in content:
        homography = _numbers(content, "homography", 9).reshape(3, 3)
    else:
        transform = _mapping(content, "rgb_from_events")
        _known(transform, "rgb_from_events", ("rotation", "translation"))
        rotation, translation = _rotation(transform), _numbers(transform, "translation", 3)
    events, rgb = (
        _own_camera(_mapping(content, name), name, homography is not None) for name in ("event_camera", "rgb_camera")
    )
    return CameraPair(events, rgb, rotation, translation, homography)


def _own_camera(entry: Mapping[str, Any], name: str, may_lack_K: bool) -> CameraModel:
    _known(entry, name, ("width", "height", "K", "distortion_model", "D"))
    D = _numbers(entry, "D", None) if "D" in entry else ()
    K = np.eye(3) if may_lack_K and "K" not in entry and not np.any(D) else _numbers(entry, "K", 9)
    width, height = (_numbers(entry, side, 1)[0] for side in ("width", "height"))
    return _camera(name, K, D, width, height, str(entry.get("distortion_model", "plumb_bob")))


def _rotation(transform: Mapping[str, Any]) -> NDArray[np.float64]:
    values = _numbers(transform, "rotation", None)
    if values.size == 9:
        return values.reshape(3, 3)
    if values.size != 4 or abs(np.linalg.norm(values) - 1) > 1e-2:
        raise CalibrationError(
            f"rotation {values.tolist()} is neither a unit quaternion x, y, z, w nor a 3x3 matrix",
            reason="bad_calibration",
        )
    return Rotation.from_quat(values).as_matrix()


def _kalibr(content: Mapping[str, Any], event_camera: str, rgb_camera: str) -> CameraPair:
    events, rgb = (_kalibr_camera(_mapping(content, name), name) for name in (event_camera, rgb_camera))
    between = _from_first(content, rgb_camera) @ np.linalg.inv(_from_first(content, event_camera))
    return CameraPair(events, rgb, between[:3, :3], between[:3, 3])


def _kalibr_camera(entry: Mapping[str, Any], name: str) -> CameraModel:
    model, lens = str(entry.get("camera_model")), str(entry.get("distortion_model"))
    if model != "pinhole" or lens not in _KALIBR_LENSES:
        raise CalibrationError(
            f"{name} has camera_model {model} with distortion_model {lens}: calibrate it as pinhole-radtan or "
            "pinhole-equi",
            reason="bad_calibration",
        )
    ros_name, length = _KALIBR_LENSES[lens]
    D = _numbers(entry, "distortion_coeffs", length) if length else ()
    fu, fv, pu, pv = _numbers(entry, "intrinsics", 4)
    width, height = _numbers(entry, "resolution", 2)
    return _camera(name, [fu, 0, pu, 0, fv, pv, 0, 0, 1], D, width, height, ros_name)


def _from_first(content: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """The 4x4 matrix that takes points of cam0 to the camera, along the chain."""
    matrix = np.eye(4)
    if not (name.startswith("cam") and name[3:].isdigit()):
        raise CalibrationError(
            f"{name!r} is no camera of a Kalibr file: they are called cam0, cam1 ...", reason="bad_calibration"
        )
    for number in range(1, int(name[3:]) + 1):
        step = _numbers(_mapping(content, f"cam{number}"), "T_cn_cnm1", 16).reshape(4, 4)
        if not np.allclose(step[3], (0, 0, 0, 1)) or abs(np.linalg.det(step[:3, :3]) - 1) > 1e-2:
            raise CalibrationError(
                f"T_cn_cnm1 of cam{number} is no rigid transform: {step.tolist()}", reason="bad_calibration"
            )
        matrix = step @ matrix
    return matrix


def _camera(name: str, K: Any, D: Any, width: float, height: float, model: str) -> CameraModel:
    if width != int(width) or height != int(height):
        raise CalibrationError(f"{name}: {width} x {height} is no size in pixels", reason="bad_calibration")
    try:
        return CameraModel(K, D, int(width), int(height), model)
    except CalibrationError as error:
        raise CalibrationError(f"{name}: {error}", reason=error.reason) from error


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entry = content.get(name)
    if not isinstance(entry, Mapping):
        raise CalibrationError(
            f"there is no entry {name} with entries of its own (there is {', '.join(map(str, content))})",
            reason="bad_calibration",
        )
    return entry


def _known(entry: Mapping[str, Any], where: str, names: tuple[str, ...]) -> None:
    unknown = [str(name) for name in entry if name not in names]
    if unknown:
        raise CalibrationError(
            f"{where} has an entry {unknown[0]} that means nothing: known are {', '.join(names)}",
            reason="bad_calibration",
        )


def _numbers(entry: Mapping[str, Any], name: str, count: int | None) -> NDArray[np.float64]:
    """The finite numbers of an entry, nested or not, as float64 [n]."""
    try:
        values = np.array(entry[name], np.float64).ravel()
    except KeyError:
        raise CalibrationError(f"there is no entry {name}", reason="bad_calibration") from None
    except (TypeError, ValueError):
        raise CalibrationError(f"{name} is {entry[name]!r}: give numbers", reason="bad_calibration") from None
    if (count is not None and values.size != count) or not np.isfinite(values).all():
        wanted = "finite numbers" if count is None else f"{count} finite numbers"
        raise CalibrationError(f"{name} is {entry[name]!r}: give {wanted}", reason="bad_calibration")
    return values
