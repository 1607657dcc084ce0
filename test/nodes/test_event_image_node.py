"""event_image_node inside of the test's process: every type of event message, every source of stamps, every mode."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from dvs_msgs.msg import EventArray as DvsEventArray
from event_array_msgs.msg import EventArray
from event_camera_msgs.msg import EventPacket
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from event_sam3d_ros.events.codecs import encode_dvs_event_array_cdr, encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode, tencode_reference
from event_sam3d_ros.msg import EventWindow
from event_sam3d_ros.nodes.conversions import image_to_numpy, ns_to_stamp, stamp_to_ns
from event_sam3d_ros.nodes.event_image_node import EventImageNode

WIDTH, HEIGHT = 32, 24
START_US = 1_000_000
TYPES = {
    "event_camera_msgs/msg/EventPacket": EventPacket,
    "event_array_msgs/msg/EventArray": EventArray,
    "dvs_msgs/msg/EventArray": DvsEventArray,
}
FRAMES = {
    "camera_info": (CameraInfo, "/camera/camera_info"),
    "image": (Image, "/camera/image_raw"),
    "compressed_image": (CompressedImage, "/camera/image_raw/compressed"),
}


def events():
    generator = np.random.default_rng(0)
    times = START_US + np.arange(0, 200_000, 100)
    x, y = generator.integers(0, (WIDTH, HEIGHT), (len(times), 2)).astype(np.uint16).T
    return Events(times, x, y, generator.integers(0, 2, len(times)).astype(np.uint8))


def serialized(event_type, ahead_ns=0):
    """The events as messages of 10 ms, stamped by a clock that is ahead of the sensor's."""
    encoder = make_encoder("evt3", WIDTH, HEIGHT)
    everything = events()
    for seq in range(20):
        part = everything[100 * seq : 100 * seq + 100]
        stamp_ns = int(part.t[0]) * 1000 + ahead_ns
        if event_type == "dvs_msgs/msg/EventArray":
            yield encode_dvs_event_array_cdr(stamp_ns, "events", WIDTH, HEIGHT, part)
            continue
        payload, time_base = encoder.encode(part)
        packet = {"width": WIDTH, "height": HEIGHT, "seq": seq, "time_base": time_base, "encoding": "evt3"}
        yield encode_event_packet_cdr(stamp_ns=stamp_ns, frame_id="events", payload=payload, **packet)


@pytest.fixture
def bench(ros):
    """Makes the node with parameters, and a peer that sends to it."""
    made = []

    def make(**parameters):
        values = {"autostart": False, **parameters}
        arguments = [text for name, value in values.items() for text in ("-p", f"{name}:={str(value).lower()}")]
        arguments = [
            text.replace("eventpacket", "EventPacket").replace("eventarray", "EventArray") for text in arguments
        ]
        ros.shutdown()
        ros.init(args=["--ros-args", *arguments])
        node = EventImageNode()
        assert node.trigger_configure().name == node.trigger_activate().name == "SUCCESS"
        peer = ros.create_node("peer")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.add_node(peer)
        images, windows = [], []
        peer.create_subscription(Image, "/event_image_node/event_image", images.append, 10)
        peer.create_subscription(EventWindow, "/event_image_node/event_window", windows.append, 10)
        made.append((executor, node, peer))

        def wait_for(condition):
            deadline = time.monotonic() + 20
            while not condition() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.02)
            assert condition()

        wait_for(lambda: peer.count_publishers("/event_image_node/event_image"))
        return SimpleNamespace(node=node, peer=peer, images=images, windows=windows, wait_for=wait_for)

    yield make
    for executor, node, peer in made:
        executor.shutdown()
        node.close()
        peer.destroy_node()


def send_events(made, event_type, ahead_ns=0):
    qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = made.peer.create_publisher(TYPES[event_type], "/event_camera/events", qos)
    made.wait_for(publisher.get_subscription_count)
    for message in serialized(event_type, ahead_ns):
        publisher.publish(message)


def check(made, number, start_us):
    made.wait_for(lambda: len(made.images) > number and len(made.windows) > number)
    image, window = made.images[number], made.windows[number]
    assert image.header == window.header
    assert stamp_to_ns(window.window_start) == start_us * 1000
    assert stamp_to_ns(window.window_end) == (start_us + 50_000) * 1000
    assert window.event_count == 500
    assert np.array_equal(image_to_numpy(image), tencode(events(), start_us, start_us + 50_000, WIDTH, HEIGHT))


