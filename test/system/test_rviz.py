"""Every topic that the RViz configurations name, read from a running graph as RViz would read it."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

sys.path.append(str(Path(__file__).parents[1]))
from test_rviz import FILES, ROOT, displays, read

TYPES = {
    "rviz_default_plugins/Image": Image,
    "rviz_default_plugins/MarkerArray": MarkerArray,
    "rviz_default_plugins/PointCloud2": PointCloud2,
}
RELIABILITY = {"Reliable": ReliabilityPolicy.RELIABLE, "Best Effort": ReliabilityPolicy.BEST_EFFORT}
DURABILITY = {"Volatile": DurabilityPolicy.VOLATILE, "Transient Local": DurabilityPolicy.TRANSIENT_LOCAL}


@pytest.fixture(scope="module")
def graph(peer, start):
    """The pipeline on the demo bag, played again and again."""
    sim_time = ("-p", "use_sim_time:=true")
    options = ("-p", "max_age_ms:=0.0", "-p", "pair_timeout_ms:=10000.0", "-p", "qos_depth:=100", "-p", "threads:=1")
    start("event_image_node", *sim_time, "-p", "max_wait_ms:=10000.0", "-p", "buffer_ms:=11000.0")
    start("reconstruction_node", *sim_time, *options)
    for name in ("event_image_node", "reconstruction_node"):
        peer.wait_active(name)
    start("bag_player_node", "-p", f"bag:={ROOT / 'data' / 'demo_bag'}", "-p", "rate:=0.5", "-p", "loop:=true")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_topic_is_there_with_its_type_and_speaks(peer, graph, file):
    received, transforms = {}, peer.collect(TFMessage, "/tf", 100)
    for display in displays(file):
        if "Topic" in display:
            topic = display["Topic"]
            qos = QoSProfile(
                depth=topic["Depth"],
                reliability=RELIABILITY[topic["Reliability Policy"]],
                durability=DURABILITY[topic["Durability Policy"]],
            )
            received[topic["Value"]] = peer.collect(TYPES[display["Class"]], topic["Value"], qos)
    peer.wait_for(lambda: transforms and all(received.values()), 120)
    types = dict(peer.node.get_topic_names_and_types())
    for topic, messages in received.items():
        package, _, name = type(messages[0]).__module__.partition(".msg")
        assert types[topic] == [f"{package}/msg/{type(messages[0]).__name__}"], name
        assert peer.node.count_publishers(topic) == 1
    fixed_frame = read(file)["Visualization Manager"]["Global Options"]["Fixed Frame"]
    points = received["/reconstruction_node/points"][0]
    assert points.header.frame_id == fixed_frame
    assert {one.header.frame_id for message in transforms for one in message.transforms} == {fixed_frame}
    (cloud,) = (display for display in displays(file) if display["Class"] == "rviz_default_plugins/PointCloud2")
    assert cloud["Channel Name"] in [field.name for field in points.fields]
    picture = received["/reconstruction_node/debug_image"][0]
    assert (picture.encoding, picture.width > 0) == ("rgb8", True)
