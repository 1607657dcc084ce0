"""event_image_node as a process: its pictures against the offline functions, bad packets, parameters, shutdown."""

import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.msg import EventWindow
from event_sam3d_ros.nodes.conversions import image_to_numpy, ns_to_stamp, stamp_to_ns

NODE = "event_image_node"
WIDTH, HEIGHT = 64, 48
SEGMENT_US, PACKET_US = 150_000, 10_000
EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


class Camera:
    """An event camera that goes on and on: each segment has 150 ms of events and one frame in its middle."""

    def __init__(self, peer):
        self.peer = peer
        self.events = peer.publisher(EventPacket, "/event_camera/events", EVENT_QOS)
        self.frames = peer.publisher(CameraInfo, "/camera/camera_info")
        self.images = peer.collect(Image, f"/{NODE}/event_image")
        self.windows = peer.collect(EventWindow, f"/{NODE}/event_window")
        peer.wait_for(lambda: peer.node.count_publishers(f"/{NODE}/event_image"))
        peer.spin(0.5)
        self.start_ns = time.time_ns()
        self.generator = np.random.default_rng(0)
        self.encoder = make_encoder("evt3", WIDTH, HEIGHT)
        self.now_us = self.seq = 0

    def packet(self, **changes):
        fields = {
            "stamp_ns": self.start_ns + self.now_us * 1000,
            "frame_id": "events",
            "width": WIDTH,
            "height": HEIGHT,
            "seq": self.seq,
            "time_base": 0,
            "encoding": "evt3",
            "payload": b"",
        }
        return encode_event_packet_cdr(**(fields | changes))

    def segment(self):
        """Publish one segment; stamp of its frame, expected number of events and expected picture."""
        begin, parts = self.now_us, []
        for _ in range(SEGMENT_US // PACKET_US):
            count = int(self.generator.integers(50, 150))
            times = np.sort(self.generator.integers(self.now_us + 1, self.now_us + PACKET_US, count))
            times[0] = self.now_us  # so that stamp minus first event is the same for all packets
            x, y = self.generator.integers(0, (WIDTH, HEIGHT), (count, 2)).astype(np.uint16).T
            parts.append(Events(times, x, y, self.generator.integers(0, 2, count).astype(np.uint8)))
            self.events.publish(self.packet(payload=self.encoder.encode(parts[-1])[0]))
            self.seq += 1
            self.now_us += PACKET_US
        stamp_us = begin + SEGMENT_US // 2
        self.frames.publish(
            CameraInfo(header=Header(stamp=ns_to_stamp(self.start_ns + stamp_us * 1000), frame_id="camera"))
        )
        t0, t1 = stamp_us - 25_000, stamp_us + 25_000
        events = Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in "txyp"))
        events = events[(events.t >= t0) & (events.t < t1)]
        return self.start_ns + stamp_us * 1000, len(events), tencode(events, t0, t1, WIDTH, HEIGHT)

    def check_segment(self):
        stamp_ns, count, expected = self.segment()
        image = self.peer.wait_for(lambda: next(filter(has_stamp(stamp_ns), self.images), None))
        window = self.peer.wait_for(lambda: next(filter(has_stamp(stamp_ns), self.windows), None))
        assert (image.header.frame_id, image.encoding) == ("camera", "rgb8")
        assert window.event_count == count > 100
        assert stamp_to_ns(window.window_start) == stamp_ns - 25_000_000
        assert stamp_to_ns(window.window_end) == stamp_ns + 25_000_000
        assert np.array_equal(image_to_numpy(image), expected)


def has_stamp(stamp_ns):
    return lambda message: stamp_to_ns(message.header.stamp) == stamp_ns


@pytest.fixture(scope="module")
def process(start):
    return start(NODE)


@pytest.fixture(scope="module")
def camera(peer, process):
    peer.wait_active(NODE)
    return Camera(peer)


def test_every_frame_gets_the_picture_that_the_offline_functions_make(camera):
    for _ in range(5):
        camera.check_segment()


