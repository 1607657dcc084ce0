"""The demo's parts without ROS: its recording, the truth beside it, the files that it writes, its processes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from event_sam3d_ros import simulation
from event_sam3d_ros.demo import make_bag, overview, processes, results, scene, truth
from event_sam3d_ros.demo import run as demo_run
from event_sam3d_ros.errors import ConfigurationError, RecordingError
from event_sam3d_ros.evaluation.replay import replay_frames
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.recordings.files import Calibration, EventChunk, Frame, Rosbag2Recording, Topics, open_recording
from event_sam3d_ros.synthetic import world
from event_sam3d_ros.synthetic.surface import surface_mesh

WIDTH, HEIGHT = 96, 80
K = np.array([[90.0, 0, 48], [0, 90.0, 40], [0, 0, 1]])
SCALE = 0.1  # metres per grid unit: a sphere of radius 7 cm
PERIOD_US = 33_333


def sphere_sdf(radius: float = 0.7, resolution: int = 64) -> np.ndarray:
    axis = (np.arange(resolution) + 0.5) * 2 / resolution - 1
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return (np.sqrt(x**2 + y**2 + z**2) - radius).astype(np.float32)


def make_frames(count: int) -> list[world.Frame]:
    """A sphere that moves to the right before the camera; the events are arbitrary, but without gaps."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for number in range(count):
        stamp = 1_000_000 + PERIOD_US * number
        center = np.array([-0.05 + 0.02 * number, 0.0, 0.6])
        u, v = (K @ center)[:2] / center[2]
        disc = np.hypot(columns - u, rows - v) < 0.07 * 90 / 0.6
        n = 3000
        t = np.sort(rng.integers(stamp - PERIOD_US // 2, stamp + PERIOD_US // 2, n))
        x, y = rng.integers(0, WIDTH, n).astype(np.uint16), rng.integers(0, HEIGHT, n).astype(np.uint16)
        image = np.where(disc[..., None], 200, 60).astype(np.uint8).repeat(3, axis=2)
        values: dict[str, Any] = {
            "sharp": image,
            "blurry": image,
            "events": Events(t, x, y, rng.integers(0, 2, n).astype(np.uint8)),
            "mask": disc.astype(np.uint8),
            "degraded_mask": disc.astype(np.uint8),
            "depth": np.where(disc, 0.55, 5.0).astype(np.float32),
            "K": K,
            "rotation": np.eye(3),
            "position": center,
            "size": np.full(3, 0.14),
            "scale": SCALE,
            "shape": SimpleNamespace(sdf=sphere_sdf()),
            "stamp_us": stamp,
            "exposure_us": 30_000,
            "motion_share": 0.2,
        }
        frames.append(world.Frame(**values))
    return frames


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of eight frames with its truth, made by the demo's own code."""
    path = tmp_path_factory.mktemp("demo") / "bag"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_bag.world, "sequence", lambda *_, **__: iter(make_frames(8)))
        make_bag.make_demo_bag(path, duration_s=8 / 30)
    return path


def make_object(center: np.ndarray, metric: bool = True, id_: int = 1) -> results.ObjectResult:
    """The sphere as a perfect model would report it."""
    rng = np.random.default_rng(id_)
    directions = rng.normal(size=(6000, 3))
    points = center + 0.07 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return results.ObjectResult(
        id=id_,
        score=0.8,
        metric=metric,
        position=center,
        # z up: against the camera's y
        quaternion=Rotation.from_matrix([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]).as_quat(),
        size=np.full(3, 0.14),
        points=points.astype(np.float32),
        colors=np.full((6000, 3), 100, np.uint8),
    )


@pytest.fixture
def run(bag: Path) -> results.RunResult:
    """A perfect run over half of the frames."""
    known = truth.read_truth(bag)
    assert known is not None
    found = results.RunResult(frames=8, duration_s=8 / 30, model="nano.test", dropped={"dropped_latest_wins": 4})
    for number, (stamp, pose) in enumerate(list(known[1].poses.items())[::2]):
        item = make_object(pose.position)
        found.results.append(results.FrameResult(stamp, 100.0 + number, 50.0, 3000 + number, (item,)))
    return found


# --- the recording ---------------------------------------------------------------------------------------------------


def test_the_bag_holds_what_the_simulator_made(bag: Path) -> None:
    frames = make_frames(8)
    samples = list(open_recording(bag).samples())
    assert [sample.receive_ns for sample in samples] == sorted(sample.receive_ns for sample in samples)
    chunks = [sample for sample in samples if isinstance(sample, EventChunk)]
    for name in "txyp":
        expected = np.concatenate([getattr(frame.events, name) for frame in frames])
        np.testing.assert_array_equal(np.concatenate([getattr(chunk.events, name) for chunk in chunks]), expected)
    # Packets of at most 4 ms that nobody could have before they were over.
    assert max(int(np.ptp(chunk.events.t)) for chunk in chunks) < simulation.PACKET_US
    assert all(int(chunk.events.t[-1]) * 1000 < chunk.receive_ns for chunk in chunks)
    for role, attribute in (("image", "blurry"), ("mask", "degraded_mask")):
        pictures = [sample for sample in samples if isinstance(sample, Frame) and sample.role == role]
        assert [picture.stamp_ns for picture in pictures] == [frame.stamp_us * 1000 for frame in frames]
        for picture, frame in zip(pictures, frames, strict=True):
            np.testing.assert_array_equal(picture.data, getattr(frame, attribute))
            assert picture.receive_ns > picture.stamp_ns + frame.exposure_us * 500  # after the exposure
    depth = next(sample.data for sample in samples if isinstance(sample, Frame) and sample.role == "depth")
    assert set(np.unique(depth)) == {0, 550}  # millimetres; the background is out of range
    assert sum(isinstance(sample, Calibration) for sample in samples) == 8


def test_the_bundled_recording_is_what_it_should_be() -> None:
    path = Path(__file__).resolve().parents[1] / "data" / "demo_bag"
    assert sum(file.stat().st_size for file in path.iterdir()) <= 8_000_000
    recording = open_recording(path)
    assert make_bag.OBJECT_SEED == world.HELD_OUT_OBJECT_SEEDS[0]
    known = truth.read_truth(path)
    assert known is not None and len(known[1].poses) == recording.image_count
    first = next(world.sequence(make_bag.OBJECT_SEED, make_bag.MOTION_SEED, 1 / 30, speed=make_bag.SPEED))
    image = next(s for s in recording.samples() if isinstance(s, Frame) and s.role == "image")
    # Made by this simulator: the same picture, but for a rounding here and there on another machine.
    assert np.abs(image.data.astype(int) - first.blurry).mean() < 0.1
    pose = known[1].poses[image.stamp_ns]
    np.testing.assert_allclose(pose.position, first.position, atol=1e-5)


def test_the_mesh_is_closed_and_turned_outside() -> None:
    vertices, faces = surface_mesh(sphere_sdf())
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {tuple(edge) for edge in edges.tolist()}
    assert len(there) == len(edges)  # no edge twice in one direction
    assert there == {(b, a) for a, b in there}  # and each in both
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 0.7, atol=0.01)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    volume = np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.01)


