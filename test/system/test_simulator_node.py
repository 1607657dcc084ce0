"""simulator_node as a process: topics of one moment at its stamps, in step with the clock, and windows behind it."""

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from event_sam3d_ros.msg import EventWindow
from event_sam3d_ros.nodes.conversions import image_to_numpy, stamp_to_ns

BEST_EFFORT = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
SMALL = ("-p", "width:=96", "-p", "height:=80", "-p", "pixels_per_sub_frame:=6.0", "-p", "object:=5")


def test_all_topics_of_one_scene_and_the_windows_of_its_events(peer, start):
    start("event_image_node", "-p", "max_wait_ms:=2000.0", "-p", "buffer_ms:=4000.0")
    peer.wait_active("event_image_node")
    pictures = {
        name: peer.collect(Image, f"/camera/{name}", 50) for name in ("image_raw", "image_sharp", "mask", "depth")
    }
    infos, poses = peer.collect(CameraInfo, "/camera/camera_info", 50), peer.collect(TFMessage, "/tf", 100)
    packets = peer.collect(EventPacket, "/event_camera/events", BEST_EFFORT)
    windows = peer.collect(EventWindow, "/event_image_node/event_window", 50)
    begin_ns = peer.node.get_clock().now().nanoseconds
    node = start("simulator_node", *SMALL)
    peer.wait_for(lambda: len(windows) >= 5 and min(map(len, [*pictures.values(), infos, poses])) >= 8, 90)
    now_ns = peer.node.get_clock().now().nanoseconds
    by_stamp = {name: {stamp_to_ns(one.header.stamp): one for one in messages} for name, messages in pictures.items()}
    by_stamp["info"] = {stamp_to_ns(info.header.stamp): info for info in infos}
    by_stamp["tf"] = {stamp_to_ns(pose.transforms[0].header.stamp): pose for pose in poses}
    # The first ones may be missed until all subscriptions are found, the last ones may be under way.
    first, last = max(map(min, by_stamp.values())), min(map(max, by_stamp.values()))
    stamps = sorted(stamp for stamp in by_stamp["image_raw"] if first <= stamp <= last)
    assert len(stamps) >= 5 and min(np.diff(stamps)) > 33_000_000
    assert begin_ns < stamps[0] < stamps[-1] < now_ns  # the node's clock is the machine's
    for name, messages in by_stamp.items():
        assert sorted(stamp for stamp in messages if first <= stamp <= last) == stamps, name
    sharp, blurry = (image_to_numpy(by_stamp[name][stamps[2]]).astype(int) for name in ("image_sharp", "image_raw"))
    mask = image_to_numpy(by_stamp["mask"][stamps[2]])
    assert sharp.shape == (80, 96, 3) and set(np.unique(mask)) == {0, 1}
    assert np.abs(sharp - blurry)[mask > 0].mean() > 2
    assert by_stamp["image_raw"][stamps[2]].header.frame_id == "camera_optical_frame"
    assert by_stamp["tf"][stamps[2]].transforms[0].child_frame_id == "true_object_1"
    # Packets follow each other without a hole, on the same clock as the pictures.
    assert [packet.seq for packet in packets] == list(range(packets[0].seq, packets[0].seq + len(packets)))
    assert abs(stamp_to_ns(packets[-1].header.stamp) - last) < 1_000_000_000
    assert {stamp_to_ns(window.header.stamp) for window in windows} & set(stamps)
    assert max(window.event_count for window in windows) > 100
    assert peer.status("simulator_node")[2]["internal_error"] == "0"
    assert node.stop(signal.SIGINT) == 0, node.log
    assert "Traceback" not in node.log


def test_too_slow_rendering_is_said(peer, start):
    # No machine renders 1 megapixel at a quarter pixel per sub-frame in 33 ms.
    node = start("simulator_node", "-p", "width:=800", "-p", "height:=600", "-p", "pixels_per_sub_frame:=0.5")
    found = peer.status("simulator_node", lambda status: int(status[2]["rendering_too_slow"]) > 0, 120)
    assert "rendering_too_slow" in found[1] and "Smaller width and height" in found[1]
    assert node.stop(signal.SIGTERM) == 0, node.log


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-p", "mesh:=/nowhere/cup.obj"), "/nowhere/cup.obj"),
        (("-p", "motion:=fly"), "parameter motion can't be 'fly'"),
        (("-p", "hight:=100"), "did you mean height?"),
    ],
)
def test_what_can_not_start_ends_with_one_sentence(peer, start, arguments, sentence):
    node = start("simulator_node", *arguments)
    peer.wait_for(lambda: node.exit_code is not None, 60)
    assert node.exit_code == 2
    assert sentence in node.log and "Traceback" not in node.log
