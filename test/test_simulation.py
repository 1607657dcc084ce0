"""A simulated recording: what is in it, that it is read back, and that a seed is a recording."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from event_sam3d_ros import cli, simulation
from event_sam3d_ros.demo import run as demo_run
from event_sam3d_ros.demo.truth import read_truth
from event_sam3d_ros.evaluation.metrics import silhouette
from event_sam3d_ros.evaluation.replay import replay_frames
from event_sam3d_ros.recordings.bag_messages import decode_frame, typestore
from event_sam3d_ros.recordings.files import EventChunk, Frame, open_recording, open_rosbag2
from event_sam3d_ros.synthetic import world

SIZE = ("--width", "128", "--height", "96")


def simulate(folder, *arguments):
    assert cli.main(["simulate", str(folder), "--duration", "0.2", *SIZE, *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated") / "bag", "--seed", "3", "--object", "5")


@pytest.fixture(scope="module")
def frames():
    return list(world.sequence(5, 3, 0.2, 128, 96))


def test_the_recording_holds_what_the_world_made(bag, frames):
    samples = list(open_recording(bag).samples())
    chunks = [sample for sample in samples if isinstance(sample, EventChunk)]
    for name in "txyp":
        expected = np.concatenate([getattr(frame.events, name) for frame in frames])
        np.testing.assert_array_equal(np.concatenate([getattr(chunk.events, name) for chunk in chunks]), expected)
    for role, attribute in (("image", "blurry"), ("mask", "degraded_mask")):
        pictures = [sample for sample in samples if isinstance(sample, Frame) and sample.role == role]
        assert [picture.stamp_ns for picture in pictures] == [frame.stamp_us * 1000 for frame in frames]
        for picture, frame in zip(pictures, frames, strict=True):
            np.testing.assert_array_equal(picture.data, getattr(frame, attribute))


def test_sharp_frames_and_poses_are_topics(bag, frames):
    messages = list(open_rosbag2(bag).raw_messages())
    sharp = [decode_frame(message, "image") for message in messages if message.topic == simulation.SHARP_TOPIC]
    poses = [
        typestore().deserialize_cdr(message.cdr, message.type).transforms[0]
        for message in messages
        if message.topic == simulation.TF_TOPIC
    ]
    truth = read_truth(bag)
    for picture, transform, frame in zip(sharp, poses, frames, strict=True):
        np.testing.assert_array_equal(picture.data, frame.sharp)
        assert picture.stamp_ns == frame.stamp_us * 1000
        translation = transform.transform.translation
        np.testing.assert_allclose([translation.x, translation.y, translation.z], frame.position, atol=1e-9)
        assert (transform.header.frame_id, transform.child_frame_id) == (simulation.FRAME_ID, "true_object_1")
        np.testing.assert_allclose(truth[1].poses[picture.stamp_ns].rotation, frame.rotation, atol=1e-5)


def test_the_true_mesh_in_its_pose_has_the_outline_of_the_object(bag, frames):
    truth = read_truth(bag)[1]
    for frame in frames[::3]:
        outline = silhouette(truth.solid(frame.stamp_us * 1000), frame.K, 128, 96)
        assert np.logical_and(outline, frame.mask).sum() / np.logical_or(outline, frame.mask).sum() > 0.9


def test_the_demo_takes_it_and_the_pipeline_finds_its_windows(bag):
    recording = open_rosbag2(bag)
    demo_run._check_topics(recording)  # refuses what the demo can't use
    found = [frame for frame in replay_frames(open_rosbag2(bag)) if frame.observation is not None]
    assert len(found) == 6
    assert all(frame.observation.mask.any() for frame in found)
    assert sum(frame.observation.event_image is not None for frame in found) >= 4


def test_a_seed_is_a_recording(bag, tmp_path):
    again = simulate(tmp_path / "bag", "--seed", "3", "--object", "5")
    other = simulate(tmp_path / "other", "--seed", "4", "--object", "5")
    first, second, third = (list(open_rosbag2(path).raw_messages()) for path in (bag, again, other))
    assert first == second != third
    for name in ("ground_truth.yaml", "object_1.ply"):
        assert (bag / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("arguments", [("--motion", "circle"), ("--motion", "camera", "--occluder")])
def test_other_worlds_are_read_back_too(tmp_path, arguments):
    folder = simulate(tmp_path / "bag", "--cutoff-hz", "200", *arguments)
    recording = open_recording(folder)
    assert sum(isinstance(sample, Frame) for sample in recording.samples()) == 18
    assert len(read_truth(folder)[1].poses) == 6


def test_a_mesh_becomes_the_object_and_its_truth(tmp_path):
    open3d = pytest.importorskip("open3d")
    mesh = open3d.geometry.TriangleMesh.create_torus(0.3, 0.1)
    open3d.io.write_triangle_mesh(str(tmp_path / "ring.ply"), mesh)
    folder = simulate(tmp_path / "bag", "--mesh", str(tmp_path / "ring.ply"))
    truth = read_truth(folder)[1]
    assert truth.size[2] / truth.size[0] == pytest.approx(0.25, abs=0.02)  # 2 tube / 2 (ring + tube)


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (("--mesh", "/nowhere/cup.obj"), "/nowhere/cup.obj", 2),
        (("--mesh", __file__), "not one of .glb", 2),
        ((), "exists already", 2),
    ],
)
def test_what_can_not_be_made_is_said_and_leaves_nothing(tmp_path, capsys, arguments, sentence, code):
    if not arguments:
        (tmp_path / "bag").mkdir()
    assert cli.main(["simulate", str(tmp_path / "bag"), "--duration", "0.2", *arguments]) == code
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("arguments", [("--duration", "0"), ("--width", "8"), ("--speed", "fast"), ("--speed", "1.01")])
def test_a_wrong_command_line_is_refused(tmp_path, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate", str(tmp_path / "bag"), *arguments])
    assert ended.value.code == 2


def test_memory_does_not_grow_with_the_duration(tmp_path):
    """Frames pass by one at a time: nothing keeps them."""
    script = """
import sys, gc, weakref
from pathlib import Path
from event_sam3d_ros import simulation
from event_sam3d_ros.synthetic import world
alive = []
def watched():
    for frame in world.sequence(5, 3, 0.6, 64, 64, pixels_per_sub_frame=4.0):
        alive.append(weakref.ref(frame))
        assert sum(ref() is not None for ref in alive) <= 3
        yield frame
simulation.write_simulation(Path(sys.argv[1]), watched())
print(len(alive))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bag")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "18", done.stderr