@pytest.mark.parametrize(
    "event_type, frame_source",
    [
        ("event_camera_msgs/msg/EventPacket", "camera_info"),
        ("event_array_msgs/msg/EventArray", "image"),
        ("dvs_msgs/msg/EventArray", "compressed_image"),
    ],
)
def test_every_type_of_events_and_frames_gives_the_same_picture(bench, event_type, frame_source):
    made = bench(event_type=event_type, frame_source=frame_source)
    frame_class, topic = FRAMES[frame_source]
    frames = made.peer.create_publisher(frame_class, topic, 10)
    made.wait_for(frames.get_subscription_count)
    frames.publish(frame_class(header=Header(stamp=ns_to_stamp((START_US + 100_000) * 1000), frame_id="camera")))
    send_events(made, event_type)
    check(made, 0, START_US + 75_000)
    assert (made.images[0].header.frame_id, stamp_to_ns(made.images[0].header.stamp)) == ("camera", 1_100_000_000)


def test_windows_back_to_back_need_no_frames(bench):
    made = bench(window_mode="continuous")
    send_events(made, "event_camera_msgs/msg/EventPacket")
    for number in range(3):
        check(made, number, START_US + 50_000 * number)
        assert made.images[number].header.frame_id == "events"
        assert stamp_to_ns(made.images[number].header.stamp) == (START_US + 50_000 * number + 25_000) * 1000


def test_filters_leave_out_events_and_count_them(bench):
    made = bench(window_mode="count", window_events=500, roi_x=4, roi_width=20, roi_height=24, max_event_rate=100000)
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: len(made.images) >= 2 and made.node.diagnostic_values()["events/total"] == "2000")
    outside = np.count_nonzero((events().x < 4) | (events().x >= 24))
    values = made.node.diagnostic_values()
    assert values["events/outside_roi_events"] == str(outside) and outside > 500
    assert values["events/rate_limited_events"] == "0"
    image = image_to_numpy(made.images[0])
    assert not image[:, :4].any() and not image[:, 24:].any() and image[:, 4:24].any()


@pytest.mark.parametrize(
    "arguments, reason, sentence",
    [
        ("roi_width:=3", "bad_parameter", "3x0 pixels: give both roi_width and roi_height"),
        ("max_event_rate:=10.0", "bad_filter", "less than one in 1000 us"),
        ("rectification_file:=/nowhere.yaml", "no_calibration", "/nowhere.yaml can't be read"),
        ("rectification_file:=a.yaml -p alignment:=depth", "bad_parameter", "leave rectification_file empty"),
    ],
)
def test_filters_that_make_no_sense_are_refused(ros, arguments, reason, sentence):
    ros.shutdown()
    ros.init(args=["--ros-args", "-p", "autostart:=false", "-p", *arguments.split()])
    node = EventImageNode()
    assert node.trigger_configure().name == "FAILURE"
    assert sentence in node.health.recent()[reason]
    node.close()


def test_before_the_first_clock_there_is_no_latency(bench):
    made = bench(window_mode="continuous", use_sim_time=True)
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: len(made.images) == 3)
    assert made.node.health.counts["no_clock"] == 3
    assert not [key for key in made.node.health.values() if key.startswith("latency")]


def test_windows_of_equal_count(bench):
    made = bench(window_mode="count", window_events=500)
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: len(made.windows) == 4)
    assert [window.event_count for window in made.windows] == [500] * 4
    assert stamp_to_ns(made.windows[1].window_start) == (START_US + 50_000) * 1000
    assert stamp_to_ns(made.windows[1].window_end) == (START_US + 99_901) * 1000


def test_frames_on_the_sensors_clock(bench):
    """The packets' stamps are those of a host whose clock is 0.4 s ahead."""
    made = bench(frame_clock="sensor")
    frames = made.peer.create_publisher(CameraInfo, "/camera/camera_info", 10)
    made.wait_for(frames.get_subscription_count)
    frames.publish(CameraInfo(header=Header(stamp=ns_to_stamp((START_US + 100_000) * 1000), frame_id="camera")))
    send_events(made, "event_camera_msgs/msg/EventPacket", ahead_ns=400_000_000)
    check(made, 0, START_US + 75_000)
    assert not any(made.node.health.counts.values())
    values = made.node.diagnostic_values()
    assert float(values["clock/offset_ms"]) == 400.0 and float(values["clock/drift_ppm"]) == 0.0
    assert (values["events/packets"], values["events/total"], values["events/buffered"]) == ("20", "2000", "2000")
    assert float(values["buffer/fill_percent"]) == 0.0 and float(values["buffer/span_ms"]) == 199.9
    assert float(values["events/per_second"]) > 0


