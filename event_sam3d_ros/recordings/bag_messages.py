"""Messages of a bag, from and to their bytes, without ROS: standard types through the type store of `rosbags`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from event_sam3d_ros.errors import InputError, RecordingError, excerpt
from event_sam3d_ros.events.codecs import ARRAY_TYPES as DVS_TYPES
from event_sam3d_ros.events.codecs import PACKET_TYPES as EVENT_PACKET_TYPES
from event_sam3d_ros.pixels import pixels_from_bytes, xyz_from_message
from event_sam3d_ros.recordings.samples import Calibration, Frame, ImuChunk, Pose, Role

DVS_TYPE = DVS_TYPES[0]
EVENT_TYPES = (*EVENT_PACKET_TYPES, *DVS_TYPES)
IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
IMU_TYPE = "sensor_msgs/msg/Imu"
POINTS_TYPE = "sensor_msgs/msg/PointCloud2"
POSE_TYPE = "geometry_msgs/msg/PoseStamped"
TRANSFORMS_TYPE = "tf2_msgs/msg/TFMessage"
TF_TYPE = "tf2_msgs/msg/TFMessage"
# Standard messages that samples are made of.
STANDARD_TYPES = (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE, CAMERA_INFO_TYPE, IMU_TYPE, POSE_TYPE, POINTS_TYPE)

# Field for field the message of event_camera_msgs: with it rosbags computes the same type hash as ROS 2 does.
_EVENT_PACKET_FIELDS = """std_msgs/Header header
uint32 height
uint32 width
uint64 seq
uint64 time_base
string encoding
bool is_bigendian
uint8[] events
"""


@dataclass(frozen=True)
class RawMessage:
    """One message as it lies in the bag: ``cdr`` is what a ROS publisher would send."""

    topic: str
    type: str
    receive_ns: int
    cdr: bytes


def decode_frame(message: RawMessage, role: Role) -> Frame:
    """Image or CompressedImage -> Frame; bgr8 is turned to RGB, rows lose their padding."""
    if message.type == COMPRESSED_IMAGE_TYPE:
        compressed = _deserialize(message)
        try:
            data = cv2.imdecode(compressed.data, cv2.IMREAD_UNCHANGED)
        except cv2.error:  # nothing to decode, or a size beyond OpenCV's limits
            data = None
        if data is None:
            raise RecordingError(
                f"{where(message)}: a compressed image ('{excerpt(compressed.format)}', {len(compressed.data)} bytes) "
                "can't be decoded: it is damaged, or there is no codec for it here (JPEG and PNG always work)",
                reason="bad_image",
            )
        data = data if data.ndim == 2 else np.ascontiguousarray(data[..., 2::-1])
        return Frame(role, _stamp(compressed), message.receive_ns, compressed.header.frame_id, data)
    if message.type != IMAGE_TYPE:
        raise unsupported_type(message, f"{IMAGE_TYPE} or {COMPRESSED_IMAGE_TYPE}")
    image = _deserialize(message)
    try:
        pixels = pixels_from_bytes(
            image.encoding, image.height, image.width, image.step, bool(image.is_bigendian), image.data
        )
    except InputError as error:
        raise RecordingError(f"{where(message)}: {error}", reason=error.reason) from error
    data = np.ascontiguousarray(pixels[..., ::-1] if image.encoding == "bgr8" else pixels)
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    return Frame(role, _stamp(image), message.receive_ns, image.header.frame_id, data)


def decode_calibration(message: RawMessage) -> Calibration:
    """CameraInfo -> Calibration."""
    if message.type != CAMERA_INFO_TYPE:
        raise unsupported_type(message, CAMERA_INFO_TYPE)
    info = _deserialize(message)
    return Calibration(
        _stamp(info),
        message.receive_ns,
        info.header.frame_id,
        info.width,
        info.height,
        np.array(info.k, dtype=np.float64).reshape(3, 3),
        np.array(info.d, dtype=np.float64),
        info.distortion_model,
        (info.binning_x, info.binning_y),
        (info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height),
    )


def decode_imu(message: RawMessage) -> ImuChunk:
    """Imu -> ImuChunk of one measurement."""
    if message.type != IMU_TYPE:
        raise unsupported_type(message, IMU_TYPE)
    imu = _deserialize(message)
    stamp = _stamp(imu)
    vectors = [np.array([[v.x, v.y, v.z]]) for v in (imu.linear_acceleration, imu.angular_velocity)]
    return ImuChunk(stamp, message.receive_ns, imu.header.frame_id, np.array([stamp // 1000]), *vectors)


@dataclass(frozen=True)
class Points:
    """Depth as points: ``points`` (N, 3) float32 metres in the frame ``frame_id``."""

    stamp_ns: int
    frame_id: str
    points: NDArray[np.float32]


def decode_points(message: RawMessage) -> Points:
    """PointCloud2 -> Points."""
    cloud = _deserialize(message)
    try:
        return Points(_stamp(cloud), cloud.header.frame_id, xyz_from_message(cloud))
    except InputError as error:
        raise RecordingError(f"{where(message)}: {error}", reason=error.reason) from error


def decode_pose(message: RawMessage) -> Pose:
    """PoseStamped -> Pose."""
    if message.type != POSE_TYPE:
        raise unsupported_type(message, POSE_TYPE)
    stamped = _deserialize(message)
    p, q = stamped.pose.position, stamped.pose.orientation
    position, orientation = np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])
    return Pose(_stamp(stamped), message.receive_ns, stamped.header.frame_id, position, orientation)


@dataclass(frozen=True)
class Transform:
    """p_parent = R p_child + t at a stamp, R as a quaternion x y z w."""

    parent: str
    child: str
    stamp_ns: int
    translation: NDArray[np.float64]
    quaternion: NDArray[np.float64]


def decode_transforms(message: RawMessage) -> list[Transform]:
    """TFMessage -> its transforms; names lose a leading slash, as in TF."""
    if message.type != TRANSFORMS_TYPE:
        raise unsupported_type(message, TRANSFORMS_TYPE)
    found = []
    for stamped in _deserialize(message).transforms:
        t, q = stamped.transform.translation, stamped.transform.rotation
        parent, child = stamped.header.frame_id.lstrip("/"), stamped.child_frame_id.lstrip("/")
        found.append(
            Transform(parent, child, _stamp(stamped), np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w]))
        )
    return found


def encode_imu(chunk: ImuChunk, index: int) -> bytes | memoryview:
    """One measurement of an ImuChunk -> the bytes of an Imu, stamped by its distance to the chunk's first."""
    seconds, nanoseconds = divmod(imu_stamp_ns(chunk, index), 1_000_000_000)
    stamp = _message("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
    unknown = np.zeros(9)
    unknown[0] = -1.0  # REP 145: there is no orientation
    message = _message(IMU_TYPE)(
        header=_message("std_msgs/msg/Header")(stamp=stamp, frame_id=chunk.frame_id),
        orientation=_message("geometry_msgs/msg/Quaternion")(x=0.0, y=0.0, z=0.0, w=1.0),
        orientation_covariance=unknown,
        angular_velocity=_vector("Vector3", chunk.angular_velocity[index]),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=_vector("Vector3", chunk.acceleration[index]),
        linear_acceleration_covariance=np.zeros(9),
    )
    return _serialize(message, IMU_TYPE)


def imu_stamp_ns(chunk: ImuChunk, index: int) -> int:
    """ROS stamp of one measurement: the chunk's is that of its first."""
    return chunk.stamp_ns + int(chunk.t[index] - chunk.t[0]) * 1000


def encode_pose(pose: Pose) -> bytes | memoryview:
    """Pose -> the bytes of a PoseStamped."""
    x, y, z, w = (float(value) for value in pose.orientation)
    orientation = _message("geometry_msgs/msg/Quaternion")(x=x, y=y, z=z, w=w)
    inner = _message("geometry_msgs/msg/Pose")(position=_vector("Point", pose.position), orientation=orientation)
    return _serialize(_message(POSE_TYPE)(header=_header(pose), pose=inner), POSE_TYPE)


def encode_transform(
    stamp_ns: int, parent: str, child: str, translation: NDArray[Any], quaternion: NDArray[Any]
) -> bytes | memoryview:
    """The pose of frame ``child`` in ``parent``, (3,) metres and (4,) x y z w -> the bytes of a TFMessage."""
    x, y, z, w = (float(value) for value in quaternion)
    rotation = _message("geometry_msgs/msg/Quaternion")(x=x, y=y, z=z, w=w)
    inner = _message("geometry_msgs/msg/Transform")(translation=_vector("Vector3", translation), rotation=rotation)
    stamped = _message("geometry_msgs/msg/TransformStamped")(
        header=_stamped_header(stamp_ns, parent), child_frame_id=child, transform=inner
    )
    return _serialize(_message(TF_TYPE)(transforms=[stamped]), TF_TYPE)


def _vector(kind: str, values: NDArray[Any]) -> Any:
    x, y, z = (float(value) for value in values)
    return _message(f"geometry_msgs/msg/{kind}")(x=x, y=y, z=z)


def encode_frame(frame: Frame) -> bytes | memoryview:
    """Frame -> the bytes of an Image."""
    encoding = _frame_encoding(frame)
    data: NDArray[Any] = np.ascontiguousarray(frame.data)
    message = _message(IMAGE_TYPE)(
        header=_header(frame),
        height=data.shape[0],
        width=data.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=data.strides[0],
        data=data.reshape(-1).view(np.uint8),
    )
    return _serialize(message, IMAGE_TYPE)


def _frame_encoding(frame: Frame) -> str:
    kinds = {
        "image": {("uint8", 3): "rgb8", ("uint8", 2): "mono8"},
        "mask": {("uint8", 2): "mono8", ("uint16", 2): "mono16"},
        "depth": {("float32", 2): "32FC1", ("uint16", 2): "16UC1"},
    }[frame.role]
    key = (str(frame.data.dtype), frame.data.ndim)
    if key not in kinds:
        raise RecordingError(f"{frame.role} of {key[0]} with {key[1]} dimensions can't be written", reason="bad_image")
    return kinds[key]


def encode_calibration(calibration: Calibration) -> bytes | memoryview:
    """Calibration -> the bytes of a CameraInfo."""
    K = calibration.K
    projection = np.hstack([K, np.zeros((3, 1))])
    x_offset, y_offset, width, height = calibration.roi
    roi = _message("sensor_msgs/msg/RegionOfInterest")(
        x_offset=x_offset, y_offset=y_offset, height=height, width=width, do_rectify=False
    )
    message = _message(CAMERA_INFO_TYPE)(
        header=_header(calibration),
        height=calibration.height,
        width=calibration.width,
        distortion_model=calibration.model,
        d=calibration.D.astype(np.float64),
        k=K.reshape(-1).astype(np.float64),
        r=np.eye(3).reshape(-1),
        p=projection.reshape(-1).astype(np.float64),
        binning_x=calibration.binning[0],
        binning_y=calibration.binning[1],
        roi=roi,
    )
    return _serialize(message, CAMERA_INFO_TYPE)


def _header(sample: Frame | Calibration | Pose) -> Any:
    return _stamped_header(sample.stamp_ns, sample.frame_id)


def _stamped_header(stamp_ns: int, frame_id: str) -> Any:
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = _message("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
    return _message("std_msgs/msg/Header")(stamp=stamp, frame_id=frame_id)


@cache
def typestore() -> Typestore:
    """The standard types of ROS 2 Jazzy, and EventPacket."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(_EVENT_PACKET_FIELDS, EVENT_PACKET_TYPES[0]))
    return store


def _message(kind: str) -> Callable[..., Any]:
    return typestore().types[kind]


def _serialize(message: Any, kind: str) -> bytes | memoryview:
    return typestore().serialize_cdr(message, kind)


def _deserialize(message: RawMessage) -> Any:
    try:
        return typestore().deserialize_cdr(message.cdr, message.type)
    except Exception as error:  # rosbags lets whatever struct, numpy or utf-8 say pass through
        raise RecordingError(
            f"{where(message)}: {message.type} can't be decoded ({error})", reason="bad_message"
        ) from error


def _stamp(message: Any) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def where(message: RawMessage) -> str:
    """Topic and time of a message, for errors."""
    return f"{message.topic} at {message.receive_ns / 1e9:.6f} s"


def unsupported_type(message: RawMessage, wanted: str) -> RecordingError:
    """The error for a message of a type that nothing here reads."""
    return RecordingError(f"{message.topic} is a {message.type}; give {wanted}", reason="unsupported_type")
