"""The event packets of a bag's topic: long ones, damaged ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from event_sam3d_ros.errors import EventSam3dError
from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder, parse_event_packet_cdr
from event_sam3d_ros.events.events import Events, Triggers
from event_sam3d_ros.recordings.bag_messages import RawMessage
from event_sam3d_ros.recordings.event_topic import EventTopic
from event_sam3d_ros.recordings.losses import Losses
from event_sam3d_ros.recordings.samples import EventChunk, TriggerChunk

WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000_000_000_000
# mono has 32 bits of nanoseconds for a packet, 4.3 s.
LENGTHS = [(code, us) for code in ("evt3", "libcaer") for us in (500_000, 1_200_000, 5_000_000)]
LENGTHS += [("mono", us) for us in (500_000, 1_200_000, 4_200_000)]
TYPE = "event_camera_msgs/msg/EventPacket"


def events_at(times: object) -> Events:
    t = np.asarray(times, np.int64)
    columns = np.arange(t.size, dtype=np.uint16)
    return Events(t, columns % WIDTH, columns % HEIGHT, np.ones(t.size, np.uint8))


def packet(encoding: str, seq: int, stamp_us: int, coded: tuple[bytes, int]) -> bytes:
    return encode_event_packet_cdr(
        stamp_ns=START_NS + stamp_us * 1000,
        frame_id="events",
        width=WIDTH,
        height=HEIGHT,
        seq=seq,
        time_base=coded[1],
        encoding=encoding,
        payload=coded[0],
    )


def packets(encoding: str, span_us: int = 5000, count: int = 12, stamped: str = "first") -> list[bytes]:
    """Of 50 events and one length, one behind the other, stamped with their first or behind their last event."""
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    made = []
    for seq in range(count):
        t0 = seq * span_us
        coded = encoder.encode(events_at(np.linspace(t0, t0 + span_us - 1, 50).astype(np.int64)))
        made.append(packet(encoding, seq, t0 if stamped == "first" else t0 + span_us, coded))
    return made


class Read:
    """What a topic gives: events, triggers, the counts of its losses, the reasons for which packets were left out."""

    def __init__(self, cdrs: Iterable[bytes]) -> None:
        losses = Losses()
        self.reasons: list[str] = []

        def leave_out(name: str, message: RawMessage, error: EventSam3dError) -> None:
            losses.counts[name] += 1
            self.reasons.append(error.reason)

        topic = EventTopic(leave_out, losses)
        samples = [one for n, cdr in enumerate(cdrs) for one in topic(RawMessage("/e", TYPE, START_NS + n, cdr))]
        samples += topic.rest()
        self.events = sum(len(sample.events) for sample in samples if isinstance(sample, EventChunk))
        self.triggers = sum(len(sample.triggers) for sample in samples if isinstance(sample, TriggerChunk))
        self.losses = {name: count for name, count in losses.counts.items() if count}
        self.said = list(topic.said())
        self.places = [
            place
            for sample in samples
            if isinstance(sample, EventChunk)
            for place in zip(sample.events.x.tolist(), sample.events.y.tolist(), strict=True)
        ]


@pytest.mark.parametrize("stamped", ["first", "last"])
@pytest.mark.parametrize("encoding, span_us", LENGTHS)
def test_packets_may_be_long(encoding: str, stamped: str, span_us: int) -> None:
    read = Read(packets(encoding, span_us, stamped=stamped))
    assert (read.events, read.losses, read.said) == (600, {}, [])


def test_packets_of_triggers_may_be_long() -> None:
    encoder, made = make_encoder("trigger", WIDTH, HEIGHT), []
    for seq in range(20):
        t = np.arange(seq * 2_000_000, (seq + 1) * 2_000_000, 100_000, dtype=np.int64)
        edges = Triggers(t, np.zeros(20, np.uint8), (np.arange(20) % 2).astype(np.uint8))
        made.append(packet("trigger", seq, int(t[0]), encoder.encode(Events.empty(), edges)))
    read = Read(made)
    assert (read.triggers, read.losses) == (400, {})


@pytest.mark.parametrize("span_us", [5_000, 1_200_000, 5_000_000])
@pytest.mark.parametrize("first", [0, 25, 49])
@pytest.mark.parametrize("jump_us", [-1 << 24, 1 << 24])
def test_damaged_times_in_packets_of_any_length_are_left_out(jump_us: int, first: int, span_us: int) -> None:
    """One wrap of EVT3's time, 16.8 s, from one event of a packet on."""
    made = []
    for seq in range(12):
        t = 100_000_000 + seq * span_us + np.linspace(0, span_us - 1, 50).astype(np.int64)
        stamp_us = int(t[0])
        if seq == 6:
            t[first:] += jump_us
        coded = make_encoder("libcaer", WIDTH, HEIGHT).encode(events_at(np.sort(t)))
        made.append(packet("libcaer", seq, stamp_us, coded))
    read = Read(made)
    assert (read.events, read.losses, read.reasons) == (550, {"corrupt_packets": 1}, ["time_jump"])


