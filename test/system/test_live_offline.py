"""A recording played through the live nodes under simulated time gives what its evaluation gives, frame for frame."""

from __future__ import annotations

import csv
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_sam3d_ros.cli import main
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import stamp_to_ns
from event_sam3d_ros.recordings.files import Frame, open_recording, write_rosbag2

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "demo_bag"
FRAMES = 10
RATE = 0.05  # 0.67 s for a frame: slow enough for the busiest machine
NODES = ("event_image_node", "reconstruction_node")


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """The first frames of the bundled recording and the events of their windows. The masks' labels change all the
    time, so that ids are the trackers' work."""
    path = tmp_path_factory.mktemp("recording") / "bag"
    samples = list(open_recording(BUNDLED).samples())
    stamps = [sample.stamp_ns for sample in samples if isinstance(sample, Frame) and sample.role == "image"]

    def changed(sample):
        if isinstance(sample, Frame) and sample.role == "mask":
            label = 1 + stamps.index(sample.stamp_ns) % 3
            return replace(sample, data=(sample.data > 0).astype(np.uint8) * np.uint8(label))
        return sample

    limits = {True: stamps[FRAMES - 1], False: stamps[FRAMES] - 1}
    write_rosbag2(path, [changed(one) for one in samples if one.stamp_ns <= limits[isinstance(one, Frame)]])
    return path


@pytest.fixture(scope="module")
def offline(bag, tmp_path_factory):
    """The rows of results.csv."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    options = ["--modes", "fused", "--no-metrics", "--workers", "1", "--device", "cpu"]
    assert main(["evaluate", str(bag), "--out", str(out), *options]) == 0
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_live_and_offline_agree_in_every_frame(peer, start, bag, offline):
    sim = ("-p", "use_sim_time:=true")
    started = [
        start(NODES[0], *sim, "-p", "max_wait_ms:=10000.0", "-p", "buffer_ms:=11000.0"),
        start(NODES[1], *sim, "-p", "max_age_ms:=0.0", "-p", "pair_timeout_ms:=10000.0", "-p", "threads:=1",
              "-p", "device:=cpu"),
    ]  # fmt: skip
    for name in NODES:
        peer.wait_active(name)
    answers = peer.collect(ReconstructedObjectArray, "/reconstruction_node/objects", 100)
    start("bag_player_node", "-p", f"bag:={bag}", "-p", f"rate:={RATE}", "-p", "wait_for_subscribers_s:=60.0")
    peer.wait_for(lambda: len(answers) >= FRAMES, 180)
    assert peer.counts(NODES[1]).get("dropped_latest_wins", 0) == 0
    live = [(stamp_to_ns(answer.header.stamp), one.id) for answer in answers for one in answer.objects]
    assert live == [(int(row["stamp_ns"]), int(row["id"])) for row in offline]
    assert len(offline) == FRAMES and {row["label"] for row in offline} == {"1", "2", "3"}
    objects = [(answer, one) for answer in answers for one in answer.objects]
    for (answer, one), row in zip(objects, offline, strict=True):
        position, turn, size = one.pose.position, one.pose.orientation, one.size
        numbers = [position.x, position.y, position.z, turn.x, turn.y, turn.z, turn.w, size.x, size.y, size.z]
        wanted = [float(row[name]) for name in "x y z qx qy qz qw sx sy sz".split()]
        np.testing.assert_allclose([*numbers, one.score], [*wanted, float(row["score"])], atol=1e-5)
        assert (answer.event_count, int(one.metric), one.label) == (
            int(row["event_count"]),
            int(row["metric"]),
            row["label"],
        )
    assert [process.stop(signal.SIGINT) for process in started] == [0, 0]
