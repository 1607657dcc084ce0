"""The command line: what it makes, and that bad input is one sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from event_sam3d_ros import __version__
from event_sam3d_ros.cli import main
from event_sam3d_ros.recordings.files import EventChunk, Frame, open_recording


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest recording of text files: one frame, two events."""
    path = tmp_path / "in"
    (path / "images").mkdir(parents=True)
    cv2.imwrite(str(path / "images" / "a.png"), np.full((4, 6), 9, np.uint8))
    (path / "images.txt").write_text("0.5 images/a.png\n")
    (path / "calib.txt").write_text("10 10 3 2 0 0 0 0 0\n")
    (path / "events.txt").write_text("0.49 1 2 0\n0.51 5 3 1\n")
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_convert_makes_a_bag(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str) -> None:
    assert main(["convert", str(folder), str(tmp_path / "out"), "--storage", storage]) == 0
    samples = list(open_recording(tmp_path / "out").samples())
    assert sum(len(sample.events) for sample in samples if isinstance(sample, EventChunk)) == 2
    assert [sample.role for sample in samples if isinstance(sample, Frame)] == ["image"]
    captured = capsys.readouterr()
    assert "4 messages" in captured.out
    assert "converting: 100%" in captured.err


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda path: (path / "calib.txt").unlink(), "has no calib.txt"),
        (lambda path: (path / "images" / "a.png").unlink(), "a.png is missing"),
        (lambda path: (path / "images" / "a.png").write_bytes(b"not a picture"), "not an 8-bit picture"),
        (lambda path: (path / "events.txt").write_text("0.49 1 2\n"), "events.txt:1: expected 't x y p'"),
        (lambda path: (path / "events.txt").write_bytes(b"\xff\xfe\x00"), "events.txt"),
        (lambda path: (path / "metadata.yaml").write_text("{"), "can't be read as a rosbag2"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: object, sentence: str
) -> None:
    assert callable(break_it)
    break_it(folder)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("event-sam3d convert: ")
    assert sentence in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["convert", "nowhere", "out"], ["demo", "--bag", "nowhere"], ["info", "nowhere"]])
def test_a_missing_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert capsys.readouterr().err.strip() == f"event-sam3d {command[0]}: nowhere does not exist"
    assert not list(tmp_path.iterdir())


def test_the_demo_says_which_topics_a_bag_lacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(folder), str(tmp_path / "bag")])
    capsys.readouterr()
    assert main(["demo", "--bag", str(tmp_path / "bag"), "--out", str(tmp_path / "demo")]) == 2
    assert "has no masks (/camera/mask); it has /camera/camera_info" in capsys.readouterr().err


def test_a_rate_that_nothing_plays_at_is_refused_with_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    for rate in ("0", "-1", "5000", "nan", "fast"):
        with pytest.raises(SystemExit) as end:
            main(["demo", "--rate", rate])
        assert end.value.code == 2
        assert f"--rate: {rate!r} is not a number from 0.001 to 1000" in capsys.readouterr().err


def test_info_counts_what_a_recording_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    assert "2 events, sensor 6x4, 1 frame" in capsys.readouterr().out