@pytest.mark.parametrize("encoding", ["evt3", "libcaer"])
@pytest.mark.parametrize("numbered", [True, False])
def test_packets_that_are_in_a_bag_twice_are_read_once(encoding: str, numbered: bool) -> None:
    cdrs = [cdr if numbered else renumbered(cdr) for cdr in packets(encoding)]
    read = Read(cdr for cdr in cdrs for _ in range(2))
    assert (read.events, read.losses) == (600, {})
    assert read.said == ["has 12 event packets twice: one of each was read"]


def renumbered(cdr: bytes) -> bytes:
    """As of drivers that do not count."""
    return encode_event_packet_cdr(**parse_event_packet_cdr(cdr)._replace(seq=0)._asdict())


def test_packets_that_come_late_are_read_where_their_encoding_has_no_memory() -> None:
    for encoding, events, losses in (("libcaer", 2000, {}), ("mono", 2000, {}), ("evt3", 1850, {"corrupt_packets": 3})):
        cdrs = packets(encoding, count=40)
        for place in (10, 20, 30):
            cdrs[place], cdrs[place + 1] = cdrs[place + 1], cdrs[place]
        read = Read(cdrs)
        assert (read.events, read.losses, read.said) == (events, losses, [])
        assert set(read.reasons) == ({"late_packet"} if losses else set())


def test_a_gap_at_the_end_of_a_bag_is_counted() -> None:
    cdrs = packets("libcaer")
    read = Read([*cdrs[:8], *cdrs[10:]])
    assert (read.events, read.losses) == (500, {"lost_packets": 2})
    assert "lacks 2 event packets" in read.said[0]


def test_stamps_that_step_back_twice_lose_nothing() -> None:
    encoder, made = make_encoder("evt3", WIDTH, HEIGHT), []
    for seq in range(60):
        stamp_us = seq * 5000 - 80_000 * ((seq >= 20) + (seq >= 22))
        coded = encoder.encode(events_at(np.arange(seq * 5000, seq * 5000 + 5000, 100)))
        made.append(packet("evt3", seq, stamp_us, coded))
    read = Read(made)
    assert (read.events, read.losses) == (3000, {})
    assert len(read.said) == 1 and read.said[0].startswith("begins anew once")


@pytest.mark.parametrize("step", [0, 1])
def test_behind_a_packet_that_is_left_out_no_event_gets_an_older_row(step: int) -> None:
    """Row 5, row 9 with a damaged stamp, events that go on in row 9 without naming it, row 7."""
    words = [[0x8000, 0x63E8, 5, 0x2001], [0x8000, 0x644C, 9, 0x2002], [0x64B0, 0x2003], [0x8000, 0x6514, 7, 0x2004]]
    stamps = (0, 10**9, 200, 300)
    read = Read(
        packet("evt3", number * step, stamp_us, (np.array(these, "<u2").tobytes(), 0))
        for number, (stamp_us, these) in enumerate(zip(stamps, words, strict=True))
    )
    assert read.places == [(1, 5), (4, 7)] and read.reasons == ["time_jump"]
