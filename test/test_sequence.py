"""4D sequences: what is written is what was seen, with the camera where it was, however the run ends."""

import errno
import json
import resource
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation

sys.path.append(str(Path(__file__).parent / "evaluation"))
from recordings_made import COUNT, HEIGHT, MS, PERIOD, START, WIDTH, K, in_order, make_samples

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import InputError, RecordingError, RecordingWarning
from event_sam3d_ros.evaluation.poses import read_tum
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.recordings.bag_messages import typestore
from event_sam3d_ros.recordings.files import open_recording, open_rosbag2, write_rosbag2
from event_sam3d_ros.recordings.samples import EventChunk, Frame
from event_sam3d_ros.sequence import FIELDS, load_sequence
from event_sam3d_ros.sequence_maker import make_sequence
from event_sam3d_ros.sequence_writer import SequenceWriter, unproject
from event_sam3d_ros.tracking import TrackedFrame, Tracker

EGOMONO4D = {"xyzs": 4, "rgbs": 4, "depths": 3, "intrinsics": 3, "extrinsics": 3}  # fields and their axes


class Boxes:
    """Reconstructs every label as a cube of three points behind its mask; metric where there is depth."""

    info = {"name": "boxes", "min_events": 10, "window_ms": 50.0}

    def __call__(self, observation):
        observation.validate()
        found = []
        for label in np.unique(observation.mask[observation.mask > 0]):
            rows, columns = np.nonzero(observation.mask == label)
            ray = np.linalg.inv(observation.K) @ (columns.mean(), rows.mean(), 1.0)
            points = np.float32(ray * 0.5 + np.eye(3) * 0.01 * label)
            found.append(
                Reconstruction(
                    id=int(label),
                    score=0.5,
                    metric=observation.depth is not None,
                    occupancy=np.ones((1, 1, 1), bool),
                    points=points,
                    colors=np.full((3, 3), label, np.uint8),
                    position=ray * 0.5,
                    quaternion=np.array([0, 0, 0, 1.0]),
                    size=np.full(3, 0.1),
                )
            )
        return found


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "bag"
    write_rosbag2(path, in_order(make_samples()))
    return path


def made(bag, folder, **options):
    return make_sequence(open_recording(bag), Boxes(), folder, **options), folder


def test_what_was_seen_is_in_the_file(bag, tmp_path):
    result, folder = made(bag, tmp_path / "out")
    assert (result.frames, result.poses, result.left_out) == (COUNT, 0, {})
    with np.load(folder / "sequence.npz") as plain:
        assert set(plain) == {*FIELDS, "info"}
        assert {name: plain[name].ndim for name in EGOMONO4D} == EGOMONO4D
        assert all(plain[name].dtype.str == FIELDS[name][0] for name in FIELDS)
        plain = {name: plain[name] for name in plain}
    assert plain["xyzs"].shape == (COUNT, HEIGHT, WIDTH, 3)
    sequence = load_sequence(folder)
    assert len(sequence) == COUNT and sequence.info["recording"] == "bag" and sequence.info["world_frame"] == ""
    for number, frame in enumerate(sequence):
        assert frame.stamp_ns == START + number * PERIOD
        np.testing.assert_array_equal(frame.rgb, plain["rgbs"][number])
        assert (frame.rgb == 10 * number).all()
        np.testing.assert_allclose(frame.depth, 0.5 + number / 1000, atol=1e-6)
        np.testing.assert_allclose(frame.xyz[8, 12], [0, 0, 0.5 + number / 1000], atol=1e-6)  # the principal point
        np.testing.assert_array_equal(frame.K, K)
        assert not frame.pose_known and (frame.camera_to_world == np.eye(4)).all()
        (item,) = frame.objects
        assert (item.id, item.label, item.metric, item.points.shape) == (1, 1, True, (3, 3))
        assert (frame.track_mask()[4:12, 6:18] == 1).all() and frame.track_mask().sum() == frame.mask.sum()
    with pytest.raises(IndexError):
        sequence[COUNT]
    assert sequence[-1].stamp_ns == sequence[COUNT - 1].stamp_ns


