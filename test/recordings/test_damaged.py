"""Recordings that are damaged in one place: the rest is read, and what is lost is counted and said once."""

from __future__ import annotations

import json
import struct
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

sys.path.insert(0, str(Path(__file__).parent))
from conftest import (  # noqa: E402
    HEIGHT,
    WIDTH,
    assert_equal,
    events_of,
    write_dat,
    write_prophesee_hdf5,
    write_raw,
    write_rosbag1,
)
from test_recordings import make_samples as make_all_kinds  # noqa: E402
from test_recordings import write_packets  # noqa: E402

from event_sam3d_ros.cli import main  # noqa: E402
from event_sam3d_ros.errors import RecordingError, RecordingWarning  # noqa: E402
from event_sam3d_ros.events.codecs import make_encoder  # noqa: E402
from event_sam3d_ros.events.events import Events, Triggers  # noqa: E402
from event_sam3d_ros.recordings.files import EventChunk, TriggerChunk, open_recording, write_rosbag2  # noqa: E402
from event_sam3d_ros.recordings.hdf5_writer import write_hdf5  # noqa: E402
from event_sam3d_ros.recordings.mcap_reader import MCAP_MAGIC, _records  # noqa: E402

SECOND = 1_000_000_000


def make_events(count: int, span_us: int = 200_000) -> Events:
    """Sorted events in random order of place, from 5 s on."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, span_us, count)) + 5_000_000
    x, y = rng.integers(0, WIDTH, count).astype(np.uint16), rng.integers(0, HEIGHT, count).astype(np.uint16)
    return Events(t, x, y, rng.integers(0, 2, count).astype(np.uint8))


def read(path: Path) -> tuple[Events, dict[str, int], list[str]]:
    """Events, losses and warnings."""
    recording = open_recording(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        events = events_of(list(recording.samples()))
    return events, recording.losses.counts, [str(one.message) for one in said]


def rows(events: Events) -> set[tuple[int, ...]]:
    return set(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["evt2", "evt21", "evt3"])
@pytest.mark.parametrize("header", [True, False])
def test_a_raw_file_goes_on_behind_damage(tmp_path: Path, encoding: str, header: bool) -> None:
    """Also where the size is inferred. Times behind it are right: those in the damage do not count."""
    events = make_events(60_000)
    path = write_raw(
        tmp_path / "a.raw", events, encoding, None if header else f"% evt {encoding[3]}.{encoding[4:] or 0}\n"
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 8 * 8
    for seed in range(3):
        data[middle : middle + 2048] = np.random.default_rng(seed).bytes(2048)
        path.write_bytes(data)
        found, losses, said = read(path)
        assert len(rows(events) - rows(found)) < 2500 and len(rows(found) - rows(events)) < 100
        assert found.t[0] == events.t[0] and found.t[-1] == events.t[-1]
        assert 3 <= losses["corrupt_packets"] <= 6
        (sentence, *_) = said
        assert str(path) in sentence and "is damaged at byte" in sentence
        assert f"the first of {losses['corrupt_packets']} corrupt event packets: they were left out" in sentence


@pytest.mark.parametrize("header", [f"% Height {HEIGHT}\n% Version 2\n% Width {WIDTH}\n", "% Version 2\n"])
def test_a_dat_file_goes_on_behind_damage(tmp_path: Path, header: str) -> None:
    events = make_events(60_000)
    path = write_dat(tmp_path / "a.dat", events, header)
    data = bytearray(path.read_bytes())
    for seed in range(3):
        data[200_000:202_048] = np.random.default_rng(seed).bytes(2048)
        path.write_bytes(data)
        found, losses, said = read(path)
        assert len(rows(events) - rows(found)) <= 320 and len(rows(found) - rows(events)) < 5
        assert found.t[-1] == events.t[-1]
        assert 3 <= losses["corrupt_packets"] <= 6 and "is damaged at byte" in said[0]


@pytest.mark.parametrize("bit", [16, 20, 27])
def test_a_damaged_time_high_of_evt2_costs_its_events(tmp_path: Path, bit: int) -> None:
    events = make_events(20_000)
    path = write_raw(tmp_path / "a.raw", events, "evt2")
    data = path.read_bytes()
    begin = data.index(b"% end\n") + 6
    words = np.frombuffer(data, "<u4", offset=begin).copy()
    highs = np.flatnonzero(words >> 28 == 8)[[500, 1500]]
    words[highs] ^= 1 << bit
    path.write_bytes(data[:begin] + words.tobytes())
    found, losses, said = read(path)
    assert rows(found) <= rows(events) and 0 < len(events) - len(found) < 50
    assert losses["corrupt_packets"] == 2 and len(said) == 1
    assert "a.raw is damaged: its times jump from 50" in said[0] and "the first of 2 corrupt event packets" in said[0]


@pytest.mark.parametrize("place", [0, 1, 1000, 4095, 4096, 4097, 19_998])
def test_one_time_that_is_damaged_costs_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Unless it is the first of the file, or the last of a block: what comes behind it is not known then."""
    monkeypatch.setattr("event_sam3d_ros.recordings.npz.BLOCK_ROWS", 4096)
    events = make_events(20_000)
    damaged = replace(events, t=events.t + np.where(np.arange(20_000) == place, 1 << 32, 0))
    np.savez(tmp_path / "a.npz", t=damaged.t, x=events.x, y=events.y, p=events.p)
    found, losses, _ = read(tmp_path / "a.npz")
    is_kept = place in (0, 4095)
    assert (len(found), losses["corrupt_packets"]) == ((20_000, 0) if is_kept else (19_999, 1))
    assert_equal(found, damaged if is_kept else events[np.arange(20_000) != place])


