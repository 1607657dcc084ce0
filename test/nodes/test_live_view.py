"""A running system in the viewer: results with the pictures of their stamps, pictures alone where there are none."""

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")

from sensor_msgs.msg import CameraInfo, Image

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import ns_to_stamp
from event_sam3d_ros.nodes.live_view import TOPICS, LiveFrames
from event_sam3d_ros.nodes.outputs import object_message
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.viewer.sources import open_live

STAMP = 5_000_000_000


def picture(pixels, encoding, stamp_ns):
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=pixels[0].nbytes)
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.data = pixels.tobytes()
    return message


@pytest.fixture
def system(ros):
    """A view, and what sends to it: ``send(kind, message)`` once the view listens."""
    node = ros.create_node("sender")
    types = {"objects": ReconstructedObjectArray, "camera_info": CameraInfo}
    publishers = {kind: node.create_publisher(types.get(kind, Image), topic, 10) for kind, topic in TOPICS.items()}
    frames = LiveFrames()
    wait_for(lambda: all(publisher.get_subscription_count() for publisher in publishers.values()))
    calibration = CameraInfo(k=[100.0, 0.0, 3.0, 0.0, 100.0, 2.0, 0.0, 0.0, 1.0])

    def heard():  # each side finds the other on its own, and what was sent before is lost
        publishers["camera_info"].publish(calibration)
        time.sleep(0.1)
        return frames._K is not None

    wait_for(heard)
    time.sleep(0.5)
    yield frames, lambda kind, message: publishers[kind].publish(message)
    frames.close()
    node.destroy_node()


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_come_with_the_pictures_of_their_stamp(system):
    frames, send = system
    assert "waiting for" in frames.status()
    rgb = np.full((4, 6, 3), 50, np.uint8)
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:3] = 3
    events = np.zeros((4, 6, 3), np.uint8)
    events[2, 2] = 255, 9, 0
    send("image", picture(rgb, "rgb8", STAMP))
    wait_for(lambda: frames.span()[1] == 1)  # no results so far: the picture alone
    alone = frames.frame(0)
    assert alone.stamp_ns == STAMP and alone.objects == () and "images alone" in frames.status()
    np.testing.assert_array_equal(alone.rgb, rgb)
    send("mask", picture(mask, "mono8", STAMP))
    send("event_image", picture(events, "rgb8", STAMP))
    wait_for(lambda: set(frames._pieces[STAMP]) == {"image", "mask", "event_image"})
    found = Reconstruction(
        id=70_000,
        score=0.75,
        metric=True,
        occupancy=np.ones((1, 1, 1), bool),
        points=np.float32([[0.1, 0.2, 1.1], [0, 0, 1]]),
        colors=np.uint8([[1, 2, 3], [4, 5, 6]]),
        position=np.array([0, 0, 1.0]),
        quaternion=np.array([0, 0, 0, 1.0]),
        size=np.full(3, 0.2),
    )
    message = ReconstructedObjectArray(processing_ms=12.5)
    message.header.stamp = ns_to_stamp(STAMP)
    message.objects = [object_message(found, message.header, "3")]
    send("objects", message)
    wait_for(lambda: frames.span()[1] == 2)
    frame = frames.frame(1)
    np.testing.assert_array_equal(frame.event_image, events)
    np.testing.assert_array_equal(frame.tracks, np.where(mask, 70_000, 0))
    np.testing.assert_allclose(frame.K[0], [100, 0, 3])
    (item,) = frame.objects
    assert (item.name, item.score, item.metric) == ("70000", 0.75, True)
    np.testing.assert_allclose(item.points + item.pose[:3, 3], found.points, atol=1e-6)
    np.testing.assert_array_equal(item.colors, found.colors)
    assert frame.milliseconds["model"] == 12.5 and "since the stamp" in frame.milliseconds
    wait_for(lambda: frames.status() == "")


def test_a_picture_that_cannot_be_read_is_told_and_does_not_end_it(system):
    frames, send = system
    send("image", picture(np.zeros((4, 6), np.float32), "32FC1", STAMP))
    wait_for(lambda: "32FC1" in frames.status())
    send("image", picture(np.zeros((4, 6, 3), np.uint8), "rgb8", STAMP + 1))
    wait_for(lambda: frames.span()[1] == 1)


def test_topics_have_other_names_where_they_are_given(ros):
    with pytest.raises(ConfigurationError, match="event_image"):
        open_live(["sound=/x"])
    frames = open_live(["objects=/other/objects"])
    try:
        assert "/other/objects" in frames.status() and "/camera/mask" in frames.status()
    finally:
        frames.close()