def test_bad_packets_are_counted_and_named_once_and_change_nothing(camera, peer, process):
    garbage = np.random.default_rng(1).integers(0, 256, 4000, np.uint8).tobytes()
    bad = {
        "truncated_message": lambda: camera.packet()[:50],
        "corrupt_packet": lambda: camera.packet(payload=garbage),
        "truncated_packet": lambda: camera.packet(payload=b"abc"),
        "stream_changed": lambda: camera.packet(width=32),
        "backward_time": lambda: camera.packet(stamp_ns=camera.start_ns - 10**10),
        "stream_restarted": lambda: camera.packet(seq=2**62),
        "zero_stamp": lambda: camera.packet(stamp_ns=0),
        "bad_geometry": lambda: camera.packet(width=0),
    }
    before = peer.counts(NODE)
    camera.check_segment()
    for make in bad.values():
        camera.events.publish(make())
        camera.check_segment()
    after = peer.counts(NODE)
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == dict.fromkeys(bad, 1)
    for reason in bad:
        assert process.log.count(f"{reason}: ") == 1


def test_lost_packets_are_counted(camera, peer):
    before = peer.counts(NODE)
    camera.seq += 7
    camera.check_segment()
    camera.check_segment()
    after = peer.counts(NODE)
    assert after["sequence_gap"] - before["sequence_gap"] == 1
    assert after["lost_packets"] - before["lost_packets"] == 7


def test_packets_that_come_twice_or_late_are_named_and_not_lost(camera, peer, process):
    before = peer.counts(NODE)
    now_us, seq = camera.now_us, camera.seq
    first, second = camera.packet(), camera.packet(seq=seq + 1, stamp_ns=camera.start_ns + (now_us + 1) * 1000)
    for cdr in (second, first):
        camera.events.publish(cdr)
    camera.seq += 2
    camera.check_segment()
    twice = camera.packet(payload=camera.encoder.encode(some_events(camera.now_us))[0])
    camera.seq += 1
    camera.now_us += PACKET_US
    for cdr in (twice, twice):
        camera.events.publish(cdr)
    for _ in range(2):
        camera.check_segment()
    after = peer.counts(NODE)
    changed = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert changed == {"late_packet": 1, "duplicate_packet": 1}
    assert "late_packet: event packets arrive out of order" in process.log
    assert "duplicate_packet: event packets come twice" in process.log
    assert peer.status(NODE)[2]["events/duplicate_packets"] == "1"


def some_events(t_us):
    pixels = np.arange(20, dtype=np.uint16)
    return Events(np.full(20, t_us, np.int64), pixels, pixels, np.ones(20, np.uint8))


def test_diagnostics_tell_rate_clock_and_buffer(camera, peer):
    for _ in range(4):
        camera.check_segment()
    level, _, values = peer.status(NODE, lambda found: float(found[2]["events/per_second"]) > 0)
    assert int(values["events/total"]) >= int(values["events/buffered"]) > 1000
    assert int(values["events/packets"]) >= 4 * SEGMENT_US // PACKET_US
    assert abs(float(values["clock/offset_ms"]) - camera.start_ns / 1e6) < 0.01
    assert abs(float(values["clock/drift_ppm"])) < 1
    assert 0 <= float(values["buffer/fill_percent"]) < 1
    assert 100 < float(values["buffer/span_ms"]) <= 1000
    assert {"latency_ms/median", "latency_ms/p95", "rate_hz/events", "rate_hz/event_image"} <= set(values)


def test_a_driver_that_is_started_again_is_reported_once_and_survived(camera, peer):
    before = peer.counts(NODE)
    camera.start_ns += camera.now_us * 1000 + 2 * 10**9
    camera.now_us = camera.seq = 0
    camera.encoder = make_encoder("evt3", WIDTH, HEIGHT)
    for _ in range(3):
        camera.check_segment()
    after = peer.counts(NODE)
    assert {key for key in after if after[key] != before[key]} == {"stream_restarted"}
    assert after["stream_restarted"] - before["stream_restarted"] == 1


def test_time_that_starts_over_resets_the_node_with_one_message(camera, peer, process):
    before = peer.counts(NODE)
    camera.start_ns -= 3600 * 10**9
    camera.now_us = camera.seq = 0
    camera.encoder = make_encoder("evt3", WIDTH, HEIGHT)
    for _ in range(3):
        camera.check_segment()
    after = peer.counts(NODE)
    assert {key for key in after if after[key] != before[key]} == {"backward_time"}
    assert after["backward_time"] - before["backward_time"] == 1


