"""Reconstructions and pictures as rclpy's messages: see output_messages.py."""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion, TransformStamped, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from event_sam3d_ros.msg import ReconstructedObject
from event_sam3d_ros.output_messages import OutputMessages


class _RosTypes:
    """rclpy's classes; bytes are filled by ``frombytes``, much faster than by assigning a numpy array."""

    Duration, Point, Pose, Quaternion, Vector3 = Duration, Point, Pose, Quaternion, Vector3
    TransformStamped, TFMessage, ColorRGBA = TransformStamped, TFMessage, ColorRGBA
    Image, PointCloud2, PointField = Image, PointCloud2, PointField
    Marker, MarkerArray, ReconstructedObject = Marker, MarkerArray, ReconstructedObject

    @staticmethod
    def data(values: NDArray) -> array.array:
        """The bytes of an array."""
        data = array.array("B")
        data.frombytes(values.view(np.uint8).reshape(-1).data)
        return data


MESSAGES = OutputMessages(_RosTypes)
object_message, merged_points = MESSAGES.object_message, MESSAGES.merged_points
transforms, markers = MESSAGES.transforms, MESSAGES.markers
