"""Files of every kind: events come back exactly, known truth holds, and what is cut or broken is one clear sentence."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import (  # noqa: E402
    HEIGHT,
    WIDTH,
    WRITERS,
    assert_equal,
    events_of,
    make_events,
    write_aedat2,
    write_dat,
    write_npz,
    write_raw,
    write_text,
)

from event_sam3d_ros.errors import EventSam3dError, RecordingError, RecordingWarning  # noqa: E402
from event_sam3d_ros.events.codecs import make_encoder  # noqa: E402
from event_sam3d_ros.events.events import Events, Triggers  # noqa: E402
from event_sam3d_ros.recordings import aedat4  # noqa: E402
from event_sam3d_ros.recordings.aedat4 import Aedat4File, _DvError  # noqa: E402
from event_sam3d_ros.recordings.files import (  # noqa: E402
    EventChunk,
    Frame,
    ImuChunk,
    TriggerChunk,
    open_recording,
)
from event_sam3d_ros.recordings.summary import summarize  # noqa: E402

NS = 1_000_000_000
INFERRED = {"davis.aedat", "events.txt", "events.npz", "dsec.h5"}
SMALL_BLOCKS = ["prophesee.BLOCK_BYTES", "es.BLOCK_BYTES", "aedat2.BLOCK_BYTES"]
SMALL_ROWS = ["npz.BLOCK_ROWS", "hdf5.BLOCK_ROWS", "text.BLOCK_LINES"]


@pytest.mark.parametrize("name", WRITERS)
def test_events_of_every_kind_come_back(name, written):
    events = make_events()
    recording = open_recording(written(name, events))
    for _ in range(2):  # as often as wanted
        samples = list(recording.samples())
        assert_equal(events_of(samples), events)
        assert recording.progress == 1.0
    received = [sample.receive_ns for sample in samples]
    assert received == sorted(received)
    assert (recording.start_ns, recording.end_ns) == (received[0], received[-1])
    size = (640, 480) if name == "dsec.h5" else (WIDTH, HEIGHT)
    assert (recording.width, recording.height) == size
    assert recording.geometry_inferred == (name in INFERRED)
    chunks = [sample for sample in samples if isinstance(sample, EventChunk)]
    assert {(chunk.width, chunk.height) for chunk in chunks} == {size}
    if name != "ros1.bag":
        assert all(chunk.stamp_ns == int(chunk.events.t[0]) * 1000 for chunk in chunks)
        assert all(int(np.ptp(chunk.events.t)) < 4000 for chunk in chunks)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("ros1.bag", "davis.aedat4")])
def test_blocks_may_end_anywhere(name, written, monkeypatch):
    """Also inside an event, a word or a packet."""
    events = make_events(100, start_us=1000)
    path = written(name, events)
    whole = [sample.events.t.tolist() for sample in open_recording(path).samples() if isinstance(sample, EventChunk)]
    for target in SMALL_BLOCKS:
        monkeypatch.setattr(f"event_sam3d_ros.recordings.{target}", 8 if "es." not in target else 7)
    for target in SMALL_ROWS:
        monkeypatch.setattr(f"event_sam3d_ros.recordings.{target}", 3)
    pieces = [sample.events.t.tolist() for sample in open_recording(path).samples() if isinstance(sample, EventChunk)]
    assert pieces == whole


def test_what_else_a_file_has_comes_with_the_events(written):
    samples = list(open_recording(written("mvsec.hdf5", make_events())).samples())
    frames = [sample for sample in samples if isinstance(sample, Frame)]
    assert [frame.stamp_ns for frame in frames] == [5_010_000_000, 5_020_000_000]
    assert frames[1].data.shape == (HEIGHT, WIDTH) and frames[1].data[0, 1] == (WIDTH * HEIGHT + 1) % 256
    motion = [sample for sample in samples if isinstance(sample, ImuChunk)]
    assert [int(chunk.t[0]) for chunk in motion] == [5_005_000, 5_015_000]
    assert motion[1].acceleration.tolist() == [[6, 7, 8]] and motion[1].angular_velocity.tolist() == [[9, 10, 11]]
    samples = list(open_recording(written("masked.hdf5", make_events())).samples())
    edges = [sample.triggers for sample in samples if isinstance(sample, TriggerChunk)]
    assert [(edge.t.tolist(), edge.p.tolist()) for edge in edges] == [([5_001_000, 5_002_000], [1, 0])]


@pytest.mark.parametrize("encoding", ["evt2", "evt21", "evt3"])
def test_triggers_of_raw_files(tmp_path, encoding):
    events = make_events(50)
    triggers = Triggers(events.t[::10] + 1, np.arange(5, dtype=np.uint8), np.array([0, 1, 0, 1, 1], np.uint8))
    payload = make_encoder(encoding, WIDTH, HEIGHT).encode(events, triggers)[0]
    (tmp_path / "a.raw").write_bytes(
        f"% format {encoding.upper()};width={WIDTH};height={HEIGHT}\n% end\n".encode() + payload
    )
    samples = list(open_recording(tmp_path / "a.raw").samples())
    assert_equal(events_of(samples), events)
    found = [sample.triggers for sample in samples if isinstance(sample, TriggerChunk)]
    for name in ("t", "id", "p"):
        column = np.concatenate([getattr(edges, name) for edges in found])
        assert column.tolist() == getattr(triggers, name).tolist()


# --- headers and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("% evt 3.0\n% geometry 346x260\n", (346, 260, False)),
        ("% evt 3.0\n% integrator_name Prophesee\n% system_ID 49\n", (1280, 720, True)),
        ("% Date 2014-01-01\n% evt 3.0\n% system_ID 40\n", (640, 480, True)),
        ("% evt 3.0\n", (346, 260, True)),
        ("% evt 3.0\n% geometry unknown\n% end\n", (346, 260, True)),
    ],
)
def test_old_headers_of_raw_files(tmp_path, header, size):
    events = make_events()
    recording = open_recording(write_raw(tmp_path / "a.raw", events, header=header))
    assert (recording.width, recording.height, recording.geometry_inferred) == size
    assert_equal(events_of(recording.samples()), events)


def test_data_that_begin_like_a_header_are_data(tmp_path):
    # In EVT2 the bytes "% \x01\x80" are a TIME_HIGH.
    word = int.from_bytes(b"% \x01\x80", "little")
    words = np.array([word, 1 << 28 | 5 << 11 | 6], "<u4")
    (tmp_path / "a.raw").write_bytes(b"% evt 2.0\n% geometry 346x260\n" + words.tobytes())
    events = events_of(open_recording(tmp_path / "a.raw").samples())
    assert (events.x.tolist(), events.y.tolist(), events.t.tolist()) == ([5], [6], [(word & 0xFFFFFFF) << 6])


@pytest.mark.parametrize("order", ["legacy", "little", None])
def test_the_byte_order_of_evt21_is_told_or_found(tmp_path, order):
    events = make_events()
    words = np.frombuffer(make_encoder("evt21", WIDTH, HEIGHT).encode(events)[0], "<u8")
    # The encoder's order is told by swapping halves until "little" is what the header says it is.
    is_little = bool(np.all(np.isin(words >> 60, (0, 1, 8))))
    if is_little != (order == "little"):
        words = words >> 32 | words << 32
    said = f";endianness={order}" if order else ""
    header = f"% format EVT21{said};width={WIDTH};height={HEIGHT}\n% end\n"
    (tmp_path / "a.raw").write_bytes(header.encode() + words.astype("<u8").tobytes())
    assert_equal(events_of(open_recording(tmp_path / "a.raw").samples()), events)


def test_dat_files_of_both_versions(tmp_path):
    t = np.array([1, 2, 3], np.int64)
    events = Events(
        t, np.array([0, 303, 5], np.uint16), np.array([239, 0, 7], np.uint16), np.array([1, 0, 1], np.uint8)
    )
    recording = open_recording(write_dat(tmp_path / "2.dat", events, "% Data file\n% Version 2\n"))
    assert (recording.width, recording.height, recording.geometry_inferred) == (304, 240, True)
    assert_equal(events_of(recording.samples()), events)
    rows = np.empty((3, 2), "<u4")
    rows[:, 0] = t
    rows[:, 1] = events.x | events.y.astype(np.uint32) << 9 | events.p.astype(np.uint32) << 17
    (tmp_path / "1.dat").write_bytes(b"% Data file\n% Version 1\n" + bytes([0, 8]) + rows.tobytes())
    assert_equal(events_of(open_recording(tmp_path / "1.dat").samples()), events)


@pytest.mark.parametrize("write", [write_dat, write_aedat2])
def test_times_of_32_bits_go_on_after_their_wrap(tmp_path, write):
    start = (1 << 32) - 20_000
    events = make_events(start_us=start)
    assert int(events.t[-1]) >= 1 << 32
    assert_equal(events_of(open_recording(write(tmp_path / "a.dat", events)).samples()), events)


def test_aedat2_leaves_out_what_is_no_polarity_event(tmp_path):
    events = make_events(10)
    path = write_aedat2(
        tmp_path / "a.aedat", events, "#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis346B\r\n"
    )
    t = int(events.t[-1])
    more = np.array([[1 << 31 | 0x3FF, t], [1 << 10, t]], ">u4")
    path.write_bytes(path.read_bytes() + more.tobytes())
    recording = open_recording(path)
    assert (recording.width, recording.height, recording.geometry_inferred) == (346, 260, False)
    assert_equal(events_of(recording.samples()), events)


def test_aedat2_of_the_large_sensor(tmp_path):
    x, y, p = np.array([0, 639, 100, 500]), np.array([479, 0, 7, 8]), np.array([1, 0, 1, 0])
    rows = np.empty((4, 2), ">u4")
    rows[:, 0], rows[:, 1] = (479 - y) << 11 | (639 - x) << 1 | p, [1, 2, 3, 4]
    (tmp_path / "a.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + rows.tobytes())
    recording = open_recording(tmp_path / "a.aedat")
    events = events_of(recording.samples())
    assert (recording.width, recording.height) == (640, 480)
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == (x.tolist(), y.tolist(), p.tolist())


def test_aedat2_of_a_davis640_has_the_layout_of_a_davis(tmp_path):
    """And not that of the DVS640, which v2e writes."""
    x, y, p = np.array([0, 639, 100]), np.array([479, 0, 7]), np.array([1, 0, 1])
    rows = np.empty((3, 2), ">u4")
    rows[:, 0], rows[:, 1] = (479 - y) << 22 | (639 - x) << 12 | p << 11, [1, 2, 3]
    header = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis640\r\n"
    (tmp_path / "a.aedat").write_bytes(header + rows.tobytes())
    recording = open_recording(tmp_path / "a.aedat")
    events = events_of(recording.samples())
    assert (recording.width, recording.height, recording.geometry_inferred) == (640, 480, False)
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == (x.tolist(), y.tolist(), p.tolist())


def test_aedat2_of_a_dvs128(tmp_path):
    """As jAER's DVS128 has it: bit 0 is 0 for ON, x runs to the left and y upwards, bit 15 is no pixel."""
    rows = np.array([[3 << 8 | 5 << 1, 1], [127 << 8 | 127 << 1 | 1, 2], [1 << 15, 3]], ">u4")
    header = b"#!AER-DAT2.0\r\n# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"
    (tmp_path / "a.aedat").write_bytes(header + rows.tobytes())
    recording = open_recording(tmp_path / "a.aedat")
    events = events_of(recording.samples())
    assert (recording.width, recording.height, recording.geometry_inferred) == (128, 128, False)
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([122, 0], [124, 0], [1, 0])


