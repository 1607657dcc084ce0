"""Writers of every kind of file that recordings/ reads, after the formats' descriptions and not after our readers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Rosbag1Writer

from event_sam3d_ros.events.codecs import make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.samples import EventChunk

WIDTH, HEIGHT = 346, 260
ECF = 0x8ECF
Write = Callable[[Path, Events], Path]


def make_events(count: int = 400, start_us: int = 5_000_000, seed: int = 0) -> Events:
    """Sorted events all over the sensor, with its corners."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 40_000, count)) + start_us
    x, y = rng.integers(0, WIDTH, count).astype(np.uint16), rng.integers(0, HEIGHT, count).astype(np.uint16)
    x[:2], y[:2] = (0, WIDTH - 1), (0, HEIGHT - 1)
    return Events(t, x, y, rng.integers(0, 2, count).astype(np.uint8))


def events_of(samples: object) -> Events:
    chunks = [sample.events for sample in samples if isinstance(sample, EventChunk)]
    return Events(*(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in "txyp"))


def assert_equal(found: Events, expected: Events) -> None:
    for name in "txyp":
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def write_raw(path: Path, events: Events, encoding: str = "evt3", header: str | None = None) -> Path:
    payload = make_encoder(encoding, WIDTH, HEIGHT).encode(events)[0]
    size = f"height={HEIGHT};width={WIDTH}"
    header = header if header is not None else f"% date 2024-01-01\n% format {encoding.upper()};{size}\n% end\n"
    path.write_bytes(header.encode() + payload)
    return path


def write_dat(path: Path, events: Events, header: str = f"% Height {HEIGHT}\n% Version 2\n% Width {WIDTH}\n") -> Path:
    rows = np.empty((len(events), 2), "<u4")
    rows[:, 0] = events.t & 0xFFFFFFFF
    rows[:, 1] = events.x | events.y.astype(np.uint32) << 14 | events.p.astype(np.uint32) << 28
    path.write_bytes(header.encode() + bytes([12, 8]) + rows.tobytes())
    return path


