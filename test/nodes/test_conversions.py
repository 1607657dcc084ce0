"""Messages to numpy and back, bad messages, and the time it takes."""

import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2's Python messages")
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.nodes import conversions

HEADER = Header(frame_id="camera_optical", stamp=conversions.ns_to_stamp(1_700_000_000_123_456_789))


@pytest.mark.parametrize(
    "encoding, dtype, channels",
    [("rgb8", "u1", 3), ("mono8", "u1", 1), ("mono16", "u2", 1), ("16UC1", "u2", 1), ("32FC1", "f4", 1)],
)
def test_images_go_round(encoding, dtype, channels):
    shape = (5, 7, 3) if channels == 3 else (5, 7)
    pixels = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    message = conversions.image_message(pixels, encoding, HEADER)
    assert message.step == 7 * channels * pixels.itemsize
    back = conversions.image_to_numpy(message)
    assert back.dtype == pixels.dtype and np.array_equal(back, pixels)


def test_an_endless_encoding_is_not_repeated_as_a_whole():
    message = Image(header=HEADER, encoding="\n" + "x" * 5000, width=1, height=1, step=1, data=b"a")
    with pytest.raises(InputError, match="image encoding") as error:
        conversions.image_to_numpy(message)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


def test_reading_an_image_makes_no_copy():
    message = conversions.image_message(np.zeros((5, 7), np.uint8), "mono8", HEADER)
    view = conversions.image_to_numpy(message)
    message.data[8] = 42
    assert view[1, 1] == 42


def test_padded_rows_and_big_endian_are_read():
    rows = np.zeros((2, 10), np.uint8)
    rows[:, :6] = np.array([[1, 2, 3], [4, 5, 6]], ">u2").view(np.uint8)
    message = Image(height=2, width=3, encoding="mono16", is_bigendian=1, step=10, data=rows.tobytes())
    assert conversions.mask_from_message(message).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_frames_of_other_encodings_become_rgb():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    bgr = conversions.image_message(pixels[..., ::-1], "bgr8", HEADER)
    assert np.array_equal(conversions.rgb_from_message(bgr), pixels)
    grey = conversions.image_message(pixels[..., 0], "mono8", HEADER)
    assert np.array_equal(conversions.rgb_from_message(grey), np.stack([pixels[..., 0]] * 3, axis=2))
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    assert np.array_equal(conversions.rgb_from_message(CompressedImage(format="png", data=png)), pixels)


def test_depth_is_metres_and_zero_where_unknown():
    metres = np.array([[1.5, np.nan], [np.inf, 0]], np.float32)
    assert conversions.depth_from_message(conversions.image_message(metres, "32FC1", HEADER)).tolist() == [
        [1.5, 0],
        [0, 0],
    ]
    millimetres = np.array([[1500, 0]], np.uint16)
    depth = conversions.depth_from_message(conversions.image_message(millimetres, "16UC1", HEADER))
    assert depth == pytest.approx(np.array([[1.5, 0]]))


@pytest.mark.parametrize(
    "message, convert, reason",
    [
        (Image(height=2, width=2, encoding="mono8", step=2, data=b"abc"), "image_to_numpy", "bad_image"),
        (Image(height=2, width=2, encoding="mono8", step=1, data=b"abcd"), "image_to_numpy", "bad_image"),
        (Image(encoding="mono8"), "image_to_numpy", "bad_image"),
        (Image(height=1, width=1, encoding="bayer_rggb8", step=1, data=b"a"), "rgb_from_message", "bad_encoding"),
        (Image(height=1, width=1, encoding="32FC1", step=4, data=b"abcd"), "rgb_from_message", "bad_encoding"),
        (Image(height=1, width=1, encoding="rgb8", step=3, data=b"abc"), "mask_from_message", "bad_encoding"),
        (Image(height=1, width=1, encoding="mono8", step=1, data=b"a"), "depth_from_message", "bad_encoding"),
        (CompressedImage(format="jpeg", data=b"no picture"), "rgb_from_message", "bad_image"),
        (CompressedImage(format="jpeg"), "rgb_from_message", "bad_image"),
        (PointCloud2(fields=[PointField(name="x", datatype=7)]), "xyz_from_message", "bad_points"),
        (PointCloud2(fields=[PointField(name=n, datatype=99) for n in "xyz"]), "xyz_from_message", "bad_points"),
    ],
)
def test_bad_messages_are_refused_with_their_reason(message, convert, reason):
    with pytest.raises(InputError) as error:
        getattr(conversions, convert)(message)
    assert error.value.reason == reason


def test_what_cv_bridge_refuses_is_refused_with_its_reason(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[yuv9] is not a color format")

    module = SimpleNamespace(CvBridge=lambda: SimpleNamespace(imgmsg_to_cv2=fail))
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    with pytest.raises(InputError, match="yuv9. is not a color format") as error:
        conversions.rgb_from_message(Image(height=1, width=1, encoding="yuv9", step=1, data=b"a"))
    assert error.value.reason == "bad_encoding"


def test_points_carry_packed_colours_and_ids():
    points = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    colors = np.array([[255, 128, 1], [0, 0, 255]], np.uint8)
    message = conversions.points_message(points, colors, HEADER, np.array([7, 9]))
    assert [field.name for field in message.fields] == ["x", "y", "z", "rgb", "object_id"]
    assert message.width * message.point_step == len(message.data) == message.row_step
    assert np.array_equal(conversions.xyz_from_message(message), points)
    raw = conversions.points_to_numpy(message, ("rgb", "object_id"))
    assert raw["rgb"].view(np.uint32).tolist() == [0xFF8001, 0x0000FF]
    assert raw["object_id"].tolist() == [7, 9]


def test_an_empty_cloud_goes_round():
    message = conversions.points_message(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), HEADER)
    assert conversions.xyz_from_message(message).shape == (0, 3)


@pytest.mark.parametrize("message", [Image(header=HEADER), CameraInfo(header=HEADER), CompressedImage(header=HEADER)])
def test_the_stamp_is_read_from_serialized_bytes(message):
    assert conversions.header_stamp_of_cdr(serialize_message(message)) == (1_700_000_000_123_456_789, "camera_optical")


def test_the_stamp_of_a_truncated_message_is_refused():
    cdr = serialize_message(CameraInfo(header=HEADER))
    with pytest.raises(InputError, match="ends inside its header"):
        conversions.header_stamp_of_cdr(cdr[:20])


def test_filling_a_large_image_is_fast():
    pixels = np.zeros((720, 1280, 3), np.uint8)
    best = min(_seconds(lambda: conversions.image_message(pixels, "rgb8", HEADER)) for _ in range(5))
    assert best < 0.05, f"{best * 1e3:.1f} ms for 2.8 MB: the fast path is lost (assigning the array takes 370 ms)"


def _seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