def test_pixels_without_depth_are_nan(tmp_path):
    samples = []
    for sample in make_samples():
        if isinstance(sample, Frame) and sample.role == "depth":
            data = sample.data.copy()
            data[:, : WIDTH // 2] = 0
            sample = replace(sample, data=data)
        samples.append(sample)
    write_rosbag2(tmp_path / "bag", in_order(samples))
    frame = load_sequence(made(tmp_path / "bag", tmp_path / "out")[1])[0]
    assert np.isnan(frame.depth[:, : WIDTH // 2]).all() and np.isfinite(frame.depth[:, WIDTH // 2 :]).all()
    assert (np.isnan(frame.xyz).any(2) == np.isnan(frame.depth)).all()


def test_points_go_back_to_their_pixels():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.3, 3, (HEIGHT, WIDTH)).astype(np.float32)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_euler("xyz", (0.3, -0.5, 1.0)).as_matrix(), (1, 2, 3)
    local = np.linalg.inv(pose) @ np.vstack([unproject(depth, K, pose).reshape(-1, 3).T, np.ones(depth.size)])
    pixels = (K @ local[:3] / local[2])[:2].reshape(2, HEIGHT, WIDTH)
    np.testing.assert_allclose(pixels[0], np.broadcast_to(np.arange(WIDTH), (HEIGHT, WIDTH)), atol=1e-3)
    np.testing.assert_allclose(pixels[1], np.broadcast_to(np.arange(HEIGHT)[:, None], (HEIGHT, WIDTH)), atol=1e-3)


def test_the_cloud_of_all_frames_opens(bag, tmp_path):
    import open3d

    _, folder = made(bag, tmp_path / "out")
    cloud = open3d.t.io.read_point_cloud(str(folder / "sequence.ply"))
    frames = cloud.point["frame"].numpy().ravel() if "frame" in cloud.point else None
    assert len(cloud.point.positions) == COUNT * (WIDTH * HEIGHT + 3)
    assert np.isfinite(cloud.point.positions.numpy()).all()
    colors = cloud.point.colors.numpy()
    assert colors[-1].tolist() == [1, 1, 1] and colors[0].tolist() == [0, 0, 0]
    assert frames is None or frames.max() == COUNT - 1


def test_equal_runs_give_equal_bytes(bag, tmp_path):
    first, second = (made(bag, tmp_path / name)[1] for name in ("a", "b"))
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert {file.name for file in first.iterdir()} == {"sequence.npz", "sequence.ply", "tracks.json"}


def tum(path, count=COUNT):
    """A camera that goes along x by 0.1 m per frame, turned by a quarter about z."""
    stamps = [START + n * PERIOD for n in range(count)]
    lines = [
        f"{stamp // 10**9}.{stamp % 10**9:09d} {0.1 * n} 0 0 0 0 {0.5**0.5} {0.5**0.5}"
        for n, stamp in enumerate(stamps)
    ]
    path.write_text("# time x y z qx qy qz qw\n" + "\n".join(lines) + "\n")
    return path


def test_poses_from_a_file_put_everything_into_the_world(bag, tmp_path):
    result, folder = made(bag, tmp_path / "out", poses=read_tum(tum(tmp_path / "poses.txt", COUNT - 2)))
    assert (result.poses, result.world) == (COUNT - 2, "world")
    sequence = load_sequence(folder)
    assert [frame.pose_known for frame in sequence] == [True] * (COUNT - 2) + [False] * 2
    frame = sequence[2]
    np.testing.assert_allclose(frame.camera_to_world[:3, :3] @ (1, 0, 0), (0, 1, 0), atol=1e-9)
    np.testing.assert_allclose(frame.xyz[8, 12], (0.2, 0, 0.502), atol=1e-5)
    item, unmoved = frame.objects[0], sequence[-1].objects[0]
    np.testing.assert_allclose(item.pose, frame.camera_to_world @ unmoved.pose, atol=1e-9)
    local = (item.points - frame.camera_to_world[:3, 3]) @ frame.camera_to_world[:3, :3]
    np.testing.assert_allclose(local, unmoved.points, atol=1e-5)


def transform(parent, child, stamp_ns, x):
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types["geometry_msgs/msg/TransformStamped"](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=parent),
        child_frame_id=child,
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](x=x, y=0.0, z=0.0),
            rotation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
        ),
    )


