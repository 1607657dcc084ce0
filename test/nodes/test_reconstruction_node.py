"""What reconstruction_node hands to the model in each mode, and how it takes the model's errors: a model is played."""

import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
import torch
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from event_sam3d_ros.errors import CheckpointError, InputError
from event_sam3d_ros.msg import EventWindow, ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import image_message, ns_to_stamp, points_message
from event_sam3d_ros.nodes.reconstruction_node import ReconstructionNode
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.sam3d.checkpoint import save_checkpoint
from event_sam3d_ros.sam3d.config import (
    EncoderConfig,
    FlowConfig,
    FlowHeadConfig,
    FusionConfig,
    ModelConfig,
    PointmapConfig,
    StructureConfig,
)
from event_sam3d_ros.sam3d.network import FlowNetwork

HEIGHT, WIDTH = 48, 64
K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
D = [-0.3, 0.1, 0.0, 0.0, 0.0]
TOPICS = {
    "image": (Image, "/camera/image_raw"),
    "compressed": (CompressedImage, "/camera/image_raw/compressed"),
    "mask": (Image, "/camera/mask"),
    "depth": (Image, "/camera/depth"),
    "points": (PointCloud2, "/camera/depth"),
    "event_image": (Image, "/event_image_node/event_image"),
    "event_window": (EventWindow, "/event_image_node/event_window"),
    "camera_info": (CameraInfo, "/camera/camera_info"),
}


class PlayedModel:
    """Remembers what it is given, and answers with one object or raises what it is told to."""

    def __init__(self):
        self.info = {"name": "played", "tag": "test", "min_events": 10, "window_ms": 50.0}
        self.observations, self.errors = [], []

    def warm_up(self):
        pass

    def __call__(self, observation):
        self.observations.append(observation)
        if self.errors:
            raise self.errors.pop(0)
        solid = np.zeros((64, 64, 64), bool)
        points, colors = np.ones((5, 3), np.float32), np.zeros((5, 3), np.uint8)
        label = min(set(np.unique(observation.mask).tolist()) - {0})
        return [
            Reconstruction(label, 0.5, True, solid, points, colors, np.ones(3), np.array([0, 0, 0, 1.0]), np.ones(3))
        ]


@pytest.fixture
def bench(ros):
    """Makes the node with parameters, and a peer that sends to it."""
    made = []

    def make(sources, **parameters):
        model = PlayedModel()
        values = {"autostart": False, "pair_timeout_ms": 2000.0, "max_age_ms": 0.0, **parameters}
        arguments = [text for name, value in values.items() for text in ("-p", f"{name}:={_yaml(value)}")]
        ros.shutdown()
        ros.init(args=["--ros-args", *arguments])
        node = ReconstructionNode(load_reconstructor=lambda *_: model)
        node.trigger_configure()
        node.trigger_activate()
        peer = ros.create_node("peer")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.add_node(peer)
        answers = []
        peer.create_subscription(ReconstructedObjectArray, "/reconstruction_node/objects", answers.append, 10)
        publishers = {source: peer.create_publisher(*TOPICS[source], 10) for source in sources}
        made.append((executor, node, peer))

        def wait_for(condition):
            deadline = time.monotonic() + 20
            while not condition() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.02)
            assert condition()

        wait_for(lambda: all(publisher.get_subscription_count() for publisher in publishers.values()))
        wait_for(lambda: peer.count_publishers("/reconstruction_node/objects"))
        return SimpleNamespace(
            node=node, model=model, publishers=publishers, answers=answers, wait_for=wait_for, counts=node.health.counts
        )

    yield make
    for executor, node, peer in made:
        executor.shutdown()
        node.close()
        peer.destroy_node()


def _yaml(value):
    return str(value).lower() if isinstance(value, bool) else value


