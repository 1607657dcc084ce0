"""Plays a rosbag2 recording to real ROS topics, with /clock in the recording's time.

It needs no rosbag2 installation: messages are published as the bytes that lie in the bag. A tool, not a lifecycle node:
it ends with exit code 0 when the recording is over, 2 if it could not start (parameters that were refused, nothing that
it can play), 1 if the recording turns out to be damaged.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from rosgraph_msgs.msg import Clock

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, RecordingError
from event_sam3d_ros.nodes.conversions import ns_to_stamp
from event_sam3d_ros.nodes.message_classes import message_class
from event_sam3d_ros.nodes.parameters import BAG_PLAYER_NODE
from event_sam3d_ros.nodes.pipeline_node import declare_parameters, ros_until_signal
from event_sam3d_ros.recordings.bag_messages import EVENT_TYPES
from event_sam3d_ros.recordings.files import Rosbag2Recording, open_rosbag2

_EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
_OTHER_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
_SETTLED_S = 0.5  # without a new subscriber: discovery finds those of one process after the other
_CLOCK_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


class BagPlayerNode(Node):
    """Publishers for the topics of one bag, and a thread that feeds them."""

    def __init__(self) -> None:
        super().__init__("bag_player_node", automatically_declare_parameters_from_overrides=True)
        declare_parameters(self, BAG_PLAYER_NODE)
        values = {name: self.get_parameter(name).value for name in BAG_PLAYER_NODE.by_name}
        if not values["bag"]:
            raise ConfigurationError("parameter bag is empty: give the path of a rosbag2", reason="bad_parameter")
        self._rate, self._loop = values["rate"], values["loop"]
        self._wait_s, self._delay_s = values["wait_for_subscribers_s"], values["start_delay_s"]
        self._tail_ns = int(values["clock_tail_s"] * 1e9)
        self._clock_period_s = 1.0 / values["clock_hz"]
        self._recording: Rosbag2Recording = open_rosbag2(values["bag"])
        self._clock_publisher = self.create_publisher(Clock, "/clock", _CLOCK_QOS)
        self._publishers_by_topic = self._create_publishers()
        self._begin = self._seen = self._next_clock = 0.0  # of the wall clock: the bag's begin, the latest look, a tick
        self._paused = values["paused"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="player")
        self.finished: Future = Future()

    def start(self) -> None:
        """Starts to play; ``finished`` is completed at the end, with an error if the bag turns out to be damaged."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the playing thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As in rclpy, but refusals are sentences, and only ``paused`` can change."""
        try:
            for parameter in parameter_list:
                if parameter.name in BAG_PLAYER_NODE.by_name:
                    self._check_change(parameter)
        except ConfigurationError as error:
            return SetParametersResult(successful=False, reason=str(error))
        result = super().set_parameters_atomically(parameter_list)
        self._paused = self.get_parameter("paused").value
        return result

    def _check_change(self, change: Parameter) -> None:
        parameter = BAG_PLAYER_NODE.get(change.name)
        parameter.check(change.value)
        if not parameter.dynamic:
            raise ConfigurationError(
                f"parameter {change.name} can be set only when the player is started", reason="bad_parameter"
            )

    def _create_publishers(self) -> dict[str, Publisher]:
        publishers = {}
        for topic, kind in self._recording.types.items():
            if topic == "/clock":
                continue
            try:
                found = message_class(kind)
            except ConfigurationError as error:
                self.get_logger().warning(f"{topic} is left out: {error}")
                continue
            qos = _EVENT_QOS if kind in EVENT_TYPES else _OTHER_QOS
            publishers[topic] = self.create_publisher(found, topic, qos)
        if not publishers:
            raise RecordingError(f"{self._recording.path} has no topic that can be played", reason="nothing_to_play")
        return publishers

    def _run(self) -> None:
        try:
            self._wait_for_subscribers()
            while not self._stop.is_set():
                self._play_once()
                if not self._loop:
                    break
            self.finished.set_result(None)
        except Exception as error:  # raised again by whoever waits for the future
            self.finished.set_exception(error)

    def _wait_for_subscribers(self) -> None:
        """Waits until every topic is listened to and nobody else begins to, as long as the parameter allows.

        /clock stands at the recording's start until then, so that listeners know the time when the first message comes.
        """
        deadline = time.monotonic() + self._wait_s
        known, since = 0, time.monotonic()
        while time.monotonic() < deadline and not self._stop.wait(0.05):
            self._clock_publisher.publish(Clock(clock=ns_to_stamp(self._recording.start_ns)))
            counts = [publisher.get_subscription_count() for publisher in self._publishers_by_topic.values()]
            listeners = sum(counts) + self._clock_publisher.get_subscription_count()
            if listeners != known:
                known, since = listeners, time.monotonic()
            if all(counts) and time.monotonic() - since >= _SETTLED_S:
                break
        self._stop.wait(self._delay_s)

    def _play_once(self) -> None:
        self._begin = self._seen = time.monotonic()
        for message in self._recording.raw_messages():
            if not self._wait_until(message.receive_ns):
                return
            if message.topic in self._publishers_by_topic:
                self._publishers_by_topic[message.topic].publish(message.cdr)
        if losses := str(self._recording.losses):
            self.get_logger().warning(f"not played: {losses}")
        self._wait_until(self._recording.end_ns + self._tail_ns)

    def _wait_until(self, bag_ns: int) -> bool:
        """Sleeps until the bag's time has come, and keeps /clock going; False if the player was stopped."""
        while not self._stop.is_set():
            now, paused = time.monotonic(), self._paused
            if paused:  # the begin moves on with the wall clock, so that the bag's time stands
                self._begin += now - self._seen
            self._seen = now
            now_ns = self._recording.start_ns + int((now - self._begin) * self._rate * 1e9)
            if now >= self._next_clock:
                self._clock_publisher.publish(Clock(clock=ns_to_stamp(min(now_ns, bag_ns))))
                self._next_clock = now + self._clock_period_s
            if now_ns >= bag_ns and not paused:
                return True
            due_s = (bag_ns - now_ns) / 1e9 / self._rate
            self._stop.wait(self._clock_period_s if paused else min(due_s, self._clock_period_s))
        return False


def main(args: Sequence[str] | None = None) -> int:
    """Runs the player until the recording ends or it is interrupted. Returns the exit code."""
    with ros_until_signal(args) as stop:
        player: BagPlayerNode | None = None
        executor = SingleThreadedExecutor()
        try:
            player = BagPlayerNode()
            executor.add_node(player)
            player.start()
            while not (stop.is_set() or player.finished.done()):
                executor.spin_once(timeout_sec=0.1)
            if player.finished.done():
                player.finished.result()
            return 0
        except EventSam3dError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if player is None else 1
        finally:
            executor.shutdown()
            if player is not None:
                player.stop()
                player.destroy_node()
