"""From the bytes of images and point clouds to arrays: what nodes and recordings share. Encodings are those of ROS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError, excerpt

ENCODINGS: dict[str, tuple[str, int]] = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "mono8": ("u1", 1),
    "8UC1": ("u1", 1),
    "mono16": ("u2", 1),
    "16UC1": ("u2", 1),
    "32FC1": ("f4", 1),
}
# By the constants of sensor_msgs/PointField: INT8 is 1, FLOAT64 is 8.
_POINT_TYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"), 1))


def pixels_from_bytes(encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Any) -> NDArray:
    """[H,W] or [H,W,3] of one of ENCODINGS, in its channel order and the sender's byte order, without a copy.

    Raises InputError ``bad_encoding`` or ``bad_image``.
    """
    if encoding not in ENCODINGS:
        raise InputError(
            f"image encoding '{excerpt(encoding)}' is not among {', '.join(ENCODINGS)}: let the driver send one of "
            "those",
            reason="bad_encoding",
        )
    kind, channels = ENCODINGS[encoding]
    dtype = np.dtype((">" if is_bigendian else "<") + kind)
    row_bytes = width * channels * dtype.itemsize
    if height == 0 or width == 0:
        raise InputError("the image has no pixels: width or height is 0", reason="bad_image")
    if step < row_bytes or len(data) < step * height:
        raise InputError(
            f"the image says {width}x{height} {encoding} with rows of {step} bytes, "
            f"but carries {len(data)} bytes: the sender fills step or data wrongly",
            reason="bad_image",
        )
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)
    pixels = rows[:, :row_bytes].view(dtype)
    return pixels.reshape((height, width, channels) if channels > 1 else (height, width))


def rgb_from_pixels(pixels: NDArray) -> NDArray[np.uint8]:
    """[H,W,3] uint8 of [H,W,3] RGB or of grey [H,W] in 8 or 16 bits: of the latter the upper 8. InputError else."""
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise InputError(f"a frame can't be {pixels.dtype}: send rgb8, bgr8 or mono8", reason="bad_encoding")
    if pixels.dtype.itemsize == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels)


def depth_from_pixels(pixels: NDArray) -> NDArray[np.float32]:
    """[H,W] float32 metres, 0 where there is none, of 32-bit metres or 16-bit millimetres (REP-118)."""
    if pixels.ndim == 2 and pixels.dtype.kind == "f":
        return np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if pixels.ndim == 2 and pixels.dtype.itemsize == 2:
        return pixels.astype(np.float32) * np.float32(1e-3)
    raise InputError(
        f"depth is {pixels.dtype} {list(pixels.shape)}: send 32FC1 in metres or 16UC1 in millimetres",
        reason="bad_encoding",
    )


def points_to_numpy(message: Any, names: tuple[str, ...] = ("x", "y", "z")) -> NDArray:
    """The named fields of a PointCloud2 as a structured array [height * width].

    Raises InputError ``bad_points`` where a field is missing or the data are too short.
    """
    known = {field.name: field for field in message.fields}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(
            f"the point cloud has the fields {', '.join(known) or 'none'}, but not {', '.join(missing)}",
            reason="bad_points",
        )
    unknown = [name for name in names if known[name].datatype not in _POINT_TYPES]
    if unknown:
        raise InputError(
            f"the point cloud's field {unknown[0]} has an unknown datatype: {known[unknown[0]].datatype}",
            reason="bad_points",
        )
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": list(names),
            "formats": [order + _POINT_TYPES[known[name].datatype] for name in names],
            "offsets": [known[name].offset for name in names],
            "itemsize": message.point_step,
        }
    )
    if len(message.data) < message.row_step * message.height or message.row_step < message.point_step * message.width:
        raise InputError("the point cloud carries fewer bytes than its size says", reason="bad_points")
    if message.height == 0 or message.width == 0:
        return np.empty(0, dtype)
    rows = np.frombuffer(message.data, np.uint8, message.row_step * message.height).reshape(message.height, -1)
    points = np.ascontiguousarray(rows[:, : message.point_step * message.width])
    return points.reshape(-1).view(dtype)


def xyz_from_message(message: Any) -> NDArray[np.float32]:
    """Points [N,3] float32 of a PointCloud2, in its order."""
    points = points_to_numpy(message)
    return np.stack([points[name].astype(np.float32) for name in "xyz"], axis=1)