# --- the truth -------------------------------------------------------------------------------------------------------


def test_truth_is_read_as_it_was_written(bag: Path) -> None:
    known = truth.read_truth(bag)
    assert known is not None and list(known) == [1]
    for frame in make_frames(8):
        pose = known[1].poses[frame.stamp_us * 1000]
        np.testing.assert_allclose(pose.position, frame.position, atol=1e-6)
        np.testing.assert_allclose(pose.rotation, frame.rotation, atol=1e-6)
    np.testing.assert_allclose(known[1].size, 0.14)


def test_a_recording_without_truth_has_none(tmp_path: Path) -> None:
    assert truth.read_truth(tmp_path) is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "it has no list 'objects'"),
        ("objects: {a: 1}", "it has no list 'objects'"),
        ("objects: [1, 2]", "object 1 has no id"),
        ("objects: [{id: x}]", "object 1: id is 'x'"),
        ("objects: [{id: 1}]", "object 1 has no mesh"),
        ("objects: [{id: 4, mesh: a.ply, size: [1, 1], poses: []}]", "object 4: size is"),
        ("objects: [{id: 4, mesh: a.ply, size: [1, 1, .nan], poses: []}]", "not 3 finite numbers"),
        ("objects: [{id: 4, mesh: a.ply, size: [1, 1, 1], poses: [{stamp_ns: 1.5}]}]", "pose 1: stamp_ns is 1.5"),
        ("objects: [{id: 4, mesh: a.ply, size: [1, 1, 1], poses: [{stamp_ns: 1, position: [0, 0, 1]}]}]",
         "object 4, pose 1 has no quaternion"),
        ("objects: [{id: 4, mesh: a, size: [1, 1, 1], "
         "poses: [{stamp_ns: 1, position: [0, 0, 1], quaternion: [0, 0, 0, 0]}]}]", "quaternion (x, y, z, w) is zero"),
        ("objects: [{id: 1, mesh: a, size: [1, 1, 1], poses: []}, {id: 1, mesh: a, size: [1, 1, 1], poses: []}]",
         "the id 1 is given twice"),
        ("objects: [", "while parsing"),
    ],
)  # fmt: skip
def test_a_truth_that_is_none_names_object_and_field(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / truth.FILE_NAME).write_text(text)
    with pytest.raises(RecordingError, match="ground_truth.yaml is not a ground truth file: ") as caught:
        truth.read_truth(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_solid_of_points_is_filled() -> None:
    item = make_object(np.array([0.0, 0.0, 0.6]))
    solid = truth.solid_of(item)
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 0.07**3, rel=0.1)
    assert solid.contains(np.array([[0.0, 0.0, 0.6]])).all()


