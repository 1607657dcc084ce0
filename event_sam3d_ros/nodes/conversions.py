"""Between ROS messages and numpy arrays, without a copy where ROS allows it.

Received arrays are ``array.array``: numpy reads them in place. Sent arrays are filled by ``frombytes``, which is two
orders of magnitude faster than assigning a numpy array to ``msg.data``.
"""

from __future__ import annotations

import importlib

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField

from event_sam3d_ros.errors import InputError, excerpt
from event_sam3d_ros.nodes.outputs import MESSAGES
from event_sam3d_ros.pixels import ENCODINGS, depth_from_pixels, pixels_from_bytes, rgb_from_pixels

_POINT_TYPES = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def ns_to_stamp(nanoseconds: int) -> Time:
    """builtin_interfaces/Time of nanoseconds >= 0."""
    seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def header_stamp_of_cdr(cdr: bytes) -> tuple[int, str]:
    """Stamp in ns and frame_id from the bytes of a serialized message whose first member is a std_msgs/Header.

    Four bytes of encapsulation (the second tells the byte order), then sec int32, nanosec uint32, length and text of
    frame_id with its closing zero. Raises InputError ``bad_message`` where the bytes end before that.
    """
    order = "<" if len(cdr) > 1 and cdr[1] & 1 else ">"
    length = int(np.frombuffer(cdr, order + "u4", 1, 12)[0]) if len(cdr) >= 16 else 0
    if not 0 < length <= len(cdr) - 16:
        raise InputError(f"a message of {len(cdr)} bytes ends inside its header", reason="bad_message")
    seconds = int(np.frombuffer(cdr, order + "i4", 1, 4)[0])
    nanoseconds = int(np.frombuffer(cdr, order + "u4", 1, 8)[0])
    return seconds * 1_000_000_000 + nanoseconds, bytes(cdr[16 : 15 + length]).decode("utf-8", "replace")


def image_to_numpy(message: Image) -> NDArray:
    """Pixels of an Image as [H,W] or [H,W,3], in the message's own channel order and dtype, without a copy.

    Encodings outside of our own list (Bayer, YUV) go through cv_bridge where it is installed and come back as rgb8.
    Raises InputError ``bad_encoding`` or ``bad_image``.
    """
    if message.encoding not in ENCODINGS:
        return _through_cv_bridge(message)
    return pixels_from_bytes(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def _through_cv_bridge(message: Image) -> NDArray:
    try:
        bridge = importlib.import_module("cv_bridge").CvBridge()
    except ImportError as error:
        raise InputError(
            f"image encoding '{excerpt(message.encoding)}' is not among {', '.join(ENCODINGS)}, and cv_bridge, which "
            f"could convert it, is not installed here ({error}): let the driver send one of those",
            reason="bad_encoding",
        ) from None
    try:
        return bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except Exception as error:  # CvBridgeError, cv2.error, or what its C++ part throws
        raise InputError(
            f"cv_bridge can't convert image encoding '{excerpt(message.encoding)}': {error}", reason="bad_encoding"
        ) from error


def rgb_from_message(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """A frame as [H,W,3] uint8 RGB; grey becomes three equal channels. Raises InputError like image_to_numpy."""
    if isinstance(message, CompressedImage):
        decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR) if message.data else None
        if decoded is None:
            raise InputError(
                f"a compressed image ('{excerpt(message.format)}', {len(message.data)} bytes) can't be decoded: it is "
                "damaged",
                reason="bad_image",
            )
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    pixels = image_to_numpy(message)
    if pixels.dtype.kind == "f" or message.encoding == "16UC1":
        raise InputError(
            f"a frame can't be {excerpt(message.encoding)}: send rgb8, bgr8 or mono8", reason="bad_encoding"
        )
    return rgb_from_pixels(pixels[..., ::-1] if message.encoding == "bgr8" else pixels)


def mask_from_message(message: Image) -> NDArray:
    """A label image as [H,W] uint8 or uint16. Raises InputError ``bad_encoding`` for anything but mono8 or mono16."""
    pixels = image_to_numpy(message)
    if pixels.ndim != 2 or pixels.dtype.kind != "u":
        raise InputError(
            f"the mask is {excerpt(message.encoding)}: send a label image as mono8 or mono16", reason="bad_encoding"
        )
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def depth_from_message(message: Image) -> NDArray[np.float32]:
    """Depth as [H,W] float32 metres, 0 where there is none (REP-118: 32FC1 metres, 16UC1 millimetres)."""
    pixels = image_to_numpy(message)
    if message.encoding in ("32FC1", "16UC1", "mono16"):
        return depth_from_pixels(pixels)
    raise InputError(
        f"depth is {excerpt(message.encoding)}: send 32FC1 in metres or 16UC1 in millimetres", reason="bad_encoding"
    )


image_message = MESSAGES.image_message
points_message = MESSAGES.points_message


def points_to_numpy(message: PointCloud2, names: tuple[str, ...] = ("x", "y", "z")) -> NDArray:
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


def xyz_from_message(message: PointCloud2) -> NDArray[np.float32]:
    """Points [N,3] float32 of a PointCloud2, in its order."""
    points = points_to_numpy(message)
    return np.stack([points[name].astype(np.float32) for name in "xyz"], axis=1)
