"""Recordings evaluated as a user does it: the same bytes however often and by whatever number of processes, nothing
lost by a kill, and one clear sentence for everything that can be wrong with what was given."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from recordings_made import COUNT, MS, PERIOD, START, in_order, make_samples

from event_sam3d_ros.cli import main
from event_sam3d_ros.evaluation import bag_worker
from event_sam3d_ros.evaluation.bag_log import FrameLog, read_rows
from event_sam3d_ros.evaluation.bag_mcap import McapOutputs
from event_sam3d_ros.evaluation.bag_worker import BagJob, _BagEvaluation
from event_sam3d_ros.evaluation.consistency import LONGEST_GAP_NS
from event_sam3d_ros.recordings.bag_messages import COMPRESSED_IMAGE_TYPE, typestore
from event_sam3d_ros.recordings.bag_outputs import output_typestore
from event_sam3d_ros.recordings.files import EventChunk, Frame, Pose, Sample, write_rosbag2
from event_sam3d_ros.recordings.rosbag2_writer import open_writer
from event_sam3d_ros.synthetic.surface import surface_mesh, write_mesh

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "demo_bag"
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of one object, with depth and events."""
    path = tmp_path_factory.mktemp("recordings") / "bag"
    write_rosbag2(path, in_order(make_samples()))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command: its exit code, and what it said on standard error without the progress bar."""

    def evaluate(*arguments: Any, workers: int = 1) -> tuple[int, str]:
        code = main(["evaluate", *map(str, arguments), "--workers", str(workers)])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return code, "\n".join(line for line in re.split(r"[\r\n]", error) if line and "evaluating:" not in line)

    return evaluate


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def made(path: Path, change: Callable[[Sample], Sample | None]) -> Path:
    """A recording with changed samples; None leaves one out."""
    write_rosbag2(path, in_order([new for sample in make_samples() if (new := change(sample)) is not None]))
    return path


def test_any_number_of_workers_gives_the_same_bytes(bag: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(bag, tmp_path / "other")
    for workers in (1, 2):
        given = (bag, tmp_path / "other", "--modes", "fused", "--out", tmp_path / str(workers))
        assert run(*given, workers=workers) == (0, "")
    for name in ("results.csv", "summary.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    rows = rows_of(tmp_path / "1")
    assert [(row["bag"], int(row["frame"])) for row in rows] == [(b, f) for b in ("bag", "other") for f in range(COUNT)]
    assert [int(row["stamp_ns"]) for row in rows[:COUNT]] == [START + number * PERIOD for number in range(COUNT)]


def test_a_killed_run_loses_nothing_and_has_nothing_twice(bag: Path, tmp_path: Path, run: Run) -> None:
    assert run(bag, "--out", tmp_path / "whole") == (0, "")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "event_sam3d_ros.cli", "evaluate", bag, "--out", out, "--workers", "1"]
    log = out / "frames" / "bag.jsonl"
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while process.poll() is None and len(list(read_rows(log))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = list(read_rows(log))
    assert len(done) >= 2
    with log.open("ab") as file:
        file.write(b'{"frame":99,"torn')  # as a kill in the middle of writing leaves it
    assert run(bag, "--out", out) == (0, "")
    rows = list(read_rows(log))
    assert rows[: len(done)] == done
    assert [row.get("frame") for row in rows] == [*range(COUNT), None]
    for name in ("results.csv", "summary.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    pictures = [sorted(path.name for path in (folder / "pictures").iterdir()) for folder in (out, tmp_path / "whole")]
    assert pictures[0] == pictures[1]


def test_a_full_disk_keeps_what_is_done(bag: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    append, count = FrameLog.append, 0

    def full_at_the_third(log: FrameLog, row: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "frames/bag.jsonl")
        append(log, row)

    monkeypatch.setattr(FrameLog, "append", full_at_the_third)
    code, said = run(bag, "--out", tmp_path / "out", "--modes", "rgb")
    assert code == 1
    assert "No space left on device" in said and "run the same command again" in said
    assert len(rows_of(tmp_path / "out")) == 2
    monkeypatch.undo()
    assert run(bag, "--out", tmp_path / "out", "--modes", "rgb") == (0, "")
    assert len(rows_of(tmp_path / "out")) == COUNT


def test_a_disk_that_is_really_full(bag: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "bag.jsonl").symlink_to("/dev/full")
    with FrameLog(tmp_path / "frames" / "bag.jsonl") as log, pytest.raises(OSError, match=r"bag\.jsonl"):
        log.append({"frame": 0})


# Bad input


HOUR_MS = 3_600_000


def shifted_events(sample: Sample) -> Sample:
    if not isinstance(sample, EventChunk):
        return sample
    events = replace(sample.events, t=sample.events.t + HOUR_MS * 1000)
    return replace(sample, stamp_ns=sample.stamp_ns + HOUR_MS * MS, events=events)


def shifted(role: str) -> Callable[[Sample], Sample]:
    def change(sample: Sample) -> Sample:
        is_it = isinstance(sample, Frame) and sample.role == role
        return replace(sample, stamp_ns=sample.stamp_ns - HOUR_MS * MS) if is_it else sample

    return change


def without(role: str) -> Callable[[Sample], Sample | None]:
    return lambda sample: None if isinstance(sample, Frame) and sample.role == role else sample


@pytest.mark.parametrize(
    "change, words",
    [
        (without("mask"), ["no topic for mask (/camera/mask)", "--topics mask=/NAME"]),
        (without("image"), ["no topic for image"]),
        (lambda sample: None if isinstance(sample, EventChunk) else sample, ["no topic for events"]),
        (shifted_events, ["the clocks disagree", "1700000000.000 s", "event packets from 1700003599"]),
        (shifted("mask"), ["the clocks disagree", "1700000000.000 s", "masks from 1699996400"]),
    ],
)
def test_a_bag_that_lacks_something_is_told_in_one_sentence(
    tmp_path: Path, run: Run, change: Callable[[Sample], Sample | None], words: list[str]
) -> None:
    code, said = run(made(tmp_path / "bag", change), "--out", tmp_path / "out", "--modes", "fused")
    assert code == 2
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "change, words", [(shifted("depth"), "no frame has its depth"), (shifted_events, "no frame has its events")]
)
def test_clocks_that_only_make_results_poorer_are_a_warning(
    tmp_path: Path, run: Run, change: Callable[[Sample], Sample], words: str
) -> None:
    code, said = run(made(tmp_path / "bag", change), "--out", tmp_path / "out", "--modes", "rgb")
    assert code == 0
    assert said.count("warning") == 1 and "the clocks disagree" in said and words in said
    assert words in (tmp_path / "out" / "report.html").read_text()


def test_a_wrong_command_line_leaves_no_folder(bag: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run(bag, "--out", out, "--modes", "rgb", "--device", "cuda:99")[0] == 2
    assert run(bag, "--out", out, "--modes", "rgb", "--weights", tmp_path / "none.safetensors")[0] == 2
    assert run(bag, "--out", out, "--modes", "rgb", "--ground-truth", tmp_path / "none.yaml")[0] == 2
    assert not out.exists()


def test_a_path_that_is_no_text_is_evaluated(bag: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / os.fsdecode(b"bag_\xff\xfe")
    shutil.copytree(bag, path)
    assert run(path, "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics") == (0, "")
    assert "bag_\\udcff\\udcfe" in (tmp_path / "out" / "report.html").read_text()


def test_a_worker_that_is_killed_costs_only_what_it_was_at(bag: Path, tmp_path: Path, run: Run) -> None:
    bags = [bag, *(shutil.copytree(bag, tmp_path / name) for name in ("other", "third"))]
    out = tmp_path / "out"

    def kill_one() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not any(list(read_rows(log)) for log in out.glob("frames/*.jsonl")):
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    code, said = run(*bags, "--out", out, workers=2)
    killer.join()
    assert code == 1
    assert "third: a worker process was ended from outside" in said and "the same command goes on" in said
    summary = json.loads((out / "summary.json").read_text())
    assert {one["reason"] for one in summary["bags"]} <= {"", "worker_died"}
    assert rows_of(out)
    assert run(*bags, "--out", out, workers=1) == (0, "")
    assert len(rows_of(out)) == 3 * 3 * COUNT


def test_memory_does_not_grow_with_the_number_of_tracks(bag: Path, tmp_path: Path, run: Run) -> None:
    """Each object is seen in one frame."""
    assert run(bag, "--out", tmp_path / "out", "--modes", "rgb")[0] == 0
    row = next(read_rows(tmp_path / "out" / "frames" / "bag.jsonl"))
    evaluation = _BagEvaluation(BagJob("bag", bag, tmp_path, ("rgb",)), {}, list)
    held = []
    for number in range(60):
        row["results"][0]["objects"][0]["id"] = number
        evaluation._remember({**row, "stamp_ns": row["stamp_ns"] + number * PERIOD, "frame": number})
        held.append(len(evaluation._previous))
    assert max(held) == held[-1] == LONGEST_GAP_NS // PERIOD + 1


def test_other_files_are_told(tmp_path: Path, run: Run, bag: Path) -> None:
    (tmp_path / "empty.mcap").write_bytes(b"")
    code, said = run(tmp_path / "empty.mcap", "--out", tmp_path / "out")
    assert code == 2 and "empty.mcap is empty" in said
    assert not (tmp_path / "out").exists()
    code, said = run(bag, "--out", tmp_path / "out", "--topics", "image=/camera/camera_info")
    assert code == 2 and "/camera/camera_info is a sensor_msgs/msg/CameraInfo; for image give" in said
    code, said = run(bag, "--out", tmp_path / "out", "--topics", "image=/nothing")
    assert code == 2 and "has no topic /nothing" in said
    code, said = run(bag, "--out", tmp_path / "out", "--topics", "picture=/x")
    assert code == 2 and "'picture=/x' can't be understood" in said


def test_one_bad_bag_does_not_cost_the_others_their_results(bag: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.mcap").write_bytes(b"")
    code, said = run(bag, tmp_path / "bad.mcap", "--out", tmp_path / "out", "--modes", "rgb")
    assert code == 2 and "bad.mcap is empty" in said and "1 other recording done" in said
    assert len(rows_of(tmp_path / "out")) == COUNT
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(one["name"], one["complete"], one["reason"]) for one in summary["bags"]] == [
        ("bad", False, "broken_recording"),
        ("bag", True, ""),
    ]
    assert "bad.mcap is empty" in (tmp_path / "out" / "report.html").read_text()


def test_a_bag_that_is_cut_off_gives_what_is_whole(tmp_path: Path, run: Run) -> None:
    (file,) = BUNDLED.glob("*.mcap")
    (tmp_path / "cut.mcap").write_bytes(file.read_bytes()[:1_000_000])
    code, said = run(tmp_path / "cut.mcap", "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics")
    assert code == 0
    assert "warning" in said and "cut.mcap" in said and "what is whole was read" in said
    assert 3 < len(rows_of(tmp_path / "out")) < 30
    assert "what is whole was read" in (tmp_path / "out" / "report.html").read_text()


def copied(bag: Path, path: Path, names: dict[str, str], noise: int = 0) -> Path:
    """A bag whose topics have other names, as a compressed mcap with ``noise`` bytes beside each message."""
    from rosbags.rosbag2 import Reader

    store, text = typestore(), "std_msgs/msg/String"
    rng = np.random.default_rng(0)
    with Reader(bag) as reader, open_writer(path) as writer:
        connections = {
            c.topic: writer.add_connection(names.get(c.topic, c.topic), c.msgtype, typestore=store)
            for c in reader.connections
        }
        other = writer.add_connection("/noise", text, typestore=store)
        for connection, stamp, raw in reader.messages():
            writer.write(connections[connection.topic], stamp, raw)
            data = store.types[text](rng.integers(32, 127, noise).astype(np.uint8).tobytes().decode())
            writer.write(other, stamp, store.serialize_cdr(data, text))
    return path


def test_damage_in_the_middle_costs_what_it_hit(bag: Path, tmp_path: Path, run: Run) -> None:
    (file,) = copied(bag, tmp_path / "bag", {}, 60_000).glob("*.mcap")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    code, said = run(tmp_path / "bag", "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics")
    assert code == 0
    assert "warning" in said and "messages, but" in said and "can be read" in said
    rows = rows_of(tmp_path / "out")
    assert 0 < sum(bool(row["x"]) for row in rows) < COUNT
    assert "unreadable message" in (tmp_path / "out" / "report.html").read_text()


def test_a_bag_in_which_nothing_is_whole_is_told(bag: Path, tmp_path: Path, run: Run) -> None:
    from event_sam3d_ros.recordings.bag_reader import BagReader

    (file,) = copied(bag, tmp_path / "bag", {}).glob("*.mcap")
    with BagReader(file) as reader:
        chunks = list(reader.storage.chunks)
    data = bytearray(file.read_bytes())
    for chunk in chunks:
        middle = chunk.chunk_start_offset + chunk.chunk_length // 2
        data[middle : middle + 64] = bytes(64)
    file.write_bytes(data)
    code, said = run(tmp_path / "bag", "--out", tmp_path / "out")
    assert code == 2
    assert "messages is whole" in said
    assert main(["sequence", str(tmp_path / "bag"), "--out", str(tmp_path / "sequence")]) == 2
    assert not (tmp_path / "sequence").exists()


def test_names_are_text_in_the_report(bag: Path, tmp_path: Path, run: Run) -> None:
    path = copied(bag, tmp_path / "<script>bag", {"/camera/depth": "/camera/<script>depth"})
    assert run(path, "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics") == (0, "")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in report
    assert "/&lt;script&gt;bag" in report and "/camera/&lt;script&gt;depth" in report


def test_images_that_nothing_can_decode_are_told(tmp_path: Path, run: Run, bag: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer

    store = typestore()
    types = store.types
    path = tmp_path / "unknown_codec"
    with Reader(bag) as reader, Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            c.topic: writer.add_connection(c.topic, c.msgtype, typestore=store)
            for c in reader.connections
            if c.topic != "/camera/image_raw"
        }
        compressed = writer.add_connection("/camera/image_raw/compressed", COMPRESSED_IMAGE_TYPE, typestore=store)
        for connection, stamp, raw in reader.messages():
            if connection.topic in connections:
                writer.write(connections[connection.topic], stamp, raw)
            else:
                header = store.deserialize_cdr(raw, connection.msgtype).header
                message = types[COMPRESSED_IMAGE_TYPE](header, "h264", np.arange(50, dtype=np.uint8))
                writer.write(compressed, stamp, store.serialize_cdr(message, COMPRESSED_IMAGE_TYPE))
    code, said = run(path, "--out", tmp_path / "out")
    assert code == 2
    assert "h264" in said and "/camera/image_raw/compressed" in said


@pytest.mark.parametrize("offset_s", [1000, -1000])
def test_truth_of_another_time_is_told(bag: Path, tmp_path: Path, run: Run, offset_s: float) -> None:
    stamp = START / 1e9 + offset_s
    (tmp_path / "poses.txt").write_text(f"{stamp} 0 0 0 0 0 0 1\n{stamp + 0.1} 0 0 0 0 0 0 1\n")
    code, said = run(bag, "--out", tmp_path / "out", "--ground-truth", tmp_path / "poses.txt", "--modes", "rgb")
    assert code == 2 and "does not overlap" in said and "poses.txt" in said


def test_truth_that_is_none_is_told(bag: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "truth.txt").write_text("# t x y z\n1 2 3\n")
    code, said = run(bag, "--out", tmp_path / "out", "--ground-truth", tmp_path / "truth.txt")
    assert code == 2 and "truth.txt, line 2: expected" in said
    (tmp_path / "truth.yaml").write_text("objects: 3")
    code, said = run(bag, "--out", tmp_path / "out2", "--ground-truth", tmp_path / "truth.yaml")
    assert code == 2 and "truth.yaml is not a ground truth file" in said


def write_truth(path: Path, label: int) -> None:
    """A ball of 0.16 m whose poses lie between the stamps of the first frames."""
    grid = (np.indices((32,) * 3).reshape(3, -1).T + 0.5) / 16 - 1
    sdf = (np.linalg.norm(grid, axis=1) - 0.8).reshape((32,) * 3)
    vertices, faces = surface_mesh(sdf)
    write_mesh(path.parent / "ball.ply", vertices * 0.1, faces)
    stamps = [START + number * PERIOD + PERIOD // 2 for number in range(-1, 3)]
    poses = [{"stamp_ns": s, "position": [0.0, 0.0, 0.5], "quaternion": [0.0, 0.0, 0.0, 1.0]} for s in stamps]
    truth = {"objects": [{"id": label, "mesh": "ball.ply", "size": [0.16] * 3, "poses": poses}]}
    path.write_text(yaml.safe_dump(truth))


def test_truth_of_other_labels_is_told(bag: Path, tmp_path: Path, run: Run) -> None:
    write_truth(tmp_path / "truth.yaml", 7)
    given = ("--ground-truth", tmp_path / "truth.yaml", "--modes", "rgb")
    code, said = run(bag, "--out", tmp_path / "out", *given)
    assert code == 2
    assert "It knows the objects 7, the masks hold 1" in said
    assert len(rows_of(tmp_path / "out")) == COUNT


def test_truth_that_is_found_is_named_and_part_of_the_run(
    bag: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "bag", tmp_path / "out"
    shutil.copytree(bag, path)
    write_truth(path / "ground_truth.yaml", 1)
    given = [str(path), "--out", str(out), "--modes", "rgb", "--workers", "1"]
    assert main(["evaluate", *given]) == 0
    assert f"ground truth {path}/ground_truth.yaml (meshes with poses)" in capsys.readouterr().out
    assert f"{path}/ground_truth.yaml" in (out / "report.html").read_text()
    with (path / "ball.ply").open("ab") as mesh:
        mesh.write(b"\n")
    code, said = run(*given[:-2])
    assert code == 2 and "an evaluation with other bags, ground_truth" in said
    (path / "ground_truth.yaml").unlink()
    code, said = run(*given[:-2])
    assert code == 2 and "an evaluation with other bags, ground_truth" in said


def test_a_folder_that_is_not_of_this_run_is_left_alone(bag: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    code, said = run(bag, "--out", tmp_path / "mine")
    assert code == 2 and "exists and holds no evaluation" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert run(bag, "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics") == (0, "")
    code, said = run(bag, "--out", tmp_path / "out", "--modes", "fused", "--no-metrics")
    assert code == 2 and "an evaluation with other modes" in said
    assert len(rows_of(tmp_path / "out")) == COUNT


# What comes out


def test_modes_stand_side_by_side_and_the_report_shows_the_summary(bag: Path, tmp_path: Path, run: Run) -> None:
    assert run(bag, "--out", tmp_path / "out") == (0, "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["mode"] for one in summary["total"]] == ["rgb", "events", "fused"]
    rows = rows_of(tmp_path / "out")
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in ("rgb", "events", "fused")}
    assert by_mode["rgb"][0]["x"] != by_mode["events"][0]["x"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"<(script|link|iframe|object|embed|base|meta http)|url\(|@import", report)
    loaded = re.findall(r"<[^>]*?(?:src|href|data|poster|srcset)=[\"']?([^\"'>]*)", report)
    assert loaded and all(target.startswith("data:image/jpeg;base64,") for target in loaded)
    for one in summary["total"]:
        assert one["frames"] == one["frames_with_result"] == COUNT
        for name, values in one["metrics"].items():
            assert f"<td>{name}</td>" in report
            assert f"{values['mean']:.3f} ± {values['std']:.3f}" in report
            column = [float(row[name]) for row in by_mode[one["mode"]] if row[name]]
            assert values["mean"] == pytest.approx(np.mean(column), rel=1e-5)
            assert values["n"] == len(column)
    assert report.count("data:image/jpeg;base64,") == 6
    for kind in ("best", "worst"):
        for one in summary[kind]:
            assert one["seconds"] == pytest.approx(one["frame"] * PERIOD / 1e9)
            assert f"{one['seconds']:.3f} s after its first frame (frame {one['frame']})" in report
    assert "<tr class=main><td>input_mask_iou</td>" in report
    assert "/camera/mask (sensor_msgs/msg/Image, 6 messages)" in report
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert f"{timings['share_of_inputs']:.1%}" in report
    assert timings["stages"]["inputs"]["n"] == COUNT


def test_truth_as_a_mesh_with_poses_is_compared(bag: Path, tmp_path: Path, run: Run) -> None:
    """The last frames have no true pose."""
    write_truth(tmp_path / "truth.yaml", 1)
    given = ("--ground-truth", tmp_path / "truth.yaml", "--modes", "fused")
    assert run(bag, "--out", tmp_path / "out", *given) == (0, "")
    rows = rows_of(tmp_path / "out")
    assert [bool(row["iou_camera"]) for row in rows] == [True] * 3 + [False] * 3
    assert all(0 < float(row["iou"]) <= 1 and row["add_s"] for row in rows[:3])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ranked_by"] == "iou_camera"
    best = sorted(rows[:3], key=lambda row: -float(row["iou_camera"]))
    for name, expected in (("best", best), ("worst", best[::-1])):
        assert [(one["frame"], one["value"]) for one in summary[name]] == [
            (int(row["frame"]), pytest.approx(float(row["iou_camera"]), abs=1e-6)) for row in expected
        ]
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg;base64,") == 6


def test_camera_poses_in_the_recording_are_used(tmp_path: Path, run: Run) -> None:
    poses = [
        Pose(START + n * 10 * MS, START + n * 10 * MS, "o", np.array([0.1 * n, 0.0, 0.0]), np.array([0, 0, 0, 1.0]))
        for n in range(-2, 30)
    ]
    write_rosbag2(tmp_path / "bag", in_order([*make_samples(), *poses]))
    assert run(tmp_path / "bag", "--out", tmp_path / "out", "--modes", "rgb") == (0, "")
    steps = [float(row["world_step_m"]) for row in rows_of(tmp_path / "out")[1:]]
    # The camera moves by 0.4 m a frame and the picture stays as it is: so does the object in its frame.
    assert steps == pytest.approx([0.4] * (COUNT - 1), abs=0.05)


def test_topics_of_other_names_are_found_or_named(tmp_path: Path, run: Run, bag: Path) -> None:
    copied(bag, tmp_path / "named", {"/camera/mask": "/segmenter/labels", "/camera/image_raw": "/left/image_rect"})
    options = ("--modes", "rgb", "--no-metrics", "--topics", "image=/left/image_rect")
    assert run(tmp_path / "named", "--out", tmp_path / "out", *options)[0] == 0
    assert len(rows_of(tmp_path / "out")) == COUNT


def test_frames_without_a_mask_are_rows_with_their_reason(tmp_path: Path, run: Run) -> None:
    lost = START + 2 * PERIOD

    def change(sample: Sample) -> Sample | None:
        is_lost = isinstance(sample, Frame) and sample.role == "mask" and sample.stamp_ns == lost
        return None if is_lost else sample

    assert run(made(tmp_path / "bag", change), "--out", tmp_path / "out", "--modes", "rgb")[0] == 0
    rows = rows_of(tmp_path / "out")
    assert [row["reason"] for row in rows] == ["", "", "missing_mask", "", "", ""]
    assert rows[2]["x"] == ""
    report = (tmp_path / "out" / "report.html").read_text()
    assert "1 frame without any result" in report
    assert "<td>2</td><td>0.080</td><td class=text>missing_mask</td>" in report


def test_what_an_earlier_run_said_is_in_the_report(tmp_path: Path, run: Run) -> None:
    def change(sample: Sample) -> Sample | None:
        return None if isinstance(sample, EventChunk) and sample.stamp_ns < START + PERIOD else sample

    path, out, sentence = made(tmp_path / "bag", change), tmp_path / "out", "0 events in a window, the model needs"
    assert run(path, "--out", out, "--modes", "fused")[0] == 0
    assert sentence in (out / "report.html").read_text()
    log = out / "frames" / "bag.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:4]))
    (out / "report.html").unlink()
    assert run(path, "--out", out, "--modes", "fused")[0] == 0
    assert sentence in (out / "report.html").read_text()


def test_writing_the_mcap_is_no_share_of_reading(
    bag: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on only while messages are copied."""
    now, copy = [0.0], McapOutputs.input

    def slow(outputs: McapOutputs, message: Any) -> None:
        now[0] += 1.0
        copy(outputs, message)

    monkeypatch.setattr(McapOutputs, "input", slow)
    monkeypatch.setattr(bag_worker, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert run(bag, "--out", tmp_path / "out", "--modes", "rgb", "--no-metrics", "--save-mcap") == (0, "")
    stages = json.loads((tmp_path / "out" / "timings.json").read_text())["stages"]
    assert stages["inputs"]["total_s"] == 0
    assert stages["writing"]["total_s"] > COUNT


def test_an_mcap_with_inputs_and_outputs_reads_back(bag: Path, tmp_path: Path, run: Run) -> None:
    from rosbags.rosbag2 import Reader

    out = tmp_path / "out"
    assert run(bag, "--out", out, "--modes", "rgb", "fused", "--save-mcap") == (0, "")
    with Reader(out / "mcap" / "bag") as reader, Reader(bag) as original:
        counts = {c.topic: c.msgcount for c in reader.connections}
        assert {c.topic: c.msgcount for c in original.connections}.items() <= counts.items()
        names = ("objects", "points", "markers", "debug_image")
        ours = {f"{prefix}/reconstruction_node/{name}" for prefix in ("", "/nano/rgb") for name in names}
        ours |= {"/tf", "/event_image_node/event_image", "/event_image_node/event_window"}
        assert {topic: counts[topic] for topic in ours} == dict.fromkeys(ours, COUNT)
        assert all(c.msgdef.data for c in reader.connections)
        fused = [row for row in rows_of(out) if row["mode"] == "fused"]
        objects = [
            output_typestore().deserialize_cdr(raw, connection.msgtype)
            for connection, _, raw in reader.messages()
            if connection.topic == "/reconstruction_node/objects"
        ]
    for row, message in zip(fused, objects, strict=True):
        (one,) = message.objects
        assert message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec == int(row["stamp_ns"])
        assert one.pose.position.x == pytest.approx(float(row["x"]), rel=1e-8)
        assert (one.id, one.label, message.event_count) == (int(row["id"]), row["label"], int(row["event_count"]))
    # It is a recording itself.
    again = ("--modes", "rgb", "fused")
    assert run(out / "mcap" / "bag", "--out", tmp_path / "again", *again) == (0, "")
    assert rows_of(tmp_path / "again") == rows_of(out)


def test_a_topic_of_an_unknown_type_is_told_before_any_work(tmp_path: Path, run: Run, bag: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer

    path, text = tmp_path / "odd", "std_msgs/msg/String"
    with Reader(bag) as reader, Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for connection in reader.connections:
            kind = text if connection.topic == "/camera/mask" else connection.msgtype
            added = writer.add_connection(connection.topic, kind, typestore=typestore())
            for _, stamp, raw in reader.messages([connection]):
                writer.write(added, stamp, raw)
    code, said = run(path, "--out", tmp_path / "out")
    assert code == 2 and "/camera/mask is a std_msgs/msg/String; for mask give one of" in said
    assert not (tmp_path / "out").exists()
