"""How fast packets become events and events become images, beside the other libraries that can do it.

    python benchmarks/events.py [--event-sam3d DIR] [--evt3 FILE.raw] [--runs 9]

Prints the table of docs/benchmarks.md. Recordings come from $EVENT_SAM3D_TEST_DATA (by default ../shared/data), and are
repeated with shifted time until they are long enough; --evt3 is one more, of a 1280x720 sensor, with a denser stream.
faery, expelliarmus, evlib and tonic take part where they are installed, event_sam3d where --event-sam3d says where its
source is. All sides of a row run in turn, in one process and on one thread; times are medians of processor time.
"""

# ruff: noqa: E402 - threads are counted when the libraries are loaded
from __future__ import annotations

import os

for _threads in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
):
    os.environ[_threads] = "1"

import argparse
import itertools
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import (
    encode_event_packet_cdr,
    make_decoder,
    make_encoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.filters import BackgroundActivityFilter, HotPixelFilter, RateLimiter
from event_sam3d_ros.events.representations import histogram, tencode, tencode_reference, time_surface, voxel_grid
from event_sam3d_ros.events.stream import EventStream
from event_sam3d_ros.events.warmup import warm_up
from event_sam3d_ros.recordings.files import EventChunk, open_recording, open_rosbag2

HD, VGA = (1280, 720), (640, 480)
FILE_EVENTS = 3_500_000
PACKET_BYTES = 1 << 16
WINDOW_EVENTS = 500_000  # 50 ms at 10 million events per second
Step = Callable[[], Any]


@dataclass
class Row:
    """One line of the table: ``amount`` of events per run; the other sides, or why one is missing, by name.

    ``reads``: the results are events, or their number, which must be the same for all sides.
    """

    name: str
    amount: int
    ours: Step
    others: dict[str, Step | str] = field(default_factory=dict)
    goal: str = ""
    reads: bool = False


def medians(steps: Sequence[Step], runs: int) -> list[float]:
    """Seconds of processor time of each step, all steps in turn; the first round does not count."""
    seconds = np.empty((runs + 1, len(steps)))
    for run, i in itertools.product(range(runs + 1), range(len(steps))):
        begin = time.process_time()
        result = steps[i]()
        seconds[run, i] = time.process_time() - begin
        del result  # freeing is not what is measured
    return np.median(seconds[1:], axis=0).tolist()


# Real events, long enough


def repeat_words(words: np.ndarray, is_time_high: np.ndarray, bits: int, times: int) -> np.ndarray:
    """A stream of words ``times`` over, with the TIME_HIGH words (payload: the low ``bits``) counting on."""
    mask = words.dtype.type((1 << bits) - 1)
    highs = (words[is_time_high] & mask).astype(np.int64)
    unwrapped = np.unwrap(highs, period=1 << bits)
    step = int(unwrapped.max() - unwrapped.min()) + 1
    copies = []
    for i in range(times):
        copy = words.copy()
        copy[is_time_high] = (words[is_time_high] & ~mask) | (highs + i * step & int(mask)).astype(words.dtype)
        copies.append(copy)
    return np.concatenate(copies)


def repeat_events(events: Events, count: int) -> Events:
    times = -(-count // len(events))
    span = int(events.t[-1]) + 1 - int(events.t[0])
    return concatenate([Events(events.t + i * span, events.x, events.y, events.p) for i in range(times)])[:count]


def payload_of_bag(path: Path) -> bytes:
    packets = (message.cdr for message in open_rosbag2(path).raw_messages() if "event" in message.topic)
    return b"".join(parse_event_packet_cdr(cdr).payload for cdr in packets)


def count_recording(path: Path) -> int:
    return sum(len(sample.events) for sample in open_recording(path).samples() if isinstance(sample, EventChunk))


def events_of(path: Path) -> list[Events]:
    return [sample.events for sample in open_recording(path).samples() if isinstance(sample, EventChunk)]


def raw_file(folder: Path, name: str, header: str, payload: bytes) -> Path:
    path = folder / name
    path.write_bytes(f"{header}\n% end\n".encode() + payload)
    return path


def payload_of_raw(path: Path) -> bytes:
    data = path.read_bytes()
    while data.startswith(b"% "):
        data = data[data.index(b"\n") + 1 :]
    return data


# The other libraries


def imported(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        logging.disable(logging.WARNING)
        return __import__(name)
    except ImportError:
        return None


def whole_file_readers(path: Path, encoding: str) -> dict[str, Step | str]:
    """Those that give all events of a file in one piece."""
    expelliarmus, evlib = imported("expelliarmus"), imported("evlib")
    return {
        "expelliarmus": (lambda: expelliarmus.Wizard(encoding=encoding).read(path))
        if expelliarmus
        else "not installed",
        "evlib": (lambda: evlib.load_events(str(path), sort=False).collect()) if evlib else "not installed",
    }


def stream_readers(path: Path) -> dict[str, Step | str]:
    """Those that give a file's events packet by packet; the packets are counted and dropped."""
    faery = imported("faery")
    return {"faery": (lambda: sum(map(len, faery.events_stream_from_file(path)))) if faery else "not installed"}


def event_sam3d_steps(folder: Path | None, events: Events) -> dict[str, Step | str]:
    """Steps ``Tencode`` and ``VoxelGrid`` of event_sam3d, or why there are none."""
    if folder is None:
        return dict.fromkeys(("Tencode", "VoxelGrid"), "no --event-sam3d")
    sys.path.append(str(folder))
    import torch
    from event_sam3d.utils import events_representations as theirs

    torch.set_num_threads(1)
    x, y, p, t = (torch.from_numpy(getattr(events, name).astype(np.float64)) for name in "xypt")
    its_tencode, its_grid = theirs.Tencode(*VGA[::-1]), theirs.VoxelGrid(*VGA[::-1], False, 5)
    image = its_tencode.to_rgb_mono(its_tencode.convert(x, y, p, t))
    assert np.array_equal(image, tencode_reference(events, *VGA)), "event_sam3d's Tencode is not our reference mode"
    return {"Tencode": lambda: its_tencode.convert(x, y, p, t), "VoxelGrid": lambda: its_grid.convert(x, y, p, t)}


def tonic_steps(events: Events) -> dict[str, Step | str]:
    """Steps ``voxels`` and ``denoise`` of tonic, or why there are none; the latter with the first 100,000 events."""
    tonic = imported("tonic")
    if tonic is None:
        return dict.fromkeys(("voxels", "denoise"), "not installed")
    from tonic import transforms

    array = np.zeros(len(events), np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "i1")]))
    for name in "xytp":
        array[name] = getattr(events, name)
    voxels = transforms.ToVoxelGrid((*VGA, 2), 5)
    denoise = transforms.Denoise(10_000)
    return {"voxels": lambda: voxels(array), "denoise": lambda: denoise(array[:100_000])}