def test_short_bursts_between_long_pauses_are_kept(tmp_path: Path) -> None:
    """Also where the camera was started again on the way."""
    once = (np.arange(60)[:, None] * 2_000_000 + np.arange(100) * 300 + 300_000).ravel()
    t = np.concatenate([once, once])
    events = replace(make_events(len(t)), t=t)
    np.savez(tmp_path / "a.npz", t=events.t, x=events.x, y=events.y, p=events.p)
    found, losses, _ = read(tmp_path / "a.npz")
    assert_equal(found, events)
    assert not any(losses.values())


@pytest.mark.filterwarnings("ignore::event_sam3d_ros.errors.RecordingWarning")
@pytest.mark.parametrize("is_sorted", [True, False])
def test_each_jump_of_the_times_costs_the_same(tmp_path: Path, is_sorted: bool) -> None:
    """In calls of functions, for seconds prove little."""
    calls = []
    for count in (2, 400, 1600):  # the first one imports
        t = np.random.default_rng(0).integers(0, 10**12, count)
        zeros = np.zeros(count, np.uint16)
        np.savez(tmp_path / "a.npz", t=np.sort(t) if is_sorted else t, x=zeros, y=zeros, p=zeros)
        recording = open_recording(tmp_path / "a.npz")
        profile: list[str] = []
        sys.setprofile(lambda frame, event, argument, to=profile: to.append(event))  # type: ignore[misc]
        try:
            for _ in recording.samples():
                pass
        finally:
            sys.setprofile(None)
        calls.append(len(profile))
    assert calls[2] < 6 * calls[1]


def test_samples_come_in_order_behind_a_pause(tmp_path: Path) -> None:
    t = np.concatenate([np.arange(0, 1_000_000, 100), np.arange(5_000_000, 5_050_000, 100)])
    edges = np.arange(400)
    triggers = Triggers(edges * 100_000, np.zeros(400, np.uint8), (edges % 2).astype(np.uint8))
    payload = make_encoder("evt2", WIDTH, HEIGHT).encode(replace(make_events(len(t)), t=t), triggers)[0]
    header = f"% format EVT2;height={HEIGHT};width={WIDTH}\n% end\n"
    (tmp_path / "a.raw").write_bytes(header.encode() + payload)
    samples = list(open_recording(tmp_path / "a.raw").samples())
    times = [sample.receive_ns for sample in samples]
    assert times == sorted(times) and len(events_of(samples)) == len(t)


