"""Reconstructions as ROS messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion, TransformStamped, Vector3
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA, Header
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from event_sam3d_ros.msg import ReconstructedObject
from event_sam3d_ros.nodes.conversions import points_message
from event_sam3d_ros.reconstructor import Reconstruction

_MARKER_LIFETIME = Duration(sec=1)
_AXIS_COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def frame_of(reconstruction: Reconstruction) -> str:
    """The object's frame in TF."""
    return f"object_{reconstruction.id}"


def object_message(reconstruction: Reconstruction, header: Header, label: str) -> ReconstructedObject:
    """One object with pose, size and points in the header's frame; ``label``: what the mask calls it."""
    message = ReconstructedObject(id=reconstruction.id, label=label, metric=reconstruction.metric)
    message.score = float(reconstruction.score)
    message.pose = _pose(reconstruction)
    message.size = _vector(reconstruction.size)
    message.points = points_message(reconstruction.points, reconstruction.colors, header)
    return message


def merged_points(reconstructions: Sequence[Reconstruction], header: Header) -> PointCloud2:
    """The points of all objects in one cloud with ``object_id``."""
    ids = [np.full(len(r.points), r.id, np.uint32) for r in reconstructions]
    return points_message(
        np.concatenate([r.points for r in reconstructions]),
        np.concatenate([r.colors for r in reconstructions]),
        header,
        np.concatenate(ids),
    )


def transforms(reconstructions: Sequence[Reconstruction], header: Header) -> TFMessage:
    """The optical frame to each object's frame."""
    message = TFMessage()
    for reconstruction in reconstructions:
        transform = TransformStamped(header=header, child_frame_id=frame_of(reconstruction))
        transform.transform.translation = _vector(reconstruction.position)
        transform.transform.rotation = _quaternion(reconstruction)
        message.transforms.append(transform)
    return message


def markers(reconstructions: Sequence[Reconstruction], header: Header) -> MarkerArray:
    """Box, axes and label of each object; the first marker deletes all earlier ones."""
    message = MarkerArray(markers=[Marker(header=header, action=Marker.DELETEALL)])
    for reconstruction in reconstructions:
        message.markers += [_box(reconstruction), _axes(reconstruction), _label(reconstruction)]
    for marker in message.markers[1:]:
        marker.header, marker.lifetime = header, _MARKER_LIFETIME
    return message


def _box(reconstruction: Reconstruction) -> Marker:
    marker = Marker(ns="box", id=reconstruction.id, type=Marker.CUBE, pose=_pose(reconstruction))
    marker.scale = _vector(reconstruction.size)
    marker.color = ColorRGBA(r=1.0, g=0.6, b=0.0, a=0.25)
    return marker


def _axes(reconstruction: Reconstruction) -> Marker:
    marker = Marker(ns="axes", id=reconstruction.id, type=Marker.LINE_LIST, pose=_pose(reconstruction))
    length = float(max(reconstruction.size)) / 2
    marker.scale.x = length / 20
    for axis, (red, green, blue) in enumerate(_AXIS_COLORS):
        tip = [0.0, 0.0, 0.0]
        tip[axis] = length
        marker.points += [Point(), Point(x=tip[0], y=tip[1], z=tip[2])]
        marker.colors += [ColorRGBA(r=red, g=green, b=blue, a=1.0)] * 2
    return marker


def _label(reconstruction: Reconstruction) -> Marker:
    marker = Marker(ns="label", id=reconstruction.id, type=Marker.TEXT_VIEW_FACING, pose=_pose(reconstruction))
    # The optical frame's y axis points down: above the box is at smaller y.
    marker.pose.position.y -= 0.6 * float(max(reconstruction.size))
    marker.scale.z = 0.15 * float(max(reconstruction.size))
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    scale = "" if reconstruction.metric else ", scale unknown"
    marker.text = f"{frame_of(reconstruction)}: {reconstruction.score:.2f}{scale}"
    return marker


def _vector(values: Sequence[float]) -> Vector3:
    return Vector3(x=float(values[0]), y=float(values[1]), z=float(values[2]))


def _quaternion(reconstruction: Reconstruction) -> Quaternion:
    x, y, z, w = map(float, reconstruction.quaternion)
    return Quaternion(x=x, y=y, z=z, w=w)


def _pose(reconstruction: Reconstruction) -> Pose:
    pose = Pose(orientation=_quaternion(reconstruction))
    pose.position.x, pose.position.y, pose.position.z = map(float, reconstruction.position)
    return pose
