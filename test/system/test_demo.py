"""The demo as a user runs it, on a piece of the bundled recording: its results against the offline API, and signals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
import open3d

from event_sam3d_ros.demo import truth
from event_sam3d_ros.demo.processes import ENDING_SIGNALS
from event_sam3d_ros.evaluation.replay import replay
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.files import Frame, open_recording, write_rosbag2

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "demo_bag"
FRAMES = 10
RATE = 0.1  # slow enough for the busiest machine
TIMEOUT_S = 240
MARK = "EVENT_SAM3D_TEST_MARK"


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """The first frames of the bundled recording, with the events after the last one's window, and its truth."""
    path = tmp_path_factory.mktemp("recording") / "bag"
    samples = list(open_recording(BUNDLED).samples())
    stamps = [sample.stamp_ns for sample in samples if isinstance(sample, Frame) and sample.role == "image"]
    end = stamps[FRAMES] - 1
    pictures_end = stamps[FRAMES - 1]
    kept = [
        sample
        for sample in samples
        if (sample.stamp_ns <= pictures_end if isinstance(sample, Frame) else sample.stamp_ns <= end)
    ]
    write_rosbag2(path, kept)
    for name in (truth.FILE_NAME, "object_1.ply"):
        shutil.copy(BUNDLED / name, path)
    return path


def start_demo(bag, out):
    """The command, marked so that its descendants can be found."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "event_sam3d_ros.cli", "demo", "--bag", bag, "--out", out, "--rate", str(RATE)]
    output = (out.parent / "output.txt").open("w+")
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
    )
    return process, mark, out.parent / "output.txt"


def marked_processes(mark):
    """Processes that inherited the mark, without zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def finished(bag, tmp_path_factory):
    """Output folder and printed text of one whole run."""
    out = tmp_path_factory.mktemp("demo") / "demo_output"
    process, mark, text = start_demo(bag, out)
    try:
        code = process.wait(TIMEOUT_S)
    finally:
        process.kill()
    assert code == 0, text.read_text()
    assert marked_processes(mark) == []
    return out, text.read_text()


@pytest.fixture(scope="module")
def offline(bag):
    """Stamp -> reconstructions of the same inputs without ROS."""
    return dict(replay(open_recording(bag), Reconstructor.from_pretrained("nano", device="cpu")))


def test_the_results_are_those_of_the_offline_api(finished, offline):
    out, _ = finished
    with (out / "poses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 3
    stamps = sorted(offline)
    for row in rows:
        (expected,) = [item for item in offline[int(row["stamp_ns"])] if item.id == int(row["id"])]
        pose = [float(row[name]) for name in "x y z qx qy qz qw sx sy sz score".split()]
        wanted = np.concatenate([expected.position, expected.quaternion, expected.size, [expected.score]])
        np.testing.assert_allclose(pose, wanted, atol=1e-5)
        assert bool(int(row["metric"])) == expected.metric
        cloud = open3d.io.read_point_cloud(str(out / "objects" / f"1_{stamps.index(int(row['stamp_ns'])):06d}.ply"))
        np.testing.assert_allclose(np.asarray(cloud.points), expected.points, atol=1e-5)
        np.testing.assert_array_equal(np.rint(np.asarray(cloud.colors) * 255), expected.colors)
    assert len(list((out / "objects").iterdir())) == len(rows)


def test_the_summary_tells_the_run(finished):
    out, text = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["frames"] == FRAMES
    assert summary["latency_ms"]["unknown"] == 0
    assert summary["reconstructions"] + summary["dropped"] == FRAMES
    assert 25 < summary["latency_ms"]["median"] <= summary["latency_ms"]["p95"]  # the window ends 25 ms after the stamp
    assert summary["model"].startswith("nano")
    (item,) = summary["objects"]
    assert item["id"] == 1 and item["metric"]
    for name in ("iou", "iou_camera", "mask_iou", "iou3d_box"):
        assert 0 < item[name] <= 1
    for name in ("chamfer", "add_s", "up_error_deg"):
        assert item[name] > 0
    for word in ("reconstructions", "latency", "iou_camera", "overview.png"):
        assert word in text
    assert cv2.imread(str(out / "overview.png")) is not None


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_an_ending_signal_leaves_nothing_running(bag, tmp_path, number):
    process, mark, text = start_demo(bag, tmp_path / "out")
    try:
        end = time.monotonic() + 60
        while len(marked_processes(mark)) < 3 and time.monotonic() < end:  # the command and two nodes
            time.sleep(0.1)
        time.sleep(2.0)
        assert process.poll() is None, text.read_text()
        process.send_signal(number)
        assert process.wait(30) == 130
    finally:
        process.kill()
    assert "interrupted" in text.read_text()
    assert "Traceback" not in text.read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["complete"], summary["reason"]) == (False, "interrupted")
    assert marked_processes(mark) == []
