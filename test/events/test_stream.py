"""Packets of any length, and what happens to a stream's state when one of them does not fit."""

from collections import Counter

import numpy as np
import pytest

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import (
    encode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    make_encoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.stream import EventStream

WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000_000_000_000
# mono has 32 bits of nanoseconds for a packet, 4.3 s.
LENGTHS = [(code, us) for code in ("evt3", "libcaer") for us in (500_000, 1_200_000, 5_000_000)]
LENGTHS += [("mono", us) for us in (500_000, 1_200_000, 4_200_000)]


def events_at(times):
    count = len(times)
    columns = np.arange(count, dtype=np.uint16)
    return Events(np.asarray(times, np.int64), columns % WIDTH, columns % HEIGHT, np.ones(count, np.uint8))


def packet(encoder, encoding, seq, stamp_ns, events):
    payload, time_base = encoder.encode(events)
    return encode_event_packet_cdr(
        stamp_ns=stamp_ns,
        frame_id="events",
        width=WIDTH,
        height=HEIGHT,
        seq=seq,
        time_base=time_base,
        encoding=encoding,
        payload=payload,
    )


def packets(encoding, span_us, count=12, stamped="first", per_packet=50):
    """Packets of one length, one behind the other, stamped with the time of their first or behind their last event."""
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    for seq in range(count):
        t0 = seq * span_us
        events = events_at(np.linspace(t0, t0 + span_us - 1, per_packet).astype(np.int64))
        stamp_us = t0 if stamped == "first" else t0 + span_us
        yield packet(encoder, encoding, seq, START_NS + stamp_us * 1000, events)


class Setup:
    def __init__(self, message_type="event_camera_msgs/msg/EventPacket"):
        self.reports = []
        buffer = EventBuffer(10_000_000_000)
        self.stream = EventStream(message_type, buffer, lambda *report: self.reports.append(report))

    @property
    def counts(self):
        return Counter(reason for reason, _ in self.reports)

    def feed(self, cdrs):
        for cdr in cdrs:
            self.stream.add_message(cdr)


@pytest.mark.parametrize("stamped", ["first", "last"])
@pytest.mark.parametrize("encoding, span_us", LENGTHS)
def test_packets_may_be_long(encoding, stamped, span_us):
    setup = Setup()
    setup.feed(packets(encoding, span_us, stamped=stamped))
    assert (setup.stream.events, len(setup.stream.buffer)) == (600, 600)
    assert not setup.reports


@pytest.mark.parametrize("span_us", [500_000, 1_200_000, 5_000_000])
def test_event_arrays_may_be_long(span_us):
    setup = Setup("dvs_msgs/msg/EventArray")
    for start_us in range(START_NS // 1000, START_NS // 1000 + 12 * span_us, span_us):
        events = events_at(np.linspace(start_us, start_us + span_us - 1, 50).astype(np.int64))
        setup.feed([encode_dvs_event_array_cdr(start_us * 1000, "events", WIDTH, HEIGHT, events)])
    assert setup.stream.events == 600
    assert not setup.reports


JUMP_US = 1 << 24  # one wrap of EVT3's time, 16.8 s
DAMAGED = {
    "a jump inside": lambda t: np.where(np.arange(t.size) < t.size // 2, t, t + JUMP_US),
    "a jump at the start": lambda t: t + JUMP_US,
    "a jump back at the start": lambda t: t - JUMP_US,
    "a first time that is far too small": lambda t: np.concatenate((t[:1] - JUMP_US, t[1:])),
    "a last time that is far too great": lambda t: np.concatenate((t[:-1], t[-1:] + JUMP_US)),
}


@pytest.mark.parametrize("span_us", [5_000, 1_200_000, 5_000_000])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_times_in_packets_of_any_length_are_dropped(damage, span_us):
    start_us, setup = 100_000_000, Setup()
    for seq in range(12):
        t = start_us + seq * span_us + np.linspace(0, span_us - 1, 50).astype(np.int64)
        stamp_ns = START_NS + int(t[0]) * 1000
        if seq == 6:
            t = DAMAGED[damage](t)
        setup.feed([packet(make_encoder("libcaer", WIDTH, HEIGHT), "libcaer", seq, stamp_ns, events_at(np.sort(t)))])
    assert (setup.stream.events, len(setup.stream.buffer)) == (550, 550)
    assert setup.counts == {"time_jump": 1}


def test_stamps_that_step_back_twice_leave_no_half_changed_state():
    encoder, setup = make_encoder("evt3", WIDTH, HEIGHT), Setup()
    for seq in range(60):
        stamp_ns = START_NS + seq * 5_000_000 - 80_000_000 * ((seq >= 20) + (seq >= 22))
        setup.feed([packet(encoder, "evt3", seq, stamp_ns, events_at(np.arange(seq * 5000, seq * 5000 + 5000, 100)))])
    stream = setup.stream
    # What came before the stream began anew is not in the buffer.
    assert setup.counts == {"backward_time": 1} and stream.starts == 1
    assert (stream.packets, stream.events, len(stream.buffer)) == (60, 3000, 38 * 50)


@pytest.mark.parametrize("name", ["evt9", "mono"])
def test_two_packets_that_begin_no_stream_cost_nothing_else(name):
    """Of an unknown encoding, and of one in which their payloads make no sense."""
    cdrs = list(packets("evt3", 5000))
    odd = [odd_packet(name, seq) for seq in (6, 7)]
    setup = Setup()
    setup.feed(cdrs[:6])
    setup.feed([*odd, *cdrs[8:]])
    assert (setup.stream.events, len(setup.stream.buffer), setup.stream.starts) == (500, 500, 0)
    assert setup.counts == {"stream_changed": 2} and setup.stream.lost_packets == 0


def odd_packet(encoding, seq):
    return encode_event_packet_cdr(
        stamp_ns=START_NS + seq * 5_000_000,
        frame_id="events",
        width=WIDTH,
        height=HEIGHT,
        seq=seq,
        time_base=0,
        encoding=encoding,
        payload=b"\xff" * 81,
    )


def words_of_evt3(seq_step):
    """Four packets: a row 5, a row 9 with a damaged stamp, events that go on in row 9 without naming it, a row 7."""

    def time(t):
        return [0x8000 | t >> 12, 0x6000 | t & 0xFFF]

    words = [[*time(1000), 0x0005, 0x2001], [*time(1100), 0x0009, 0x2002], [0x64B0, 0x2003], [*time(1300), 7, 0x2004]]
    for number, (stamp_ns, these) in enumerate(zip((0, 10**12, 200_000, 300_000), words, strict=True)):
        yield encode_event_packet_cdr(
            stamp_ns=START_NS + stamp_ns,
            frame_id="events",
            width=WIDTH,
            height=HEIGHT,
            seq=number * seq_step,
            time_base=0,
            encoding="evt3",
            payload=np.array(these, "<u2").tobytes(),
        )


@pytest.mark.parametrize("seq_step", [0, 1])
def test_behind_a_dropped_packet_no_event_gets_an_older_row(seq_step):
    setup = Setup()
    setup.feed(words_of_evt3(seq_step))
    kept = setup.stream.buffer.window(0, 10**6)
    assert list(zip(kept.x.tolist(), kept.y.tolist(), strict=True)) == [(1, 5), (4, 7)]


def test_the_latest_events_are_those_of_the_latest_message():
    cdrs, setup = list(packets("libcaer", 5000)), Setup()
    setup.feed([*cdrs[:4], cdrs[5]])
    newest = setup.stream.newest
    setup.feed([cdrs[4]])
    (latest,) = setup.stream.latest
    assert latest.late and latest.packet.view.seq == 4 and latest.events.t[0] == 20_000
    assert setup.stream.newest is newest and newest.seq == 5
    setup.feed([cdrs[4]])
    assert setup.stream.latest == [] and setup.counts == {"late_packet": 1, "duplicate_packet": 1}


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("encoding", ["evt3", "libcaer"])
@pytest.mark.parametrize("stamped", ["first", "last"])
def test_packets_of_so_many_events_each_are_long_in_pauses(stamped, encoding, numbered):
    encoder, setup, t0 = make_encoder(encoding, WIDTH, HEIGHT), Setup(), 0
    for seq, span_us in enumerate([5000, 5000, 3_000_000, 5000, 2_500_000, 4_000_000, 5000, 5000]):
        events = events_at(np.linspace(t0, t0 + span_us - 1, 50).astype(np.int64))
        stamp_us = t0 if stamped == "first" else t0 + span_us
        setup.feed([packet(encoder, encoding, numbered * seq, START_NS + stamp_us * 1000, events)])
        t0 += span_us
    assert (setup.stream.events, len(setup.stream.buffer), setup.reports) == (400, 400, [])


def test_a_long_packet_is_kept_where_the_next_one_makes_no_sense():
    encoder, setup = make_encoder("evt3", WIDTH, HEIGHT), Setup()
    for seq, (t0, span_us) in enumerate([(0, 5000), (5000, 3_000_000)]):
        events = events_at(np.linspace(t0, t0 + span_us - 1, 50).astype(np.int64))
        setup.feed([packet(encoder, "evt3", seq, START_NS + t0 * 1000, events)])
    assert setup.stream.events == 50  # the second is still odd
    bad = parse_event_packet_cdr(odd_packet("evt3", 2))._replace(stamp_ns=START_NS + 3_005_000_000)
    with pytest.raises(DecodeError):
        setup.feed([encode_event_packet_cdr(**bad._asdict())])
    assert setup.stream.events == 100 and not setup.reports