@pytest.mark.parametrize(
    ("text", "t"),
    [
        ("# comment\n0.000001 1 2 1\n0.5 3 4 -1\n", [1, 500_000]),
        ("1 1 2 1\n500000 3 4 0\n", [1, 500_000]),
        ("1 1 2 1\r\n500000 3 4 0\r\n\r\n \n", [1, 500_000]),
        ("240 180\n0.000001,1,2,1\n0.5,3,4,0", [1, 500_000]),
        ("1468940293.844123 1 2 1\n1468940293.844124 3 4 0\n", [1468940293844123, 1468940293844124]),
    ],
)
def test_lines_of_text(tmp_path, text, t):
    (tmp_path / "a.txt").write_text(text)
    recording = open_recording(tmp_path / "a.txt")
    events = events_of(recording.samples())
    assert (events.t.tolist(), events.x.tolist(), events.p.tolist()) == (t, [1, 3], [1, 0])
    assert (recording.width, recording.geometry_inferred) == ((240, False) if "180" in text else (128, True))


@pytest.mark.parametrize(
    "head", ["% t x y p\n% of a simulator\n", "% Version 2\n", "t,x,y,p\n", "# a\ntimestamp x y polarity\n"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.dat"])
def test_text_behind_a_head_of_any_kind(tmp_path, head, name):
    (tmp_path / name).write_text(head + "0.000001 1 2 1\n0.5 3 4 0\n")
    recording = open_recording(tmp_path / name)
    assert recording.encoding == "text" and events_of(recording.samples()).t.tolist() == [1, 500_000]


def test_text_with_columns_in_another_order_is_refused_in_words(tmp_path):
    (tmp_path / "a.csv").write_text("# made by hand\nx,y,polarity,timestamp\n1,2,1,5\n")
    with pytest.raises(
        RecordingError, match="a.csv:2: the columns are 'x y polarity timestamp'; bring them into"
    ) as error:
        open_recording(tmp_path / "a.csv")
    assert error.value.reason == "bad_columns"


def test_arrays_of_other_types(tmp_path):
    columns = {"x": np.array([1.0, 2.0]), "y": np.array([3, 4], np.int32), "p": np.array([-1, 1], np.int8)}
    for t, expected in (([0.5, 0.75], [500_000, 750_000]), ([5.0, 6.0], [5, 6])):
        np.savez(tmp_path / "a.npz", t=np.array(t), **columns)
        events = events_of(open_recording(tmp_path / "a.npz").samples())
        assert (events.t.tolist(), events.p.tolist(), events.x.tolist()) == (expected, [0, 1], [1, 2])


# --- cut and broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evt3.raw", "evt2.raw", "evt21.raw", "cd.dat", "dvs.es", "davis.aedat", "events.txt"])
def test_a_file_cut_anywhere_gives_what_is_whole(name, written):
    events = make_events(12, start_us=1000)
    path = written(name, events)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = [sample for sample in open_recording(path).samples() if isinstance(sample, EventChunk)]
            except RecordingError:
                assert size < 100  # inside the header
                continue
        count = sum(len(chunk.events) for chunk in found)
        if found and name != "events.txt":  # a number that lost its last digits is still one
            assert_equal(events_of(found), events[:count])
        assert count <= len(events) and len(said) <= 1
        assert all(issubclass(one.category, RecordingWarning) and "cut" in str(one.message) for one in said)


def test_a_cut_file_says_so(written):
    path = written("cd.dat", make_events())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(RecordingWarning, match="middle of an event: it is cut"):
        assert len(events_of(open_recording(path).samples())) == 399


def test_a_cut_aedat4_is_read_as_far_as_it_goes(test_data, tmp_path):
    path = tmp_path / "cut.aedat4"
    path.write_bytes((test_data / "recordings/raw/sample.aedat4").read_bytes()[:200_000])
    with pytest.warns(RecordingWarning, match="is cut"):
        summary = summarize(open_recording(path))
    assert (summary.events, summary.imu) == (23033, 113)


@pytest.mark.parametrize("name", ["masked.hdf5", "dsec.h5", "mvsec.hdf5", "events.npz", "ros1.bag", "davis.aedat4"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_containers_that_are_cut_are_one_error_or_a_part(name, share, written):
    path = written(name, make_events())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordingWarning)
        try:
            count = summarize(open_recording(path)).events
        except RecordingError as error:
            assert str(path) in str(error)
        else:
            assert name in ("davis.aedat4", "ros1.bag") and count <= 400


@pytest.mark.parametrize(
    "kind", ["evt3.raw", "cd.dat", "dvs.es", "events.txt", "events.npz", "ros1.bag", "davis.aedat4"]
)
@pytest.mark.parametrize("name", ["a.raw", "a.dat", "a.h5", "a"])
def test_content_decides_before_the_name(written, kind, name):
    path = written(kind, make_events())
    path = path.rename(path.with_name(name))
    assert_equal(events_of(open_recording(path).samples()), make_events())


@pytest.mark.parametrize("what", ["bytes", "zeros", "removed"])
def test_packets_of_an_aedat4_that_are_damaged_are_left_out(test_data, tmp_path, what):
    """dv-processing would not come back from them."""
    data = bytearray((test_data / "recordings/raw/sample.aedat4").read_bytes())
    middle = len(data) // 2
    if what == "zeros":
        data[middle : middle + 4096] = bytes(4096)
    elif what == "removed":
        del data[middle : middle + 3001]
    else:
        data[middle : middle + 100] = Random(1).randbytes(100)
    path = tmp_path / "a.aedat4"
    path.write_bytes(data)
    recording = open_recording(path)
    with pytest.warns(
        RecordingWarning, match="a.aedat4 has packets that can't be decompressed .1 corrupt event packet"
    ):
        count = len(events_of(recording.samples()))
    assert 105_000 < count < 111_954


@pytest.mark.parametrize("count", [1, 2])
def test_damage_of_an_aedat4_without_events_is_counted(tmp_path, count):
    dv = pytest.importorskip("dv_processing")
    path = tmp_path / "a.aedat4"
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.FrameOnlyConfig("cam", (64, 48)))
    rng = np.random.default_rng(0)
    for i in range(30):
        writer.writeFrame(dv.Frame(1_000_000 + i * 40_000, rng.integers(0, 255, (48, 64), np.uint8)))
    del writer
    data = bytearray(path.read_bytes())
    marks = [match.start() for match in aedat4._MARK.finditer(data)]
    for place in marks[10 : 10 + 2 * count : 2]:
        data[place + 4 : place + 44] = bytes(40)
    path.write_bytes(data)
    recording = open_recording(path)
    with pytest.warns(RecordingWarning, match="has packets that can't be decompressed .*corrupt message"):
        assert len(list(recording.samples())) == 30 - count
    assert recording.losses.counts["corrupt_messages"] == count


def test_marks_of_packets_are_looked_for_once(monkeypatch):
    """Each search goes no further than to the nearest mark."""
    data = (b"\xff" * 8 + bytes.fromhex("04224d18") + b"abcd") * 2000
    searched = 0

    class Mark:
        def search(self, data, begin, mark=aedat4._MARK):
            nonlocal searched
            found = mark.search(data, begin)
            searched += (found.start() if found else len(data)) - begin
            return found

    monkeypatch.setattr(aedat4, "_MARK", Mark())
    assert sum(begin < 0 for _, begin, _ in aedat4._sound_packets(data, 0, -1)) == 1999
    assert len(data) / 2 < searched <= len(data)


def test_an_aedat4_that_dv_processing_does_not_come_back_from_gives_what_it_gave(test_data, monkeypatch):
    dv = Aedat4File._dv

    def hangs(self, stream):
        batches = dv(self, stream)
        if stream == "events":
            yield next(batches)
            yield next(batches)
            raise _DvError("dv-processing did not come back for 60 s: a packet is damaged")
        yield from batches

    monkeypatch.setattr(Aedat4File, "_dv", hangs)
    recording = open_recording(test_data / "recordings/raw/sample.aedat4")
    with pytest.warns(RecordingWarning, match="of its events the rest can't be read .dv-processing did not come back"):
        assert 1000 < len(events_of(recording.samples())) < 10_000


def test_readers_of_an_aedat4_end_with_those_who_asked(test_data, monkeypatch):
    """As where only a beginning is wanted."""
    started: list[subprocess.Popen] = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("subprocess.Popen", Popen)
    samples = open_recording(test_data / "recordings/raw/sample.aedat4").samples()
    next(samples)
    samples.close()
    assert len(started) >= 2 and all(process.poll() is not None for process in started)


# Each opening of an AEDAT 4 starts processes, and damage that can be decompressed may take long.
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "davis.aedat4"])
def test_damaged_files_never_do_more_than_raise(name, written):
    """Bytes turned over at random: events, or one of our errors."""
    path = written(name, make_events(60))
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    for _ in range(12):
        broken = data.copy()
        places = rng.integers(0, len(data), 6)
        broken[places] = rng.integers(0, 256, 6)
        path.write_bytes(broken.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordingWarning)
            try:
                recording = open_recording(path)
                for sample in recording.samples():
                    if isinstance(sample, EventChunk):
                        assert int(sample.events.x.max()) < recording.width
                        assert int(sample.events.y.max()) < recording.height
            except EventSam3dError as error:
                assert error.reason != "error"


