"""Recordings: what is written is read back, what others wrote gives its known truth, what is broken says where."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from event_sam3d_ros.errors import RecordingError, RecordingWarning
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import encode_dvs_event_array_cdr, encode_event_packet_cdr
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.events.windows import EventWindows, WindowSettings
from event_sam3d_ros.recordings.bag_messages import (
    COMPRESSED_IMAGE_TYPE,
    DVS_TYPE,
    EVENT_PACKET_TYPES,
    IMAGE_TYPE,
    RawMessage,
    decode_frame,
    typestore,
)
from event_sam3d_ros.recordings.files import (
    Calibration,
    EcdFolder,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Sample,
    Topics,
    TriggerChunk,
    open_recording,
    open_rosbag2,
    write_rosbag2,
)

WIDTH, HEIGHT = 12, 8
SECOND = 1_000_000_000
# The hash that event_camera_msgs has on ROS 2 Jazzy.
EVENT_PACKET_HASH = "RIHS01_d6fa176260b1f37e5a40845305315e150a0f18191241eb64f407442aa29844aa"


def make_samples() -> list[Sample]:
    """Three packets, two frames of each kind in every dtype that can be written, and one sample of every other kind."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for number in range(3):
        t = np.sort(rng.integers(0, 4000, 50)) + 4000 * number + 1_000_000
        x, y = rng.integers(0, WIDTH, 50).astype(np.uint16), rng.integers(0, HEIGHT, 50).astype(np.uint16)
        events = Events(t, x, y, rng.integers(0, 2, 50).astype(np.uint8))
        samples.append(EventChunk(int(t[0]) * 1000, int(t[-1]) * 1000, "optical", WIDTH, HEIGHT, events))
    arrays = [
        ("image", rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)),
        ("image", rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)),
        ("mask", rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)),
        ("mask", rng.integers(0, 999, (HEIGHT, WIDTH)).astype(np.uint16)),
        ("depth", rng.random((HEIGHT, WIDTH)).astype(np.float32)),
        ("depth", rng.integers(0, 9999, (HEIGHT, WIDTH)).astype(np.uint16)),
    ]
    for number, (role, data) in enumerate(arrays):
        stamp = 2 * SECOND + number
        samples.append(Frame(role, stamp, stamp + 500, "optical", data))
    K = np.array([[100.0, 0, 6], [0, 101.0, 4], [0, 0, 1]])
    samples.append(Calibration(3 * SECOND, 3 * SECOND, "optical", WIDTH, HEIGHT, K, np.array([0.1, -0.2, 0, 0, 0.3])))
    edges = Triggers(np.array([3_100_000, 3_100_900]), np.array([0, 1], np.uint8), np.array([1, 0], np.uint8))
    samples.append(TriggerChunk(31 * SECOND // 10, 31 * SECOND // 10 + 900_000, "optical", edges))
    stamp = 32 * SECOND // 10
    rates = np.array([[0.1, 0.2, -0.3]])
    samples.append(ImuChunk(stamp, stamp, "optical", np.array([stamp // 1000]), 100 * rates, rates))
    samples.append(Pose(stamp, stamp + 1, "optical", np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.6, 0.0, 0.8])))
    return samples


def assert_same(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, Events):
            for field in "txyp":
                np.testing.assert_array_equal(getattr(other, field), getattr(value, field))
        elif isinstance(value, Triggers):
            for field in ("t", "id", "p"):
                np.testing.assert_array_equal(getattr(other, field), getattr(value, field))
        elif isinstance(value, np.ndarray):
            assert other.dtype == value.dtype
            np.testing.assert_array_equal(other, value)
        else:
            assert other == value, name


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_is_written_is_read_back(tmp_path: Path, storage: str) -> None:
    samples = make_samples()
    assert write_rosbag2(tmp_path / "bag", samples, storage=storage) == len(samples)
    recording = open_recording(tmp_path / "bag")
    for _ in range(2):  # as often as wanted
        found = list(recording.samples())
        assert len(found) == len(samples)
        for one, other in zip(found, samples, strict=True):
            assert_same(one, other)
    assert (recording.start_ns, recording.end_ns) == (samples[0].receive_ns, samples[-1].receive_ns)
    assert recording.image_count == 2


def test_one_file_of_a_bag_is_a_recording_too(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_samples())
    assert len(list(open_recording(tmp_path / "bag" / "bag.mcap").samples())) == len(make_samples())


def test_event_packets_have_the_type_of_ros(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_samples())
    assert EVENT_PACKET_HASH in (tmp_path / "bag" / "metadata.yaml").read_text()
    assert open_rosbag2(tmp_path / "bag").types[Topics.events] == EVENT_PACKET_TYPES[0]


def test_messages_come_as_they_lie_in_the_bag(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_samples())
    messages = list(open_rosbag2(tmp_path / "bag").raw_messages())
    assert [message.receive_ns for message in messages] == [sample.receive_ns for sample in make_samples()]
    assert {message.topic for message in messages} == {*vars(Topics()).values()}
    assert all(message.cdr[:2] == b"\x00\x01" for message in messages)


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_samples())
    before = (tmp_path / "bag" / "bag.mcap").read_bytes()
    with pytest.raises(RecordingError, match="exists already"):
        write_rosbag2(tmp_path / "bag", make_samples())
    assert (tmp_path / "bag" / "bag.mcap").read_bytes() == before


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = Frame("mask", 4 * SECOND, 4 * SECOND, "optical", np.zeros((HEIGHT, WIDTH), np.float64))
    with pytest.raises(RecordingError, match="mask of float64"):
        write_rosbag2(tmp_path / "bag", [*make_samples(), bad])
    assert not (tmp_path / "bag").exists()


@pytest.mark.parametrize(("storage", "cut"), [("mcap", 0.01), ("mcap", 0.2), ("sqlite3", 0.2), ("sqlite3", 0.6)])
def test_a_bag_without_a_whole_message_is_one_clear_error(tmp_path: Path, storage: str, cut: float) -> None:
    write_rosbag2(tmp_path / "bag", make_samples(), storage=storage)
    file = next(path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
    with pytest.raises(RecordingError, match="bag"):
        list(open_recording(tmp_path / "bag").samples())


@pytest.mark.parametrize("lost", [1, 8, 30, 300])
def test_an_mcap_without_its_end_gives_what_is_whole(tmp_path: Path, lost: int) -> None:
    """As a recorder leaves it that was killed: without metadata.yaml, too."""
    write_rosbag2(tmp_path / "bag", make_samples())
    file = tmp_path / "bag" / "bag.mcap"
    file.write_bytes(file.read_bytes()[:-lost])
    for path in (tmp_path / "bag", file):
        with pytest.warns(RecordingWarning, match="is cut; what is whole was read"):
            assert len(list(open_recording(path).samples())) == len(make_samples())


def test_a_bag_with_fewer_messages_than_announced_says_so(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_samples())
    metadata = tmp_path / "bag" / "metadata.yaml"
    count = len(make_samples())
    metadata.write_text(metadata.read_text().replace(f"\n  message_count: {count}", f"\n  message_count: {count + 1}"))
    recording = open_rosbag2(tmp_path / "bag")
    with pytest.warns(RecordingWarning, match=f"announces {count + 1} messages, but {count} can be read"):
        assert len(list(recording.raw_messages())) == count
    assert recording.losses.counts["missing_messages"] == 1


def test_what_is_no_recording_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        open_recording(tmp_path / "nothing")
    with pytest.raises(RecordingError, match=r"events\.txt, images\.txt and calib\.txt"):
        open_recording(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecordingError, match="of no kind that can be read"):
        open_recording(tmp_path / "notes.txt")
    with pytest.raises(RecordingError, match="not a rosbag2 file"):
        open_rosbag2(tmp_path / "notes.txt")
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: {}")
    with pytest.raises(RecordingError, match="can't be read as a rosbag2"):
        open_recording(tmp_path)


def write_dvs_bag(path: Path, packet_us: int = 9000) -> None:
    """Events of 0.2 s in messages that are stamped when they are sent, at the end of their time, as drivers do."""
    rng = np.random.default_rng(1)
    t = np.sort(rng.integers(0, 200_000, 4000)) + 5_000_000
    x, y = rng.integers(0, WIDTH, 4000).astype(np.uint16), rng.integers(0, HEIGHT, 4000).astype(np.uint16)
    events = Events(t, x, y, rng.integers(0, 2, 4000).astype(np.uint8))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/dvs/events", DVS_TYPE, msgdef="# not needed here", rihs01="RIHS01_" + 64 * "0")
        for t0 in range(5_000_000, 5_200_000, packet_us):
            part = events[int(np.searchsorted(t, t0)) : int(np.searchsorted(t, t0 + packet_us))]
            end_ns = (t0 + packet_us) * 1000
            writer.write(topic, end_ns, encode_dvs_event_array_cdr(end_ns, "dvs", WIDTH, HEIGHT, part))


def windows_of(path: Path) -> list[tuple[int, np.ndarray]]:
    """Number of events and image of windows, as event_image_node makes them of the recording's messages."""
    recording = open_rosbag2(path)
    kind = recording.types[recording.topics.events]
    buffer = EventBuffer(1_000_000, 100_000, 10_000_000)
    windows = EventWindows(kind, WindowSettings(), buffer, lambda reason, sentence: pytest.fail(sentence))
    for message in recording.raw_messages():
        windows.add_packet(message.cdr)
    for stamp_ms in (5050, 5100, 5150):
        windows.add_frame(stamp_ms * 1_000_000, "camera", 0.0)
    return [(window.event_count, window.image) for window in windows.ready(0.0)]


def test_a_dvs_recording_gives_the_same_windows_live_and_converted(tmp_path: Path) -> None:
    write_dvs_bag(tmp_path / "dvs")
    write_rosbag2(tmp_path / "converted", open_rosbag2(tmp_path / "dvs").samples())
    live, converted = windows_of(tmp_path / "dvs"), windows_of(tmp_path / "converted")
    assert len(live) == len(converted) == 3
    for (count, image), (other_count, other_image) in zip(live, converted, strict=True):
        assert count == other_count > 0
        np.testing.assert_array_equal(image, other_image)


# --- packets of bags ----------------------------------------------------------------------------------------------


def write_packets(path: Path, packets: list[dict[str, Any]], topic: str = "/event_camera/events") -> None:
    """EventPackets of the given fields; each is received a millisecond after the one before."""
    fields = {"stamp_ns": SECOND, "frame_id": "", "width": WIDTH, "height": HEIGHT, "encoding": "evt3", "time_base": 0}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kind = EVENT_PACKET_TYPES[0]
        connection = writer.add_connection(topic, kind, msgdef="# none", rihs01="RIHS01_" + 64 * "0")
        for number, packet in enumerate(packets):
            cdr = encode_event_packet_cdr(**{**fields, "seq": number, **packet})
            writer.write(connection, SECOND + number * 1_000_000, cdr)


def test_after_lost_packets_decoding_is_synchronised_anew(tmp_path: Path) -> None:
    """The second packet has no row of its own: after a loss its event would get that of another."""
    whole = bytes.fromhex("0080 0160 0200 0320".replace(" ", ""))  # time 1, row 2, column 3
    rest = bytes.fromhex("0520")  # column 5
    for seq, count in ((1, 2), (4, 1)):
        write_packets(tmp_path / f"{seq}", [{"payload": whole}, {"payload": rest, "seq": seq}])
        recording = open_recording(tmp_path / f"{seq}")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert sum(len(sample.events) for sample in recording.samples()) == count
        assert [str(one.message) for one in said] == [
            f"{tmp_path / '4'}: /event_camera/events lacks 3 event packets (gaps of seq): decoding was synchronised "
            "anew behind them"
        ][: seq // 4]


def test_numbers_that_begin_again_start_the_clock_afresh(tmp_path: Path) -> None:
    late, early, next_ = (
        bytes.fromhex(words) for words in ("f08f016000000320", "0080016000000320", "0080026000000320")
    )
    write_packets(
        tmp_path / "bag", [{"payload": late, "seq": 7}, {"payload": early, "seq": 0}, {"payload": next_, "seq": 1}]
    )
    reason = r"\(the number of an event packet is 0 after 7: the driver was started again, or two publish"
    with pytest.warns(RecordingWarning, match=f"begins anew once, and the sensor's clock with it {reason}"):
        times = [sample.events.t.tolist() for sample in open_recording(tmp_path / "bag").samples()]
    assert times == [[0xFF0001], [1], [2]]


def test_a_packet_that_can_not_be_decoded_is_named_by_bag_topic_and_time(tmp_path: Path) -> None:
    for name, packet in (("cut", {"payload": b"abc"}), ("unknown", {"payload": b"", "encoding": "evt4"})):
        write_packets(tmp_path / name, [{"payload": b""}, packet])
        with pytest.raises(RecordingError, match=f"{name}: /event_camera/events at 1.001000 s: "):
            list(open_recording(tmp_path / name).samples())


def test_times_that_step_back_in_a_packet_are_sorted(tmp_path: Path) -> None:
    """EVT3's bit noise: such a bag can be converted, too."""
    words = bytes.fromhex("0480016000000320028001600420")
    write_packets(tmp_path / "bag", [{"payload": words}])
    (chunk,) = open_recording(tmp_path / "bag").samples()
    assert (chunk.events.t.tolist(), chunk.events.x.tolist()) == ([0x2001, 0x4001], [4, 3])
    assert write_rosbag2(tmp_path / "again", open_recording(tmp_path / "bag").samples()) == 1


def test_triggers_alone_are_no_events(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", [sample for sample in make_samples() if isinstance(sample, TriggerChunk)])
    recording = open_recording(tmp_path / "bag")
    assert (recording.encoding, recording.width) == ("", 0)
    assert [type(sample) for sample in recording.samples()] == [TriggerChunk]


def test_topics_of_other_names_are_found_by_their_type(tmp_path: Path) -> None:
    names = ["/dvs/events", "/dvs/depth/image_raw", "/dvs/overlay", "/dvs/image_raw", "/dvs/camera_info"]
    kinds = [DVS_TYPE, IMAGE_TYPE, IMAGE_TYPE, IMAGE_TYPE, "sensor_msgs/msg/CameraInfo"]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for name, kind in zip(names, kinds, strict=True):
            writer.add_connection(name, kind, msgdef="# none", rihs01="RIHS01_" + 64 * "0")
    topics = open_rosbag2(tmp_path / "bag").topics
    assert (topics.events, topics.image, topics.camera_info) == ("/dvs/events", "/dvs/image_raw", "/dvs/camera_info")


def test_a_compressed_image_without_bytes_is_one_clear_error() -> None:
    message = typestore().types[COMPRESSED_IMAGE_TYPE]
    header = typestore().types["std_msgs/msg/Header"]
    time = typestore().types["builtin_interfaces/msg/Time"]
    for data in (np.empty(0, np.uint8), np.ones(9, np.uint8)):
        image = message(header=header(stamp=time(sec=1, nanosec=0), frame_id=""), format="png", data=data)
        cdr = bytes(typestore().serialize_cdr(image, COMPRESSED_IMAGE_TYPE))
        with pytest.raises(RecordingError, match="/image at 0.000000 s: a compressed image .* can't be decoded"):
            decode_frame(RawMessage("/image", COMPRESSED_IMAGE_TYPE, 0, cdr), "image")


# --- folders of text files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two frames, five events, one mask."""
    path = tmp_path / "recording"
    (path / "images").mkdir(parents=True)
    (path / "masks").mkdir()
    for number in range(2):
        picture = np.full((HEIGHT, WIDTH), 50 + number, np.uint8)
        cv2.imwrite(str(path / "images" / f"frame_{number}.png"), picture)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:4, 3:6] = 7
    cv2.imwrite(str(path / "masks" / "frame_1.png"), mask)
    (path / "images.txt").write_text("0.000000 images/frame_0.png\n0.010000001 images/frame_1.png\n")
    (path / "calib.txt").write_text("100 101 6 4 0.1 -0.2 0.001 0.002 0\n")
    lines = ["0.000999600 1 2 0", "0.003999400 11 7 1", "0.004000000 0 0 1", "0.0041 5 5 0", "0.013 4 4 1"]
    (path / "events.txt").write_text("\n".join(lines) + "\n")
    return path


def test_a_folder_gives_its_samples_on_one_clock(folder: Path) -> None:
    recording = open_recording(folder)
    assert isinstance(recording, EcdFolder)
    samples = list(recording.samples())
    assert [sample.receive_ns for sample in samples] == sorted(sample.receive_ns for sample in samples)
    events = [sample for sample in samples if isinstance(sample, EventChunk)]
    # Seconds are rounded to microseconds; stamps are one second later, since a ROS stamp of 0 means "not set".
    assert np.concatenate([chunk.events.t for chunk in events]).tolist() == [1000, 3999, 4000, 4100, 13000]
    assert [len(chunk.events) for chunk in events] == [2, 2, 1]
    assert all(chunk.stamp_ns == int(chunk.events.t[0]) * 1000 + SECOND for chunk in events)
    assert [(chunk.width, chunk.height) for chunk in events] == [(WIDTH, HEIGHT)] * 3
    frames = [(sample.role, sample.stamp_ns) for sample in samples if isinstance(sample, Frame)]
    assert frames == [("image", SECOND), ("image", SECOND + 10_000_000), ("mask", SECOND + 10_000_000)]
    calibrations = [sample for sample in samples if isinstance(sample, Calibration)]
    assert len(calibrations) == 2
    assert calibrations[0].K.tolist() == [[100, 0, 6], [0, 101, 4], [0, 0, 1]]
    assert calibrations[0].D.tolist() == [0.1, -0.2, 0.001, 0.002, 0]


def test_times_of_day_are_kept(folder: Path) -> None:
    (folder / "images.txt").write_text("1468940293.840000 images/frame_0.png\n1468940293.850000 images/frame_1.png\n")
    (folder / "events.txt").write_text("1468940293.844123 1 2 1\n")
    samples = list(open_recording(folder).samples())
    assert {sample.events.t[0] for sample in samples if isinstance(sample, EventChunk)} == {1468940293844123}
    assert {sample.stamp_ns for sample in samples if isinstance(sample, Frame)} == {
        1468940293840000000,
        1468940293850000000,
    }


def test_blocks_do_not_cut_packets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def packets() -> list[list[int]]:
        return [s.events.t.tolist() for s in open_recording(folder).samples() if isinstance(s, EventChunk)]

    expected = packets()
    monkeypatch.setattr("event_sam3d_ros.recordings.ecd._BLOCK_LINES", 1)
    assert packets() == expected


@pytest.mark.parametrize("name", ["images.txt", "calib.txt", "events.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RecordingError, match=f"has no {name}"):
        open_recording(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0.004 1 2", "expected 't x y p', found '0.004 1 2'"),
        ("0.004 1 2 1 9", "expected 't x y p'"),
        ("0.004 one 2 1", "expected 't x y p'"),
        ("", "expected 't x y p'"),
        ("0.004 12 2 1", "outside the 12x8 images"),
        ("0.004 1 -2 1", "outside the 12x8 images"),
        ("0.004 1.5 2 1", "outside the 12x8 images"),
        ("0.004 1 2 -1", "neither 0 nor 1"),
        ("0.003 1 2 1", "runs backwards"),
        ("nan 1 2 1", "not a number of seconds"),
    ],
)
def test_a_bad_event_is_named_by_its_line(folder: Path, line: str, problem: str) -> None:
    lines = (folder / "events.txt").read_text().splitlines()
    lines[2] = line
    (folder / "events.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordingError, match=r"events\.txt:3: .*" + problem):
        list(open_recording(folder).samples())


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("images.txt", "0.0 images/frame_0.png\nimages/frame_1.png\n", r"images\.txt:2: expected 'seconds path'"),
        ("images.txt", "0.1 images/frame_0.png\n0.1 images/frame_1.png\n", r"images\.txt:2: the time does not go"),
        ("images.txt", "inf images/frame_0.png\n", r"images\.txt:1: expected 'seconds path'"),
        ("images.txt", "\n", "lists no image"),
        ("images.txt", "0.1 images/other.png\n", "other.png is missing"),
        ("calib.txt", "100 101 6 4\n", r"calib\.txt:1: expected one line"),
        ("calib.txt", "0 101 6 4 0 0 0 0 0\n", "positive focal lengths"),
        ("calib.txt", "a b c d e f g h i\n", r"calib\.txt:1: expected one line"),
    ],
)
def test_a_bad_line_elsewhere_is_named(folder: Path, file: str, content: str, problem: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(RecordingError, match=problem):
        open_recording(folder)


def test_pictures_of_another_size_are_refused(folder: Path) -> None:
    cv2.imwrite(str(folder / "masks" / "frame_1.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(RecordingError, match="frame_1.png is not 12x8"):
        list(open_recording(folder).samples())


# --- recordings that others made -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "on"),
    [
        ("ecc_evt3_trigger", 82469, 41439),
        ("ecc_libcaer_rollover", 334331, 181908),
        ("ecc_mono_cd", 100, None),
        ("ecpy_test1", 343474, 125183),
    ],
)
def test_bags_of_others_give_their_known_truth(test_data: Path, name: str, count: int, on: int | None) -> None:
    chunks = [
        sample for sample in open_recording(test_data / "recordings" / name).samples() if isinstance(sample, EventChunk)
    ]
    assert sum(len(chunk.events) for chunk in chunks) == count
    if on is not None:
        assert sum(int(chunk.events.p.sum()) for chunk in chunks) == on


@pytest.mark.filterwarnings("ignore:.*libcaer_cmp have wrong rows")
def test_a_cut_mcap_of_others_gives_its_begin(test_data: Path, tmp_path: Path) -> None:
    file = next((test_data / "recordings" / "ecpy_test2").glob("*.mcap"))
    whole = list(open_recording(file).samples())
    (tmp_path / "cut.mcap").write_bytes(file.read_bytes()[:2_000_000])
    with pytest.warns(RecordingWarning, match="is cut"):
        part = list(open_recording(tmp_path / "cut.mcap").samples())
    assert 50 < len(part) < len(whole)
    for found, expected in zip(part, whole[: len(part)], strict=True):
        assert_same(found, expected)


def test_the_real_folder_survives_the_conversion(test_data: Path, tmp_path: Path) -> None:
    source = open_recording(test_data / "recordings" / "ecd_slider_depth")
    write_rosbag2(tmp_path / "slider", source.samples())
    counts = {"events": 0, "image": 0, "mask": 0}
    for found, expected in zip(open_recording(tmp_path / "slider").samples(), source.samples(), strict=True):
        assert_same(found, expected)
        if isinstance(found, EventChunk):
            counts["events"] += len(found.events)
        elif isinstance(found, Frame):
            counts[found.role] += 1
    assert counts == {"events": 50_000, "image": 87, "mask": 5}


def test_masks_are_optional(tmp_path: Path, folder: Path) -> None:
    shutil.rmtree(folder / "masks")
    write_rosbag2(tmp_path / "out", open_recording(folder).samples())
    assert not any(isinstance(s, Frame) and s.role == "mask" for s in open_recording(tmp_path / "out").samples())
