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
from sensor_msgs.msg import CompressedImage, Image

from event_sam3d_ros.errors import InputError, excerpt
from event_sam3d_ros.nodes.outputs import MESSAGES
from event_sam3d_ros.pixels import ENCODINGS, depth_from_pixels, pixels_from_bytes, rgb_from_pixels
from event_sam3d_ros.pixels import points_to_numpy as points_to_numpy
from event_sam3d_ros.pixels import xyz_from_message as xyz_from_message


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