@pytest.mark.parametrize("step_us", [2_000_000, -3_000_000])
@pytest.mark.parametrize("place", [50, 10_000, 19_990])
def test_clocks_that_jump_and_do_not_come_back_are_kept(tmp_path: Path, step_us: int, place: int) -> None:
    events = make_events(20_000)
    events = replace(events, t=events.t + np.where(np.arange(20_000) >= place, step_us, 0))
    np.savez(tmp_path / "a.npz", t=events.t, x=events.x, y=events.y, p=events.p)
    found, losses, _ = read(tmp_path / "a.npz")
    assert_equal(found, events)
    assert not any(losses.values())


def test_a_piece_at_other_times_that_lasts_is_kept(tmp_path: Path) -> None:
    events = make_events(20_000)
    number = np.arange(20_000)
    events = replace(events, t=events.t + np.where((5000 <= number) & (number < 17_000), 10_000_000, 0))  # 0.12 s
    np.savez(tmp_path / "a.npz", t=events.t, x=events.x, y=events.y, p=events.p)
    found, losses, _ = read(tmp_path / "a.npz")
    assert_equal(found, events)
    assert not any(losses.values())


def test_a_chunk_of_a_prophesee_hdf5_is_left_out(tmp_path: Path) -> None:
    events = make_events(1280)
    path = write_prophesee_hdf5(tmp_path / "a.hdf5", events)
    with h5py.File(path, "r+") as file:
        file["CD/events"].id.write_direct_chunk((256,), bytes(range(40)))
    found, losses, said = read(path)
    keep = np.ones(1280, bool)
    keep[256:384] = False
    assert_equal(found, events[keep])
    assert losses["corrupt_packets"] == 1 and len(said) == 1 and "from event 256 on" in said[0]


@pytest.mark.parametrize("kind", ["plain", "packets"])
def test_a_chunk_of_a_compressed_hdf5_is_left_out(tmp_path: Path, kind: str) -> None:
    events = make_events(300_000)
    path = tmp_path / "a.h5"
    if kind == "packets":
        parts = [events[begin : begin + 1000] for begin in range(0, 300_000, 1000)]
        stamps = [int(part.t[0]) * 1000 for part in parts]
        write_hdf5(path, [EventChunk(s, s, "", WIDTH, HEIGHT, p) for s, p in zip(stamps, parts, strict=True)])
    else:
        with h5py.File(path, "w") as file:
            for name in "txyp":
                options = {"chunks": (1 << 15,), "compression": "gzip"}
                file.create_dataset(f"events/{name}", data=getattr(events, name), **options)
    with h5py.File(path, "r+") as file:
        file["events/t"].id.write_direct_chunk((1 << 16,), b"damage" * 100)
    found, losses, said = read(path)
    assert rows(found) < rows(events) and 300_000 - len(found) <= 1 << 16
    if kind == "packets":  # no more is lost than the packets that reach into the chunk
        assert len(found) == 300_000 - 34_000 and losses["corrupt_packets"] == 34
    assert len(said) == 1 and "is damaged, from event 6" in said[0]