def test_times_that_begin_again_are_kept_and_said(tmp_path):
    events = make_events(100)
    events = Events(5_000_000 + 10 * (events.t - 5_000_000), events.x, events.y, events.p)
    thrice = Events(*(np.tile(getattr(events, name), 3) for name in "txyp"))
    recording = open_recording(write_dat(tmp_path / "a.dat", thrice))
    with pytest.warns(RecordingWarning, match="run backwards, at 2 places, the first from 5") as said:
        assert_equal(events_of(recording.samples()), thrice)
    assert len(said) == 1


@pytest.mark.parametrize("name", ["a.dat", "a.aedat"])
def test_blocks_of_which_all_events_are_outside_the_sensor(tmp_path, monkeypatch, name):
    """Few enough to be no damage: they are left out like others."""
    monkeypatch.setattr("event_sam3d_ros.recordings.prophesee.BLOCK_BYTES", 8)
    monkeypatch.setattr("event_sam3d_ros.recordings.aedat2.BLOCK_BYTES", 8)
    events = make_events(20)
    if name == "a.dat":
        path = write_dat(tmp_path / name, events, f"% Height {HEIGHT}\n% Version 2\n% Width 300\n")
        inside = events.x < 300
    else:
        path = write_aedat2(tmp_path / name, events, "#!AER-DAT2.0\r\n# AEChip: x.Davis240C\r\n")
        inside = (events.x >= WIDTH - 240) & (events.y >= HEIGHT - 180)
    with pytest.warns(RecordingWarning, match=f"has {20 - np.count_nonzero(inside)} events? outside"):
        assert len(events_of(open_recording(path).samples())) == np.count_nonzero(inside)