def test_a_perfect_run_scores_high(bag: Path, run: results.RunResult) -> None:
    known = truth.read_truth(bag)
    assert known is not None
    run.results = run.results[:1]
    scores = truth.score_run(run, known, K, WIDTH, HEIGHT)[1]
    assert set(scores) == set(truth.COLUMNS)
    assert scores["iou"] > 0.9 and scores["iou_camera"] > 0.9 and scores["mask_iou"] > 0.9
    assert scores["add_s"] < 0.05 and scores["chamfer"] < 0.05
    run.results = [results.FrameResult(1, 1.0, 1.0, 1, run.results[0].objects)]  # a stamp without truth
    assert truth.score_run(run, known, K, WIDTH, HEIGHT) == {}


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_pairs_by_stamp_and_cuts_the_window(bag: Path) -> None:
    frames = make_frames(8)
    events = Events(*(np.concatenate([getattr(frame.events, name) for frame in frames]) for name in "txyp"))
    replayed = list(replay_frames(open_recording(bag), min_events=10))
    assert [frame.stamp_ns for frame in replayed] == [frame.stamp_us * 1000 for frame in frames]
    for found, frame in zip(replayed, frames, strict=True):
        window = (frame.stamp_us - 25_000, frame.stamp_us + 25_000)
        assert found.event_count == np.count_nonzero((events.t >= window[0]) & (events.t < window[1]))
        observation = found.observation
        assert observation is not None and observation.depth is not None
        np.testing.assert_array_equal(observation.event_image, tencode(events, *window, WIDTH, HEIGHT))
        np.testing.assert_array_equal(observation.image, frame.blurry)
        np.testing.assert_array_equal(observation.mask, frame.degraded_mask)
        np.testing.assert_allclose(observation.depth, np.where(frame.mask, 0.55, 0), atol=1e-6)
        np.testing.assert_array_equal(observation.K, K)


def test_replay_leaves_events_out_where_there_are_few(bag: Path) -> None:
    observations = [frame.observation for frame in replay_frames(open_recording(bag), min_events=10**6)]
    assert all(observation is not None and observation.event_image is None for observation in observations)


