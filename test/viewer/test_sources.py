"""What the viewer shows of a sequence, a recording and an evaluation is what they hold."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from recordings_made import COUNT, PERIOD, START, WIDTH, in_order, make_samples

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.recordings.files import EventChunk, write_rosbag2
from event_sam3d_ros.recordings.samples import Frame
from event_sam3d_ros.sequence import load_sequence
from event_sam3d_ros.viewer.frames import Frames
from event_sam3d_ros.viewer.sources import SourceOptions, open_frames

STAMPS = [START + number * PERIOD for number in range(COUNT)]


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("viewed") / "bag"
    write_rosbag2(path, in_order(make_samples()))
    return path


@pytest.fixture(scope="module")
def sequence(bag):
    folder = bag.parent / "sequence"
    assert main(["sequence", str(bag), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(bag):
    folder = bag.parent / "results"
    assert main(["evaluate", str(bag), "--out", str(folder), "--workers", "1", "--modes", "rgb", "fused"]) == 0
    return folder


def all_of(frames: Frames):
    deadline = time.monotonic() + 60
    while not frames.complete():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first, behind = frames.span()
    shown = [frames.frame(number) for number in range(first, behind)]
    frames.close()
    return shown


def in_world(item):
    return item.points @ item.pose[:3, :3].T + item.pose[:3, 3]


def test_a_sequence_is_shown_as_it_was_saved(sequence, tmp_path):
    moved = tmp_path / "elsewhere.npz"
    shutil.copy(sequence / "sequence.npz", moved)
    for path in (sequence, moved):
        frames, saved = open_frames(path, SourceOptions()), load_sequence(path)
        shown = all_of(frames)
        assert [one.stamp_ns for one in shown] == STAMPS
        for one, before in zip(shown, saved, strict=True):
            np.testing.assert_array_equal(one.rgb, before.rgb)
            np.testing.assert_array_equal(one.event_image, before.event_image)
            np.testing.assert_array_equal(one.tracks, before.track_mask())
            np.testing.assert_allclose(np.sort(one.scene_points[:, 2]), np.sort(before.depth.ravel()), atol=1e-5)
            assert [item.name for item in one.objects] == [str(item.id) for item in before.objects]
            for item, whole in zip(one.objects, before.objects, strict=True):
                far, _ = cKDTree(whole.points).query(in_world(item))
                assert far.max() < 1e-5 and item.score == whole.score
        assert shown[-1].event_image.any()
        assert len(frames.history.objects("score")[0]) == COUNT and frames.history.camera_path().shape == (0, 3)


def test_a_recording_is_shown_as_its_sequence(bag, sequence):
    frames = open_frames(bag, SourceOptions())
    shown = all_of(frames)
    assert frames.status() == ""
    for one, before in zip(shown, all_of(open_frames(sequence, SourceOptions())), strict=True):
        assert one.stamp_ns == before.stamp_ns and not one.pose_known
        for name in ("rgb", "event_image", "tracks"):
            np.testing.assert_array_equal(getattr(one, name), getattr(before, name))
        np.testing.assert_allclose(one.scene_points, before.scene_points, atol=1e-5)
        assert [item.name for item in one.objects] == [item.name for item in before.objects]
        for item, saved in zip(one.objects, before.objects, strict=True):
            np.testing.assert_allclose(item.points, saved.points, atol=1e-5)
            np.testing.assert_allclose(item.pose, saved.pose, atol=1e-6)
        assert {"inputs", "model"} == set(one.milliseconds) and one.milliseconds["model"] > 0


def test_an_evaluation_is_shown_with_all_its_modes_and_metrics(evaluation, sequence):
    frames = open_frames(evaluation, SourceOptions())
    shown = all_of(frames)
    assert [one.stamp_ns for one in shown] == STAMPS and frames.status() == ""
    found = [item for one in shown for item in one.objects]
    assert {item.name for item in found} == {"1 nano rgb", "1 nano fused"}
    assert all(item.aside == item.name.endswith("rgb") for item in found)
    assert "input_mask_iou" in frames.history.quantities()
    saved = load_sequence(sequence)
    for one, before in zip(shown, saved, strict=True):
        assert one.rgb.shape[1] == WIDTH and one.event_image is not None
        for item in one.objects:
            if item.name.endswith("fused"):
                np.testing.assert_allclose(item.pose, before.objects[0].pose, atol=1e-6)
                cell = item.size.max() / 64
                far, _ = cKDTree(before.objects[0].points).query(in_world(item))
                assert np.median(far) < 2 * cell


def test_an_evaluation_without_its_recording_is_shown_without_pictures(evaluation, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(evaluation, folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["bags"][0]["path"] = str(tmp_path / "gone")
    (folder / "summary.json").write_text(json.dumps(summary))
    frames = open_frames(folder, SourceOptions())
    assert "without pictures" in frames.title
    shown = all_of(frames)
    assert [one.stamp_ns for one in shown] == STAMPS and all(one.rgb is None and one.objects for one in shown)
    with pytest.raises(RecordingError, match="it has: bag"):
        open_frames(folder, SourceOptions(bag="other"))


def test_what_cannot_be_shown_is_told(bag, tmp_path):
    with pytest.raises(RecordingError):
        open_frames(tmp_path / "nothing", SourceOptions())
    with pytest.raises(RecordingError):
        open_frames(bag, SourceOptions(ground_truth=tmp_path / "nothing.yaml"))
    blind = tmp_path / "blind"  # masks that no frame has the stamps of: told while it is read
    late = [
        Frame(one.role, one.stamp_ns + 1, one.receive_ns, one.frame_id, one.data)
        if isinstance(one, Frame) and one.role == "mask"
        else one
        for one in make_samples()
    ]
    write_rosbag2(blind, in_order(late))
    frames = open_frames(blind, SourceOptions())
    assert all_of(frames) == [] and "missing_mask" in frames.status()
    deaf = tmp_path / "deaf"
    write_rosbag2(deaf, in_order([one for one in make_samples() if not isinstance(one, EventChunk)]))
    with pytest.raises(RecordingError):
        open_frames(deaf, SourceOptions())
