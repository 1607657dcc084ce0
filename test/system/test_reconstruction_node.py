"""reconstruction_node as a process: answers against the offline API, bad input, parameters, model files, shutdown."""

import json
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from event_sam3d_ros.msg import EventWindow, ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import (
    image_message,
    image_to_numpy,
    ns_to_stamp,
    points_to_numpy,
    stamp_to_ns,
    xyz_from_message,
)
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor, find_weights
from event_sam3d_ros.synthetic.world import make_case

NODE = "reconstruction_node"
FRAME_ID = "camera_optical"
EVENT_COUNT = 5000
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TOPICS = {
    "image": (Image, "/camera/image_raw"),
    "mask": (Image, "/camera/mask"),
    "depth": (Image, "/camera/depth"),
    "event_image": (Image, "/event_image_node/event_image"),
    "event_window": (EventWindow, "/event_image_node/event_window"),
    "camera_info": (CameraInfo, "/camera/camera_info"),
}


class Camera:
    """Publishes one synthetic case as often as asked, with a new stamp each time; parts may be left out or changed."""

    def __init__(self, peer, reconstructor):
        self.peer, self.reconstructor = peer, reconstructor
        self.case = make_case(0, 0, "medium", width=173, height=130)
        self.publishers = {
            source: peer.publisher(*topic, subscribers=0) for source, topic in TOPICS.items() if source != "camera_info"
        }
        self.objects = peer.collect(ReconstructedObjectArray, f"/{NODE}/objects")
        self.points = peer.collect(PointCloud2, f"/{NODE}/points")
        self.transforms = peer.collect(TFMessage, "/tf")
        peer.wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))
        peer.spin(1.0)

    def give_calibration(self):
        height, width = self.case.mask.shape
        message = CameraInfo(width=width, height=height, k=self.case.K.ravel(), d=[0.0] * 5)
        message.distortion_model = "plumb_bob"
        if "camera_info" not in self.publishers:
            self.publishers["camera_info"] = self.peer.publisher(*TOPICS["camera_info"])
        self.publishers["camera_info"].publish(message)
        self.peer.spin(0.5)

    def publish(self, without=(), event_count=EVENT_COUNT, **arrays):
        """Publish one frame; its stamp in ns."""
        stamp_ns = time.time_ns()
        header = Header(stamp=ns_to_stamp(stamp_ns), frame_id=FRAME_ID)
        values = {
            "image": (self.case.blurry, "rgb8"),
            "mask": (3 * self.case.mask, "mono8"),
            "depth": (self.case.depth, "32FC1"),
            "event_image": (self.case.event_image, "rgb8"),
        }
        values |= {source: (array, values[source][1]) for source, array in arrays.items()}
        window = EventWindow(header=header, event_count=event_count)
        window.window_start, window.window_end = ns_to_stamp(stamp_ns - 25_000_000), ns_to_stamp(stamp_ns + 25_000_000)
        if not {"event_window", "event_image"} & set(without):
            self.publishers["event_window"].publish(window)
        for source, (array, encoding) in values.items():
            if source not in without:
                self.publishers[source].publish(image_message(array, encoding, header))
        return stamp_ns

    def answer(self, stamp_ns, timeout_s=20):
        def find():
            return next((m for m in self.objects if stamp_to_ns(m.header.stamp) == stamp_ns), None)

        return self.peer.wait_for(find, timeout_s)

    def check(self, use_events=True, use_depth=True, **options):
        """Publish a frame and compare the answer with the offline API's."""
        without = [] if use_depth else ["depth"]
        answer = self.answer(self.publish(without=without, **options))
        observation = Observation(
            image=self.case.blurry,
            mask=3 * self.case.mask,
            event_image=self.case.event_image if use_events else None,
            K=self.case.K,
            depth=self.case.depth if use_depth else None,
        )
        expected = self.reconstructor(observation)
        assert answer.header.frame_id == FRAME_ID
        assert [found.id for found in answer.objects] == [known.id for known in expected] == [3]
        for found, known in zip(answer.objects, expected, strict=True):
            assert found.metric == known.metric == use_depth
            assert found.score == pytest.approx(known.score, abs=1e-5)
            p, q = found.pose.position, found.pose.orientation
            assert np.allclose((p.x, p.y, p.z), known.position, atol=1e-5)
            assert np.allclose((q.x, q.y, q.z, q.w), known.quaternion, atol=1e-5)
            assert np.allclose((found.size.x, found.size.y, found.size.z), known.size, atol=1e-5)
            assert np.allclose(xyz_from_message(found.points), known.points, atol=1e-5)
        return answer, expected