def test_parameters_are_checked_and_some_may_change(camera, peer):
    before = peer.counts(NODE)
    refused = peer.set_parameter(NODE, "windw_ms", 40.0)
    assert not refused.successful and "did you mean window_ms" in refused.reason
    refused = peer.set_parameter(NODE, "window_ms", 0.0)
    assert not refused.successful and "from 1 to 1000" in refused.reason
    refused = peer.set_parameter(NODE, "window_mode", "continuous")
    assert not refused.successful and "only while the node is unconfigured" in refused.reason
    after = peer.counts(NODE)
    assert after["unknown_parameter"] - before["unknown_parameter"] == 1
    assert after["bad_parameter"] - before["bad_parameter"] == 2
    assert peer.set_parameter(NODE, "window_ms", 20).successful
    stamp_ns, _, _ = camera.segment()
    window = peer.wait_for(lambda: next(filter(has_stamp(stamp_ns), camera.windows), None))
    assert stamp_to_ns(window.window_end) - stamp_to_ns(window.window_start) == 20_000_000
    assert peer.set_parameter(NODE, "window_ms", 50.0).successful
    camera.check_segment()


def test_lifecycle_goes_round_without_leaving_anything_behind(camera, peer):
    def entities():
        topics = peer.node.get_publisher_names_and_types_by_node(NODE, "/")
        return sorted(topics + peer.node.get_subscriber_names_and_types_by_node(NODE, "/"))

    before = entities()
    for _ in range(3):
        for label in ("deactivate", "cleanup", "configure", "activate"):
            assert peer.transition(NODE, label), label
    assert not peer.transition(NODE, "activate")
    assert not peer.transition(NODE, "cleanup")
    peer.wait_for(lambda: entities() == before)
    peer.wait_for(lambda: camera.events.get_subscription_count() == camera.frames.get_subscription_count() == 1)
    peer.spin(0.5)
    camera.check_segment()


def test_reliability_follows_the_publisher(camera, peer):
    peer.node.destroy_publisher(camera.frames)
    camera.frames = peer.publisher(CameraInfo, "/camera/camera_info", EVENT_QOS)
    camera.check_segment()


def test_silence_is_explained_in_diagnostics(camera, peer):
    assert peer.set_parameter(NODE, "watchdog_s", 0.5).successful
    level, message, _ = peer.status(NODE, lambda found: "no message on" in found[1], 10)
    assert level == b"\x01"
    assert "/event_camera/events for 0.5 s; publishers: 1" in message
    assert "best_effort" in message


def test_signals_end_the_node_in_order(process):
    assert process.stop(signal.SIGINT) == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("-p", "windw_ms:=3.0"), "error: there is no parameter windw_ms: did you mean window_ms?"),
        (("-p", "window_ms:=0.1"), "error: parameter window_ms can't be 0.1"),
        (("-p", "window_ms:=950.0"), "bad_parameter: buffer_ms is 1000, less than window_ms + max_wait_ms = 1050"),
        (
            ("-p", "alignment:=homography", "-p", "calibration_file:=/no.yaml"),
            "no_calibration: calibration /no.yaml can't be read",
        ),
    ],
)
def test_what_makes_a_start_impossible_ends_it_with_one_sentence(start, arguments, sentence):
    process = start(NODE, *arguments)
    deadline = time.monotonic() + 30
    while process.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.exit_code == 2
    assert sentence in process.log
    assert len(process.log.strip().splitlines()) == 1


def test_without_autostart_a_configuration_that_fails_is_answered_and_can_be_mended(start, peer):
    name = f"{NODE}_managed"
    process = start(NODE, "-r", f"__node:={name}", "-p", "autostart:=false", "-p", "window_ms:=950.0")
    assert not peer.transition(name, "configure")
    level, message, values = peer.status(name)
    assert (level, values["state"]) == (b"\x02", "unconfigured") and "buffer_ms is 1000" in message
    assert process.exit_code is None
    assert peer.set_parameter(name, "window_ms", 50.0).successful
    assert peer.transition(name, "configure") and peer.transition(name, "activate")
    assert process.stop() == 0


def test_sigterm_ends_it_as_well(start, peer):
    process = start(NODE, "-r", f"__node:={NODE}_2")
    peer.wait_active(f"{NODE}_2")
    assert process.stop(signal.SIGTERM) == 0
