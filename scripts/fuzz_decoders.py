#!/usr/bin/env python3
"""Feed random and damaged packets to the decoders of all encodings:

    python scripts/fuzz_decoders.py [--packets 1000000] [--encoding evt3] [--data ../shared/data]

Half of the packets are a sound beginning with random words behind it, half are real packets in which bits were flipped
and pieces cut out, doubled or moved. Whatever a decoder gives must lie in the image, what it refuses must be a
DecodeError that leaves no trace, and at least 30 % of the packets must give events, or the search would not get far
into the decoders.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from tqdm import tqdm

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.codecs import ENCODINGS, Decoder, make_decoder, make_encoder, parse_event_packet_cdr
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.rosbag2 import Rosbag2Recording

Packet = tuple[bytes, int]

# Recordings with real packets; those of the other encodings are made from the events of the first.
_RECORDINGS = {
    "evt3": "ecc_evt3_trigger",
    "libcaer": "ecc_libcaer_rollover",
    "libcaer_cmp": "ecpy_test2",
    "mono": "ecc_mono_cd",
}
_MOST_BYTES = 480
_SIZES = [(2048, 2048), (2048, 2048), (1280, 720), (346, 260)]
# Where the type of a word stands, and which types are defined; the other encodings have none.
_TYPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "evt2": (28, (0, 1, 8, 10, 13, 14, 15)),
    "evt21": (60, (0, 1, 8, 10, 14, 15)),
    "evt3": (12, (0, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15)),
    "libcaer_cmp": (12, (0, 1, 2, 3, 3, 4, 5)),
}
_REASONS = {"truncated_packet", "corrupt_packet"}


def real_packets(data: Path, encoding: str) -> list[Packet]:
    """Beginnings of real packets of ``encoding``, from the folder of recordings in ``data``."""
    recording = Rosbag2Recording(data / "recordings" / _RECORDINGS.get(encoding, "ecc_evt3_trigger"))
    views = [parse_event_packet_cdr(message.cdr) for message in recording.raw_messages()]
    if encoding in _RECORDINGS:
        return [(bytes(view.payload[:_MOST_BYTES]), view.time_base) for view in views]
    decoder = make_decoder("evt3", views[0].width, views[0].height)
    encoder = make_encoder(encoding, views[0].width, views[0].height)
    packets = []
    for view in views:
        events = decoder.decode(view.payload)[:100]
        if encoding == "trigger":
            edges = Triggers(events.t, (events.x & 0xFF).astype(np.uint8), events.p)
            packets.append(encoder.encode(Events.empty(), edges))
        else:
            packets.append(encoder.encode(events))
    return packets


@cache
def _beginning(encoding: str) -> Packet:
    """One event, or one trigger."""
    one = np.ones(1, np.int64), *(np.ones(1, dtype) for dtype in (np.uint16, np.uint16, np.uint8))
    if encoding == "trigger":
        return make_encoder(encoding, 2048, 2048).encode(Events.empty(), Triggers(one[0], one[3], one[3]))
    return make_encoder(encoding, 2048, 2048).encode(Events(*one))


def random_packet(encoding: str, chance: Random) -> Packet:
    """A sound beginning, with random words behind it: of defined types, but for a fifth of the packets."""
    begin, time_base = _beginning(encoding)
    data = chance.randbytes(8 * chance.randrange(_MOST_BYTES // 8))
    if chance.random() < 0.8:
        size = make_decoder(encoding, 1, 1).WORD.itemsize
        words = np.frombuffer(data, f"<u{size}").copy()
        word = words.dtype.type
        if encoding in _TYPES:
            shift, kinds = _TYPES[encoding]
            kind = np.array(chance.choices(kinds, k=words.size), words.dtype)
            words = words & word((1 << shift) - 1) | kind << word(shift)
        elif encoding == "libcaer":
            words[::2] &= word(2047 << 17 | 2047 << 2 | 2)
            words[::2] |= word(1)
            words[1::2] &= word((1 << 31) - 1)
        elif encoding == "mono":
            words &= word(1 << 63 | 2047 << 48 | 2047 << 32 | 0xFFFFFFFF)
        data = words.tobytes()
    if chance.random() < 0.02:
        time_base = chance.randrange(-(1 << 63), 1 << 64)
    return begin + data, time_base


def damaged_packet(packets: list[Packet], chance: Random) -> Packet:
    """A real packet with one to four injuries."""
    payload, time_base = chance.choice(packets)
    data = bytearray(payload)
    for _ in range(chance.randrange(1, 5)):
        if not data:
            break
        begin = chance.randrange(len(data))
        end = begin + chance.randrange(64)
        injury = chance.randrange(6)
        if injury <= 2:
            data[begin] ^= 1 << chance.randrange(8)
        elif injury == 3:
            step = 8 if chance.random() < 0.9 else 1  # whole words, for what is no number of words is refused at once
            del data[begin // step * step : end // step * step]
        elif injury == 4:
            data[begin // 8 * 8 : begin // 8 * 8] = data[begin // 8 * 8 : end // 8 * 8]
        else:
            data[begin:end] = chance.randbytes(len(data[begin:end]))
    return bytes(data), time_base


def packets_of(encoding: str, real: list[Packet], number: int, seed: int) -> Iterator[Packet]:
    """The packets of one search: the same for the same seed."""
    chance = Random(seed)
    for i in range(number):
        yield random_packet(encoding, chance) if i % 2 else damaged_packet(real, chance)


def check(decoder: Decoder, packet: Packet) -> str:
    """Decode one packet: "events", "nothing" or the reason of a refusal. AssertionError for what must not be."""
    before = decoder.copy()
    try:
        events = decoder.decode(*packet)
    except DecodeError as error:
        assert error.reason in _REASONS, error.reason
        assert decoder.counters == before.counters and decoder.triggers is before.triggers
        assert decoder._state.tobytes() == before._state.tobytes()
        return error.reason
    triggers = decoder.triggers
    assert not len(events) or (events.x.max() < decoder.width and events.y.max() < decoder.height)
    assert not len(events) or events.p.max() <= 1
    assert not len(triggers) or triggers.p.max() <= 1
    assert min(decoder.counters.values()) >= 0
    return "events" if len(events) or len(triggers) else "nothing"


def fuzz(
    encoding: str, real: list[Packet], number: int, seed: int = 0, progress: Callable[..., Iterator[Packet]] = iter
) -> Counter[str]:
    """What became of ``number`` packets; AssertionError, with the packet, for one that broke a rule."""
    chance = Random(seed + 1)
    results: Counter[str] = Counter()
    decoder = make_decoder(encoding, *_SIZES[0])
    for i, packet in enumerate(progress(packets_of(encoding, real, number, seed))):
        if i % 20 == 0:
            decoder = make_decoder(encoding, *chance.choice(_SIZES), chance.random() < 0.02)
        elif i % 7 == 0:
            decoder.resynchronise()
        try:
            results[check(decoder, packet)] += 1
        except Exception as error:
            raise AssertionError(f"{encoding}, packet {i} of seed {seed}: {packet[0].hex()}, {packet[1]}") from error
    assert results["events"] >= 0.3 * number, results
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=1_000_000, help="packets for each encoding")
    parser.add_argument("--encoding", choices=ENCODINGS, nargs="+", default=ENCODINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("EVENT_SAM3D_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")),
        help="folder with recordings/ of real packets",
    )
    arguments = parser.parse_args()
    for encoding in arguments.encoding:
        real = real_packets(arguments.data, encoding)

        def progress(packets: Iterator[Packet], encoding: str = encoding) -> Iterator[Packet]:
            return iter(tqdm(packets, encoding, arguments.packets, unit="packet", unit_scale=True))

        print(encoding, dict(fuzz(encoding, real, arguments.packets, arguments.seed, progress)))


if __name__ == "__main__":
    main()