@pytest.fixture(scope="module")
def process(start):
    return start(NODE, "-p", "pair_timeout_ms:=500", "-p", "max_age_ms:=20000", "-p", "threads:=1")


@pytest.fixture(scope="module")
def camera(peer, process):
    peer.wait_active(NODE)
    return Camera(peer, Reconstructor.from_pretrained("nano", device="cpu"))


def test_without_calibration_frames_are_counted_until_it_comes(camera, peer):
    camera.publish()
    peer.status(NODE, lambda found: found[2]["no_camera_info"] == "1")
    camera.give_calibration()
    camera.check()


def test_answers_equal_the_offline_ones_on_every_topic(camera, peer):
    answer, (known,) = camera.check()
    stamp_ns = stamp_to_ns(answer.header.stamp)
    assert stamp_to_ns(answer.window_start) == stamp_ns - 25_000_000
    assert (answer.event_count, answer.model.split(".")[0]) == (EVENT_COUNT, camera.reconstructor.info["name"])
    assert answer.processing_ms > 0
    cloud = peer.wait_for(lambda: next((m for m in camera.points if m.header.stamp == answer.header.stamp), None))
    assert np.allclose(xyz_from_message(cloud), known.points, atol=1e-5)
    packed = points_to_numpy(cloud, ("rgb", "object_id"))
    assert set(packed["object_id"]) == {3}
    red, green, blue = known.colors.astype(np.uint32).T
    assert np.array_equal(packed["rgb"].view(np.uint32), red << 16 | green << 8 | blue)
    transform = peer.wait_for(
        lambda: next(
            (t for m in camera.transforms for t in m.transforms if t.header.stamp == answer.header.stamp), None
        )
    )
    assert (transform.header.frame_id, transform.child_frame_id) == (FRAME_ID, "object_3")
    assert transform.transform.translation.z == pytest.approx(known.position[2], abs=1e-5)


def test_bad_frames_are_counted_and_named_once_and_change_nothing(camera, peer, process):
    small = camera.case.blurry[:-2].copy()
    bad = {
        "size_mismatch": {"image": small},
        "empty_mask": {"mask": np.zeros_like(camera.case.mask)},
        "missing_mask": {"without": ["mask"]},
        "missing_image": {"without": ["image"]},
    }
    camera.check()
    before = peer.counts(NODE)
    for reason, options in bad.items():
        camera.publish(**options)
        if not reason.startswith("missing"):  # those are found when the next frame is complete
            peer.wait_for(lambda reason=reason: f"{reason}: " in process.log)
        camera.check()
    after = peer.counts(NODE)
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == dict.fromkeys(bad, 1)
    for reason in bad:
        assert process.log.count(f"{reason}: ") == 1


def test_few_or_no_events_mean_the_frame_alone(camera, peer):
    before = peer.counts(NODE)
    answer, _ = camera.check(use_events=False, event_count=3)
    assert answer.event_count == 0
    stamp_ns = camera.publish(without=["event_image"])
    assert camera.answer(stamp_ns).event_count == 0
    after = peer.counts(NODE)
    assert after["few_events"] - before["few_events"] == 1
    assert after["missing_event_image"] - before["missing_event_image"] == 1
    camera.check()


def test_without_depth_the_scale_is_not_metric(camera, peer):
    before = peer.counts(NODE)
    camera.check(use_depth=False)
    after = peer.counts(NODE)
    assert after["missing_depth"] - before["missing_depth"] == 1


def test_the_newest_frame_wins_over_those_that_wait(camera, peer):
    before = peer.counts(NODE)
    stamps = []
    for _ in range(10):
        stamps.append(camera.publish())
        peer.spin(0.02)
    camera.answer(stamps[-1])
    answered = [stamp_to_ns(m.header.stamp) for m in camera.objects if stamp_to_ns(m.header.stamp) in stamps]
    assert answered == sorted(answered)
    dropped = peer.counts(NODE)["dropped_latest_wins"] - before["dropped_latest_wins"]
    assert 0 < dropped <= len(stamps) - len(answered)


