"""From any kind to rosbag2 and HDF5 and back, pieces by time, and the commands that do it."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

sys.path.insert(0, str(Path(__file__).parent))
from conftest import assert_equal, events_of, make_events, write_dat, write_raw, write_text  # noqa: E402

from event_sam3d_ros.cli import main  # noqa: E402
from event_sam3d_ros.commands.recordings import _check_writable  # noqa: E402
from event_sam3d_ros.errors import RecordingError, RecordingWarning  # noqa: E402
from event_sam3d_ros.events.events import Events, Triggers  # noqa: E402
from event_sam3d_ros.recordings import aedat4_process  # noqa: E402
from event_sam3d_ros.recordings.files import (  # noqa: E402
    Calibration,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Sample,
    TriggerChunk,
    open_recording,
    write_rosbag2,
)
from event_sam3d_ros.recordings.hdf5_writer import write_hdf5  # noqa: E402
from event_sam3d_ros.recordings.summary import cut, summarize  # noqa: E402

MS = 1_000_000
START = 1_700_000_000_000 * MS


def make_samples() -> list[Sample]:
    """40 ms: ten packets of events, and what else there is, by receive time."""
    events = make_events(500)
    K, D = np.array([[100.0, 0, 6], [0, 101.0, 4], [0, 0, 1]]), np.array([0.1, -0.2, 0, 0, 0.3])
    samples: list[Sample] = [Calibration(START - 5, START, "cam", 346, 260, K, D)]
    for number in range(10):
        inside = (events.t - 5_000_000) // 4000 == number
        part = events[inside]
        stamp = START + (int(part.t[0]) - 5_000_000) * 1000
        samples.append(EventChunk(stamp, START + (number + 1) * 4 * MS, "cam", 346, 260, part))
    for number in range(4):
        stamp = START + 10 * number * MS
        samples.append(Frame("image", stamp, stamp + MS, "cam", np.full((4, 6, 3), number, np.uint8)))
        samples.append(Frame("depth", stamp, stamp + 2 * MS, "cam", np.full((4, 6), number, np.float32)))
        rates = np.full((1, 3), number / 10)
        t = np.array([stamp // 1000])
        samples.append(ImuChunk(stamp, stamp + 3 * MS, "cam", t, rates, 10 * rates))
        samples.append(Pose(stamp, stamp + 3 * MS + 1, "cam", np.arange(3.0), np.array([0.0, 0, 0, 1])))
    edges = Triggers(np.array([5_010_000, 5_030_000]), np.array([0, 1], np.uint8), np.array([1, 0], np.uint8))
    samples.append(TriggerChunk(START + 10 * MS, START + 31 * MS, "cam", edges))
    return sorted(samples, key=lambda sample: sample.receive_ns)


def assert_same(found: list[Sample], expected: list[Sample]) -> None:
    assert [type(sample) for sample in found] == [type(sample) for sample in expected]
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(other).items():
            mine = getattr(one, name)
            if isinstance(value, (Events, Triggers)):
                for column in vars(value):
                    np.testing.assert_array_equal(getattr(mine, column), getattr(value, column))
            elif isinstance(value, np.ndarray):
                assert mine.dtype == value.dtype
                np.testing.assert_array_equal(mine, value)
            else:
                assert mine == value, name


def test_everything_survives_hdf5(tmp_path):
    samples = make_samples()
    assert write_hdf5(tmp_path / "a.h5", samples) == len(samples)
    recording = open_recording(tmp_path / "a.h5")
    assert_same(list(recording.samples()), samples)
    assert (recording.width, recording.height, recording.geometry_inferred) == (346, 260, False)
    assert recording.image_count == 4


def test_hdf5_from_rosbag2_and_back_is_the_same(tmp_path):
    write_rosbag2(tmp_path / "bag", make_samples())
    write_hdf5(tmp_path / "a.h5", open_recording(tmp_path / "bag").samples())
    write_rosbag2(tmp_path / "again", open_recording(tmp_path / "a.h5").samples())
    assert_same(list(open_recording(tmp_path / "again").samples()), list(open_recording(tmp_path / "bag").samples()))


def test_hdf5_has_the_layout_of_dsec(tmp_path):
    write_hdf5(tmp_path / "a.h5", make_samples())
    events = events_of(make_samples())
    with h5py.File(tmp_path / "a.h5") as file:
        t = file["events/t"][:]
        assert t[0] == 0 and int(file["t_offset"][()]) == events.t[0]
        np.testing.assert_array_equal(t + file["t_offset"][()], events.t)
        edges = np.arange(len(file["ms_to_idx"])) * 1000
        np.testing.assert_array_equal(file["ms_to_idx"][:], np.searchsorted(t, edges))
        assert edges[-1] <= t[-1] < edges[-1] + 1000


def test_hdf5_refuses_what_it_can_not_keep_and_leaves_nothing(tmp_path):
    samples = make_samples()
    other = replace(next(s for s in samples if isinstance(s, Frame)), data=np.zeros((9, 9), np.uint8))
    with pytest.raises(RecordingError, match="goes on as uint8"):
        write_hdf5(tmp_path / "a.h5", [*samples, other])
    assert not (tmp_path / "a.h5").exists()
    (tmp_path / "b.h5").write_text("mine")
    with pytest.raises(RecordingError, match="exists already"):
        write_hdf5(tmp_path / "b.h5", samples)
    assert (tmp_path / "b.h5").read_text() == "mine"


@pytest.mark.parametrize(("start_us", "encoding"), [(5_000_000, "evt3"), (1_605_537_493_718_345, "libcaer")])
def test_times_survive_rosbag2_however_late_they_are(tmp_path, start_us, encoding):
    events = make_events(300, start_us=start_us)
    write_rosbag2(tmp_path / "bag", open_recording(write_text(tmp_path / "a.txt", events)).samples())
    recording = open_recording(tmp_path / "bag")
    assert_equal(events_of(recording.samples()), events)
    assert recording.encoding == encoding


def test_a_clock_that_begins_again_survives_rosbag2(tmp_path):
    events = make_events(100)
    chunks = [EventChunk(START + i, START + i, "cam", 346, 260, events) for i in range(2)]
    write_rosbag2(tmp_path / "bag", chunks)
    assert_equal(events_of(open_recording(tmp_path / "bag").samples()), events_of(chunks))


def test_a_piece_has_what_lies_in_its_time(tmp_path):
    samples = make_samples()
    write_rosbag2(tmp_path / "bag", samples)
    piece = list(cut(open_recording(tmp_path / "bag"), 0.0095, 0.0205))
    # The first stamp is that of the calibration.
    begin, end = START - 5 + 9_500_000, START - 5 + 20_500_000
    assert all(begin <= sample.stamp_ns < end for sample in piece)
    assert [sample.data.max() for sample in piece if isinstance(sample, Frame)] == [1, 1, 2, 2]
    assert [sample.triggers.t.tolist() for sample in piece if isinstance(sample, TriggerChunk)] == [[5_010_000]]
    events = events_of(samples)
    stamps = np.concatenate(
        [s.stamp_ns + (s.events.t - s.events.t[0]) * 1000 for s in samples if isinstance(s, EventChunk)]
    )
    assert_equal(events_of(piece), events[(begin <= stamps) & (stamps < end)])
    assert sum(isinstance(sample, Calibration) for sample in piece) == 1
    assert isinstance(piece[0], Calibration)
    with pytest.raises(RecordingError, match="give 0 <= start < end"):
        list(cut(open_recording(tmp_path / "bag"), 2.0, 1.0))


@pytest.mark.parametrize(("plugin", "storage"), [(StoragePlugin.MCAP, "mcap"), (StoragePlugin.SQLITE3, "sqlite3")])
def test_metadata_without_a_storage_identifier(tmp_path, plugin, storage):
    with Writer(tmp_path / "bag", version=9, storage_plugin=plugin):
        pass
    write_rosbag2(tmp_path / "full", make_samples(), storage=storage)
    for name in ("bag", "full"):
        metadata = tmp_path / name / "metadata.yaml"
        text = metadata.read_text()
        assert f"storage_identifier: {storage}" in text
        metadata.write_text(text.replace(f"storage_identifier: {storage}", "storage_identifier: ''"))
    assert summarize(open_recording(tmp_path / "full")).events == 500
    empty = summarize(open_recording(tmp_path / "bag"))
    assert (empty.events, empty.width, empty.duration_s) == (0, 0, 0)


# --- commands --------------------------------------------------------------------------------------------------------


def test_info_as_json_of_a_file_without_ros(tmp_path, capsys):
    events = make_events()
    path = write_raw(tmp_path / "a.raw", events, "evt2", "% evt 2.0\n")
    assert main(["info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {
        "events": 400,
        "polarity_on": int(events.p.sum()),
        "t_first_us": int(events.t[0]),
        "t_last_us": int(events.t[-1]),
        "width": 346,
        "height": 260,
        "geometry_inferred": True,
        "encoding": "evt2",
        "frames": 0,
    }
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("output", ["out.h5", "out"])
def test_convert_and_cut(tmp_path, capsys, output):
    events = make_events()
    path = write_dat(tmp_path / "a.dat", events)
    assert main(["convert", str(path), str(tmp_path / output)]) == 0
    assert_equal(events_of(open_recording(tmp_path / output).samples()), events)
    assert "100%" in capsys.readouterr().err
    assert (
        main(["cut", str(tmp_path / output), str(tmp_path / f"cut_{output}"), "--start", "0.01", "--end", "0.02"]) == 0
    )
    piece = events_of(open_recording(tmp_path / f"cut_{output}").samples())
    begin = int(events.t[0]) + 10_000
    assert_equal(piece, events[(events.t >= begin) & (events.t < begin + 10_000)])
    capsys.readouterr()
    assert main(["cut", str(path), str(tmp_path / "none"), "--start", "3", "--end", "2"]) == 2
    assert capsys.readouterr().err == "event-sam3d cut: a piece from 3 s to 2 s is empty: give 0 <= start < end\n"


def test_a_piece_with_nothing_in_it_is_an_error(tmp_path, capsys):
    path = write_dat(tmp_path / "a.dat", make_events())
    for start in ("100", "1e300"):
        assert main(["cut", str(path), str(tmp_path / "out"), "--start", start]) == 2
        assert f"has nothing from {float(start):g} s to its end" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["out.h5", "out"])
def test_folders_for_the_output_are_made(tmp_path, output):
    path = write_dat(tmp_path / "a.dat", make_events())
    assert main(["cut", str(path), str(tmp_path / "some" / "where" / output), "--end", "1e300"]) == 0
    assert summarize(open_recording(tmp_path / "some" / "where" / output)).events == 400


@pytest.mark.parametrize("output", ["out.h5", "some/where/out"])
def test_whether_an_output_can_be_made_leaves_nothing_behind(tmp_path, output):
    _check_writable(tmp_path / output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["file/bag", "file/bag.h5"])
def test_an_output_that_can_not_be_made_is_one_sentence(tmp_path, capsys, output):
    source = write_raw(tmp_path / "a.raw", make_events())
    (tmp_path / "file").write_text("in the way")
    assert main(["convert", str(source), str(tmp_path / output)]) == 2
    said = f"event-sam3d convert: {tmp_path / output} can't be written (Not a directory): choose another place\n"
    assert capsys.readouterr().err == said


def test_a_folder_is_not_named_as_a_file(tmp_path, capsys):
    path = write_dat(tmp_path / "a.dat", make_events())
    assert main(["convert", str(path), str(tmp_path / "out.mcap")]) == 2
    assert "a rosbag2 is a folder: name it without .mcap" in capsys.readouterr().err
    assert not (tmp_path / "out.mcap").exists()


def test_a_recording_without_events_is_converted(tmp_path, capsys):
    (tmp_path / "a.raw").write_bytes(b"% format EVT3;width=640;height=480\n% end\n")
    for output in ("out", "out.h5"):
        assert main(["convert", str(tmp_path / "a.raw"), str(tmp_path / output)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("0 ") and "1 s later" not in said
        assert summarize(open_recording(tmp_path / output)).events == 0


def test_a_cut_file_is_converted_with_one_warning(tmp_path, capsys):
    path = write_dat(tmp_path / "a.dat", make_events())
    path.write_bytes(path.read_bytes()[:-3])
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("event-sam3d convert: warning: ") == 1 and "it is cut; what is whole was read" in said
    assert "Traceback" not in said


def test_cut_reads_no_further_than_it_must(tmp_path, monkeypatch):
    """Of 10 s: what comes behind the end by more than the disorder that is allowed is not read."""
    monkeypatch.setattr("event_sam3d_ros.recordings.prophesee.BLOCK_BYTES", 4096)
    events = make_events(20_000)
    events = Events(5_000_000 + 250 * (events.t - 5_000_000), events.x, events.y, events.p)
    write_rosbag2(tmp_path / "bag", open_recording(write_dat(tmp_path / "a.dat", events)).samples())
    begin = int(events.t[0])
    for name in ("a.dat", "bag"):
        recording = open_recording(tmp_path / name)
        piece = events_of(list(cut(recording, 1.0, 2.0)))
        assert_equal(piece, events[(events.t >= begin + 1_000_000) & (events.t < begin + 2_000_000)])
        assert 0.1 < recording.progress < 0.3


def test_cut_waits_for_streams_that_lag(tmp_path):
    """Pictures that come 3 s after the events of their time are in the piece, and those of a single moment hold up
    nothing."""
    samples = make_samples()
    late = [sample for sample in samples if isinstance(sample, Frame)]
    late = [replace(sample, receive_ns=sample.receive_ns + 3000 * MS) for sample in late]
    others = [sample for sample in samples if isinstance(sample, EventChunk)]
    events = [replace(s, stamp_ns=s.stamp_ns + k * 1000 * MS, receive_ns=s.receive_ns + k * 1000 * MS)
              for k in range(30) for s in others]  # fmt: skip
    once = [sample for sample in samples if isinstance(sample, Pose)][:1]
    everything = sorted([*late, *events, *once], key=lambda sample: sample.receive_ns)
    write_rosbag2(tmp_path / "bag", everything)
    recording = open_recording(tmp_path / "bag")
    piece = list(cut(recording, 0.0, 0.5))
    assert sum(isinstance(sample, Frame) for sample in piece) == len(late)
    assert recording.progress < 0.6


@pytest.mark.parametrize("kind", ["txt", "npz", "h5"])
@pytest.mark.parametrize("output", ["out", "out.h5"])
def test_times_below_zero_are_converted(tmp_path, capsys, kind, output):
    """To packets, which hold none, they go by whole seconds later, and that is said."""
    events = make_events(400, start_us=-1_300_000)
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        write_text(path, events)
    elif kind == "npz":
        np.savez(path, t=events.t, x=events.x, y=events.y, p=events.p)
    else:
        with h5py.File(path, "w") as file:
            for name in "txyp":
                file[f"events/{name}"] = getattr(events, name)
    assert summarize(open_recording(path)).t_first_us == int(events.t[0])
    assert main(["convert", str(path), str(tmp_path / output)]) == 0
    said = capsys.readouterr()
    assert "all stamps are 3 s later than in the input" in said.out
    recording = open_recording(tmp_path / output)
    shift = 0 if output.endswith("h5") else 3_000_000
    assert_equal(events_of(recording.samples()), Events(events.t + shift, events.x, events.y, events.p))
    assert recording.start_ns >= 1_000_000_000
    sentence = f"event times begin at {events.t[0]} us, and event packets hold none below 0: all of them are 3 s later"
    assert said.err.count(sentence) == (output == "out")


def test_a_clock_that_begins_again_leaves_an_hdf5_without_index(tmp_path):
    """And what is written before and behind comes back; small disorder does no harm."""
    events = make_events(400)
    restarted = Events(events.t - 1_000_000, events.x, events.y, events.p)
    late = Events(events.t + 20_000, events.x, events.y, events.p)
    for number, (second, has_index) in enumerate([(late, True), (restarted, False)]):
        chunks = [EventChunk(START + i, START + i, "cam", 346, 260, e) for i, e in enumerate((events, second, events))]
        if has_index:
            write_hdf5(tmp_path / f"{number}.h5", chunks)
        else:
            with pytest.warns(RecordingWarning, match="no ms_to_idx, which needs rising times: .* go back from 50"):
                write_hdf5(tmp_path / f"{number}.h5", chunks)
        with h5py.File(tmp_path / f"{number}.h5") as file:
            assert ("ms_to_idx" in file) == has_index
        assert_equal(events_of(open_recording(tmp_path / f"{number}.h5").samples()), events_of(chunks))


@pytest.mark.parametrize(
    ("pause_us", "has_index"), [(60_000_000, True), (172_800_000_000, False), (1_700_000_000_000_000, False)]
)
def test_a_pause_without_end_leaves_an_hdf5_without_index(tmp_path, pause_us, has_index):
    """Which would have an entry for each of its milliseconds."""
    events = make_events(400)
    late = Events(events.t + pause_us, events.x, events.y, events.p)
    chunks = [EventChunk(START + i, START + i, "cam", 346, 260, e) for i, e in enumerate((events, late))]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_hdf5(tmp_path / "a.h5", chunks)
    sentence = f"too many for the pause from {events.t[-1]} us to {late.t[-1]} us"
    assert [sentence in str(one.message) for one in said] == ([] if has_index else [True])
    with h5py.File(tmp_path / "a.h5") as file:
        assert ("ms_to_idx" in file) == has_index
        if has_index:
            assert file["ms_to_idx"][30_000] == 400
    assert_equal(events_of(open_recording(tmp_path / "a.h5").samples()), events_of(chunks))


def test_exposures_of_an_aedat4_are_kept(tmp_path):
    """And pictures are counted without being decoded."""
    dv = pytest.importorskip("dv_processing")
    writer = dv.io.MonoCameraWriter(str(tmp_path / "a.aedat4"), dv.io.MonoCameraWriter.DAVISConfig("D", (346, 260)))
    for number in range(5):
        store = dv.EventStore()
        store.push_back(START // 1000 + 10_000 * number, 1, 2, True)
        writer.writeEvents(store)
        frame = dv.Frame(START // 1000 + 10_000 * number, np.full((260, 346), number, np.uint8))
        frame.exposure = timedelta(microseconds=3000 + number)
        writer.writeFrame(frame)
    del writer
    recording = open_recording(tmp_path / "a.aedat4")
    assert recording.image_count == 5
    write_hdf5(tmp_path / "a.h5", recording.samples())
    for path in ("a.aedat4", "a.h5"):
        frames = [sample for sample in open_recording(tmp_path / path).samples() if isinstance(sample, Frame)]
        assert [frame.exposure_ns for frame in frames] == [1000 * (3000 + number) for number in range(5)]


def test_counting_pictures_decodes_none():
    """A reader that has pictures, but can't give one."""

    class Reader:
        def getNextFrame(self):
            raise AssertionError("decoded")

        def __getattr__(self, name):
            return lambda: (0, 1) if "Range" in name or "Resolution" in name else True

    (info,) = aedat4_process._info(Reader())
    assert "frames" in info["streams"]