# --- what is written -------------------------------------------------------------------------------------------------


def test_point_clouds_and_poses_are_written(tmp_path: Path, run: results.RunResult) -> None:
    import open3d

    numbers = results.frame_numbers_of([result.stamp_ns for result in run.results])
    results.write_point_clouds(tmp_path / "objects", run, numbers)
    files = sorted(file.name for file in (tmp_path / "objects").iterdir())
    assert files == [f"1_{number:06d}.ply" for number in range(4)]
    cloud = open3d.io.read_point_cloud(str(tmp_path / "objects" / files[0]))
    np.testing.assert_allclose(np.asarray(cloud.points), run.results[0].objects[0].points, atol=1e-6)
    np.testing.assert_allclose(np.asarray(cloud.colors), 100 / 255, atol=1e-6)

    results.write_poses(tmp_path / "poses.csv", run)
    with (tmp_path / "poses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == results.POSE_COLUMNS
    assert [int(row["stamp_ns"]) for row in rows] == [result.stamp_ns for result in run.results]
    assert float(rows[2]["x"]) == pytest.approx(run.results[2].objects[0].position[0], abs=1e-5)
    assert float(rows[2]["qw"]) == pytest.approx(run.results[2].objects[0].quaternion[3], abs=1e-5)
    assert rows[0]["metric"] == "1"


def test_the_summary_counts_and_its_table_names_the_columns(tmp_path: Path, run: results.RunResult) -> None:
    summary = results.summarise(run, {1: {"iou": 0.5, "add_s": 0.25}})
    results.write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "made_by": "event-sam3d demo",
        "complete": True,
        **summary,
    }
    assert (summary["frames"], summary["reconstructions"], summary["dropped"]) == (8, 4, 4)
    assert summary["latency_ms"] == {"median": 101.5, "p95": pytest.approx(102.85), "unknown": 0}
    assert summary["reconstructions_per_second"] == pytest.approx(15, abs=0.01)
    assert summary["objects"][0]["id"] == 1 and summary["objects"][0]["iou"] == 0.5
    text = results.table(summary)
    assert "4 dropped_latest_wins" in text and "iou" in text and "0.250" in text
    assert "prior size" not in text
    without = results.table(results.summarise(run, {}))
    assert "iou" not in without and "add_s" not in without


def test_results_without_a_clock_are_no_latencies(bag: Path, tmp_path: Path, run: results.RunResult) -> None:
    run.results[0] = dataclasses.replace(run.results[0], latency_ms=None)
    summary = results.summarise(run, {})
    assert summary["latency_ms"] == {"median": 102.0, "p95": pytest.approx(102.9), "unknown": 1}
    assert "102 ms median, 103 ms p95, from the frame's stamp (1 unknown: results came before /clock)" in results.table(
        summary
    )
    found = scene.read_scene(open_recording(bag), {result.stamp_ns for result in run.results})
    assert "after" not in overview._caption(run.results[0], found)
    assert "result after 101 ms" in overview._caption(run.results[1], found)
    run.results = run.results[:1]
    assert "latency           1 unknown" in results.table(results.summarise(run, {}))


@pytest.mark.parametrize(
    ("counted", "lines"),
    [
        ({}, ["frames            8, without result 4"]),
        ({"dropped_latest_wins": 4}, ["frames            8, without result 4 (4 dropped_latest_wins)"]),
        (
            {"dropped_latest_wins": 3, "missing_image": 2, "few_events": 1},
            [
                "frames            8, without result 4 (3 dropped_latest_wins, 1 never complete)",
                "also counted      1 few_events, 2 missing_image",
            ],
        ),
        (
            {"dropped_latest_wins": 4, "missing_mask": 2},
            ["frames            8, without result 4", "also counted      4 dropped_latest_wins, 2 missing_mask"],
        ),
    ],
)
def test_the_numbers_of_frames_add_up(run: results.RunResult, counted: dict[str, int], lines: list[str]) -> None:
    run.dropped = counted
    text = results.table(results.summarise(run, {})).splitlines()
    assert text[: text.index("reconstructions   4, 15.0 per second")] == lines