@pytest.fixture(scope="module")
def bag_with_tf(bag, tmp_path_factory):
    """The bag, and map -> base moving by 1 m/s (told every 20 ms, 30 ms late), base -> o fixed 0.5 m ahead."""
    path = tmp_path_factory.mktemp("bags") / "tf"
    store, kind = typestore(), "tf2_msgs/msg/TFMessage"
    messages = [(m.receive_ns, m.topic, m.type, m.cdr) for m in open_rosbag2(bag).raw_messages()]

    def add(topic, receive_ns, item):
        message = store.types[kind](transforms=[item])
        messages.append((receive_ns, topic, kind, bytes(store.serialize_cdr(message, kind))))

    begin = min(messages)[0]
    add("/tf_static", begin, transform("base", "o", 0, 0.5))
    add("/tf", begin, transform("o", "object_7", START, 9.0))
    for moment in range(-40 * MS, (COUNT - 1) * PERIOD + 10 * MS, 20 * MS):
        add("/tf", START + moment + 30 * MS, transform("map", "base", START + moment, moment / 1e9))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for receive_ns, topic, kind_, cdr in sorted(messages, key=lambda row: row[0]):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind_, typestore=store)
            writer.write(connections[topic], receive_ns, cdr)
    return path


@pytest.mark.parametrize(("world", "count"), [("", COUNT), ("base", COUNT), ("elsewhere", 0)])
def test_poses_from_tf_are_those_at_the_stamps(bag_with_tf, tmp_path, world, count):
    result, folder = made(bag_with_tf, tmp_path / "out", world=world)
    assert (result.poses, result.world) == (count, world or "map" if count else "")
    for number, frame in enumerate(load_sequence(folder)):
        x = {"": 0.5 + 0.04 * number, "base": 0.5, "elsewhere": 0.0}[world]
        np.testing.assert_allclose(frame.camera_to_world[:3, 3], (x, 0, 0), atol=1e-9)


@pytest.mark.parametrize("shift_s, outcome", [(-3600, "nothing was done"), (3600, "is without poses")])
def test_poses_of_another_time_are_told(bag, tmp_path, shift_s, outcome):
    lines = [f"{START / 1e9 + shift_s + n} 0 0 0 0 0 0 1" for n in (0.0, 0.1)]
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    with pytest.raises(RecordingError, match="no frame has one of the given camera poses") as caught:
        made(bag, tmp_path / "out", poses=read_tum(tmp_path / "poses.txt"))
    assert outcome in str(caught.value)
    assert (tmp_path / "out").exists() == (shift_s > 0)


def shifted(sample, role):
    """A sample of a role an hour later."""
    hour_ms = 3_600_000
    if role == "events" and isinstance(sample, EventChunk):
        events = replace(sample.events, t=sample.events.t + hour_ms * 1000)
        return replace(sample, stamp_ns=sample.stamp_ns + hour_ms * MS, events=events)
    is_it = isinstance(sample, Frame) and sample.role == role
    return replace(sample, stamp_ns=sample.stamp_ns + hour_ms * MS) if is_it else sample


@pytest.mark.parametrize("role, is_written", [("events", True), ("mask", False)])
def test_clocks_that_disagree_are_told(tmp_path, role, is_written):
    write_rosbag2(tmp_path / "bag", in_order([shifted(sample, role) for sample in make_samples()]))
    with pytest.raises(RecordingError, match="the clocks disagree") as caught:
        made(tmp_path / "bag", tmp_path / "out")
    assert caught.value.reason == "clock_mismatch"
    assert (tmp_path / "out").exists() == is_written
    if is_written:
        assert not load_sequence(tmp_path / "out").arrays["event_images"].any()


