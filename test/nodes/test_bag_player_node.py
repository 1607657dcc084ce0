"""bag_player_node inside of the test's process: for whom it waits."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")

from event_sam3d_ros.events.events import Events
from event_sam3d_ros.nodes import bag_player_node
from event_sam3d_ros.nodes.bag_player_node import BagPlayerNode
from event_sam3d_ros.nodes.conversions import stamp_to_ns
from event_sam3d_ros.recordings.files import EventChunk, write_rosbag2

START_NS = 5_000_000_000


class Discovered:
    """A publisher whose subscribers come one after the other: ``counts``, one for each time that it is asked."""

    def __init__(self, *counts):
        self.counts, self.published = list(counts), []

    def get_subscription_count(self):
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def publish(self, message):
        self.published.append(message)


@pytest.fixture
def player(ros, tmp_path):
    pixels = np.arange(4, dtype=np.uint16)
    events = Events(START_NS // 1000 + np.arange(4), pixels, pixels, np.ones(4, np.uint8))
    write_rosbag2(tmp_path / "bag", [EventChunk(START_NS, START_NS, "camera", 8, 8, events)])
    ros.shutdown()
    ros.init(args=["--ros-args", "-p", f"bag:={tmp_path / 'bag'}", "-p", "wait_for_subscribers_s:=60.0"])
    made = BagPlayerNode()
    yield made
    made.destroy_node()


def test_it_waits_until_no_more_listeners_come_and_gives_them_the_time(player):
    clock, events = Discovered(0, 0, 0, 1, 1, 1, 2), Discovered(0, 1)
    player._clock_publisher, player._publishers_by_topic = clock, {"/event_camera/events": events}
    player._wait_for_subscribers()
    assert clock.counts == [2] and events.counts == [1]
    after = len(clock.published) - 7
    assert after * 0.05 >= bag_player_node._SETTLED_S - 0.1
    assert {stamp_to_ns(message.clock) for message in clock.published} == {START_NS}


def test_it_waits_for_a_listener_on_every_topic_of_the_bag(player):
    clock, events = Discovered(1), Discovered(*[0] * 20, 1)
    player._clock_publisher, player._publishers_by_topic = clock, {"/event_camera/events": events}
    player._wait_for_subscribers()
    assert events.counts == [1]