def test_windows_as_event_sam3d_draws_them(bench):
    made = bench(window_mode="continuous", window_ms=50.0, representation="reference_white")
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: len(made.images) >= 3)
    everything = events()
    inside = everything[(everything.t >= START_US) & (everything.t < START_US + 50_000)]
    assert np.array_equal(image_to_numpy(made.images[0]), tencode_reference(inside, WIDTH, HEIGHT))
    assert made.node.set_parameters_atomically([Parameter("representation", value="tencode")]).successful


def test_a_region_of_interest_beside_the_sensor_is_reported(bench):
    made = bench(roi_x=WIDTH, roi_width=5, roi_height=5)
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: made.node.health.counts["bad_filter"] >= 1)
    assert f"lies outside the sensor of {WIDTH}x{HEIGHT}" in made.node.health.recent()["bad_filter"]


def test_an_exposure_that_is_not_known_is_refused(bench):
    made = bench(window_alignment="exposure", exposure_ms=30.0)
    refused = made.node.set_parameters_atomically([Parameter("exposure_ms", value=0.0)])
    assert not refused.successful and "exposure_ms is 0" in refused.reason
    assert made.node.set_parameters_atomically([Parameter("exposure_ms", value=20.0)]).successful


def test_more_events_in_a_window_than_the_buffer_holds_are_refused(ros):
    ros.shutdown()
    ros.init(
        args=["--ros-args", *("-p", "autostart:=false"), *("-p", "window_mode:=count"), "-p", "window_events:=9000000"]
    )
    node = EventImageNode()
    assert node.trigger_configure().name == "FAILURE"
    assert "window_events is 9000000" in node.health.recent()["bad_parameter"]
    node.close()


def test_what_nobody_thought_of_is_counted_and_does_not_end_the_node(bench, monkeypatch):
    made = bench()

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(made.node._windows, "add_packet", fail)
    send_events(made, "event_camera_msgs/msg/EventPacket")
    made.wait_for(lambda: made.node.health.counts["internal_error"] == 20)
    assert "MemoryError: no room (test_event_image_node.py:" in made.node.health.recent()["internal_error"]
    monkeypatch.setattr(made.node._windows, "ready", fail)
    made.wait_for(lambda: made.node.health.recent()["internal_error"].startswith("_publish_ready: MemoryError"))
    monkeypatch.setattr(made.node._windows, "ready", lambda _: [])
    monkeypatch.setattr(made.node, "diagnostic_values", fail)
    made.wait_for(lambda: made.node.health.recent()["internal_error"].startswith("_publish_diagnostics: MemoryError"))


def test_a_buffer_shorter_than_a_window_and_its_wait_is_refused(bench, ros):
    made = bench(buffer_ms=200.0)
    refused = made.node.set_parameters_atomically([Parameter("max_wait_ms", value=151.0)])
    assert not refused.successful and "buffer_ms is 200, less than window_ms + max_wait_ms = 201" in refused.reason
    assert made.node.set_parameters_atomically([Parameter("max_wait_ms", value=150.0)]).successful
    ros.shutdown()
    ros.init(args=["--ros-args", "-p", "autostart:=false", "-p", "buffer_ms:=140.0"])
    node = EventImageNode()
    assert node.trigger_configure().name == "FAILURE"
    assert "buffer_ms is 140" in node.health.recent()["bad_parameter"]
    node.close()


def test_alignment_without_frames_is_refused(ros):
    ros.shutdown()
    ros.init(args=["--ros-args", *("-p autostart:=false -p alignment:=depth -p window_mode:=continuous".split())])
    node = EventImageNode()
    assert node.trigger_configure().name == "FAILURE"
    assert "alignment is depth, but window_mode continuous knows no RGB frames" in node.health.recent()["bad_parameter"]
    node.close()


def test_a_calibration_file_that_cannot_be_used_is_refused(ros):
    ros.shutdown()
    arguments = "-p autostart:=false -p alignment:=homography -p calibration_file:=/nowhere.yaml".split()
    ros.init(args=["--ros-args", *arguments])
    node = EventImageNode()
    assert node.trigger_configure().name == "FAILURE"
    assert "/nowhere.yaml can't be read" in node.health.recent()["no_calibration"]
    node.close()