def test_depth_of_another_time_is_a_warning(tmp_path):
    write_rosbag2(tmp_path / "bag", in_order([shifted(sample, "depth") for sample in make_samples()]))
    with pytest.warns(RecordingWarning, match="no frame has its depth"):
        result, _ = made(tmp_path / "bag", tmp_path / "out")
    assert result.frames == COUNT


def test_a_mask_that_changes_its_labels_changes_no_track(tmp_path):
    labels = iter((3, 3, 8, 2, 3, 5))
    samples = [
        replace(s, data=s.data * np.uint8(next(labels))) if isinstance(s, Frame) and s.role == "mask" else s
        for s in make_samples()
    ]
    write_rosbag2(tmp_path / "bag", in_order(samples))
    result, folder = made(tmp_path / "bag", tmp_path / "out")
    sequence = load_sequence(folder)
    assert [frame.objects[0].label for frame in sequence] == [3, 3, 8, 2, 3, 5]
    assert {frame.objects[0].id for frame in sequence} == {3}
    assert {int(frame.track_mask().max()) for frame in sequence} == {3}
    (track,) = json.loads((folder / "tracks.json").read_text())
    assert track == result.tracks[0] == sequence.info["tracks"][0]
    assert (track["labels"], track["frames"], track["ended"]) == ([3, 8, 2, 5], COUNT, False)


def test_frames_without_mask_or_object(tmp_path):
    masks = 0
    samples = []
    for sample in make_samples():
        if isinstance(sample, Frame) and sample.role == "mask":
            masks += 1
            if masks == 2:
                continue
            if masks == 4:
                sample = replace(sample, data=np.zeros_like(sample.data))
        samples.append(sample)
    write_rosbag2(tmp_path / "bag", in_order(samples))
    result, folder = made(tmp_path / "bag", tmp_path / "out")
    assert result.left_out == {"missing_mask": 1} and result.reports["empty_mask"] == 1
    assert [len(frame.objects) for frame in load_sequence(folder)] == [1, 1, 0, 1, 1]