def test_small_disorder_is_sorted(tmp_path):
    events = make_events(400)
    order = np.arange(400)
    order[100:120] = order[100:120][::-1]
    recording = open_recording(write_dat(tmp_path / "a.dat", events[order]))
    assert np.all(np.diff(events_of(recording.samples()).t) >= 0)
    assert summarize(recording).events == 400


def test_small_disorder_is_sorted_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("event_sam3d_ros.recordings.prophesee.BLOCK_BYTES", 8 * 10)
    events = make_events(400)
    late = Events(events.t + 41_000 * (np.arange(400) % 10 == 9), events.x, events.y, events.p)  # EVT3's bit noise
    found = events_of(open_recording(write_dat(tmp_path / "a.dat", late)).samples())
    np.testing.assert_array_equal(found.t, np.sort(late.t))


def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path):
    events = make_events()
    header = f"% Height {HEIGHT}\n% Version 2\n% Width 300\n"
    recording = open_recording(write_dat(tmp_path / "a.dat", events, header))
    outside = int(np.count_nonzero(events.x >= 300))
    with pytest.warns(RecordingWarning, match=f"{outside} events outside 300x260"):
        assert_equal(events_of(recording.samples()), events[events.x < 300])
    recording = open_recording(write_dat(tmp_path / "b.dat", events, header.replace("300", "30")))
    with pytest.raises(RecordingError, match="outside 30x260") as error:
        list(recording.samples())
    assert error.value.reason == "corrupt_recording"


