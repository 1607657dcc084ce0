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
from event_sam3d_ros.errors import EventSam3dError, InputError, RecordingError
from event_sam3d_ros.recordings.bag_messages import RawMessage
from event_sam3d_ros.recordings.files import EventChunk, write_rosbag2
from event_sam3d_ros.recordings.rosbag2_writer import SampleEncoder
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


# Options and results of an evaluation


def write_truth(path):
    """A box before the camera, at all frames."""
    import open3d

    assert open3d.io.write_triangle_mesh(
        str(path.with_name("box.ply")), open3d.geometry.TriangleMesh.create_box(0.1, 0.1, 0.1)
    )
    pose = {"position": [0, 0, 0.5], "quaternion": [0, 0, 0, 1]}
    poses = [{"stamp_ns": stamp, **pose} for stamp in STAMPS]
    one = {"id": 1, "mesh": "box.ply", "size": [0.1, 0.1, 0.1], "poses": poses}
    path.write_text(json.dumps({"objects": [one]}))  # which is YAML, too
    return path


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """An evaluation that depends on its options: of RGB alone, for there are no events, of a mask whose topic has to
    be named, with a truth that does not lie beside the recording."""
    folder = tmp_path_factory.mktemp("special")
    encode = SampleEncoder()
    messages = [
        RawMessage("/first" if topic.endswith("/mask") else topic, kind, receive_ns, bytes(cdr))
        for sample in in_order(make_samples())
        if not isinstance(sample, EventChunk)
        for topic, kind, receive_ns, cdr in encode(sample)
    ]
    write_rosbag2(folder / "bag", messages)
    truth = write_truth(folder / "truth.yaml")
    options = [
        "--modes",
        "rgb",
        "--topics",
        "mask=/first",
        "--ground-truth",
        str(truth),
        "--workers",
        "1",
        "--no-metrics",
    ]
    assert main(["evaluate", str(folder / "bag"), "--out", str(folder / "results"), *options]) == 0
    return folder


def test_an_evaluation_is_shown_with_its_own_modes_topics_and_truth(special):
    frames = open_frames(special / "results", SourceOptions())
    assert frames.title == "bag: evaluation"
    for one in all_of(frames):
        assert one.rgb is not None and one.event_image is None and one.tracks.any()
        assert [true.name for true in one.truths] == ["1"]
    assert frames.status() == ""


def test_truth_and_pictures_are_missing_by_themselves(special, tmp_path):
    folder = tmp_path / "special"
    shutil.copytree(special, folder)
    summary = json.loads((folder / "results" / "summary.json").read_text())
    for place, lacks, has in (("truth", "without ground truth", "rgb"), ("bag", "without pictures", "truths")):
        changed = json.loads(json.dumps(summary))
        if place == "truth":
            changed["configuration"]["ground_truth"]["bag"]["path"] = str(tmp_path / "gone.yaml")
        else:
            changed["bags"][0]["path"] = str(tmp_path / "gone")
        (folder / "results" / "summary.json").write_text(json.dumps(changed))
        frames = open_frames(folder / "results", SourceOptions())
        assert lacks in frames.title and frames.title.count("without") == 1
        shown = all_of(frames)
        assert [one.stamp_ns for one in shown] == STAMPS
        for one in shown:
            assert (one.rgb is not None, bool(one.truths)) == (has == "rgb", has == "truths")


@pytest.mark.parametrize("words", [["--ground-truth", "nothing.yaml"], ["--topics", "image=/typo"]])
def test_wrong_options_for_an_evaluation_are_told_at_once(evaluation, capsys, monkeypatch, words):
    monkeypatch.setattr("event_sam3d_ros.viewer.server.Viewer.run", lambda _: None)
    assert main(["view", str(evaluation), "--port", "0", *words]) == 2
    said = capsys.readouterr().err
    assert words[1].removeprefix("image=") in said and said.count("\n") == 1


