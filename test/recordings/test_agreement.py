"""Real recordings read as other libraries read them: faery, expelliarmus and, where it is installed, evlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.events.codecs import parse_event_packet_cdr
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.files import EventChunk, open_recording, open_rosbag2


def ours(path: Path) -> Events:
    return concatenate([sample.events for sample in open_recording(path).samples() if isinstance(sample, EventChunk)])


def by_faery(path: Path) -> Events:
    faery = pytest.importorskip("faery")
    rows = np.concatenate(list(faery.events_stream_from_file(path)))
    return Events(rows["t"].astype(np.int64), rows["x"].copy(), rows["y"].copy(), rows["on"].astype(np.uint8))


def by_evlib(path: Path) -> Events:
    rows = pytest.importorskip("evlib").load_events(str(path), sort=False).collect()
    t = rows["t"].dt.total_microseconds().to_numpy()
    x, y = (rows[name].to_numpy().astype(np.uint16) for name in "xy")
    return Events(t, x, y, (rows["polarity"].to_numpy() > 0).astype(np.uint8))


def by_expelliarmus(path: Path) -> Events:
    encoding = {"evt2.raw": "evt2", "sample_ncars.dat": "dat"}.get(path.name, "evt3")
    rows = pytest.importorskip("expelliarmus").Wizard(encoding=encoding).read(path)
    return Events(rows["t"].copy(), rows["x"].astype(np.uint16), rows["y"].astype(np.uint16), rows["p"].copy())


def check(found: Events, expected: Events, columns: str = "txyp") -> None:
    assert len(found) == len(expected) > 1000
    for column in columns:
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), column)


@pytest.mark.parametrize("read", [by_faery, by_evlib, by_expelliarmus])
def test_evt2(test_data: Path, read) -> None:
    path = test_data / "recordings" / "raw" / "evt2.raw"
    check(ours(path), read(path))


@pytest.mark.parametrize("read", [by_faery, by_evlib])
@pytest.mark.parametrize("name", ["ecpy_test1", "ecc_evt3_trigger"])
def test_evt3(test_data: Path, tmp_path: Path, name: str, read) -> None:
    """The packets of a bag as a RAW file. Expelliarmus is left out: its times of EVT3 are wrong."""
    folder = test_data / "recordings" / name
    messages = open_rosbag2(next(folder.glob("*.db3"))).raw_messages()
    packets = [parse_event_packet_cdr(message.cdr) for message in messages if "event" in message.topic]
    path = tmp_path / "packets.raw"
    header = f"% evt 3.0\n% format EVT3;height={packets[0].height};width={packets[0].width}\n% end\n"
    path.write_bytes(header.encode() + b"".join(packet.payload for packet in packets))
    check(ours(path), read(path))


def test_event_stream(test_data: Path) -> None:
    path = test_data / "recordings" / "raw" / "dvs.es"
    found, expected = ours(path), by_faery(path)
    check(found, expected, "txp")
    # Rows of this format count from below (its specification), which faery leaves to its user.
    np.testing.assert_array_equal(found.y, 239 - expected.y)


def test_dat(test_data: Path) -> None:
    path = test_data / "recordings" / "raw" / "sample_ncars.dat"
    check(ours(path), by_expelliarmus(path))


@pytest.mark.parametrize("read", [by_faery, by_evlib])
def test_aedat4(test_data: Path, read) -> None:
    path = test_data / "recordings" / "raw" / "sample.aedat4"
    check(ours(path), read(path))