@pytest.mark.parametrize(
    ("name", "content", "reason", "sentence"),
    [
        ("a.raw", b"% format EVT9;width=2;height=2\n% end\n", "unknown_encoding", "'evt9'"),
        ("a.raw", b"% evt 7.0\n", "unknown_encoding", "'7.0'"),
        ("a.raw", b"\0\0\0\0", "unknown_encoding", "does not say the encoding"),
        ("a.dat", b"% Version 2\n\x28\x18", "unknown_encoding", "type and size 0x2818"),
        ("a.dat", b"% Version 2\n", "broken_recording", "a.dat is cut: it ends with its header"),
        ("a.es", b"Event Stream\2\0\0\2\1\0\1\0", "unknown_encoding", "version 2, type ATIS"),
        ("a.es", b"Event Stream\2\0", "broken_recording", "inside its header"),
        ("a.aedat", b"#!AER-DAT3.1\r\n", "unknown_encoding", "AER-DAT3.1; AEDAT 2.0 and 4.0"),
        ("a.aedat4", b"#!AER-DAT4.0\r\n\0\0\0\0", "broken_recording", "can't be read as an AEDAT 4"),
        ("a.h5", b"\x89HDF\r\n\x1a\nabc", "broken_recording", "damaged or cut"),
        ("a.npz", b"PK\3\4abc", "broken_recording", "can't be read as a numpy archive"),
        ("a.bag", b"#ROSBAG V2.0\nabc", "broken_recording", "can't be read as a ROS 1 bag"),
        ("a.bin", b"\x89MCAP0\r\nabc", "unknown_recording", r"name it \*.mcap"),
        ("a.txt", b"0.1 1 2 1\n0.2 x 2 1\n", "bad_columns", "a.txt:2: expected 't x y p'"),
        ("a.txt", b"0.1 1 2 1\n0.2 1 2 3\n", "bad_event", "a.txt:2: the polarity"),
        ("a.txt", b"0.1 1 2 1\n0.2 -1 2 1\n", "bad_event", "a.txt:2: the pixel"),
        ("a.bin", b"\xff\xfe\x00", "unknown_recording", "of no kind that can be read"),
        ("a.raw", b"", "broken_recording", "a.raw is empty"),
        ("a.raw", b"% format EVT4;width=2;height=2\n% end\n", "unknown_encoding", "'evt4'"),
        ("a.raw", b"% format EVT3;width=99999;height=2\n% end\n", "bad_geometry", "99999x2 pixels; sides up to"),
        ("a.raw", b"% evt 3.0\n% geometry 1x" + b"9" * 3000, "bad_geometry", "sides up to 8192"),
        ("a.txt", b"0.1 1 60000 1\n", "bad_geometry", "events reach over 2x60001 pixels"),
        ("a.txt", b"1e300 1 2 1\n", "bad_event", "a.txt:1: the time is no number, or more"),
        ("a.txt", b"0.1 1 2 1\n\n0.2 1 2 1\n", "bad_columns", "a.txt:2: expected 't x y p', found ''"),
        ("a.aedat", b"#!AER-DAT2.0\r\n# AEChip: x.ATIS304\r\n", "unknown_encoding", "chip ATIS304; davis240"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path, name, content, reason, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=sentence) as error:
        list(open_recording(tmp_path / name).samples())
    assert error.value.reason == reason


def test_archives_and_hdf5_without_events_name_what_they_hold(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2), voxels=np.zeros(2))
    with pytest.raises(RecordingError, match="holds voxels, x; expected the arrays x, y, t and p"):
        open_recording(tmp_path / "a.npz")
    columns = {"x": np.zeros(2), "y": np.zeros(2), "p": np.zeros(2)}
    np.savez(tmp_path / "b.npz", t=np.zeros(3), **columns)
    with pytest.raises(RecordingError, match="t 3, x 2, y 2, p 2"):
        open_recording(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", t=np.array([0.5, np.nan]), **columns)
    with pytest.raises(RecordingError, match="bad time"):
        open_recording(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", t=np.array(["a", "b"]), **columns)
    with pytest.raises(RecordingError, match="not a column of numbers"):
        open_recording(tmp_path / "d.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images/left"] = np.zeros(2)
    with pytest.raises(RecordingError, match="holds images, images/left; expected CD/events"):
        open_recording(tmp_path / "a.h5")


def test_a_numpy_header_that_breaks_off_is_one_error(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,"  # in it numpy goes on to look for tokens
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in "txyp":
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(24))
    with pytest.raises(RecordingError, match="numpy archive"):
        open_recording(tmp_path / "a.npz")


Z = np.zeros(3, np.uint16)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"x": np.array([1.0, np.nan, 2.0])}, "bad pixel"),
        ({"y": np.array([0.5, 1.0, 2.0])}, "bad pixel"),
        ({"x": np.array([-1, 0, 0])}, "bad pixel"),
        ({"p": np.array([65537, 0, 1], np.uint32)}, "bad polarity"),
        ({"p": np.array([1.5, 0, 1])}, "bad polarity"),
        ({"p": np.array([2, 0, 1], np.uint8)}, "bad polarity"),
        ({"t": np.array([1e300, 2e300, 3e300])}, "bad time"),
        ({"t": np.array([1e300, 2e300, 0.5])}, "bad time"),
        ({"t": np.array([1 << 63, 1, 2], np.uint64)}, "bad time"),
        ({"t": np.array([-(1 << 63), 1, 2])}, "bad time"),
    ],
)
def test_numbers_that_no_event_has_are_named(tmp_path, changed, what):
    np.savez(tmp_path / "a.npz", **({"t": np.arange(3), "x": Z, "y": Z, "p": Z} | changed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's doubts are no answer
        with pytest.raises(RecordingError, match=what) as error:
            list(open_recording(tmp_path / "a.npz").samples())
    assert error.value.reason == "bad_event"


def _fill(file: h5py.File, **changed: object) -> None:
    for name in "txyp":
        file[f"events/{name}"] = Z
    for name, value in changed.items():
        if name in file:
            del file[name]
        file[name] = value


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (lambda file: file.create_group("CD/events"), "CD/events is a group"),
        (lambda file: file.create_dataset("CD/events", data=np.zeros((3, 4))), "no fields t, x, y and p"),
        (lambda file: file.create_dataset("CD/events", data=5), "no fields t, x, y and p"),
        (lambda file: [file.create_group(f"events/{name}") for name in "txyp"], "events/t is a group"),
        (lambda file: _fill(file, **{"events/t": np.arange(5)}), "not columns of one length: t .5,., x .3,."),
        (lambda file: _fill(file, **{"events/x": np.zeros((3, 2))}), "not columns of one length"),
        (lambda file: _fill(file, packets=3), "damaged or cut"),
        (lambda file: _fill(file, t_offset=np.arange(3)), "damaged or cut"),
        (lambda file: (_fill(file), file.attrs.update({"width": "abc", "height": 3})), "'abc'"),
        (lambda file: file.create_dataset("davis/left/events", data=np.zeros(5)), "not four columns"),
        (
            lambda file: _fill(file, **{"davis/left/events": np.zeros((5, 4)), "davis/left/image_raw": Z}),
            None,  # the events of DSEC's layout are taken
        ),
    ],
)
def test_an_hdf5_of_other_shapes_is_one_error(tmp_path, fill, sentence):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file)
    if sentence is None:
        assert summarize(open_recording(tmp_path / "a.h5")).events == 3
        return
    with pytest.raises(RecordingError, match=sentence) as error:
        list(open_recording(tmp_path / "a.h5").samples())
    assert str(tmp_path / "a.h5") in str(error.value)


