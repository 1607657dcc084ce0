"""From the bytes of an image message to arrays: what nodes and recordings share. Encodings are those of ROS."""

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