def test_old_results_are_not_published(camera, peer):
    before = peer.counts(NODE)
    assert peer.set_parameter(NODE, "max_age_ms", 1).successful
    stamp_ns = camera.publish()
    peer.status(NODE, lambda found: int(found[2]["stale"]) == before["stale"] + 1)
    assert peer.set_parameter(NODE, "max_age_ms", 20000).successful
    camera.check()
    assert stamp_ns not in [stamp_to_ns(message.header.stamp) for message in camera.objects]


def test_markers_and_debug_image_come_when_somebody_listens(camera, peer):
    markers = peer.collect(MarkerArray, f"/{NODE}/markers")
    pictures = peer.collect(Image, f"/{NODE}/debug_image")
    peer.spin(0.5)
    camera.check()
    message = peer.wait_for(lambda: markers and markers[-1])
    assert [marker.action for marker in message.markers] == [Marker.DELETEALL] + [Marker.ADD] * 3
    assert [marker.ns for marker in message.markers[1:]] == ["box", "axes", "label"]
    picture = image_to_numpy(peer.wait_for(lambda: pictures and pictures[-1]))
    assert picture.shape == camera.case.blurry.shape
    assert not np.array_equal(picture, camera.case.blurry)


def test_the_model_describes_itself_to_late_listeners(camera, peer):
    infos = peer.collect(String, f"/{NODE}/model_info", LATCHED)
    info = json.loads(peer.wait_for(lambda: infos and infos[0].data))
    assert info["sha256"] == camera.reconstructor.info["sha256"]
    assert {"name", "window_ms", "min_events"} <= set(info)


def test_unknown_parameters_are_refused_with_a_sentence(camera, peer):
    before = peer.counts(NODE)
    refused = peer.set_parameter(NODE, "max_age", 1.0)
    assert not refused.successful and "did you mean max_age_ms" in refused.reason
    assert peer.counts(NODE)["unknown_parameter"] - before["unknown_parameter"] == 1


def test_lifecycle_goes_round_and_a_bad_model_file_is_refused(camera, peer, tmp_path):
    truncated = tmp_path / "model.safetensors"
    truncated.write_bytes(find_weights("nano").read_bytes()[:100_000])
    assert peer.transition(NODE, "deactivate") and peer.transition(NODE, "cleanup")
    assert peer.set_parameter(NODE, "model", str(truncated)).successful
    before = peer.counts(NODE)
    assert not peer.transition(NODE, "configure")
    level, message, values = peer.status(NODE)
    assert (level, values["state"]) == (b"\x02", "unconfigured")
    assert "corrupt_checkpoint" in message and str(truncated) in message
    assert int(values["corrupt_checkpoint"]) - before["corrupt_checkpoint"] == 1
    assert peer.set_parameter(NODE, "model", "nano").successful
    for _ in range(2):
        assert peer.transition(NODE, "configure") and peer.transition(NODE, "activate")
        peer.wait_for(lambda: all(p.get_subscription_count() for p in camera.publishers.values()))
        peer.spin(1.0)
        camera.give_calibration()
        camera.check()
        assert peer.transition(NODE, "deactivate") and peer.transition(NODE, "cleanup")


@pytest.mark.parametrize(
    "parameter, sentence",
    [
        ("model:=/nowhere.safetensors", "no_checkpoint: there is no model file '/nowhere.safetensors'"),
        ("device:=cuda:99", "bad_device: device 'cuda:99' was asked for, but torch finds"),
    ],
)
def test_what_makes_a_start_impossible_ends_it_with_one_sentence(start, parameter, sentence):
    process = start(NODE, "-p", parameter)
    deadline = time.monotonic() + 60
    while process.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.exit_code == 2
    assert sentence in process.log
    assert len(process.log.strip().splitlines()) == 1


def test_signals_end_the_node_in_order(process):
    assert process.stop(signal.SIGTERM) == 0
    assert "Traceback" not in process.log
