"""A running system as frames of the viewer: listens to its topics in a ROS context and a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image

from event_sam3d_ros.errors import EventSam3dError
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import mask_from_message, rgb_from_message, stamp_to_ns
from event_sam3d_ros.nodes.demo_recorder import object_result
from event_sam3d_ros.recordings.files import Topics
from event_sam3d_ros.viewer.feeds import shown
from event_sam3d_ros.viewer.frames import FrameStore, ViewFrame

TOPICS = {
    "image": Topics.image,
    "mask": Topics.mask,
    "event_image": "/event_image_node/event_image",
    "objects": "/reconstruction_node/objects",
    "camera_info": Topics.camera_info,
}
_STAMPS_KEPT = 64  # frames whose result may still come
_WITHOUT_RESULTS_S = 2.0  # then frames are shown without
_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)  # which goes with every publisher


class LiveFrames(FrameStore):
    """`Frames` of the newest results, each with image, mask and event image of its stamp. While no results come, the
    images alone. ``topics``: those of `TOPICS`."""

    def __init__(self, topics: Mapping[str, str] = TOPICS) -> None:
        super().__init__("live: " + topics["objects"], live=True)
        self._pieces: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._K: NDArray[np.float64] | None = None
        self._result_s = -np.inf
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)  # the command has its own
        self._node = Node("event_sam3d_viewer", context=self._context)
        callbacks: dict[str, tuple[type, Callable[[Any], None]]] = {
            "image": (Image, self._on_image),
            "mask": (Image, partial(self._keep, "mask", mask_from_message)),
            "event_image": (Image, partial(self._keep, "event_image", rgb_from_message)),
            "objects": (ReconstructedObjectArray, self._on_objects),
            "camera_info": (CameraInfo, self._on_camera_info),
        }
        for kind, (message_type, callback) in callbacks.items():
            self._node.create_subscription(message_type, topics[kind], partial(self._guarded, callback), _QOS)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.tell("waiting for " + ", ".join(topics.values()))
        self._thread = threading.Thread(target=self._spin, name="viewer topics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Frames`."""
        super().close()
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            self.tell("ROS was shut down", complete=True)

    def _guarded(self, callback: Callable[[Any], None], message: Any) -> None:
        try:
            callback(message)
        except EventSam3dError as error:  # one message must not end the view
            self.tell(str(error))

    def _keep(self, kind: str, convert: Callable[[Image], NDArray[Any]], message: Image) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        self._pieces.setdefault(stamp_ns, {})[kind] = convert(message)
        while len(self._pieces) > _STAMPS_KEPT:
            self._pieces.popitem(last=False)

    def _on_camera_info(self, message: CameraInfo) -> None:
        if message.k[0] > 0:
            self._K = np.array(message.k, float).reshape(3, 3)

    def _on_image(self, message: Image) -> None:
        self._keep("image", rgb_from_message, message)
        if time.monotonic() - self._result_s > _WITHOUT_RESULTS_S:
            self._show(stamp_to_ns(message.header.stamp), ViewFrame(0))
            self.tell("no results come: images alone")

    def _on_objects(self, message: ReconstructedObjectArray) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        self._result_s = time.monotonic()
        items = [shown(replace(object_result(item), id=int(item.id))) for item in message.objects]
        now_ns = self._node.get_clock().now().nanoseconds
        milliseconds = {"model": float(message.processing_ms), "since the stamp": (now_ns - stamp_ns) / 1e6}
        ids = {int(item.label): int(item.id) for item in message.objects if item.label.isdecimal()}
        mask = self._pieces.get(stamp_ns, {}).get("mask")
        tracks = None
        if mask is not None:
            table = np.zeros(1 << 16, np.uint32)
            table[list(ids)] = list(ids.values())
            tracks = table[mask]
        self._show(stamp_ns, ViewFrame(0, tracks=tracks, objects=tuple(items), milliseconds=milliseconds))
        self.tell("")

    def _show(self, stamp_ns: int, frame: ViewFrame) -> None:
        pieces = self._pieces.get(stamp_ns, {})
        rgb, tracks = pieces.get("image"), frame.tracks
        if rgb is not None and tracks is not None and rgb.shape[:2] != tracks.shape:
            tracks = None
        self.append(
            replace(frame, stamp_ns=stamp_ns, rgb=rgb, event_image=pieces.get("event_image"), tracks=tracks, K=self._K)
        )