def scene(D=(0.0,) * 5, stamp_ms=1000):
    """One message for each source."""
    header = Header(stamp=ns_to_stamp(stamp_ms * 1_000_000), frame_id="camera")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 20:40] = 1
    depth = np.linspace(1, 2, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    rows, columns = np.nonzero(mask)
    rays = np.stack([(columns - 32) / 60, (rows - 24) / 60, np.ones(len(rows))], axis=1).astype(np.float32)
    window = EventWindow(header=header, event_count=100)
    window.window_start, window.window_end = ns_to_stamp(975_000_000), ns_to_stamp(1_025_000_000)
    info = CameraInfo(width=WIDTH, height=HEIGHT, k=K.ravel(), d=list(D), distortion_model="plumb_bob")
    return {
        "camera_info": info,
        "image": image_message(pixels, "rgb8", header),
        "compressed": CompressedImage(header=header, format="png", data=cv2.imencode(".png", pixels)[1].tobytes()),
        "mask": image_message(mask, "mono8", header),
        "depth": image_message(depth, "32FC1", header),
        "points": points_message(3 * rays, np.zeros((len(rays), 3), np.uint8), header),
        "event_image": image_message(255 - pixels, "rgb8", header),
        "event_window": window,
        "pixels": pixels,
        "mask_pixels": mask,
        "depth_pixels": depth,
    }


def send(bench, messages):
    info = bench.publishers.get("camera_info")
    if info:
        info.publish(messages["camera_info"])
        bench.wait_for(lambda: bench.node.health.last_tick("camera_info"))
    for source, publisher in bench.publishers.items():
        if source != "camera_info":
            publisher.publish(messages[source])


EVENTS = ("event_image", "event_window")
MODES = {
    "fused": ({}, ("image", "mask", *EVENTS), {"image", "event_image"}),
    "rgb": ({"input_mode": "rgb"}, ("image", "mask"), {"image"}),
    "events": ({"input_mode": "events"}, ("mask", *EVENTS), {"event_image"}),
    "compressed": ({"image_type": "compressed", "input_mode": "rgb"}, ("compressed", "mask"), {"image"}),
    "depth": ({"input_mode": "rgb"}, ("image", "mask", "depth"), {"image", "depth"}),
    "points": ({"input_mode": "rgb", "depth_type": "points"}, ("image", "mask", "points"), {"image", "depth"}),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_model_sees_what_the_mode_says(bench, mode):
    parameters, sources, expected = MODES[mode]
    made = bench(("camera_info", *sources), **parameters)
    messages = scene()
    send(made, messages)
    made.wait_for(lambda: made.answers)
    (observation,) = made.model.observations
    present = {name for name in ("image", "event_image", "depth") if getattr(observation, name) is not None}
    assert present == expected
    assert np.array_equal(observation.mask, messages["mask_pixels"])
    assert np.array_equal(observation.K, K)
    assert observation.stamp_ns == 1_000_000_000
    if "image" in expected:
        assert np.array_equal(observation.image, messages["pixels"][..., :: -1 if mode == "compressed" else 1])
    if "event_image" in expected:
        assert np.array_equal(observation.event_image, 255 - messages["pixels"])
    if mode == "depth":
        assert np.array_equal(observation.depth, messages["depth_pixels"])
    if mode == "points":
        assert np.allclose(observation.depth, 3 * messages["mask_pixels"])
    assert made.answers[0].model == "played.test"
    assert not any(made.counts.values())


def test_everything_is_rectified_with_the_distortion_of_the_calibration(bench):
    made = bench(("camera_info", "image", "mask", "depth", *EVENTS))
    messages = scene(D)
    send(made, messages)
    made.wait_for(lambda: made.answers)
    (observation,) = made.model.observations
    maps = cv2.initUndistortRectifyMap(K, np.array(D), np.eye(3), K, (WIDTH, HEIGHT), cv2.CV_32FC1)
    assert np.array_equal(observation.image, cv2.remap(messages["pixels"], *maps, cv2.INTER_LINEAR))
    assert np.array_equal(observation.mask, cv2.remap(messages["mask_pixels"], *maps, cv2.INTER_NEAREST))
    assert np.array_equal(observation.event_image, cv2.remap(255 - messages["pixels"], *maps, cv2.INTER_NEAREST))
    assert np.array_equal(observation.depth, cv2.remap(messages["depth_pixels"], *maps, cv2.INTER_NEAREST))


def test_a_calibration_that_changes_a_little_is_taken_over(bench):
    made = bench(("camera_info", "image", "mask"), input_mode="rgb")
    for number, focal_length in enumerate((60.0, 61.0)):
        messages = scene(stamp_ms=1000 + number)
        messages["camera_info"].k[0] = focal_length
        seen = made.node.health.last_tick("camera_info")
        made.publishers["camera_info"].publish(messages["camera_info"])
        made.wait_for(lambda seen=seen: made.node.health.last_tick("camera_info") != seen)
        send(made, messages)
        made.wait_for(lambda number=number: len(made.answers) == number + 1)
        assert made.model.observations[-1].K[0, 0] == focal_length


def test_without_a_frame_id_nothing_goes_to_tf(bench):
    made = bench(("camera_info", "image", "mask"), input_mode="rgb")
    messages = scene()
    messages["image"].header = Header(stamp=messages["image"].header.stamp)
    send(made, messages)
    made.wait_for(lambda: made.answers)
    assert made.counts["no_frame_id"] == 1


def test_errors_of_the_model_are_named_and_the_next_frame_goes_on(bench):
    made = bench(("camera_info", "image", "mask"), input_mode="rgb")
    errors = {
        "out_of_memory": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        "inference_error": RuntimeError("something nobody thought of"),
        "nothing_solid": InputError("nothing there", reason="nothing_solid"),
    }
    made.model.errors = list(errors.values())
    for number, reason in enumerate(errors):
        send(made, scene(stamp_ms=1000 + number))
        made.wait_for(lambda reason=reason: made.counts[reason] == 1)
    assert not made.answers
    send(made, scene(stamp_ms=2000))
    made.wait_for(lambda: made.answers)
    assert {reason for reason, count in made.counts.items() if count} == set(errors)


def test_few_events_are_not_used_and_the_threshold_may_change(bench):
    made = bench(("camera_info", "image", "mask", *EVENTS), min_events=101)
    send(made, scene())
    made.wait_for(lambda: len(made.answers) == 1)
    assert made.node.set_parameters_atomically([Parameter("min_events", value=100)]).successful
    send(made, scene(stamp_ms=2000))
    made.wait_for(lambda: len(made.answers) == 2)
    assert [observation.event_image is None for observation in made.model.observations] == [True, False]
    assert made.counts["few_events"] == 1


def test_a_model_that_cannot_be_loaded_leaves_the_node_unconfigured(ros):
    def fail(*_):
        raise CheckpointError("no such file", reason="no_checkpoint")

    node = ReconstructionNode(load_reconstructor=fail)
    assert node.trigger_configure().name == "FAILURE"
    assert (node.state, node.health.counts["no_checkpoint"]) == ("unconfigured", 1)
    node.close()


@pytest.mark.parametrize("events", [False, True])
def test_a_model_that_samples_starts_with_and_without_an_event_branch(ros, tmp_path, events):
    config = ModelConfig(
        name="tiny",
        head="flow",
        encoder=EncoderConfig(28, 14, 3, 32, 2, 2, registers=2, stem=(), mask_token=True),
        fusion=FusionConfig(stems=(), blocks=(1,) if events else (), heads=2),
        flow=FlowConfig(
            PointmapConfig(32, 8, 16, 2), FlowHeadConfig(32, 32, 2, 2, 2.0, 4, 4), StructureConfig((16, 8), 1, 1)
        ),
    )
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, FlowNetwork(config), {})
    ros.shutdown()
    values = {"autostart": False, "input_mode": "rgb", "model": path, "device": "cpu", "steps": 2, "shortcut": True}
    ros.init(args=["--ros-args", *(text for name in values for text in ("-p", f"{name}:={_yaml(values[name])}"))])
    loaded = []
    node = ReconstructionNode(lambda *settings: loaded.append(Reconstructor.from_pretrained(*settings)) or loaded[0])
    try:
        assert node.trigger_configure().name == "SUCCESS"
        assert not any(node.health.counts.values())
        assert loaded[0].sampler == replace(config.flow.sampler, steps=2, shortcut=True)
    finally:
        node.close()


def test_memory_is_asked_of_the_models_own_gpu_and_only_there(bench, monkeypatch):
    made = bench(())
    asked = []

    def memory(device):
        asked.append(device)
        if len(asked) > 1:
            raise RuntimeError("CUDA error: unknown error\nmore about it")
        return 1_000_000, 8_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    made.model.device = torch.device("cpu")
    assert made.node.diagnostic_values() == {
        "model": "played.test",
        "device": "cpu",
        "tracks": "0 alive, 0 born, 0 ended",
    }
    made.model.device = torch.device("cuda:1")
    first, second = made.node.diagnostic_values(), made.node.diagnostic_values()
    assert asked == [torch.device("cuda:1")] * 2
    assert (first["gpu_memory_free_mb"], first["gpu_memory_mb"]) == ("1", "8")
    assert second["gpu_memory_error"] == "CUDA error: unknown error"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # before the node cleans up


def test_few_events_without_an_image_are_counted_once(bench):
    made = bench(("camera_info", "mask", *EVENTS), input_mode="events", min_events=101)
    send(made, scene())
    made.wait_for(lambda: made.counts["few_events"])
    assert {reason: count for reason, count in made.counts.items() if count} == {"few_events": 1}
    assert "no image to go on with" in made.node.health.recent()["few_events"]
    assert not made.model.observations


def test_objects_without_a_result_are_counted_and_named(bench):
    made = bench(("camera_info", "image", "mask"), input_mode="rgb")
    messages = scene()
    messages["mask_pixels"][40, 50] = 3
    messages["mask_pixels"][44, 50] = 9
    messages["mask"] = image_message(messages["mask_pixels"], "mono8", messages["mask"].header)
    send(made, messages)
    made.wait_for(lambda: made.answers)
    assert made.counts["object_left_out"] == 2
    assert "objects 3, 9 of the mask" in made.node.health.recent()["object_left_out"]


@pytest.mark.parametrize("mode, used", [("points", False), ("depth", True)])
def test_depth_of_another_coordinate_frame(bench, mode, used):
    parameters, sources, _ = MODES[mode]
    made = bench(("camera_info", *sources), **parameters)
    messages = scene()
    messages[mode].header = Header(stamp=messages[mode].header.stamp, frame_id="lidar")
    send(made, messages)
    made.wait_for(lambda: made.answers)
    assert (made.model.observations[0].depth is not None) == used
    assert made.counts["frame_mismatch"] == 1
    assert "depth has the frame_id lidar, the image camera" in made.node.health.recent()["frame_mismatch"]


@pytest.mark.parametrize("track", [True, False])
def test_ids_are_those_of_tracks_unless_that_is_switched_off(bench, track):
    played = bench(("camera_info", "image", "mask"), input_mode="rgb", depth_type="none", track=track)
    for number, label in enumerate((5, 9, 2)):
        messages = scene(stamp_ms=1000 + 40 * number)
        stamp = messages["mask"].header
        messages["mask"] = image_message(messages["mask_pixels"] * np.uint8(label), "mono8", stamp)
        send(played, messages)
        played.wait_for(lambda number=number: len(played.answers) > number)
    assert [item.label for answer in played.answers for item in answer.objects] == ["5", "9", "2"]
    assert [item.id for answer in played.answers for item in answer.objects] == ([5, 5, 5] if track else [5, 9, 2])
    assert played.node.diagnostic_values().get("tracks") == ("1 alive, 1 born, 0 ended" if track else None)