def write_es(path: Path, events: Events) -> Path:
    data = bytearray(b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<HH", WIDTH, HEIGHT))
    last = 0
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        overflows, rest = divmod(t - last, 127)
        data += b"\xff" * overflows + struct.pack("<BHH", rest << 1 | p, x, y)
        last = t
    path.write_bytes(data)
    return path


def write_aedat2(path: Path, events: Events, header: str = "#!AER-DAT2.0\r\n# This is a raw AE data file\r\n") -> Path:
    x, y = WIDTH - 1 - events.x.astype(np.uint32), HEIGHT - 1 - events.y.astype(np.uint32)
    rows = np.empty((len(events), 2), ">u4")
    rows[:, 0] = y << 22 | x << 12 | events.p.astype(np.uint32) << 11
    rows[:, 1] = events.t & 0xFFFFFFFF
    path.write_bytes(header.encode() + rows.tobytes())
    return path


def write_text(path: Path, events: Events) -> Path:
    columns = zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
    path.write_text("".join(f"{t / 1e6:.6f} {x} {y} {p}\n" for t, x, y, p in columns))
    return path


def write_npz(path: Path, events: Events) -> Path:
    np.savez_compressed(path, x=events.x, y=events.y, t=events.t, p=events.p)
    return path


def write_prophesee_hdf5(path: Path, events: Events, chunk: int = 128, packing: int = 0) -> Path:
    dtype = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    with h5py.File(path, "w") as file:
        file.attrs["geometry"] = f"{WIDTH}x{HEIGHT}"
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((chunk,))
        properties.set_filter(ECF, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((len(events),), (h5py.h5s.UNLIMITED,))
        group = file.create_group("CD")
        dataset = h5py.h5d.create(group.id, b"events", h5py.h5t.py_create(dtype), space, properties)
        for begin in range(0, len(events), chunk):
            dataset.write_direct_chunk((begin,), encode_ecf(events[begin : begin + chunk], packing))
        edges = np.array([(1, 5_001_000, 0), (0, 5_002_000, 0)], [("p", "<i2"), ("t", "<i8"), ("id", "<i2")])
        file["EXT_TRIGGER/events"] = edges
    return path


def encode_ecf(events: Events, packing: int) -> bytes:
    """``packing``: 0 none, 1 x with p, 2 all."""
    data = bytearray(struct.pack("<IQ", len(events) << 2 | packing, int(events.t[0])))
    time = int(events.t[0])
    for t, count in _runs(events.t):
        step, time = t - time, t
        while step > 14:  # nibbles of a long step, then one of 0
            data.append(0xF0 | step & 15)
            step >>= 4
            if step <= 14:
                data.append(0xF0 | step)
                step = 0
        data += bytes([step << 4 | 15]) + struct.pack("<H", count) if count >= 15 else bytes([step << 4 | count])
    x, y, p = (getattr(events, name).astype(np.uint32) for name in "xyp")
    if packing == 2:
        return bytes(data) + _in_fours(y << 12 | x << 1 | p, 24)
    for row, count in _runs(y):
        data += struct.pack("<HH", row << 5 | 31, count) if count >= 31 else struct.pack("<H", row << 5 | count)
    if packing == 1:
        return bytes(data) + _in_fours(x << 1 | p, 12)
    i = 0
    while i < len(x):
        first, mask = int(x[i]), 0
        i += 1
        for k in range(5):
            if i < len(x) and x[i] == first + k + 1:
                mask |= 1 << 4 - k
                i += 1
        data += struct.pack("<H", first << 5 | mask)
    for polarity, count in _runs(p):
        data += struct.pack("<BH", polarity << 7 | 127, count) if count >= 127 else bytes([polarity << 7 | count])
    return bytes(data)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    begins = np.flatnonzero(np.diff(values, prepend=values[:1] + 1))
    return list(zip(values[begins].tolist(), np.diff([*begins, len(values)]).tolist(), strict=True))


def _in_fours(values: np.ndarray, bits: int) -> bytes:
    """Numbers of 12 or 24 bits, four in three words of 16 or 32 bits, upper bits first."""
    word = bits * 4 // 3
    data = b""
    for four in np.append(values, np.zeros(-len(values) % 4, values.dtype)).reshape(-1, 4).tolist():
        a, b, c, d = four
        third = word - bits
        words = (
            a << third | b & (1 << third) - 1,
            b >> third << 2 * third | c & (1 << 2 * third) - 1,
            c >> 2 * third << 3 * third | d,
        )
        data += struct.pack("<3H" if word == 16 else "<3I", *words)
    return data


def write_mvsec(path: Path, events: Events) -> Path:
    with h5py.File(path, "w") as file:
        columns = [events.x, events.y, events.t / 1e6, 2.0 * events.p - 1]
        file["davis/left/events"] = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
        file["davis/left/image_raw"] = np.arange(2 * HEIGHT * WIDTH).reshape(2, HEIGHT, WIDTH).astype(np.uint8)
        file["davis/left/image_raw_ts"] = np.array([5.01, 5.02])
        file["davis/left/imu"] = np.arange(12.0).reshape(2, 6)
        file["davis/left/imu_ts"] = np.array([5.005, 5.015])
    return path


def write_dsec(path: Path, events: Events) -> Path:
    with h5py.File(path, "w") as file:
        t = (events.t - events.t[0]).astype(np.uint32)
        for name, column in (("x", events.x), ("y", events.y), ("p", events.p), ("t", t)):
            file[f"events/{name}"] = column
        file["ms_to_idx"] = np.searchsorted(t, np.arange(0, int(t[-1]) + 1, 1000)).astype(np.uint64)
        file["t_offset"] = int(events.t[0])
    return path


def write_rosbag1(path: Path, events: Events) -> Path:
    """dvs_msgs/EventArray in messages of 100 events."""
    with Rosbag1Writer(path) as writer:
        topic = writer.add_connection("/dvs/events", "dvs_msgs/msg/EventArray", msgdef="# none", md5sum=32 * "0")
        for begin in range(0, len(events), 100):
            part = events[begin : begin + 100]
            stamp = int(part.t[-1])
            rows = np.empty(len(part), [("x", "<u2"), ("y", "<u2"), ("sec", "<u4"), ("nsec", "<u4"), ("p", "u1")])
            rows["x"], rows["y"], rows["p"] = part.x, part.y, part.p
            rows["sec"], rows["nsec"] = part.t // 1_000_000, part.t % 1_000_000 * 1000
            header = struct.pack("<IIII", 7, stamp // 1_000_000, stamp % 1_000_000 * 1000, 3) + b"dvs"
            body = struct.pack("<III", HEIGHT, WIDTH, len(part)) + rows.tobytes()
            writer.write(topic, stamp * 1000, header + body)
    return path


def write_aedat4(path: Path, events: Events) -> Path:
    import dv_processing as dv

    config = dv.io.MonoCameraWriter.EventOnlyConfig("DAVIS346_1", (WIDTH, HEIGHT))
    writer = dv.io.MonoCameraWriter(str(path), config)
    store = dv.EventStore()
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        store.push_back(t, x, y, bool(p))
    writer.writeEvents(store)
    del writer
    return path


# File name -> writer.
WRITERS: dict[str, Write] = {
    "evt3.raw": write_raw,
    "evt2.raw": lambda path, events: write_raw(path, events, "evt2"),
    "evt21.raw": lambda path, events: write_raw(path, events, "evt21"),
    "cd.dat": write_dat,
    "dvs.es": write_es,
    "davis.aedat": write_aedat2,
    "events.txt": write_text,
    "events.npz": write_npz,
    "masked.hdf5": write_prophesee_hdf5,
    "packed.hdf5": lambda path, events: write_prophesee_hdf5(path, events, packing=1),
    "all_packed.hdf5": lambda path, events: write_prophesee_hdf5(path, events, packing=2),
    "mvsec.hdf5": write_mvsec,
    "dsec.h5": write_dsec,
    "ros1.bag": write_rosbag1,
    "davis.aedat4": write_aedat4,
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, Events], Path]:
    """Writes events as the kind of file that the name says."""
    return lambda name, events: WRITERS[name](tmp_path / name, events)