def test_without_depth_the_table_says_that_there_is_no_scale(run: results.RunResult) -> None:
    first = run.results[0]
    item = make_object(np.array([0.0, 0.0, 1.0]), metric=False)
    run.results = [results.FrameResult(first.stamp_ns, 1.0, 1.0, 1, (item,))]
    assert "prior size" in results.table(results.summarise(run, {}))


@pytest.mark.parametrize(("with_truth", "columns"), [(True, 5), (False, 4)])
def test_the_picture_shows_the_object_in_every_column(
    bag: Path, tmp_path: Path, run: results.RunResult, with_truth: bool, columns: int
) -> None:
    found = scene.read_scene(open_recording(bag), {result.stamp_ns for result in overview.chosen_rows(run.results)})
    assert len(found.stamps) == 8 and found.masked == found.stamps and len(found.frames) == 4
    known = truth.read_truth(bag) if with_truth else None
    overview.draw_overview(tmp_path / "overview.png", run, found, known)
    picture = cv2.imread(str(tmp_path / "overview.png"))
    assert picture is not None
    assert picture.shape[1] == columns * 280 + (columns + 1) * 10
    # Orange (the first object's colour) in the middle of every column but the events'.
    for column in range(columns):
        left = 10 + column * 290
        blue, green, red = (picture[200:260, left : left + 280, channel].astype(int) for channel in range(3))
        orange = (red > green + 20) & (green > blue + 20)
        assert orange.any() == (column != 1) or column == 1


