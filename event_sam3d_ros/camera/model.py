"""Camera calibration as a ROS CameraInfo carries it, and rectification of images that share its pixel grid.

Pixel coordinates have their origin at the centre of the upper left pixel (the convention of OpenCV and ROS). The
rectified camera keeps K and the image size: a pixel without source is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import CalibrationError, InputError, excerpt

_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}


class CameraModel:
    """Intrinsics and lens distortion of one image size.

    K       float64 [3,3]  intrinsics of the image, and of the rectified image, in pixels
    D       float64 [n]    distortion coefficients in the order of CameraInfo; empty or all zero: no distortion
    width, height          pixels
    model                  plumb_bob (k1 k2 p1 p2 [k3]), rational_polynomial (k1 k2 p1 p2 k3 k4 k5 k6) or equidistant
                           (k1..k4); may be empty where D is
    """

    def __init__(self, K: Any, D: Sequence[float], width: int, height: int, model: str = "plumb_bob") -> None:
        self.K: NDArray[np.float64] = np.array(K, np.float64).reshape(3, 3)
        self.D: NDArray[np.float64] = np.array(D, np.float64).ravel()
        self.width, self.height, self.model = int(width), int(height), model
        self._check()
        self._maps: tuple[NDArray, NDArray] | None = None

    def _check(self) -> None:
        if self.K[0, 0] == 0:
            raise CalibrationError(
                "CameraInfo says that the camera is not calibrated (K[0] is 0): calibrate it, or set K in the driver",
                reason="not_calibrated",
            )
        if not (np.isfinite(self.K).all() and self.K[0, 0] > 0 and self.K[1, 1] > 0 and np.isfinite(self.D).all()):
            raise CalibrationError(
                f"K or D of the CameraInfo hold values that cannot be (K {self.K.ravel().tolist()}, "
                f"D {self.D.tolist()}): focal lengths must be positive and everything finite",
                reason="bad_calibration",
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(
                f"CameraInfo gives an image of {self.width}x{self.height} pixels: fill width and height in the driver",
                reason="bad_calibration",
            )
        if self.is_distorted and len(self.D) not in _COEFFICIENTS.get(self.model, ()):
            known = ", ".join(f"{name} ({' or '.join(map(str, n))} coefficients)" for name, n in _COEFFICIENTS.items())
            raise CalibrationError(
                f"distortion model '{excerpt(self.model)}' with {len(self.D)} coefficients is not known: use {known}",
                reason="bad_calibration",
            )

    @classmethod
    def from_camera_info(cls, info: Any, already_rectified: bool = False) -> CameraModel:
        """From the fields k, d, p, width, height, distortion_model, binning and roi of a sensor_msgs/CameraInfo.

        Binning and region of interest are applied, so that K and the size belong to the image that comes with the
        message. ``already_rectified``: the image was rectified by its source, so its intrinsics are P and D is done.
        Raises CalibrationError for what cannot be used.
        """
        K = np.array(info.p, np.float64).reshape(3, 4)[:, :3] if already_rectified else np.array(info.k, np.float64)
        K = K.reshape(3, 3).copy()
        roi = info.roi
        width, height = roi.width or info.width, roi.height or info.height
        for axis, (offset, binning) in enumerate(
            [(roi.x_offset, max(1, info.binning_x)), (roi.y_offset, max(1, info.binning_y))]
        ):
            K[axis] /= binning
            K[axis, 2] = (K[axis, 2] * binning - offset + 0.5) / binning - 0.5
        size = (width // max(1, info.binning_x), height // max(1, info.binning_y))
        return cls(K, () if already_rectified else info.d, *size, model=info.distortion_model)

    @property
    def is_distorted(self) -> bool:
        """Whether rectification changes anything."""
        return bool(np.any(self.D != 0))

    def rectify(self, image: NDArray, nearest: bool, name: str = "image") -> NDArray:
        """The image [H,W] or [H,W,C] without lens distortion, same size, dtype and K; the image itself if D is 0.

        ``nearest`` keeps values as they are (masks, depth, event images), otherwise bilinear (photographs). Raises
        InputError ``size_mismatch``, calling the image by ``name``, if it is not of the calibration's size.
        """
        if image.shape[:2] != (self.height, self.width):
            raise InputError(
                f"{name} is {image.shape[1]}x{image.shape[0]}, the CameraInfo {self.width}x{self.height} pixels: "
                "frame, mask, depth and events must share one pixel grid, that of the CameraInfo",
                reason="size_mismatch",
            )
        if not self.is_distorted:
            return image
        if self._maps is None:
            self._maps = self._make_maps()
        return cv2.remap(image, *self._maps, cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)

    def _make_maps(self) -> tuple[NDArray, NDArray]:
        """Source column and row (float32 [H,W]) of every rectified pixel."""
        make = cv2.fisheye.initUndistortRectifyMap if self.model == "equidistant" else cv2.initUndistortRectifyMap
        return make(self.K, self.D, np.eye(3), self.K, (self.width, self.height), cv2.CV_32FC1)

    def depth_image(self, points: NDArray) -> NDArray[np.float32]:
        """Depth [H,W] in metres along the optical axis of points [N,3] in the optical frame; 0 where there is none.

        Points are projected with K, into the rectified image; the nearest point wins a pixel. Points that are not
        finite, behind the camera or outside the image are left out.
        """
        points = np.asarray(points, np.float32).reshape(-1, 3)
        points = points[np.isfinite(points).all(axis=1) & (points[:, 2] > 0)]
        projected = points @ self.K.T.astype(np.float32)
        columns = np.rint(projected[:, 0] / projected[:, 2])
        rows = np.rint(projected[:, 1] / projected[:, 2])
        inside = (columns >= 0) & (columns < self.width) & (rows >= 0) & (rows < self.height)
        depth = np.full((self.height, self.width), np.inf, np.float32)
        pixels = rows[inside].astype(np.int64), columns[inside].astype(np.int64)
        np.minimum.at(depth, pixels, points[inside, 2])
        depth[np.isinf(depth)] = 0
        return depth