def test_a_recording_that_starts_again_has_new_tracks(tmp_path):
    later = 100_000 * MS
    samples = in_order(make_samples(START + later)) + in_order(make_samples())
    writer = SequenceWriter(tmp_path / "out", {})
    tracker = Tracker()
    with writer:
        for sample in samples:
            if isinstance(sample, Frame) and sample.role == "mask":
                observation = Observation(None, sample.data, None, K, None, sample.stamp_ns)
                found = Boxes()(replace(observation, image=np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
                writer.add(observation, tracker.update(sample.stamp_ns, found, sample.data), None)
    found = [(one["id"], one["first_ns"], one["last_ns"], one["frames"], one["ended"]) for one in writer.tracks]
    last = START + (COUNT - 1) * PERIOD
    assert found == [(1, START + later, last + later, COUNT, True), (1, START, last, COUNT, False)]


def test_every_second_frame(bag, tmp_path):
    _, folder = made(bag, tmp_path / "out", every=2)
    assert [frame.stamp_ns for frame in load_sequence(folder)] == [START + n * PERIOD for n in (0, 2, 4)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_done_before_the_end_stays(bag, tmp_path, error):
    class Ending(Boxes):
        calls = 0

        def __call__(self, observation):
            self.calls += 1
            if self.calls == 4:
                raise error
            return super().__call__(observation)

    with pytest.raises(type(error)):
        make_sequence(open_recording(bag), Ending(), tmp_path / "out")
    sequence = load_sequence(tmp_path / "out")
    assert len(sequence) == 3 and all(len(frame.objects) == 1 for frame in sequence)


@contextmanager
def no_file_larger_than(limit):
    """A disk that is full, as far as one can be had without a disk of one's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "frames"), [(20_000, 2), (55_000, COUNT)])  # at the third frame; at the archive
def test_a_full_disk_leaves_whole_arrays_and_one_sentence(bag, tmp_path, limit, frames):
    made(bag, tmp_path / "before")  # what is compiled and cached on the way needs place too
    out = tmp_path / "out"
    with pytest.raises(OSError, match=f"{frames} frames are kept there") as caught, no_file_larger_than(limit):
        made(bag, out)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(out / "arrays"))
    assert not (out / "sequence.npz").exists()
    kept = {file.stem: np.load(file) for file in (out / "arrays").iterdir() if file.stem != "info"}
    assert set(kept) == set(FIELDS)
    assert {name: len(kept[name]) for name in FIELDS} == {
        name: frames + (name == "object_offsets") if name not in ("object_points", "object_colors") else 3 * frames
        for name in FIELDS
    }
    np.testing.assert_array_equal(kept["xyzs"], load_sequence(tmp_path / "before").arrays["xyzs"][:frames])


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    mask = np.ones((60, 80), np.uint8)
    image = np.zeros((60, 80, 3), np.uint8)
    peaks = []
    for count in (10, 100):
        tracemalloc.start()
        with SequenceWriter(tmp_path / str(count), {}) as writer:
            for number in range(count):
                observation = Observation(image, mask, None, K, np.ones((60, 80), np.float32), number)
                writer.add(observation, TrackedFrame([], (), (), ()), None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 20_000  # a frame is 100 kB


def test_a_folder_with_something_in_it_is_left_alone(bag, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RecordingError, match="exists already") as caught:
        made(bag, tmp_path)
    assert caught.value.reason == "bad_output"
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


def test_no_frame_at_all_is_an_error_and_leaves_nothing(tmp_path):
    samples = [s for s in make_samples() if not (isinstance(s, Frame) and s.role == "mask")]
    write_rosbag2(tmp_path / "bag", in_order(samples))
    with pytest.raises(RecordingError, match="6 missing_mask"):
        made(tmp_path / "bag", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "nothing", "text", "field", "shape"])
def test_files_that_are_no_sequence_are_refused(bag, tmp_path, damage):
    _, folder = made(bag, tmp_path / "out")
    file = folder / "sequence.npz"
    if damage == "nothing":
        file.unlink()
    elif damage == "text":
        file.write_text("no archive")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        with np.load(file) as whole:
            arrays = dict(whole)
        if damage == "field":
            del arrays["depths"]
        else:
            arrays["object_offsets"] = arrays["object_offsets"][:-1]
        np.savez(file, **arrays)
    with pytest.raises(InputError) as caught:
        load_sequence(folder)
    assert caught.value.reason == ("missing_file" if damage == "nothing" else "bad_sequence")


def test_a_compressed_copy_loads_too(bag, tmp_path):
    _, folder = made(bag, tmp_path / "out")
    with np.load(folder / "sequence.npz") as whole:
        np.savez_compressed(tmp_path / "copy.npz", **whole)
    np.testing.assert_array_equal(load_sequence(tmp_path / "copy.npz")[3].xyz, load_sequence(folder)[3].xyz)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/nowhere", "--out", "x"], "/nowhere does not exist"),
        (["{bag}", "--out", "x", "--poses", "/nowhere"], "/nowhere can't be read as camera poses"),
        (["{bag}", "--out", "x", "--model", "none"], "there is no model 'none'"),
        (["{bag}", "--out", "{bag}"], "exists already"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(bag, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["sequence", *(word.format(bag=bag) for word in words)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("event-sam3d")]
    assert len(errors) == 1 and sentence in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_the_command(bag, tmp_path, capsys):
    assert main(["sequence", str(bag), "--out", str(tmp_path / "out"), "--every", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "2 frames written" in said and "camera poses: not known" in said
    assert len(load_sequence(tmp_path / "out")) == 2