@pytest.mark.parametrize("ends", [[3, 900], [2, 1], [3, 3]])
def test_packets_of_an_hdf5_that_lie_outside_its_events_are_one_error(tmp_path, ends):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        _fill(file)
        file.attrs.update({"width": 5, "height": 3})
        table = file.create_group("packets")
        table.attrs["frame_id"] = ""
        table["end"], table["stamp_ns"], table["receive_ns"] = ends, [1, 2], [1, 2]
    with pytest.raises(RecordingError, match="packet 1 has the events from"):
        list(open_recording(tmp_path / "a.h5").samples())


def test_unknown_words_of_a_raw_file_are_counted(tmp_path):
    events = make_events(200)
    path = write_raw(tmp_path / "a.raw", events)
    path.write_bytes(path.read_bytes() + bytes.fromhex("00b0 00c0 0090"))  # the last is padding of some cameras
    with pytest.warns(RecordingWarning, match="has 2 words of no type that evt3 defines: they were left out"):
        assert_equal(events_of(open_recording(path).samples()), events)


def test_what_is_neither_file_nor_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.raw")
    with pytest.raises(RecordingError, match="neither a file nor a folder"):
        open_recording(tmp_path / "a.raw")


def test_a_missing_filter_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # blosc
        space = h5py.h5s.create_simple((4,))
        group = file.create_group("events")
        for name in "txyp":
            h5py.h5d.create(group.id, name.encode(), h5py.h5t.NATIVE_UINT16, space, properties)
    with pytest.raises(RecordingError, match="pip install hdf5plugin") as error:
        list(open_recording(tmp_path / "a.h5").samples())
    assert error.value.reason == "missing_package"


