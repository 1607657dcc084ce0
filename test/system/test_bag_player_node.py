"""bag_player_node as a process: what it sends, in which order and at what time, and how it ends."""

import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from event_sam3d_ros.events.codecs import parse_event_packet_cdr
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.nodes.conversions import image_to_numpy, stamp_to_ns
from event_sam3d_ros.recordings.files import EventChunk, Frame, open_rosbag2, write_rosbag2

START_NS = 5_000_000_000
PACKETS, PERIOD_NS = 50, 20_000_000
BEST_EFFORT = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """One second: 50 event packets of four events, and an image with every tenth."""
    samples = []
    for number in range(PACKETS):
        stamp = START_NS + number * PERIOD_NS
        pixels = np.arange(4, dtype=np.uint16)
        events = Events(stamp // 1000 + np.arange(4), pixels, pixels, np.ones(4, np.uint8))
        samples.append(EventChunk(stamp, stamp, "camera", 8, 8, events))
        if number % 10 == 0:
            samples.append(Frame("image", stamp, stamp, "camera", np.full((8, 8, 3), number, np.uint8)))
    path = tmp_path_factory.mktemp("bags") / "bag"
    write_rosbag2(path, samples)
    return path


@pytest.fixture
def received(peer):
    """Everything that the player sends from now on."""
    events = peer.collect(EventPacket, "/event_camera/events", BEST_EFFORT)
    images = peer.collect(Image, "/camera/image_raw")
    clocks = peer.collect(Clock, "/clock", BEST_EFFORT)
    return events, images, clocks


def wait_for_end(peer, player):
    peer.wait_for(lambda: player.exit_code is not None, 60)
    peer.spin(0.3)
    return player.exit_code


def test_messages_come_as_they_lie_in_the_bag(peer, start, bag, received):
    events, images, clocks = received
    player = start("bag_player_node", "-p", f"bag:={bag}", "-p", "rate:=2.0", "-p", "wait_for_subscribers_s:=30.0")
    assert wait_for_end(peer, player) == 0, player.log
    raw = [message for message in open_rosbag2(bag).raw_messages() if message.topic == "/event_camera/events"]
    packets = [parse_event_packet_cdr(message.cdr) for message in raw]
    assert [bytes(message.events) for message in events] == [bytes(packet.payload) for packet in packets]
    assert [stamp_to_ns(message.header.stamp) for message in events] == [packet.stamp_ns for packet in packets]
    assert [message.seq for message in events] == list(range(PACKETS))
    assert [stamp_to_ns(image.header.stamp) for image in images] == [
        START_NS + number * PERIOD_NS for number in range(0, PACKETS, 10)
    ]
    assert [int(image_to_numpy(image)[0, 0, 0]) for image in images] == [0, 10, 20, 30, 40]
    times = [stamp_to_ns(clock.clock) for clock in clocks]
    assert times == sorted(times)
    last = START_NS + (PACKETS - 1) * PERIOD_NS
    assert times[:3] == [START_NS] * 3  # before the first message
    assert last + 800_000_000 < times[-1] <= last + 1_000_000_000  # /clock goes on for a second


def test_a_loop_goes_on_until_it_is_interrupted(peer, start, bag, received):
    events, _, clocks = received
    parameters = {"bag": bag, "rate": 10.0, "loop": True, "clock_tail_s": 0.0, "wait_for_subscribers_s": 30.0}
    player = start(
        "bag_player_node", *(word for key, value in parameters.items() for word in ("-p", f"{key}:={value}"))
    )
    peer.wait_for(lambda: len(events) > 2.5 * PACKETS, 60)
    assert player.stop(signal.SIGINT) == 0, player.log
    assert "Traceback" not in player.log
    times = [stamp_to_ns(clock.clock) for clock in clocks]
    assert any(later < earlier for earlier, later in zip(times, times[1:], strict=False))  # back to the start


def test_time_stands_while_it_is_paused(peer, start, bag, received):
    events, images, clocks = received
    parameters = {"bag": bag, "paused": True, "wait_for_subscribers_s": 30.0, "rate": 1.0}
    player = start(
        "bag_player_node", *(word for key, value in parameters.items() for word in ("-p", f"{key}:={value}"))
    )
    peer.wait_for(lambda: len(clocks) > 150, 60)  # more than the wait for listeners
    assert not events and {stamp_to_ns(clock.clock) for clock in clocks} == {START_NS}
    assert "only when the player is started" in peer.set_parameter("bag_player_node", "rate", 2.0).reason
    assert not peer.set_parameter("bag_player_node", "paused", "yes").successful
    assert peer.set_parameter("bag_player_node", "paused", False).successful
    peer.wait_for(lambda: len(events) > 10, 60)
    assert peer.set_parameter("bag_player_node", "paused", True).successful
    peer.spin(0.3)  # what was on its way
    seen = len(events)
    clocks.clear()
    peer.wait_for(lambda: len(clocks) > 50, 60)
    assert len(events) == seen < PACKETS and len({stamp_to_ns(clock.clock) for clock in clocks}) == 1
    assert peer.set_parameter("bag_player_node", "paused", False).successful
    assert wait_for_end(peer, player) == 0, player.log
    assert len(events) == PACKETS and len(images) == PACKETS // 10
    times = [stamp_to_ns(clock.clock) for clock in clocks]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        ((), "parameter bag is empty", 2),
        (("-p", "bag:=/nowhere"), "/nowhere does not exist", 2),
        (("-p", "bag:=/nowhere", "-p", "rate:=-1.0"), "parameter rate can't be -1.0", 2),
        (("-p", "bag:=/nowhere", "-p", "speed:=2.0"), "there is no parameter speed", 2),
    ],
)
def test_what_can_not_be_played_is_said_in_one_sentence(peer, start, arguments, sentence, code):
    player = start("bag_player_node", *arguments)
    assert wait_for_end(peer, player) == code
    assert sentence in player.log
    assert "Traceback" not in player.log


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_damaged_bag_is_played_as_far_as_it_can_be_read(peer, start, bag, tmp_path, is_readable):
    damaged = tmp_path / "bag"
    damaged.mkdir()
    for file in bag.iterdir():
        data = file.read_bytes()
        if file.suffix == ".mcap" and not is_readable:
            data = data.replace(bytes.fromhex("28b52ffd"), bytes(4))  # the mark of zstd, with which chunks begin
        (damaged / file.name).write_bytes(data)
    metadata = (damaged / "metadata.yaml").read_text()
    (damaged / "metadata.yaml").write_text(metadata.replace("message_count: 55", "message_count: 56"))
    player = start("bag_player_node", "-p", f"bag:={damaged}", "-p", "wait_for_subscribers_s:=0.0", "-p", "rate:=5.0")
    begin = time.monotonic()
    assert wait_for_end(peer, player) == (0 if is_readable else 1)
    assert time.monotonic() - begin < 60
    assert ("announces 56 messages, but 55 can be read" if is_readable else "can't be read as a rosbag2") in player.log
    assert ("not played: 1 unreadable message\n" in player.log) == is_readable
