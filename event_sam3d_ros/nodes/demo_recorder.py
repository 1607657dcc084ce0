"""Listens to the nodes of a demo run and keeps what they say."""

from __future__ import annotations

import json
import time
from types import TracebackType

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String

from event_sam3d_ros.demo.results import FrameResult, ObjectResult
from event_sam3d_ros.msg import ReconstructedObject, ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import points_to_numpy, stamp_to_ns
from event_sam3d_ros.recordings.files import Topics

_RESULTS_QOS = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class DemoRecorder:
    """A ROS context, one node and its executor, for one ``with`` block. Times are simulated ones (/clock).

    ``results``: one entry per message of objects, in order; ``frame_count``: RGB frames seen;
    ``counters``: node name -> the numbers in its newest diagnostics; ``model_info``: its JSON.
    """

    def __init__(self) -> None:
        self.results: list[FrameResult] = []
        self.frame_count = 0
        self.counters: dict[str, dict[str, int]] = {}
        self.model_info: dict[str, object] | None = None

    def __enter__(self) -> DemoRecorder:
        # The demo handles signals itself: it has processes to stop.
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        use_sim_time = Parameter("use_sim_time", Parameter.Type.BOOL, True)
        self._node = Node("demo_recorder", context=self._context, parameter_overrides=[use_sim_time])
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._player = self._node.create_client(SetParameters, "/bag_player_node/set_parameters")
        self._start: Future | None = None
        subscribe = self._node.create_subscription
        base = "/reconstruction_node"
        subscribe(ReconstructedObjectArray, f"{base}/objects", self._on_objects, _RESULTS_QOS)
        subscribe(String, f"{base}/model_info", self._on_model_info, _LATCHED_QOS)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, _RESULTS_QOS)
        subscribe(CameraInfo, Topics.camera_info, self._on_camera_info, _RESULTS_QOS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        """Handles messages for ``seconds`` of wall time."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining)

    def nodes_listen(self) -> bool:
        """Whether both nodes are active: the model is loaded, and events, frames and masks have subscribers."""
        topics = (Topics.events, Topics.image, Topics.mask)
        return self.model_info is not None and all(self._has_subscriber(topic) for topic in topics)

    def start_player(self) -> bool:
        """Lets a paused player begin, as soon as its time is heard here: results could not be timed before that. To be
        called until it is True."""
        if self._start is None and self._now_ns() and self._player.service_is_ready():
            paused = Parameter("paused", Parameter.Type.BOOL, False)
            self._start = self._player.call_async(SetParameters.Request(parameters=[paused.to_parameter_msg()]))
        answer = self._start.result() if self._start is not None and self._start.done() else None
        return answer is not None and answer.results[0].successful

    def _now_ns(self) -> int:
        """Simulated time; 0 until /clock has told it."""
        return int(self._node.get_clock().now().nanoseconds)

    def _has_subscriber(self, topic: str) -> bool:
        names = (topic, f"{topic}/compressed")
        return any(self._node.count_subscribers(name) > 0 for name in names)

    def _on_objects(self, message: ReconstructedObjectArray) -> None:
        stamp = stamp_to_ns(message.header.stamp)
        now = self._now_ns()
        self.results.append(
            FrameResult(
                stamp_ns=stamp,
                latency_ms=(now - stamp) / 1e6 if now else None,
                processing_ms=float(message.processing_ms),
                event_count=int(message.event_count),
                # as the truth beside a recording calls them
                objects=tuple(object_result(item, int(item.label)) for item in message.objects),
            )
        )

    def _on_model_info(self, message: String) -> None:
        self.model_info = json.loads(message.data)

    def _on_camera_info(self, _: CameraInfo) -> None:
        self.frame_count += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            numbers = {item.key: int(item.value) for item in status.values if item.value.isdigit()}
            self.counters[status.name.partition(":")[0]] = numbers


def object_result(item: ReconstructedObject, id: int) -> ObjectResult:
    """A message's object under the id that is given."""
    cloud = points_to_numpy(item.points, ("x", "y", "z", "rgb"))
    packed = cloud["rgb"].astype(np.float32).view(np.uint32)
    colors = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    position, orientation, size = item.pose.position, item.pose.orientation, item.size
    return ObjectResult(
        id=id,
        score=float(item.score),
        metric=bool(item.metric),
        position=np.array([position.x, position.y, position.z]),
        quaternion=np.array([orientation.x, orientation.y, orientation.z, orientation.w]),
        size=np.array([size.x, size.y, size.z]),
        points=np.stack([cloud[name].astype(np.float32) for name in "xyz"], axis=1),
        colors=colors,
    )