# The rows


def decode(payload: bytes, encoding: str) -> Events:
    return make_decoder(encoding, *HD).decode(payload)


def count_packets(payload: bytes, encoding: str) -> int:
    """Decode packet by packet, as they come from a camera: none is kept."""
    decoder, packets = make_decoder(encoding, *HD), memoryview(payload)
    return sum(len(decoder.decode(packets[i : i + PACKET_BYTES])) for i in range(0, len(payload), PACKET_BYTES))


def decode_rows(what: str, payload: bytes, encoding: str, path: Path, goals: tuple[str, str]) -> list[Row]:
    count = len(decode(payload, encoding))
    return [
        Row(
            f"{what}: decode in one piece",
            count,
            lambda: decode(payload, encoding),
            whole_file_readers(path, encoding),
            goals[0],
            reads=True,
        ),
        Row(
            f"{what}: decode packet by packet",
            count,
            lambda: count_packets(payload, encoding),
            stream_readers(path),
            goals[1],
            reads=True,
        ),
        Row(
            f"{what}: `open_recording`, sorted",
            count,
            lambda: count_recording(path),
            stream_readers(path),
            reads=True,
        ),
    ]


def payload_to_tencode(payload: bytes, bounds: list[int]) -> None:
    """From packets to images, one for each pair of neighbouring bounds."""
    decoder, buffer = make_decoder("evt3", *HD), EventBuffer(int(np.diff(bounds).max()) + 100_000)
    windows, packets = itertools.pairwise(bounds), memoryview(payload)
    t0, t1 = next(windows)
    for i in range(0, len(payload), PACKET_BYTES):
        buffer.append(decoder.decode(packets[i : i + PACKET_BYTES]))
        while buffer.t_last is not None and buffer.t_last >= t1:
            tencode(buffer.window(t0, t1), t0, t1, *HD)
            if t1 == bounds[-1]:
                return
            t0, t1 = next(windows)


