"""A running system in the viewer: results with the pictures of their stamps, pictures alone where there are none."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")

from geometry_msgs.msg import Quaternion
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes import live_view
from event_sam3d_ros.nodes.conversions import ns_to_stamp
from event_sam3d_ros.nodes.live_view import TOPICS, LiveFrames, Pieces
from event_sam3d_ros.nodes.outputs import object_message
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.viewer.sources import open_live

STAMP = 5_000_000_000
RGB = np.full((4, 6, 3), 50, np.uint8)
EVENTS = np.zeros((4, 6, 3), np.uint8)
EVENTS[2, 2] = 255, 9, 0


def picture(pixels, encoding, stamp_ns):
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=pixels[0].nbytes)
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.data = pixels.tobytes()
    return message


def found(id):
    return Reconstruction(
        id=id,
        score=0.75,
        metric=True,
        occupancy=np.ones((1, 1, 1), bool),
        points=np.float32([[0.1, 0.2, 1.1], [0, 0, 1]]),
        colors=np.uint8([[1, 2, 3], [4, 5, 6]]),
        position=np.array([0, 0, 1.0]),
        quaternion=np.array([0, 0, 0, 1.0]),
        size=np.full(3, 0.2),
    )


def results(stamp_ns, *items):
    """A message of objects: ``items`` of id and label."""
    message = ReconstructedObjectArray(processing_ms=12.5)
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.objects = [object_message(found(id), message.header, label) for id, label in items]
    return message


@pytest.fixture
def system(ros, monkeypatch):
    """A view, and what sends to it: ``send(kind, message)`` once the view listens. It waits for what may still come
    until `forget` says that it has been silent."""
    monkeypatch.setattr(live_view, "_PATIENCE_S", 1e6)
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


def forget(frames, *kinds):
    """As if nothing of these kinds had come for long."""
    frames._latest_s.update(dict.fromkeys(kinds, -np.inf))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_come_with_the_pictures_of_their_stamp(system):
    frames, send = system
    assert "waiting for" in frames.status()
    stamp_ns = time.time_ns()
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:3] = 3
    send("image", picture(RGB, "rgb8", stamp_ns))
    send("mask", picture(mask, "mono8", stamp_ns))
    send("event_image", picture(EVENTS, "rgb8", stamp_ns))
    wait_for(lambda: set(frames._pieces.of(stamp_ns)) == {"image", "mask", "event_image"})
    send("objects", results(stamp_ns, (70_000, "3")))
    wait_for(lambda: frames.span()[1] > 0)
    frame = frames.frame(0)  # the first of all: no picture was shown before its result
    np.testing.assert_array_equal(frame.rgb, RGB)
    np.testing.assert_array_equal(frame.event_image, EVENTS)
    np.testing.assert_array_equal(frame.tracks, np.where(mask, 70_000, 0))
    np.testing.assert_allclose(frame.K[0], [100, 0, 3])
    (item,) = frame.objects
    assert (item.name, item.score, item.metric) == ("70000", 0.75, True)
    np.testing.assert_allclose(item.points + item.pose[:3, 3], found(1).points, atol=1e-6)
    np.testing.assert_array_equal(item.colors, found(1).colors)
    assert frame.milliseconds["model"] == 12.5 and frame.milliseconds["since the stamp"] > 0
    wait_for(lambda: frames.status() == "")


def test_without_results_event_images_come_with_the_images_of_their_stamps(system):
    frames, send = system
    forget(frames, "objects")
    send("image", picture(RGB, "rgb8", STAMP))
    wait_for(lambda: "image" in frames._pieces.of(STAMP))
    send("event_image", picture(EVENTS, "rgb8", STAMP))
    wait_for(lambda: frames.span()[1] > 0)
    frame = frames.frame(0)
    assert frame.stamp_ns == STAMP and frame.objects == ()
    np.testing.assert_array_equal(frame.rgb, RGB)
    np.testing.assert_array_equal(frame.event_image, EVENTS)
    wait_for(lambda: frames.status() == "no results come: images and event images alone")
    send("event_image", picture(EVENTS, "rgb8", STAMP + 1))  # as of an event camera without another
    wait_for(lambda: frames.span()[1] == 2)
    alone = frames.frame(1)
    assert alone.stamp_ns == STAMP + 1 and alone.rgb is None
    np.testing.assert_array_equal(alone.event_image, EVENTS)
    wait_for(lambda: frames.status() == "no results come: event images alone")
    send("image", picture(RGB, "rgb8", STAMP + 1))  # late
    wait_for(lambda: frames.span()[1] == 3)
    assert frames.frame(2).rgb is not None and frames.frame(2).event_image is not None
    assert len(frames.history.objects("score")[0]) == 2  # it takes the other's place


def test_without_results_and_event_images_images_come_alone(system):
    frames, send = system
    forget(frames, "objects", "event_image")
    send("image", picture(RGB, "rgb8", STAMP))
    wait_for(lambda: frames.span()[1] == 1)
    np.testing.assert_array_equal(frames.frame(0).rgb, RGB)
    wait_for(lambda: frames.status() == "no results come: images alone")


def test_objects_are_shown_whatever_their_labels_are(system):
    frames, send = system
    mask = np.uint16([[1, 2], [0, 65535]])
    send("mask", picture(mask, "mono16", STAMP))
    wait_for(lambda: "mask" in frames._pieces.of(STAMP))
    labels = "cup", "70000", "9" * 5000, "-1", "65535", "1", "0"
    send(
        "objects", results(STAMP, *((10 + number, label) for number, label in enumerate(labels)), (10, "cup"), (0, ""))
    )
    wait_for(lambda: frames.span()[1] == 1)
    frame = frames.frame(0)
    names = ["10 cup", "11", "12", "13 -1", "14", "15", "16", "10 cup (2)", "0"]
    assert [item.name for item in frame.objects] == names
    assert [item.id for item in frame.objects] == [*range(10, 17), 10, 0]
    np.testing.assert_array_equal(frame.tracks, [[15, 0], [0, 14]])
    wait_for(lambda: frames.status() == "")


def test_objects_that_cannot_be_shown_are_counted_and_the_others_shown(system):
    frames, send = system
    message = results(STAMP, (1, "1"), (2, "2"), (3, "3"), (4, "4"))
    message.objects[0].pose.orientation = Quaternion(w=0.0)
    message.objects[1].pose.position.x = float("nan")
    message.objects[2].points.fields = []
    cloud = np.frombuffer(message.objects[3].points.data, np.float32).copy()
    cloud[0] = np.nan
    message.objects[3].points.data = cloud.tobytes()
    send("objects", message)
    wait_for(lambda: frames.span()[1] == 1)
    (item,) = frames.frame(0).objects
    assert item.name == "4" and len(item.points) == len(item.colors) == 1
    wait_for(lambda: "could not be used so far: 3, the latest object 3: " in frames.status())


def test_a_picture_that_cannot_be_read_is_told_and_does_not_end_it(system):
    frames, send = system
    forget(frames, "objects", "event_image")
    send("image", picture(np.zeros((4, 6), np.float32), "32FC1", STAMP))
    wait_for(lambda: "32FC1" in frames.status() and TOPICS["image"] in frames.status())
    send("image", picture(RGB, "rgb8", STAMP + 1))
    wait_for(lambda: frames.span()[1] == 1)
    wait_for(lambda: frames.status().startswith("no results come: images alone; could not be used so far: 1"))


def test_an_error_that_nobody_thought_of_is_told_and_does_not_end_it(system, monkeypatch):
    frames, send = system

    def breaks(*_):
        raise RuntimeError("unheard of")

    with monkeypatch.context() as patch:
        patch.setattr(live_view, "stamp_to_ns", breaks)
        send("objects", results(STAMP))
        wait_for(lambda: "RuntimeError: unheard of" in frames.status())
    send("objects", results(STAMP + 1))
    wait_for(lambda: frames.span()[1] == 1)
    assert not frames.complete()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_is_told_when_listening_ends(system, monkeypatch):
    frames, send = system

    def breaks():
        raise RuntimeError("no more")

    monkeypatch.setattr(frames._executor, "spin_once", breaks)
    send("objects", results(STAMP))  # wakes it
    wait_for(frames.complete)
    assert "ended with an error" in frames.status()


def test_simulated_time_is_followed(system, ros):
    frames, send = system
    send("objects", results(STAMP))  # decades from now by the clock on the wall
    wait_for(lambda: frames.span()[1] == 1)
    player = ros.create_node("player")
    publisher = player.create_publisher(Clock, "/clock", 1)
    try:
        wait_for(lambda: frames._node.count_publishers("/clock"))

        def followed():
            publisher.publish(Clock(clock=ns_to_stamp(STAMP + 250_000_000)))
            send("objects", results(STAMP))
            time.sleep(0.05)
            first, behind = frames.span()
            return "since the stamp" in frames.frame(behind - 1).milliseconds

        wait_for(followed)
    finally:
        player.destroy_node()
    shown = [frames.frame(index).milliseconds for index in range(*frames.span())]
    assert "since the stamp" not in shown[0]
    assert {one["since the stamp"] for one in shown if "since the stamp" in one} == {250.0}


def test_history_begins_anew_where_time_jumps_back(system):
    frames, send = system
    second = 1_000_000_000
    for number, seconds in enumerate((5, 6, 7, 5, 6), start=1):
        send("objects", results(seconds * second, (1, "1")))
        wait_for(lambda expected=number: frames.span()[1] == expected)
    wait_for(lambda: frames.history.added == 5)
    times, lines = frames.history.objects("score")
    np.testing.assert_array_equal(times, [0, 1])
    assert len(lines["1"]) == 2
    np.testing.assert_array_equal(frames.history.milliseconds()[0], [0, 1])


def test_pictures_that_wait_for_results_are_bounded():
    pieces = Pieces(memory=10 * RGB.nbytes)
    for stamp_ns in range(20):
        pieces.keep(stamp_ns, "image", RGB)
        pieces.keep(stamp_ns, "event_image", EVENTS)
    assert [stamp_ns for stamp_ns in range(20) if pieces.of(stamp_ns)] == [15, 16, 17, 18, 19]
    assert pieces.bytes == 10 * RGB.nbytes
    pieces.keep(20, "image", np.zeros((40, 60, 3), np.uint8))  # more than all of it
    assert [stamp_ns for stamp_ns in range(21) if pieces.of(stamp_ns)] == [20]
    pieces = Pieces()
    for stamp_ns in range(100):
        pieces.keep(stamp_ns, "image", RGB)
    assert sum(bool(pieces.of(stamp_ns)) for stamp_ns in range(100)) == 64


def test_topics_have_other_names_where_they_are_given(ros):
    with pytest.raises(ConfigurationError, match="event_image"):
        open_live(["sound=/x"])
    frames = open_live(["objects=/other/objects"])
    try:
        assert "/other/objects" in frames.status() and "/camera/mask" in frames.status()
    finally:
        frames.close()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("image=foo bar", "'foo bar' can't be the topic of image"),
        ("mask=/a//b", "'/a//b' can't be the topic of mask"),
        ("objects=/3d", "'/3d' can't be the topic of objects"),
        ("camera_info=/{x}", "can't be the topic of camera_info"),
        ("mask=/camera/image_raw", "mask and image have the same topic /camera/image_raw"),
    ],
)
def test_names_that_topics_cannot_have_are_told_before_anything_is_opened(word, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_live([word])
    assert "\n" not in str(caught.value)
    assert "viewer topics" not in {thread.name for thread in threading.enumerate()}