def test_the_truth_of_an_evaluation_is_told_where_it_is_of_another_time(evaluation, tmp_path):
    poses = tmp_path / "poses.txt"
    poses.write_text(f"{START / 1e9 + 3600} 0 0 0 0 0 0 1")
    frames = open_frames(evaluation, SourceOptions(ground_truth=poses))
    assert [one.stamp_ns for one in all_of(frames)] == STAMPS
    assert frames.status().startswith(f"{poses} does not overlap the recording in time")


def test_an_evaluation_goes_on_where_its_recording_breaks_off(evaluation, bag, tmp_path):
    folder, short = tmp_path / "results", tmp_path / "short"
    shutil.copytree(evaluation, folder)
    shutil.copytree(bag, short)
    file = next(short.glob("*.mcap"))
    content = bytearray(file.read_bytes())
    chunk = content.index(b"\x28\xb5\x2f\xfd")  # zstd
    content[chunk + 4 : chunk + 500] = bytes(496)
    file.write_bytes(content)
    summary = json.loads((folder / "summary.json").read_text())
    summary["bags"][0]["path"] = str(short)
    (folder / "summary.json").write_text(json.dumps(summary))
    frames = open_frames(folder, SourceOptions())
    assert "without" not in frames.title and [one.stamp_ns for one in all_of(frames)] == STAMPS
    assert frames.status().startswith(f"the pictures end: {short} can't be read")


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda summary: summary["bags"][0].pop("path"),
        lambda summary: summary["bags"][0].pop("name"),
        lambda summary: summary["bags"].append(3),
        lambda summary: summary.pop("configuration"),
        lambda summary: summary["configuration"].update(modes=None),
        lambda summary: summary["configuration"].update(ground_truth={}),
        lambda summary: summary["models"].clear(),
    ],
)
def test_a_summary_that_lacks_something_is_told(evaluation, tmp_path, damage):
    (tmp_path / "frames").symlink_to(evaluation / "frames")
    summary = json.loads((evaluation / "summary.json").read_text())
    damage(summary)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RecordingError, match=r"summary\.json is not as") as caught:
        open_frames(tmp_path, SourceOptions())
    assert caught.value.reason == "bad_summary"


def test_damage_in_the_directory_of_an_archive_is_told(sequence, tmp_path):
    """By which it is known for what it is."""
    whole = (sequence / "sequence.npz").read_bytes()
    directory = whole.index(b"PK\x01\x02")
    file, rng, refused = tmp_path / "moved.npz", np.random.default_rng(0), 0
    for place in (directory, *rng.integers(directory, len(whole), 150).tolist()):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            open_frames(file, SourceOptions()).close()
        except EventSam3dError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("info", ["{}", "[]", "3", '{"model": "nano"}'])
def test_a_sequence_that_does_not_name_its_recording_is_told(sequence, tmp_path, info):
    file = tmp_path / "sequence.npz"
    with np.load(sequence / "sequence.npz") as whole:
        np.savez(file, **{**whole, "info": np.array(info)})
    with pytest.raises(InputError, match="not a whole sequence") as caught:
        open_frames(file, SourceOptions())
    assert caught.value.reason == "bad_sequence"


def test_a_sequence_keeps_all_points(sequence, tmp_path):
    saved = load_sequence(sequence)
    arrays = {name: np.asarray(array) for name, array in saved.arrays.items()}
    times = 9000 // max(int(np.diff(arrays["object_offsets"]).min()), 1) + 1
    arrays["object_points"] = arrays["object_points"].repeat(times, axis=0)
    arrays["object_colors"] = arrays["object_colors"].repeat(times, axis=0)
    arrays["object_offsets"] = arrays["object_offsets"] * times
    np.savez(tmp_path / "sequence.npz", info=np.array(json.dumps(saved.info)), **arrays)
    for one, before in zip(all_of(open_frames(tmp_path, SourceOptions())), saved, strict=True):
        assert [len(item.points) for item in one.objects] == [len(item.points) * times for item in before.objects]
