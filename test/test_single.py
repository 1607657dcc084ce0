"""One frame from files gives what the API gives for its arrays."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from event_sam3d_ros.cli import main
from event_sam3d_ros.evaluation.replay import ReplayedFrame, replay_frames
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.files import open_recording

BUNDLED = Path(__file__).resolve().parents[1] / "data" / "demo_bag"


@pytest.fixture(scope="module")
def frame() -> ReplayedFrame:
    """One of the bundled recording."""
    frames = replay_frames(open_recording(BUNDLED))
    frame = [next(frames) for _ in range(3)][-1]
    frames.close()  # type: ignore[attr-defined]
    return frame


@pytest.fixture(scope="module")
def observation(frame: ReplayedFrame) -> Observation:
    assert frame.observation is not None
    return frame.observation


@pytest.fixture
def folder(observation: Observation, tmp_path: Path) -> Path:
    """The frame's files by name."""
    path = tmp_path / "input"
    path.mkdir()
    assert observation.image is not None and observation.depth is not None and observation.event_image is not None
    cv2.imwrite(str(path / "image.png"), observation.image[..., ::-1])
    cv2.imwrite(str(path / "mask.png"), observation.mask)
    cv2.imwrite(str(path / "depth.png"), np.rint(observation.depth * 1000).astype(np.uint16))
    height, width = observation.mask.shape
    matrix = {"rows": 3, "cols": 3, "data": observation.K.ravel().tolist()}
    none = {"rows": 1, "cols": 5, "data": [0.0] * 5}
    camera = {"image_width": width, "image_height": height, "camera_matrix": matrix, "distortion_coefficients": none}
    camera |= {"distortion_model": "plumb_bob"}
    (path / "camera.yaml").write_text(yaml.safe_dump(camera))
    return path


def run(*arguments: Any) -> int:
    return main(["reconstruct", *map(str, arguments)])


