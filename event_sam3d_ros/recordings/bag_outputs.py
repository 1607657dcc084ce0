"""The outputs of the nodes as messages of a bag, without ROS."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

from event_sam3d_ros.output_messages import OutputMessages
from event_sam3d_ros.recordings import bag_messages

OBJECT_TYPE = "event_sam3d_ros/msg/ReconstructedObject"
OBJECTS_TYPE = "event_sam3d_ros/msg/ReconstructedObjectArray"
WINDOW_TYPE = "event_sam3d_ros/msg/EventWindow"
# Field for field the messages in msg/.
DEFINITIONS = {
    OBJECT_TYPE: """uint32 id
string label
float32 score
bool metric
geometry_msgs/Pose pose
geometry_msgs/Vector3 size
sensor_msgs/PointCloud2 points
""",
    OBJECTS_TYPE: """std_msgs/Header header
ReconstructedObject[] objects
builtin_interfaces/Time window_start
builtin_interfaces/Time window_end
uint32 event_count
float32 processing_ms
string model
""",
    WINDOW_TYPE: """std_msgs/Header header
builtin_interfaces/Time window_start
builtin_interfaces/Time window_end
uint32 event_count
""",
}
_PACKAGES = (
    *("builtin_interfaces", "geometry_msgs", "sensor_msgs", "std_msgs", "tf2_msgs", "visualization_msgs"),
    "event_sam3d_ros",
)


@cache
def output_typestore() -> Typestore:
    """The types of recordings, and those of our outputs."""
    store = bag_messages.typestore()
    for name, text in DEFINITIONS.items():
        if name not in store.types:
            store.register(get_types_from_msg(text, name))
    return store


class RosbagsTypes:
    """Message classes of `rosbags` by their name, made like rclpy's: fields that are not given have their default."""

    def __getattr__(self, name: str) -> _Maker:
        for package in _PACKAGES:
            kind = f"{package}/msg/{name}"
            if kind in output_typestore().types:
                return _Maker(kind)
        raise AttributeError(name)

    @staticmethod
    def data(values: NDArray) -> NDArray[np.uint8]:
        """The bytes of an array."""
        return values.view(np.uint8).reshape(-1)


class _Maker:
    """One message class; its constants are attributes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, **given: Any) -> Any:
        _, fields = output_typestore().fielddefs[self.kind]
        values = {name: given[name] if name in given else _default(kind) for name, kind in fields}
        if self.kind == "geometry_msgs/msg/Quaternion" and not given:
            values["w"] = 1.0
        return output_typestore().types[self.kind](**values)

    def __getattr__(self, name: str) -> Any:
        return getattr(output_typestore().types[self.kind], name)


def _default(field: Any) -> Any:
    kind, detail = field
    if kind == Nodetype.NAME:
        return _Maker(detail)()
    if kind == Nodetype.BASE:
        return {"string": "", "bool": False}.get(detail[0], 0.0 if detail[0].startswith("float") else 0)
    inner, length = detail
    is_number = inner[0] == Nodetype.BASE and inner[1][0] != "string"
    return np.zeros(length, inner[1][0]) if is_number else [_default(inner) for _ in range(length)]


TYPES = RosbagsTypes()
MESSAGES = OutputMessages(TYPES)


def header(stamp_ns: int, frame_id: str) -> Any:
    """A std_msgs/Header."""
    return TYPES.Header(stamp=time(stamp_ns), frame_id=frame_id)


def time(stamp_ns: int) -> Any:
    """A builtin_interfaces/Time."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return TYPES.Time(sec=seconds, nanosec=nanoseconds)