def evt3_rows(name: str, payload: bytes, folder: Path) -> list[Row]:
    words = np.frombuffer(payload, "<u2")
    times_over = -(-FILE_EVENTS // len(decode(payload, "evt3")))
    payload = repeat_words(words, words >> 12 == 8, 12, times_over).tobytes()
    events = decode(payload, "evt3")
    path = raw_file(folder, f"{name}.raw", "% evt 3.0\n% format EVT3;height=720;width=1280", payload)
    times = np.maximum.accumulate(events.t)
    bounds = np.unique(times[::WINDOW_EVENTS]).tolist()
    what = f"EVT3 1280x720, {name} ({len(payload) / len(events):.1f} bytes per event)"
    return [
        *decode_rows(what, payload, "evt3", path, ("1.5x expelliarmus", "1x faery")),
        Row(
            f"{what}: payload to Tencode, {(bounds[1] - bounds[0]) / 1000:.0f} ms windows",
            int(np.searchsorted(times, bounds[-1])),
            lambda: payload_to_tencode(payload, bounds),
            goal="60 Mev/s",
        ),
    ]


def evt2_rows(payload: bytes, folder: Path) -> list[Row]:
    words = np.frombuffer(payload, "<u4")
    times_over = -(-FILE_EVENTS // len(decode(payload, "evt2")))
    payload = repeat_words(words, words >> 28 == 8, 28, times_over).tobytes()
    path = raw_file(folder, "evt2.raw", "% evt 2.0\n% format EVT2;height=720;width=1280", payload)
    return decode_rows("EVT2", payload, "evt2", path, ("2x expelliarmus", "1x faery"))


def image_rows(events: Events, event_sam3d: Path | None) -> list[Row]:
    t0, t1, count = int(events.t[0]), int(events.t[-1]) + 1, len(events)
    window = (t0, t1, *VGA)
    theirs, tonic = event_sam3d_steps(event_sam3d, events), tonic_steps(events)
    shuffled = events[np.random.default_rng(0).permutation(count)]
    few = events[-50_000:]
    buffer = EventBuffer(1_000_000_000)
    buffer.append(few)
    few_t0 = int(few.t[0])
    filters = {
        "background activity": BackgroundActivityFilter(*VGA),
        "hot pixels": HotPixelFilter(*VGA),
        "rate limiter": RateLimiter(count / (t1 - t0) * 0.5e6),
    }
    return [
        Row(
            "Tencode 640x480",
            count,
            lambda: tencode(events, *window),
            {"event_sam3d (torch)": theirs["Tencode"]},
            "25x event_sam3d",
        ),
        Row("Tencode 640x480, events out of order", count, lambda: tencode(shuffled, *window)),
        Row("Tencode as event_sam3d", count, lambda: tencode_reference(events, *VGA)),
        Row(
            "voxel grid, 5 bins, 640x480",
            count,
            lambda: voxel_grid(events, *window),
            {"tonic": tonic["voxels"], "event_sam3d (torch)": theirs["VoxelGrid"]},
            "15x tonic",
        ),
        Row("histogram 640x480", count, lambda: histogram(events, *window)),
        Row("time surface 640x480", count, lambda: time_surface(events, *window)),
        Row(
            "a window of 50,000 events: buffer to Tencode, 640x480",
            len(few),
            lambda: tencode(buffer.window(few_t0, t1), few_t0, t1, *VGA),
            goal="1 ms",
        ),
        Row(
            "a window of 50,000 events: buffer to Tencode, 1280x720",
            len(few),
            lambda: tencode(buffer.window(few_t0, t1), few_t0, t1, *HD),
            goal="1 ms",
        ),
        *(
            Row(f"filter: {name}", count, lambda keep=keep: (keep.reset(), keep(events)))
            for name, keep in filters.items()
        ),
        Row(
            "filter: background activity, 100,000 events",
            100_000,
            lambda: filters["background activity"](events[:100_000]),
            {"tonic": tonic["denoise"]},
        ),
    ]


def packet_cost(events: Events, runs: int) -> tuple[float, float]:
    """Seconds per packet of 1 ms: from its message's bytes to the buffer, and the part of that in the decoder."""
    bounds_us = np.arange(events.t[0], events.t[-1], 1000)
    bounds = np.searchsorted(events.t, [*bounds_us, events.t[-1] + 1])
    encoder = make_encoder("evt3", *VGA)
    packets = [events[first:last] for first, last in itertools.pairwise(bounds)]
    payloads = [encoder.encode(packet)[0] for packet in packets]
    messages = [
        encode_event_packet_cdr(
            stamp_ns=1000 * int(t),
            frame_id="camera",
            width=VGA[0],
            height=VGA[1],
            seq=seq,
            time_base=0,
            encoding="evt3",
            payload=payload,
        )
        for seq, (t, payload) in enumerate(zip(bounds_us, payloads, strict=True))
    ]

    def listen() -> None:
        stream = EventStream("event_camera_msgs/msg/EventPacket", EventBuffer(), print)
        for message in messages:
            stream.add_message(message)

    def decode() -> None:
        decoder = make_decoder("evt3", *VGA)
        for payload in payloads:
            decoder.decode(payload)

    whole, decoding = medians([listen, decode], runs)
    return whole / len(messages), decoding / len(messages)


FIRST_PACKET = """
import sys, time
begin = time.perf_counter()
from event_sam3d_ros.events.codecs import make_decoder
make_decoder("evt3", 1280, 720).decode(bytes.fromhex(sys.argv[1]))
print(time.process_time(), time.perf_counter() - begin, *({"torch", "open3d"} & set(sys.modules)))
"""


def first_packet(payload: bytes, runs: int) -> str:
    """Time to the first decoded packet in a fresh process, and which of torch and open3d it loaded."""
    command = [sys.executable, "-c", FIRST_PACKET, payload[:4096].hex()]
    outputs = [subprocess.run(command, capture_output=True, check=True, text=True).stdout.split() for _ in range(runs)]
    processor, wall = np.median([[float(seconds) for seconds in output[:2]] for output in outputs], axis=0)
    return f"{processor:.2f} s (by the clock {wall:.2f} s), loads {' and '.join(outputs[0][2:]) or 'neither'}"


# The table


def line(row: Row, runs: int) -> str:
    steps = {name: step for name, step in row.others.items() if not isinstance(step, str)}
    missing = {name: why for name, why in row.others.items() if isinstance(why, str)}
    for name, step in list(steps.items()):
        try:
            found = step()
        except Exception as error:  # another library's failure is a result, not an end
            missing[name] = f"fails: {type(error).__name__}"
            del steps[name]
            continue
        if found is None or row.reads and (found if isinstance(found, int) else len(found)) != row.amount:
            missing[name] = "does not read it, or gives another number of events"
            del steps[name]
    ours, *theirs = medians([row.ours, *steps.values()], runs)
    sides = dict(zip(steps, theirs, strict=True))
    ratios = [f"{seconds / ours:.1f}x {name}" for name, seconds in sides.items()]
    absolute = [f"{name} {1e3 * seconds:.1f} ms" for name, seconds in sides.items()]
    absolute += [f"{name}: {why}" for name, why in missing.items()]
    speed = f"{1e3 * ours:.2f} ms ({row.amount / ours / 1e6:.0f} Mev/s)"
    return f"| {row.name} | {', '.join(ratios) or '-'} | {row.goal or '-'} | {speed} | {', '.join(absolute) or '-'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--event-sam3d", type=Path, metavar="DIR", help="source of event_sam3d")
    parser.add_argument("--evt3", type=Path, metavar="FILE", help="RAW file of EVT3, 1280x720")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    data = Path(os.environ.get("EVENT_SAM3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "recordings"
    warm_up()
    vga = repeat_events(concatenate(events_of(data / "ecpy_test1")), 1_000_000)
    hd_payload = payload_of_bag(data / "ecc_evt3_trigger")

    print("| step | times faster than | goal | ours | theirs |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = evt3_rows("sparse", hd_payload, folder)
        if options.evt3:
            rows = evt3_rows("dense", payload_of_raw(options.evt3), folder) + rows
        rows += evt2_rows(payload_of_raw(data / "raw" / "evt2.raw"), folder)
        rows += image_rows(vga, options.event_sam3d)
        for row in rows:
            print(line(row, options.runs), flush=True)
    whole, decoding = packet_cost(vga[:300_000], options.runs)
    print(
        f"| a packet of 1 ms, from its message's bytes into the buffer, beyond decoding | - | 50 us | "
        f"{1e6 * (whole - decoding):.0f} us (decoding: {1e6 * decoding:.0f} us) | - |"
    )
    first = first_packet(hd_payload, options.runs)
    print(f"| fresh process to its first decoded packet, without torch and open3d | - | 1.5 s | {first} | - |")


if __name__ == "__main__":
    main()