def test_results_are_written_before_the_recording_is_read_again(
    bag: Path, tmp_path: Path, run: results.RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecordingError("the disk is gone", reason="broken_recording")

    recording = open_recording(bag)
    assert isinstance(recording, Rosbag2Recording)
    stamps = recording.frame_stamps()
    assert stamps == [frame.stamp_us * 1000 for frame in make_frames(8)]
    monkeypatch.setattr(demo_run, "read_scene", fail)
    said: list[str] = []
    options = demo_run.DemoOptions(bag, tmp_path)
    summary = demo_run.write_results(options, recording, run, stamps, None, said.append)
    assert summary["reconstructions"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["objects", "poses.csv", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is True
    assert [path.name for path in sorted((tmp_path / "objects").iterdir())][1] == "1_000002.ply"
    assert "no picture of this run: the disk is gone" in said


def test_frames_that_cannot_be_shown_are_left_out_of_the_picture(
    bag: Path, tmp_path: Path, run: results.RunResult
) -> None:
    stamps = [result.stamp_ns for result in run.results]
    found = scene.read_scene(open_recording(bag), stamps[:2])
    overview.draw_overview(tmp_path / "overview.png", run, found, None)
    picture = cv2.imread(str(tmp_path / "overview.png"))
    assert picture is not None and picture.shape[0] == 92 + 2 * 320 + 10
    with pytest.raises(processes.DemoError, match="no mask with an object"):
        scene.read_scene(open_recording(bag), [1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_swallows_ends_the_writing(
    bag: Path, tmp_path: Path, run: results.RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Logger:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def read_scene(*_: object) -> object:
        logger = Logger()
        del logger  # the exception of the handler goes no further than __del__
        return object()

    recording = open_recording(bag)
    assert isinstance(recording, Rosbag2Recording)
    stamps = recording.frame_stamps()
    monkeypatch.setattr(demo_run, "read_scene", read_scene)
    monkeypatch.setattr(demo_run, "draw_overview", lambda *_: pytest.fail("it went on"))
    demo_run.prepare(tmp_path / "out")
    summary = tmp_path / "out" / "summary.json"
    assert json.loads(summary.read_text())["complete"] is False
    with (
        pytest.raises(KeyboardInterrupt),
        demo_run._end_noted(summary),
        demo_run._interruptible() as check,
    ):
        options = demo_run.DemoOptions(bag, tmp_path / "out")
        demo_run.write_results(options, recording, run, stamps, None, lambda _: None, check)
    content = json.loads(summary.read_text())
    assert (content["complete"], content["reason"], content["reconstructions"]) == (False, "interrupted", 4)


def test_an_interrupt_that_a_library_made_an_error_of_is_one(tmp_path: Path) -> None:
    demo_run.prepare(tmp_path)
    summary = tmp_path / "summary.json"
    with pytest.raises(KeyboardInterrupt), demo_run._end_noted(summary), demo_run._interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
    assert json.loads(summary.read_text())["reason"] == "interrupted"
    with pytest.raises(ImportError), demo_run._interruptible():
        raise ImportError("initialization failed")


def test_what_ended_a_demo_early_stands_in_its_summary(tmp_path: Path) -> None:
    demo_run.prepare(tmp_path)
    with pytest.raises(processes.DemoError), demo_run._end_noted(tmp_path / "summary.json"):
        raise processes.DemoError("a node ended")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content == {"made_by": "event-sam3d demo", "complete": False, "reason": "a node ended"}


def test_only_what_a_demo_made_is_removed(tmp_path: Path) -> None:
    demo_run.prepare(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "objects").mkdir()
    demo_run.prepare(tmp_path / "new" / "folder")  # interrupted, and run again
    assert not (tmp_path / "new" / "folder" / "objects").exists()
    mine = tmp_path / "mine"
    (mine / "objects").mkdir(parents=True)
    (mine / "summary.json").write_text('{"made_by": "me"}')
    for place in (mine, mine / "summary.json"):
        with pytest.raises(ConfigurationError, match="was not made by an earlier demo"):
            demo_run.prepare(place)
    assert (mine / "objects").is_dir() and (mine / "summary.json").is_file()


def test_the_nodes_are_set_up_for_the_recording(bag: Path) -> None:
    recording = open_recording(bag)
    assert isinstance(recording, Rosbag2Recording)
    topics = recording.topics
    assert (demo_run.frame_source(recording), demo_run.depth_type(recording)) == ("camera_info", "image")
    recording.counts[topics.camera_info] = 1
    recording.types[topics.depth] = "sensor_msgs/msg/PointCloud2"
    assert (demo_run.frame_source(recording), demo_run.depth_type(recording)) == ("image", "points")
    del recording.types[topics.depth]
    assert demo_run.depth_type(recording) == "none"
    recording.topics = Topics(image=f"{topics.image}/compressed")
    recording.counts[recording.topics.image] = 8
    assert demo_run.frame_source(recording) == "compressed_image"


# --- processes -------------------------------------------------------------------------------------------------------

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def fake_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes ``event_sam3d_ros.nodes.fake`` importable by children; what it does is in fake.py."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = types.ModuleType('event_sam3d_ros.nodes.fake')\n"
        f"source = open({str(tmp_path / 'fake.py')!r}).read()\n"
        "module.main = lambda: exec(source, {})\n"
        "sys.modules['event_sam3d_ros.nodes.fake'] = module\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def wait_for(condition: Any, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("timed out")


def test_no_process_outlives_the_block(fake_node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STOP_TIMEOUT_S", 0.3)
    (tmp_path / "fake.py").write_text(STUBBORN)
    with pytest.raises(KeyboardInterrupt), processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {})
        grandchild = int(wait_for(running.log_file("fake").read_text))
        running.check()
        assert is_running(grandchild)
        raise KeyboardInterrupt
    wait_for(lambda: not is_running(grandchild))


def test_a_node_that_can_not_start_ends_the_demo_at_once_with_its_sentence(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text("import sys\nprint('no_checkpoint: there is no model file')\nsys.exit(2)")
    recorder: Any = SimpleNamespace(spin=time.sleep)
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {})
        with pytest.raises(processes.DemoError, match="fake ended with exit code 2(.|\n)*there is no model file"):
            demo_run._wait_for(lambda: False, ("fake",), recorder, running, lambda: None)


def test_a_node_that_does_not_get_ready_ends_the_demo_with_the_place_of_its_log(
    fake_node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run, "_START_TIMEOUT_S", 0.3)
    (tmp_path / "fake.py").write_text("import time\ntime.sleep(100)")
    recorder: Any = SimpleNamespace(spin=time.sleep)
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {})
        with pytest.raises(processes.DemoError, match="fake did not get ready.*see .*logs/fake"):
            demo_run._wait_for(lambda: False, ("fake",), recorder, running, lambda: None)


def test_what_a_dead_node_left_behind_is_killed_too(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(STUBBORN.replace("time.sleep(100)\n", ""))
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {})
        grandchild = int(wait_for(running.log_file("fake").read_text))
        wait_for(lambda: running.exit_code("fake") is not None)
        assert is_running(grandchild)
    wait_for(lambda: not is_running(grandchild))


@pytest.mark.parametrize("number", processes.ENDING_SIGNALS)
def test_every_ending_signal_stops_the_nodes(fake_node: None, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "fake.py").write_text("import time; time.sleep(100)")
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from event_sam3d_ros.demo import processes, run\n"
        f"with run._interruptible(), processes.Processes(Path({str(tmp_path / 'logs')!r}), {{}}) as running:\n"
        "    running.start_node('fake', {})\n"
        "    print(running._running['fake'].pid, flush=True)\n"
        "    time.sleep(100)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    with parent:
        node = int(parent.stdout.readline())
        assert is_running(node)
        parent.send_signal(number)
        assert parent.wait(30) != 0
    wait_for(lambda: not is_running(node))


def test_a_node_that_dies_is_reported_with_its_last_lines(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text("import sys; print('the model is missing'); sys.exit(3)")
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {"rate": 0.5})
        wait_for(lambda: running.exit_code("fake") is not None)
        with pytest.raises(processes.DemoError, match=r"fake ended with exit code 3(.|\n)*the model is missing"):
            running.check("fake")


def test_a_node_that_ends_is_only_fine_where_it_may(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text("")
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {})
        wait_for(lambda: running.exit_code("fake") is not None)
        running.check("fake")
        with pytest.raises(processes.DemoError, match="exit code 0"):
            running.check()


def test_parameters_are_handed_over_as_ros_writes_them(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text("import sys; print(*sys.argv[1:])")
    with processes.Processes(tmp_path / "logs", {}) as running:
        running.start_node("fake", {"a": True, "b": 2.0, "c": "text"}, "-r", "x:=y")
        text = wait_for(running.log_file("fake").read_text)
    assert text.split() == "--ros-args -r x:=y -p a:=true -p b:=2.0 -p c:=text".split()


def test_a_used_domain_is_not_taken() -> None:
    import socket

    first = processes.free_domain_id()
    assert 1 <= first <= 100
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.bind(("", 7400 + 250 * first + 10))
        assert processes.free_domain_id() != first


def test_processes_that_ask_at_the_same_time_get_domains_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that begin to look at the same place, and before any of them has opened a port."""
    code = "import random; from unittest import mock; from event_sam3d_ros.demo import processes\n"
    code += "with mock.patch('os.getpid', lambda: 1): print(processes.free_domain_id(), flush=True)\n"
    code += "input()"
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(4)]
    try:
        domains = [int(process.stdout.readline()) for process in started]
    finally:
        for process in started:
            process.communicate("\n")
    assert len(set(domains)) == 4
    # What has ended leaves its domain to others.
    again = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
    assert int(again.stdout) in domains


def test_the_stop_itself_can_not_be_interrupted(fake_node: None, tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(100)"
    )
    script = (
        "import os, sys, threading, time, signal\n"
        "from pathlib import Path\n"
        "from event_sam3d_ros.demo import processes\n"
        "processes._STOP_TIMEOUT_S = 1.0\n"
        f"with processes.Processes(Path({str(tmp_path / 'logs')!r}), {{}}) as running:\n"
        "    running.start_node('fake', {})\n"
        "    time.sleep(1.0)\n"
        "    print(running._running['fake'].pid, flush=True)\n"
        "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not is_running(int(done.stdout))