@pytest.mark.parametrize("header", [f"% format EVT2;height={HEIGHT};width={WIDTH}\n", "% evt 2.0\n"])
@pytest.mark.parametrize("begin", [0, 1 << 18])
def test_a_raw_file_with_much_damage_is_read(tmp_path: Path, header: str, begin: int) -> None:
    """More than a thousand pieces of it, also at the begin, before anything is understood."""
    events = make_events(300_000)
    path = write_raw(tmp_path / "a.raw", events, "evt2", header)
    data = path.read_bytes()
    place = len(header) + begin
    path.write_bytes(data[:place] + np.random.default_rng(0).bytes(600_000 // 4 * 4) + data[place:])
    found, losses, said = read(path)
    assert len(rows(events) - rows(found)) < 1000 and losses["corrupt_packets"] > 1000
    assert len(said) == 1 + (losses["unknown_words"] > 0) + (losses["out_of_range_events"] > 0)


def test_a_raw_file_of_triggers_goes_on_behind_damage(tmp_path: Path) -> None:
    edges = np.arange(20_000)
    triggers = Triggers(edges * 100, np.zeros(20_000, np.uint8), (edges % 2).astype(np.uint8))
    payload = make_encoder("evt2", WIDTH, HEIGHT).encode(Events.empty(), triggers)[0]
    header = f"% format EVT2;height={HEIGHT};width={WIDTH}\n% end\n".encode()
    damage = np.random.default_rng(0).bytes(2048)
    (tmp_path / "a.raw").write_bytes(header + payload[:40_960] + damage + payload[40_960 + 2048 :])
    recording = open_recording(tmp_path / "a.raw")
    with pytest.warns(RecordingWarning, match="is damaged at byte"):
        count = sum(len(sample.triggers) for sample in recording.samples() if isinstance(sample, TriggerChunk))
    assert 19_000 < count < 20_000 and recording.losses.counts["corrupt_packets"] > 0


def test_a_file_of_which_nothing_can_be_read_is_one_error(tmp_path: Path) -> None:
    for name, header in (("a.raw", b"% evt 3.0\n% geometry 640x480\n"), ("b.raw", b"% evt 3.0\n")):
        (tmp_path / name).write_bytes(header + np.random.default_rng(0).bytes(1 << 20))
        with pytest.raises(RecordingError, match=f"{name} is damaged at byte .* or is not evt3") as error:
            list(open_recording(tmp_path / name).samples())
        assert error.value.reason == "corrupt_recording"
    path = write_prophesee_hdf5(tmp_path / "a.hdf5", make_events(100))
    with h5py.File(path, "r+") as file:
        file["CD/events"].id.write_direct_chunk((0,), bytes(range(40)))
    with pytest.raises(RecordingError, match="is damaged, from event 0 on"):
        list(open_recording(path).samples())


# --- bags ------------------------------------------------------------------------------------------------------------


def packets(count: int = 12) -> tuple[list[dict[str, Any]], list[Events]]:
    """Packets of EVT3 that depend on each other for the upper part of their times, and their events."""
    events = make_events(100 * count)
    encoder = make_encoder("evt3", WIDTH, HEIGHT)
    parts = [events[begin : begin + 100] for begin in range(0, 100 * count, 100)]
    size = {"width": WIDTH, "height": HEIGHT}
    return [{"payload": encoder.encode(part)[0], **size} for part in parts], parts


DAMAGE: dict[str, dict[str, Any]] = {
    "payload": {"payload": b"abc"},
    "words": {"payload": bytes.fromhex("00b0 00c0") * 50},
    "size": {"width": 99999},
    "other size": {"height": HEIGHT + 64},
    "encoding": {"encoding": "evt9"},
    "other encoding": {"encoding": "evt2"},
    "number": {"seq": 1 << 60},
    "byte order": {"is_bigendian": True},
}


@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_bag_goes_on_behind_a_corrupt_packet(tmp_path: Path, what: str, place: int) -> None:
    made, parts = packets()
    made[place] |= DAMAGE[what]
    write_packets(tmp_path / "bag", made)
    if place == 0 and what in ("other size", "number"):
        return  # a stream that begins so can't be told from one that begins anew
    if place == 11 and what in ("other size", "number"):
        assert rows(read(tmp_path / "bag")[0]) >= rows(events_of_parts(parts, place))
        return
    found, losses, said = read(tmp_path / "bag")
    assert_equal(found, events_of_parts(parts, place))
    assert (losses["corrupt_packets"], losses["lost_packets"]) == (1, 0)
    assert len(said) == 1 and f"bag: /event_camera/events at 1.{place:03d}000 s: " in said[0]
    assert "1 corrupt event packet: it was left out" in said[0]


def events_of_parts(parts: list[Events], without: int) -> Events:
    kept = [part for number, part in enumerate(parts) if number != without]
    return Events(*(np.concatenate([getattr(part, name) for part in kept]) for name in "txyp"))


def test_a_bag_whose_packets_all_make_no_sense_is_one_error(tmp_path: Path) -> None:
    for name, change in (("cut", {"payload": b"abc"}), ("unknown", {"encoding": "evt4"}), ("size", {"width": 0})):
        write_packets(tmp_path / name, [packet | change for packet in packets()[0]])
        with pytest.raises(RecordingError, match=f"{name}: /event_camera/events at 1.000000 s: "):
            recording = open_recording(tmp_path / name)
            list(recording.samples())
            assert recording.width


def test_a_stream_of_another_size_that_lasts_is_read(tmp_path: Path) -> None:
    made, parts = packets()
    other, more = packets()
    write_packets(tmp_path / "bag", made + [packet | {"height": HEIGHT + 64} for packet in other])
    found, losses, _ = read(tmp_path / "bag")
    assert len(found) == 2400 and losses["corrupt_packets"] == 0


def stamped_packets(count: int = 12) -> tuple[list[dict[str, Any]], list[Events]]:
    """Packets whose stamps go with their events' times, which are whole in each of them."""
    made, parts = packets(count)
    parts = [replace(part, t=part.t + 10_000_000) for part in parts]
    for packet, part in zip(made, parts, strict=True):
        packet["payload"], packet["time_base"] = make_encoder("mono", WIDTH, HEIGHT).encode(part)
        packet |= {"encoding": "mono", "stamp_ns": int(part.t[0]) * 1000 + 100 * SECOND}
    return made, parts


@pytest.mark.parametrize("place", [1, 5, 11])
@pytest.mark.parametrize("moved_us", [16_777_216, -4_000_000])
def test_a_packet_whose_times_do_not_fit_its_stamp_is_left_out(tmp_path: Path, place: int, moved_us: int) -> None:
    made, parts = stamped_packets()
    made[place]["time_base"] += moved_us * 1000
    write_packets(tmp_path / "bag", made)
    found, losses, said = read(tmp_path / "bag")
    assert_equal(found, events_of_parts(parts, place))
    assert (losses["corrupt_packets"], losses["lost_packets"]) == (1, 0)
    assert len(said) == 1 and f"at 1.{place:03d}000 s: sensor time and stamp of an event packet have moved" in said[0]


def test_neighbours_that_are_damaged_alike_but_do_not_agree_are_left_out(tmp_path: Path) -> None:
    made, parts = stamped_packets()
    made[4]["time_base"] += 16 * SECOND
    made[5]["time_base"] += 32 * SECOND
    write_packets(tmp_path / "bag", made)
    found, losses, _ = read(tmp_path / "bag")
    assert_equal(found, events_of_parts([part for part in parts if part is not parts[4]], 4))
    assert losses["corrupt_packets"] == 2


def test_a_damaged_stamp_costs_its_packet_only(tmp_path: Path) -> None:
    made, parts = stamped_packets()
    made[5]["stamp_ns"] += 1 << 40
    made[8]["stamp_ns"] -= 1 << 32
    write_packets(tmp_path / "bag", made)
    found, losses, _ = read(tmp_path / "bag")
    assert_equal(found, events_of_parts([part for part in parts if part is not parts[5]], 7))
    assert losses["corrupt_packets"] == 2


def test_a_clock_that_begins_again_is_read_on(tmp_path: Path) -> None:
    made, parts = stamped_packets()
    for packet in made[6:]:
        packet["time_base"] -= 3 * SECOND
    write_packets(tmp_path / "bag", made)
    found, losses, said = read(tmp_path / "bag")
    assert len(found) == 1200 and not any(losses.values())
    assert len(said) == 1 and "begins anew once, and the sensor's clock with it (sensor time and stamp" in said[0]


def test_unknown_words_of_a_bag_are_counted(tmp_path: Path) -> None:
    made, parts = packets()
    made[3]["payload"] += bytes.fromhex("00b0 00c0")
    write_packets(tmp_path / "bag", made)
    found, losses, said = read(tmp_path / "bag")
    assert len(found) == 1200 and losses["unknown_words"] == 2
    assert said == [
        f"{tmp_path / 'bag'}: /event_camera/events has 2 words of no type that its encoding defines: they were left out"
    ]


def test_a_chunk_of_an_mcap_is_left_out(tmp_path: Path) -> None:
    events = make_events(900_000)
    parts = [events[begin : begin + 10_000] for begin in range(0, 900_000, 10_000)]
    stamps = [int(part.t[0]) * 1000 for part in parts]
    write_rosbag2(
        tmp_path / "bag", [EventChunk(s, s, "", WIDTH, HEIGHT, p) for s, p in zip(stamps, parts, strict=True)]
    )
    file = tmp_path / "bag" / "bag.mcap"
    data = bytearray(file.read_bytes())
    begin = data.index(bytes.fromhex("28b52ffd"), len(data) // 2)  # zstd's mark
    data[begin : begin + 64] = bytes(64)
    file.write_bytes(data)
    found, losses, said = read(tmp_path / "bag")
    lost = losses["missing_messages"]
    assert 10 < lost < 60 and len(found) == 10_000 * (90 - lost) and rows(found) < rows(events)
    assert losses["lost_packets"] == lost  # their numbers are missing, too
    assert f"announces 90 messages, but {90 - lost} can be read (" in said[0]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("at", [0.45, 0.6])
def test_an_mcap_that_lacks_bytes_in_the_middle_is_read_without_its_index(
    tmp_path: Path, compressed: bool, at: float
) -> None:
    """All chunks but the one that lacks them, and without compression all messages but one or two."""
    events = make_events(900_000)
    parts = [events[begin : begin + 10_000] for begin in range(0, 900_000, 10_000)]
    if compressed:
        stamps = [int(part.t[0]) * 1000 for part in parts]
        write_rosbag2(
            tmp_path / "bag", [EventChunk(s, s, "", WIDTH, HEIGHT, p) for s, p in zip(stamps, parts, strict=True)]
        )
    else:
        encoder = make_encoder("mono", WIDTH, HEIGHT)
        coded = [encoder.encode(part) for part in parts]
        size = {"width": WIDTH, "height": HEIGHT, "encoding": "mono"}
        write_packets(tmp_path / "bag", [{"payload": payload, "time_base": base, **size} for payload, base in coded])
    file = tmp_path / "bag" / "bag.mcap"
    data = file.read_bytes()
    middle = int(len(data) * at)
    file.write_bytes(data[:middle] + data[middle + 3001 :])
    found, losses, said = read(file)
    assert rows(found) < rows(events) and len(found) >= (500_000 if compressed else 880_000)
    assert losses["lost_packets"] + losses["corrupt_packets"] == 90 - len(found) // 10_000
    assert said[0] == f"{file} is damaged; what is whole was read"


def test_chunks_that_are_written_have_the_checksum_of_their_content(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "bag", make_all_kinds())
    data = bytearray((tmp_path / "bag" / "bag.mcap").read_bytes())
    chunk = 8 + 9 + struct.unpack_from("<Q", data, 9)[0]  # behind the file's mark and header
    (checksum,) = struct.unpack_from("<I", data, chunk + 9 + 24)
    begin = data.index(bytes.fromhex("28b52ffd"))
    (size,) = struct.unpack_from("<Q", data, begin - 8)
    assert checksum == zlib.crc32(DECOMPRESSORS["zstd"](bytes(data[begin : begin + size]), 0)) != 0
    data[chunk + 9 + 24] ^= 1
    (tmp_path / "bag" / "bag.mcap").write_bytes(data)
    with pytest.raises(RecordingError, match="Chunk checksum mismatch"):
        list(open_recording(tmp_path / "bag").samples())


def test_sizes_in_a_damaged_mcap_take_no_memory(tmp_path: Path) -> None:
    write_packets(tmp_path / "bag", packets()[0])
    file = tmp_path / "bag" / "bag.mcap"
    data = file.read_bytes()
    summary = struct.unpack_from("<Q", data, len(data) - 28)[0]
    file.write_bytes(data[: summary + 1] + struct.pack("<Q", 1 << 60) + data[summary + 9 :])
    found, _, said = read(file)
    assert len(found) == 1200 and said[0] == f"{file} is damaged; what is whole was read"


def test_a_chunk_shorter_than_its_head_at_the_end_of_an_mcap_is_none(tmp_path: Path) -> None:
    events = make_events(500_000)
    parts = [events[begin : begin + 10_000] for begin in range(0, len(events), 10_000)]
    stamps = [int(part.t[0]) * 1000 for part in parts]
    write_rosbag2(
        tmp_path / "bag", [EventChunk(s, s, "", WIDTH, HEIGHT, p) for s, p in zip(stamps, parts, strict=True)]
    )
    file = tmp_path / "bag" / "bag.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    count = len(read(file)[0])
    file.write_bytes(data[: len(data) * 2 // 3] + struct.pack("<BQ", 6, 20) + bytes(20))
    assert len(read(file)[0]) == count > 100_000


def test_records_of_a_damaged_mcap_that_lie_in_one_another_are_not_all_given() -> None:
    """Else a small file would give very much."""
    size = 8 + 18 * 1000 + 64
    data = bytearray(MCAP_MAGIC)
    for _ in range(1000):
        data += struct.pack("<BQBQ", 3, 0, 4, size - 40 - len(data) - 18)
    data += b"\xff" * (size - len(data))
    found = list(_records(bytes(data), len(MCAP_MAGIC)))
    assert 0 < sum(end - begin for _, begin, end in found) <= 2 * size


def write_long_rosbag1(path: Path, compression: str = "bz2") -> Path:
    """300 messages of 1000 events in several chunks."""
    bag = Rosbag1Writer(path)
    bag.chunk_threshold = 1 << 18
    if compression:
        bag.set_compression(Rosbag1Writer.CompressionFormat[compression.upper()])
    with bag as writer:
        topic = writer.add_connection("/dvs/events", "dvs_msgs/msg/EventArray", msgdef="# none", md5sum=32 * "0")
        events = make_events(300_000)
        for begin in range(0, 300_000, 1000):
            part = events[begin : begin + 1000]
            table = np.empty(1000, [("x", "<u2"), ("y", "<u2"), ("sec", "<u4"), ("nsec", "<u4"), ("p", "u1")])
            table["x"], table["y"], table["p"] = part.x, part.y, part.p
            table["sec"], table["nsec"] = part.t // 1_000_000, part.t % 1_000_000 * 1000
            header = struct.pack("<IIII", 7, 5, 0, 3) + b"dvs" + struct.pack("<III", HEIGHT, WIDTH, 1000)
            writer.write(topic, int(part.t[-1]) * 1000, header + table.tobytes())
    return path


@pytest.mark.parametrize("compression", ["", "bz2", "lz4"])
@pytest.mark.parametrize("what", ["cut", "active", "removed", "index"])
def test_a_ros1_bag_is_read_without_its_index(tmp_path: Path, compression: str, what: str) -> None:
    """As a robot leaves it that lost its power, with an index that is not there yet; or damaged."""
    path = write_long_rosbag1(tmp_path / "a.bag", compression)
    data = path.read_bytes()
    place = data.index(b"index_pos=") + 10
    (index,) = struct.unpack_from("<Q", data, place)
    half = len(data) // 2
    if what == "active":
        data = data[:place] + bytes(8) + data[place + 8 : index]
    else:
        data = {"cut": data[:half], "removed": data[:half] + data[half + 3001 :], "index": data[: index + 5]}[what]
    path.write_bytes(data)
    found, _, said = read(path)
    least = {"cut": 100_000, "removed": 200_000 if compression else 290_000, "active": 300_000, "index": 300_000}[what]
    assert least <= len(found) <= 300_000 and rows(found) <= rows(make_events(300_000))
    assert found.t[0] == 5_000_000
    reason = "has no index" if what == "active" else "is cut or damaged"
    assert said[0] == f"{path} {reason}; what is whole was read"


@pytest.mark.parametrize("good", [12, 0])
def test_a_thousand_packets_that_make_no_sense_do_not_hide_those_behind(tmp_path: Path, good: int) -> None:
    bad = {"payload": bytes(range(40)), "width": WIDTH, "height": HEIGHT, "encoding": "evt9"}
    write_packets(tmp_path / "bag", [bad] * 1100 + packets()[0][:good])
    if good:
        found, losses, _ = read(tmp_path / "bag")
        assert len(found) == 1200 and losses["corrupt_packets"] == 1100
    else:
        with pytest.raises(RecordingError, match="evt9"):
            read(tmp_path / "bag")


def test_a_chunk_of_a_ros1_bag_is_left_out(tmp_path: Path) -> None:
    write_long_rosbag1(tmp_path / "a.bag")
    data = bytearray((tmp_path / "a.bag").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    (tmp_path / "a.bag").write_bytes(data)
    found, losses, said = read(tmp_path / "a.bag")
    lost = losses["missing_messages"]
    assert 10 < lost < 200 and len(found) == 1000 * (300 - lost)
    assert len(said) == 1 and f"announces 300 messages, but {300 - lost} can be read (" in said[0]


def test_a_corrupt_message_of_a_ros1_bag_is_left_out(tmp_path: Path) -> None:
    path = write_rosbag1(tmp_path / "a.bag", make_events(1000))
    data = bytearray(path.read_bytes())
    # The number of events of the third message.
    count = struct.pack("<III", HEIGHT, WIDTH, 100)
    place = [i for i in range(len(data)) if data.startswith(count, i)][2]
    data[place + 8 : place + 12] = struct.pack("<I", 10**6)
    path.write_bytes(data)
    found, losses, said = read(path)
    assert len(found) == 900 and losses["corrupt_packets"] == 1
    assert len(said) == 1 and f"{path}: /dvs/events at 5." in said[0] and "can't be decoded" in said[0]


def test_a_corrupt_picture_is_left_out(tmp_path: Path) -> None:
    samples = make_all_kinds()
    write_rosbag2(tmp_path / "bag", samples, storage="sqlite3")
    file = next((tmp_path / "bag").glob("*.db3"))
    data = file.read_bytes()
    assert data.count(b"rgb8") == 1
    file.write_bytes(data.replace(b"rgb8", b"rgb9"))
    recording = open_recording(tmp_path / "bag")
    with pytest.warns(RecordingWarning, match="1 corrupt message: it was left out"):
        assert len(list(recording.samples())) == len(samples) - 1
    assert recording.losses.counts["corrupt_messages"] == 1


# --- commands --------------------------------------------------------------------------------------------------------


def test_info_and_convert_tell_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = packets()
    made[3]["payload"] += bytes.fromhex("00b0 00c0")
    made[5]["payload"] = b"abc"
    del made[7]
    for number, packet in enumerate(made):
        packet["seq"] = number + (number >= 7)
    write_packets(tmp_path / "bag", made)
    assert main(["info", str(tmp_path / "bag"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"corrupt_packets": 1, "lost_packets": 1, "unknown_words": 2, "corrupt_messages": 0, "events": 1000}
    assert {name: found[name] for name in expected} == expected
    assert main(["info", str(tmp_path / "bag")]) == 0
    assert "not read: 1 lost event packet, 1 corrupt event packet, 2 unknown words" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "bag"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "10 messages written to" in said.out
    assert "; not in it: 1 lost event packet, 1 corrupt event packet, 2 unknown words\n" in said.out
    assert said.err.count("corrupt event packet") == 1
