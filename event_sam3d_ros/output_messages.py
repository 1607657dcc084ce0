"""Reconstructions and pictures as ROS messages, with whatever classes the messages are made of.

The nodes make them of rclpy's classes, recordings of those of `rosbags`: field for field the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.reconstruction import Reconstruction

_AXIS_COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def frame_of(reconstruction: Reconstruction) -> str:
    """The object's frame in TF."""
    return f"object_{reconstruction.id}"


class OutputMessages:
    """Makes messages of ``types``: an attribute for each message type by its name, and ``data``, which takes an array
    and gives what a field of bytes holds. Headers are of those types too."""

    def __init__(self, types: Any) -> None:
        self._types = types

    def image_message(self, pixels: NDArray, encoding: str, header: Any) -> Any:
        """Image message of [H,W] or [H,W,3] pixels whose dtype is the encoding's."""
        pixels = np.ascontiguousarray(pixels)
        message = self._types.Image(header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
        message.step = pixels.strides[0]
        message.is_bigendian = int(sys.byteorder == "big")
        message.data = self._types.data(pixels)
        return message

    def points_message(self, points: NDArray, colors: NDArray, header: Any, object_ids: NDArray | None = None) -> Any:
        """PointCloud2 of points [N,3] float32 in metres and colors [N,3] uint8 RGB, unordered and dense.

        Fields x y z (float32), rgb (float32 whose bytes are 0x00RRGGBB) and, if given, object_id (uint32).
        """
        names = ["x", "y", "z", "rgb"] + ([] if object_ids is None else ["object_id"])
        kinds = ["<f4", "<f4", "<f4", "<u4"] + ([] if object_ids is None else ["<u4"])
        cloud = np.empty(len(points), np.dtype(list(zip(names, kinds, strict=True))))
        for axis, name in enumerate("xyz"):
            cloud[name] = points[:, axis]
        red, green, blue = np.asarray(colors, np.uint32).reshape(-1, 3).T
        cloud["rgb"] = red << 16 | green << 8 | blue
        if object_ids is not None:
            cloud["object_id"] = object_ids
        types = [self._types.PointField.FLOAT32] * 4 + [self._types.PointField.UINT32]
        fields = [
            self._types.PointField(name=name, offset=4 * index, datatype=types[index], count=1)
            for index, name in enumerate(names)
        ]
        message = self._types.PointCloud2(
            header=header, height=1, width=len(cloud), fields=fields, is_bigendian=False, is_dense=True
        )
        message.point_step = cloud.dtype.itemsize
        message.row_step = cloud.nbytes
        message.data = self._types.data(cloud)
        return message

    def object_message(self, reconstruction: Reconstruction, header: Any, label: str) -> Any:
        """One object with pose, size and points in the header's frame; ``label``: what the mask calls it."""
        message = self._types.ReconstructedObject(id=reconstruction.id, label=label, metric=reconstruction.metric)
        message.score = float(reconstruction.score)
        message.pose = self._pose(reconstruction)
        message.size = self._vector(reconstruction.size)
        message.points = self.points_message(reconstruction.points, reconstruction.colors, header)
        return message

    def merged_points(self, reconstructions: Sequence[Reconstruction], header: Any) -> Any:
        """The points of all objects in one cloud with ``object_id``."""
        ids = [np.full(len(r.points), r.id, np.uint32) for r in reconstructions]
        return self.points_message(
            np.concatenate([r.points for r in reconstructions]),
            np.concatenate([r.colors for r in reconstructions]),
            header,
            np.concatenate(ids),
        )

    def transforms(self, reconstructions: Sequence[Reconstruction], header: Any) -> Any:
        """The optical frame to each object's frame."""
        message = self._types.TFMessage()
        for reconstruction in reconstructions:
            transform = self._types.TransformStamped(header=header, child_frame_id=frame_of(reconstruction))
            transform.transform.translation = self._vector(reconstruction.position)
            transform.transform.rotation = self._quaternion(reconstruction)
            message.transforms.append(transform)
        return message

    def markers(self, reconstructions: Sequence[Reconstruction], header: Any) -> Any:
        """Box, axes and label of each object; the first marker deletes all earlier ones."""
        message = self._types.MarkerArray(
            markers=[self._types.Marker(header=header, action=self._types.Marker.DELETEALL)]
        )
        for reconstruction in reconstructions:
            message.markers += [self._box(reconstruction), self._axes(reconstruction), self._label(reconstruction)]
        for marker in message.markers[1:]:
            marker.header, marker.lifetime = header, self._types.Duration(sec=1)
        return message

    def _box(self, reconstruction: Reconstruction) -> Any:
        marker = self._types.Marker(
            ns="box", id=reconstruction.id, type=self._types.Marker.CUBE, pose=self._pose(reconstruction)
        )
        marker.scale = self._vector(reconstruction.size)
        marker.color = self._types.ColorRGBA(r=1.0, g=0.6, b=0.0, a=0.25)
        return marker

    def _axes(self, reconstruction: Reconstruction) -> Any:
        marker = self._types.Marker(
            ns="axes", id=reconstruction.id, type=self._types.Marker.LINE_LIST, pose=self._pose(reconstruction)
        )
        length = float(max(reconstruction.size)) / 2
        marker.scale.x = length / 20
        for axis, (red, green, blue) in enumerate(_AXIS_COLORS):
            tip = [0.0, 0.0, 0.0]
            tip[axis] = length
            marker.points += [self._types.Point(), self._types.Point(x=tip[0], y=tip[1], z=tip[2])]
            marker.colors += [self._types.ColorRGBA(r=red, g=green, b=blue, a=1.0)] * 2
        return marker

    def _label(self, reconstruction: Reconstruction) -> Any:
        marker = self._types.Marker(
            ns="label", id=reconstruction.id, type=self._types.Marker.TEXT_VIEW_FACING, pose=self._pose(reconstruction)
        )
        # The optical frame's y axis points down: above the box is at smaller y.
        marker.pose.position.y -= 0.6 * float(max(reconstruction.size))
        marker.scale.z = 0.15 * float(max(reconstruction.size))
        marker.color = self._types.ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
        scale = "" if reconstruction.metric else ", scale unknown"
        marker.text = f"{frame_of(reconstruction)}: {reconstruction.score:.2f}{scale}"
        return marker

    def _vector(self, values: Any) -> Any:
        return self._types.Vector3(x=float(values[0]), y=float(values[1]), z=float(values[2]))

    def _quaternion(self, reconstruction: Reconstruction) -> Any:
        x, y, z, w = map(float, reconstruction.quaternion)
        return self._types.Quaternion(x=x, y=y, z=z, w=w)

    def _pose(self, reconstruction: Reconstruction) -> Any:
        pose = self._types.Pose(orientation=self._quaternion(reconstruction))
        pose.position.x, pose.position.y, pose.position.z = map(float, reconstruction.position)
        return pose
