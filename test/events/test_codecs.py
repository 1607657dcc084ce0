"""The encodings with a word per event, the registry, and recordings whose makers assert what is in them."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events import (
    codec_evt2,
    codec_evt3,
    codec_libcaer_cmp,
    codec_words64,
    message_cdr,
)
from event_sam3d_ros.events.codecs import (
    ENCODINGS,
    decode_dvs_event_array_cdr,
    encode_dvs_event_array_cdr,
    make_decoder,
    make_encoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events, Triggers, concatenate
from event_sam3d_ros.events.warmup import warm_up

WIDTH, HEIGHT = 640, 480
EPOCH_US = 1_702_309_120_762_236


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True))


def make(rows) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


PIXEL = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(0, 1))
ROWS = st.tuples(st.integers(0, 2 * EPOCH_US), st.lists(st.tuples(st.integers(0, 4_000_000), PIXEL), max_size=40)).map(
    lambda drawn: [(drawn[0] + dt, *pixel) for dt, pixel in sorted(drawn[1], key=lambda row: row[0])]
)


@pytest.mark.parametrize("encoding", ["mono", "libcaer"])
@given(rows=ROWS)
def test_round_trip(encoding, rows):
    payload, time_base_ns = make_encoder(encoding, WIDTH, HEIGHT).encode(make(rows))
    assert len(payload) == 8 * len(rows)
    assert rows_of(make_decoder(encoding, WIDTH, HEIGHT).decode(payload, time_base_ns)) == rows


@given(words=st.lists(st.integers(0, 2**64 - 1), max_size=30), time_base_ns=st.integers(0, 2**61))
def test_mono_equals_the_reference(words, time_base_ns):
    width, height = 1 << 16, 1 << 14  # so that half of the random rows are outside
    expected = []
    for word in words:
        x, y = word >> 32 & 0xFFFF, word >> 48 & 0x7FFF
        if y < height:
            expected.append(((time_base_ns + (word & 0xFFFFFFFF)) // 1000, x, y, word >> 63))
    compare(make_decoder("mono", width, height), words, time_base_ns, expected)


@given(
    words=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 50) | st.integers(2**31 - 50, 2**31 + 1)), max_size=30
    ),
    time_base_ns=st.integers(0, 2**61),
)
def test_libcaer_equals_the_reference(words, time_base_ns):
    width, height = 1 << 15, 1 << 14
    expected, last, carry = [], 0, 0
    for data, time in words:
        if data & 1 and time < 2**31:
            if last - time > 2**30:
                carry += 2**31
            last = time
            x, y = data >> 17, data >> 2 & 0x7FFF
            if y < height:
                expected.append(((time_base_ns + (time + carry) * 1000) // 1000, x, y, data >> 1 & 1))
    packed = [data | time << 32 for data, time in words]
    compare(make_decoder("libcaer", width, height), packed, time_base_ns, expected)


def compare(decoder, words, time_base_ns, expected):
    payload = np.array(words, "<u8").tobytes()
    try:
        assert rows_of(decoder.decode(payload, time_base_ns)) == expected
    except DecodeError as error:
        assert error.reason == "corrupt_packet"
        assert len(words) - len(expected) > 8
        assert not any(decoder.counters.values())
    else:
        assert sum(decoder.counters.values()) == len(words) - len(expected)


def test_libcaer_time_rolls_over_inside_a_packet():
    rows = [(2**31 - 1, 1, 2, 1), (2**31, 3, 4, 0), (2**31 + 5, 5, 6, 1)]
    payload, time_base_ns = make_encoder("libcaer", WIDTH, HEIGHT).encode(make(rows))
    assert time_base_ns == 0
    assert rows_of(make_decoder("libcaer", WIDTH, HEIGHT).decode(payload, time_base_ns)) == rows


def test_libcaer_disorder_is_no_rollover():
    words = [1 | 100 << 32, 1 | 90 << 32]
    events = make_decoder("libcaer", WIDTH, HEIGHT).decode(np.array(words, "<u8").tobytes())
    assert events.t.tolist() == [100, 90]


def test_invalid_libcaer_events_are_counted():
    decoder = make_decoder("libcaer", WIDTH, HEIGHT)
    assert len(decoder.decode(np.array([0, 1, 1 | 2**63], "<u8").tobytes())) == 1
    assert decoder.counters == {"out_of_range_events": 0, "invalid_events": 2}


def sample_of(encoding: str) -> tuple[bytes, int]:
    """A packet with what the encoding has: single events, rows of events, triggers."""
    rows = [(70, x, 3, 1) for x in range(40)] + [(80, 9, y, 0) for y in range(8)] + [(5000, 9, 1, 1), (5000, 7, 1, 1)]
    edges = Triggers(np.array([70, 75, 6000]), np.array([3, 0, 1], np.uint8), np.array([1, 0, 1], np.uint8))
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    return encoder.encode(
        Events.empty() if encoding == "trigger" else make(rows), edges if encoder.TRIGGER_BITS else Triggers.empty()
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packets_cut_at_every_byte(encoding):
    """Cut inside a word they are refused without a trace; cut between words, both parts give the whole."""
    payload, time_base_ns = sample_of(encoding)
    decoder = make_decoder(encoding, WIDTH, HEIGHT)
    whole, edges = rows_of(decoder.decode(payload, time_base_ns)), decoder.triggers
    size = decoder.WORD.itemsize * decoder.GROUP
    for cut in range(len(payload) + 1):
        decoder = make_decoder(encoding, WIDTH, HEIGHT)
        if cut % size:
            for _ in range(2):
                with pytest.raises(DecodeError) as error:
                    decoder.decode(payload[:cut], time_base_ns)
                assert error.value.reason == "truncated_packet"
            assert rows_of(decoder.decode(payload, time_base_ns)) == whole
            continue
        first, first_edges = decoder.decode(payload[:cut], time_base_ns), decoder.triggers
        second, second_edges = decoder.decode(payload[cut:], time_base_ns), decoder.triggers
        # Words of time are not said again in the second part: only encodings whose packets carry on have all times.
        names = slice(1, 4) if encoding == "libcaer_cmp" else slice(4)
        assert [row[names] for row in rows_of(concatenate([first, second]))] == [row[names] for row in whole]
        assert [*first_edges.t, *second_edges.t] == edges.t.tolist()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_copy_goes_its_own_way(encoding):
    payload, time_base_ns = sample_of(encoding)
    half = len(payload) // 16 * 8
    decoder = make_decoder(encoding, WIDTH, HEIGHT)
    decoder.decode(payload[:half], time_base_ns)
    twin = decoder.copy()
    expected = rows_of(decoder.copy().decode(payload[half:], time_base_ns))
    twin.resynchronise()
    twin.decode(payload, time_base_ns)
    twin.reset()
    counters = decoder.counters.copy()
    twin.decode(payload, time_base_ns)
    assert decoder.counters == counters
    assert rows_of(decoder.decode(payload[half:], time_base_ns)) == expected


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_after_a_loss_nothing_is_made_up(encoding):
    """Whatever part of a packet is lost: what comes out is events of the whole one, and what is dropped is counted."""
    payload, time_base_ns = sample_of(encoding)
    decoder = make_decoder(encoding, WIDTH, HEIGHT)
    whole = rows_of(decoder.decode(payload, time_base_ns))
    size = decoder.WORD.itemsize * decoder.GROUP
    # Times of libcaer_cmp begin anew with each packet, so that those of half a packet are other ones.
    names = slice(1, 4) if encoding == "libcaer_cmp" else slice(4)
    for cut in range(0, len(payload), size):
        decoder = make_decoder(encoding, WIDTH, HEIGHT)
        decoder.decode(payload, time_base_ns)
        decoder.resynchronise()
        rest = rows_of(decoder.decode(payload[cut:], time_base_ns))
        assert {row[names] for row in rest} <= {row[names] for row in whole}
        assert rest or encoding == "trigger" or cut > size or not decoder.counters.get("unsynchronised_events")
        dropped = decoder.counters.get("unsynchronised_events", 0)
        if "unsynchronised_events" not in decoder.counters and encoding != "trigger":
            assert len(rest) == len(whole) - cut // size
        undisturbed = make_decoder(encoding, WIDTH, HEIGHT)
        undisturbed.decode(payload, time_base_ns)
        assert len(rest) + dropped == len(undisturbed.decode(payload[cut:], time_base_ns))


EDGES = st.tuples(
    st.integers(0, 2 * EPOCH_US),
    st.lists(st.tuples(st.integers(0, 4_000_000), st.integers(0, 15), st.integers(0, 1)), max_size=20),
).map(lambda drawn: [(drawn[0] + dt, *rest) for dt, *rest in sorted(drawn[1], key=lambda row: row[0])])


@pytest.mark.parametrize(
    ("encoding", "wrap_us"), [("evt2", 1 << 34), ("evt21", 1 << 34), ("evt3", 1 << 24), ("trigger", 0)]
)
@given(edges=EDGES)
def test_triggers_alone_come_back(encoding, wrap_us, edges):
    columns = list(zip(*edges, strict=True)) if edges else [(), (), ()]
    triggers = Triggers(*(np.array(c, d) for c, d in zip(columns, ("i8", "u1", "u1"), strict=True)))
    payload, time_base_ns = make_encoder(encoding, WIDTH, HEIGHT).encode(Events.empty(), triggers)
    decoder = make_decoder(encoding, WIDTH, HEIGHT)
    assert len(decoder.decode(payload, time_base_ns)) == 0
    shift = edges[0][0] // wrap_us * wrap_us if edges and wrap_us else 0
    found = zip(decoder.triggers.t.tolist(), decoder.triggers.id.tolist(), decoder.triggers.p.tolist(), strict=True)
    assert list(found) == [(t - shift, *rest) for t, *rest in edges]
    assert decoder.counters["triggers"] == len(edges)


@pytest.mark.parametrize("encoding", ["mono", "libcaer", "libcaer_cmp"])
def test_encodings_without_triggers_say_so(encoding):
    edge = Triggers(np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    with pytest.raises(InputError) as error:
        make_encoder(encoding, WIDTH, HEIGHT).encode(make([(0, 0, 0, 1)]), edge)
    assert error.value.reason == "bad_triggers"


def test_trigger_packets_hold_no_events():
    with pytest.raises(InputError, match="no events"):
        make_encoder("trigger", WIDTH, HEIGHT).encode(make([(0, 0, 0, 1)]))


@pytest.mark.parametrize("encoding", ["mono", "trigger", "libcaer", "libcaer_cmp"])
@pytest.mark.parametrize("time_base_ns", [-1, 2**64 - 1])
def test_impossible_time_base_is_refused(encoding, time_base_ns):
    with pytest.raises(DecodeError, match="time_base") as error:
        make_decoder(encoding, WIDTH, HEIGHT).decode(b"", time_base_ns)
    assert error.value.reason == "corrupt_packet"


@pytest.mark.parametrize(("encoding", "span_us"), [("mono", 4_294_967), ("libcaer", 2**30)])
def test_too_long_a_packet_is_refused(encoding, span_us):
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    encoder.encode(make([(0, 0, 0, 1), (span_us - 1, 0, 0, 1)]))
    with pytest.raises(InputError, match="do not fit one"):
        encoder.encode(make([(0, 0, 0, 1), (span_us, 0, 0, 1)]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_empty_packets_are_fine(encoding):
    assert make_encoder(encoding, WIDTH, HEIGHT).encode(Events.empty()) == (b"", 0)
    assert len(make_decoder(encoding, WIDTH, HEIGHT).decode(b"")) == 0


def test_registry_names_what_it_refuses():  # EVT 4.0 has other words than EVT 2.1
    with pytest.raises(DecodeError, match="'evt4' is not known: use one of evt2, evt21, evt3, mono") as error:
        make_decoder("evt4", WIDTH, HEIGHT)
    assert error.value.reason == "unknown_encoding"
    with pytest.raises(InputError, match="no pixels"):
        make_decoder("evt3", 0, HEIGHT)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_words_of_either_byte_order_and_at_any_address(encoding):
    events = Events.empty() if encoding == "trigger" else make([(70, 2, 3, 1), (80, 3, 3, 0), (5000, 9, 1, 1)])
    triggers = Triggers(np.array([75]), np.array([3], np.uint8), np.ones(1, np.uint8))
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    payload, time_base_ns = encoder.encode(events, triggers if encoder.TRIGGER_BITS else Triggers.empty())
    size = make_decoder(encoding, 1, 1).WORD.itemsize
    swapped = np.frombuffer(payload, f"u{size}").byteswap().tobytes()
    for shift in range(3):
        for is_bigendian, raw in ((False, payload), (True, swapped)):
            decoder = make_decoder(encoding, WIDTH, HEIGHT, is_bigendian)
            assert rows_of(decoder.decode(memoryview(bytes(shift) + raw)[shift:], time_base_ns)) == rows_of(events)
            assert decoder.triggers.t.tolist() == ([75] if encoder.TRIGGER_BITS else [])


@pytest.mark.parametrize(
    ("file", "encoding", "truth"),
    [
        (
            "ecc_evt3_trigger/test_data_evt3_trigger_0.db3",
            "evt3",
            {"n": 82469, "x": 42078718, "y": 31656267, "p": 41439, "t": 1222326831810, "t0": 14224870, "t1": 15476187}
            | {"triggers": 2},
        ),
        (
            "ecpy_test1/test_events_1.db3",
            "evt3",
            # The makers count 4156 edges, but the sum of all times that they assert has those of 4157.
            {"n": 343474, "p": 125183, "t": 2851601611994, "t0": 7139845, "t1": 9218023}
            | {"triggers": 4157, "trigger_t": 2885601049874 - 2851601611994},
        ),
        (
            "ecc_libcaer_rollover/libcaer_rollover_0.db3",
            "libcaer",
            {"n": 334331, "x": 111651612, "y": 82801007, "p": 181908, "t0": EPOCH_US, "t1": EPOCH_US + 1_999_986},
        ),
        ("ecc_mono_cd/test_data_mono_cd_0.db3", "mono", {"n": 100}),  # recorded under the message's old name
    ],
)
def test_known_truth(test_data, file, encoding, truth):
    bag = sqlite3.connect(f"file:{test_data / 'recordings' / file}?mode=ro&immutable=1", uri=True)
    packets = [parse_event_packet_cdr(cdr) for (cdr,) in bag.execute("SELECT data FROM messages ORDER BY id")]
    bag.close()
    assert {packet.encoding for packet in packets} == {encoding}
    assert np.all(np.diff([packet.seq for packet in packets]) == 1)
    decoder = make_decoder(encoding, packets[0].width, packets[0].height)
    events, edges = [], []
    for packet in packets:
        events.append(decoder.decode(packet.payload, packet.time_base))
        edges += decoder.triggers.t.tolist()
    events = concatenate(events)
    sums = {name: int(getattr(events, name).sum(dtype=np.int64)) for name in ("x", "y", "p", "t")}
    found = {"n": len(events), **sums, "t0": int(events.t[0]), "t1": int(events.t[-1])}
    found |= {"triggers": len(edges), "trigger_t": sum(edges)}
    assert {name: found[name] for name in truth} == truth
    assert np.all(np.diff(events.t) >= 0)
    assert sum(count for name, count in decoder.counters.items() if name != "triggers") == 0


def test_warm_up_compiles_what_decoders_need():
    """One compilation for each kernel, whatever kind of buffer a payload or a message comes in."""
    warm_up()
    events = make([(1, 2, 3, 1), (2, 3, 3, 0)])
    for encoding in set(ENCODINGS) - {"trigger"}:
        payload, time_base_ns = make_encoder(encoding, WIDTH, HEIGHT).encode(events)
        for kind in (bytes, bytearray, memoryview, lambda raw: np.frombuffer(bytearray(raw), np.uint8)):
            assert len(make_decoder(encoding, WIDTH, HEIGHT).decode(kind(payload), time_base_ns)) == 2
    decode_dvs_event_array_cdr(bytearray(encode_dvs_event_array_cdr(0, "", WIDTH, HEIGHT, events)))
    kernels = [
        codec_evt2._count_others,
        codec_evt2._count_evt21,
        codec_evt2._settle_legacy,
        codec_evt2._decode_evt2,
        codec_evt2._decode_evt21,
        codec_evt2._encode,
        codec_evt3._count,
        codec_evt3._decode,
        codec_evt3._encode,
        codec_libcaer_cmp._count,
        codec_libcaer_cmp._decode,
        codec_libcaer_cmp._encode,
        codec_words64._decode_mono,
        codec_words64._decode_libcaer,
        message_cdr._read_dvs,
    ]
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)