def test_a_folder_with_a_recording_of_the_events_gives_the_api_s_result(
    folder: Path, observation: Observation, frame: ReplayedFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(folder, "--events", BUNDLED, "--time", frame.stamp_ns / 1e9, "--out", out) == 0
    (item,) = json.loads((out / "pose.json").read_text())["objects"]
    (expected,) = Reconstructor.from_pretrained("nano")(observation)
    np.testing.assert_allclose(item["position"], expected.position, atol=1e-3)
    np.testing.assert_allclose(item["size"], expected.size, atol=2e-3)
    assert item["metric"] is True
    head = (out / "object_1.ply").read_bytes()[:200]
    count = re.search(rb"element vertex (\d+)\n", head)
    assert count is not None and abs(int(count[1]) - len(expected.points)) < 0.02 * len(expected.points)
    assert cv2.imread(str(out / "preview.png")).shape == (*observation.mask.shape, 3)


def test_a_folder_of_folders_gives_a_folder_each(folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for name in ("a", "b"):
        (many / name).mkdir(parents=True)
        for file in ("image.png", "mask.png"):
            (many / name / file).write_bytes((folder / file).read_bytes())
    (many / "camera.yaml").write_bytes((folder / "camera.yaml").read_bytes())
    assert run(many, "--mode", "rgb", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    (item,) = json.loads((tmp_path / "out" / "a" / "pose.json").read_text())["objects"]
    assert item["metric"] is False


def test_a_tencode_picture_is_taken_as_events(folder: Path, observation: Observation, tmp_path: Path) -> None:
    assert observation.event_image is not None
    cv2.imwrite(str(folder / "events.png"), observation.event_image[..., ::-1])
    files = ("--mask", folder / "mask.png", "--events", folder / "events.png")
    K = ",".join(str(value) for value in observation.K[[0, 1, 0, 1], [0, 1, 2, 2]])
    assert run(*files, "--K", K, "--mode", "events", "--out", tmp_path / "out") == 0
    (item,) = json.loads((tmp_path / "out" / "pose.json").read_text())["objects"]
    rgb_free = Observation(None, observation.mask, observation.event_image, observation.K)
    (expected,) = Reconstructor.from_pretrained("nano")(rgb_free)
    np.testing.assert_allclose(item["position"], expected.position, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--image", "image.png", "--K", "1,1,1,1"], "no mask"),
        (["--mask", "mask.png", "--K", "1,1,1,1"], "neither a frame nor events"),
        (["--mask", "mask.png", "--image", "image.png"], "no camera is given"),
        (["--mask", "mask.png", "--image", "image.png", "--K", "1,2"], "give fx,fy,cx,cy"),
        (["--mask", "nothing.png", "--image", "image.png", "--K", "1,1,1,1"], "nothing.png: no such file"),
        (["--mask", "mask.png", "--image", "camera.yaml", "--K", "1,1,1,1"], "can't be read as a picture"),
        (["--mask", "mask.png", "--image", "image.png", "--K", "1,1,1,1", "--mode", "fused"], "no events"),
        (["empty"], "holds no mask"),
    ],
)
def test_what_is_missing_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (folder / "empty").mkdir()
    given = [str(folder / word) if "." in word or word == "empty" else word for word in arguments]
    assert run(*given, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_events_of_another_time_are_told_and_not_said_to_be_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "out", ("--events", BUNDLED, "--time", 99)
    assert run(folder, *given, "--out", out) == 0
    said = capsys.readouterr().err
    assert "warning" in said and "0 events in the window" in said and "the frame is used without them" in said
    inputs = json.loads((out / "pose.json").read_text())["inputs"]
    assert (inputs["image"], inputs["events"], inputs["event_count"]) == (str(folder / "image.png"), None, 0)
    assert run(folder, *given, "--mode", "fused", "--out", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert "0 events in the window" in said and "give another --time or --mode rgb" in said
    assert "without them" not in said
    assert not (tmp_path / "none").exists()


def test_the_inputs_that_were_used_are_written(folder: Path, frame: ReplayedFrame, tmp_path: Path) -> None:
    assert run(folder, "--events", BUNDLED, "--time", frame.stamp_ns / 1e9, "--out", tmp_path) == 0
    inputs = json.loads((tmp_path / "pose.json").read_text())["inputs"]
    assert inputs["events"] == str(BUNDLED)
    assert inputs["event_count"] == pytest.approx(frame.event_count, abs=2)
    assert inputs["depth"] == str(folder / "depth.png")


def test_a_bad_folder_does_not_end_the_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = tmp_path / "many"
    for name in ("a", "b", "c", "d"):
        (many / name).mkdir(parents=True)
        for file in ("image.png", "mask.png"):
            (many / name / file).write_bytes((folder / file).read_bytes())
    (many / "camera.yaml").write_bytes((folder / "camera.yaml").read_bytes())
    (many / "a" / "mask.png").write_bytes(b"")
    (many / "b" / "image.jpg").write_bytes(b"")
    (many / "c" / "mask.png").unlink()
    assert run(many, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "mask.png: can't be read as a picture" in lines[0]
    assert "image.jpg and image.png: leave one" in lines[1]
    assert "no mask of c" in lines[2]
    assert "3 of 4 inputs" in lines[3]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d"]


def test_points_of_an_earlier_run_go_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    mask = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert run(folder, "--mode", "rgb", "--out", tmp_path / "out") == 0
    (tmp_path / "out" / "object_77.ply").write_text("somebody's own")
    cv2.imwrite(str(folder / "mask.png"), np.where(mask > 0, 9, 0).astype(np.uint8))
    assert run(folder, "--mode", "rgb", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.ply")) == ["object_77.ply", "object_9.ply"]


def test_a_depth_without_a_byte_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "depth.npy").write_bytes(b"")
    assert run(folder, "--depth", tmp_path / "depth.npy", "--out", tmp_path / "out") == 2
    assert "depth.npy can't be read as depth" in capsys.readouterr().err
