"""What a recording consists of, decoded: events, triggers, pictures, inertial measurements, calibrations and poses,
each with its times.

Two times stand on every sample: ``stamp_ns``, the moment that it describes (the message's header), and ``receive_ns``,
the moment at which a computer had it. Samples of a recording come in the order of the second; computing uses the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.events.events import Events, Triggers

Role = Literal["image", "mask", "depth"]


@dataclass(frozen=True)
class Topics:
    """The topics of a recording by what they carry."""

    events: str = "/event_camera/events"
    image: str = "/camera/image_raw"
    camera_info: str = "/camera/camera_info"
    mask: str = "/camera/mask"
    depth: str = "/camera/depth"
    triggers: str = "/event_camera/triggers"
    imu: str = "/event_camera/imu"
    pose: str = "/camera/pose"


@dataclass(frozen=True)
class EventChunk:
    """Events of one packet. ``events.t`` is on the sensor's clock; ``stamp_ns`` is the ROS time of the packet, from
    which `clock.SensorClock` relates the two."""

    stamp_ns: int
    receive_ns: int
    frame_id: str
    width: int
    height: int
    events: Events


@dataclass(frozen=True)
class Frame:
    """One picture. ``image``: uint8, (H, W, 3) RGB or (H, W) grey; ``mask``: labels, (H, W) uint8 or uint16, 0 = no
    object; ``depth``: (H, W) float32 metres or uint16 millimetres, 0 or NaN = unknown. ``exposure_ns``: how long it was
    exposed around its stamp, 0 where the recording does not tell."""

    role: Role
    stamp_ns: int
    receive_ns: int
    frame_id: str
    data: NDArray[Any]
    exposure_ns: int = 0


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera: ``K`` (3, 3) pixels, ``D`` distortion coefficients in the order of ``model`` (plumb_bob: k1 k2
    p1 p2 k3), for images of ``width`` x ``height``. ``binning`` (x, y) and ``roi`` (x, y, width, height), both in the
    sense of CameraInfo: all 0 where the images are whole."""

    stamp_ns: int
    receive_ns: int
    frame_id: str
    width: int
    height: int
    K: NDArray[np.float64]
    D: NDArray[np.float64]
    model: str = "plumb_bob"
    binning: tuple[int, int] = (0, 0)
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class TriggerChunk:
    """Edges at the camera's trigger inputs; ``triggers.t`` is on the sensor's clock, as the times of events are."""

    stamp_ns: int
    receive_ns: int
    frame_id: str
    triggers: Triggers


@dataclass(frozen=True)
class ImuChunk:
    """N inertial measurements: ``t`` (N,) int64 us on the sensor's clock, ``acceleration`` (N, 3) m/s^2 and
    ``angular_velocity`` (N, 3) rad/s, both float64 in the axes of ``frame_id``."""

    stamp_ns: int
    receive_ns: int
    frame_id: str
    t: NDArray[np.int64]
    acceleration: NDArray[np.float64]
    angular_velocity: NDArray[np.float64]


@dataclass(frozen=True)
class Pose:
    """The camera in the world: ``position`` (3,) metres, ``orientation`` (4,) quaternion x y z w."""

    stamp_ns: int
    receive_ns: int
    frame_id: str
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]


Sample: TypeAlias = EventChunk | TriggerChunk | Frame | Calibration | ImuChunk | Pose