@pytest.mark.parametrize("write", [write_raw, write_dat, write_npz])
def test_a_large_file_is_read_in_little_memory(tmp_path, write):
    """1 000 000 events are 13 MB as arrays."""
    count = 1_000_000
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 2_000_000, count)) + 5_000_000
    x, y = (rng.integers(0, size, count).astype(np.uint16) for size in (WIDTH, HEIGHT))
    path = write(tmp_path / ("a.npz" if write is write_npz else "a.dat"), Events(t, x, y, np.zeros(count, np.uint8)))
    next(open_recording(path).samples())  # compiles
    tracemalloc.start()
    assert sum(len(chunk.events) for chunk in open_recording(path).samples()) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * count


# --- recordings that others made -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        (
            "raw/evt2.raw",
            {"events": 521252, "width": 640, "height": 480, "geometry_inferred": True, "encoding": "evt2"},
        ),
        ("raw/dvs.es", {"events": 473225, "width": 320, "height": 240, "geometry_inferred": False}),
        ("raw/sample_ncars.dat", {"events": 2009, "geometry_inferred": True}),
        ("raw/sample.aedat4", {"events": 111954, "imu": 475, "width": 320, "height": 240}),
        ("ecpy_test1/test_events_1.bag", {"events": 343474, "polarity_on": 125183, "t_first_us": 7139845}),
        ("ecpy_test2", {"events": 571266, "polarity_on": 211043, "encoding": "libcaer_cmp", "width": 346}),
        ("ecc_evt3_trigger", {"events": 82469, "t_first_us": 14224870, "t_last_us": 15476187, "triggers": 2}),
        ("ecc_libcaer_rollover", {"t_first_us": 1702309120762236, "t_last_us": 1702309122762222}),
        ("ecd_slider_depth", {"events": 50_000, "frames": 87, "masks": 5, "poses": 339, "t_first_us": 3811}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*libcaer_cmp have wrong rows")
def test_known_truth(test_data, name, truth):
    found = summarize(open_recording(test_data / "recordings" / name)).as_dict()
    assert {key: found[key] for key in truth} == truth


def test_text_and_numbers_agree(tmp_path):
    events = make_events()
    assert_equal(events_of(open_recording(write_text(tmp_path / "a.txt", events)).samples()), events)
    assert open_recording(tmp_path / "a.txt").time_offset_ns == 0
    early = Events(events.t - 5_000_000, events.x, events.y, events.p)
    recording = open_recording(write_text(tmp_path / "b.txt", early))
    assert recording.start_ns >= NS and recording.time_offset_ns == NS
