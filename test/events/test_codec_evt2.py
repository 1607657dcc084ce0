"""EVT2 and EVT2.1 against a slow decoder written straight from the table of words; wraps, losses, halves told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codecs import Evt21Decoder, Evt21Encoder, make_decoder, make_encoder
from event_sam3d_ros.events.events import Events, Triggers

WIDTH, HEIGHT = 100, 90
WRAP_US = 1 << 34
QUARTER = 1 << 26  # of the 28 bits of TIME_HIGH


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True))


def triggers_of(triggers: Triggers) -> list[tuple[int, int, int]]:
    return list(zip(triggers.t.tolist(), triggers.id.tolist(), triggers.p.tolist(), strict=True))


def make(rows) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def make_triggers(rows) -> Triggers:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return Triggers(*(np.array(c, d) for c, d in zip(columns, ("i8", "u1", "u1"), strict=True)))


def time_high(value: int) -> int:
    return 0x8 << 28 | value % (1 << 28)


def event(x: int, y: int, p: int = 1, low: int = 0) -> int:
    return p << 28 | low << 22 | x << 11 | y


def payload_of(halves, encoding: str, legacy: bool = False) -> bytes:
    """Payload of (address, mask) pairs."""
    if encoding == "evt2":
        return np.array([address for address, _ in halves], "<u4").tobytes()
    return np.array([pair if legacy else pair[::-1] for pair in halves], "<u4").tobytes()


def decoder_of(encoding: str):
    return make_decoder("evt2", WIDTH, HEIGHT) if encoding == "evt2" else Evt21Decoder(WIDTH, HEIGHT, legacy=False)


class Reference:
    """One word after another, nothing clever."""

    def __init__(self, encoding):
        self.encoding, self.high, self.history = encoding, None, None
        self.events, self.triggers = [], []
        self.counters = dict.fromkeys(make_decoder("evt2", 1, 1).counters, 0)

    def word(self, address, mask):
        kind, low = address // 2**28, address // 2**22 % 64
        if kind in (0, 1):
            x, y = address // 2**11 % 2**11, address % 2**11
            for k in range(32) if self.encoding == "evt21" else (0,):
                if self.encoding == "evt21" and not mask // 2**k % 2:
                    continue
                if self.high is None:
                    self.counters["unsynchronised_events"] += 1
                elif x + k >= WIDTH or y >= HEIGHT:
                    self.counters["out_of_range_events"] += 1
                else:
                    self.events.append((self.high * 64 + low, x + k, y, kind))
        elif kind == 8:
            self.time_high(address % 2**28)
        elif kind == 0xA and self.high is None:
            self.counters["unsynchronised_triggers"] += 1
        elif kind == 0xA:
            self.counters["triggers"] += 1
            self.triggers.append((self.high * 64 + low, address // 2**8 % 32, address % 2))
        elif kind not in ((0xD, 0xE, 0xF) if self.encoding == "evt2" else (0xE, 0xF)):
            self.counters["unknown_words"] += 1

    def time_high(self, value):
        old = value if self.history is None else self.history
        loop = old // 2**28 * 2**28
        near = [new for new in (loop - 2**28 + value, loop + value, loop + 2**28 + value) if abs(new - old) <= QUARTER]
        self.high = self.history = near[0] if near else loop + value

    def resynchronise(self):
        self.high = None


ADDRESS = st.one_of(
    st.builds(event, st.integers(0, WIDTH + 3), st.integers(0, HEIGHT + 3), st.integers(0, 1), st.integers(0, 63)),
    st.builds(event, st.integers(0, WIDTH + 3), st.integers(0, HEIGHT + 3), st.integers(0, 1), st.integers(0, 63)),
    st.sampled_from([0, 1, 5, QUARTER - 3, 2 * QUARTER, -3, -QUARTER]).map(time_high),
    st.builds(
        lambda low, number, p: 0xA << 28 | low << 22 | number << 8 | p, *map(st.integers, (0, 0, 0), (63, 31, 1))
    ),
    st.sampled_from([0xD, 0xE, 0xF]).map(lambda kind: kind << 28 | 0x123),
    st.integers(0, 2**32 - 1),
)
HALVES = st.tuples(ADDRESS, st.integers(0, 2**32 - 1) | st.integers(0, 31).map(lambda k: 1 << k))


@pytest.mark.parametrize("encoding", ["evt2", "evt21"])
@given(packets=st.lists(st.lists(HALVES, max_size=25) | st.none(), max_size=6))
def test_equals_the_reference_across_packets(encoding, packets):
    """Also across losses (None), and with events, counters and state untouched by packets that are refused."""
    decoder, reference = decoder_of(encoding), Reference(encoding)
    decoded, edges = [], []
    for words in packets:
        if words is None:
            decoder.resynchronise()
            reference.resynchronise()
            continue
        try:
            decoded += rows_of(decoder.decode(payload_of(words, encoding)))
        except DecodeError as error:
            assert error.reason == "corrupt_packet"
            continue
        edges += triggers_of(decoder.triggers)
        for address, mask in words:
            reference.word(address, mask)
    assert decoded == reference.events
    assert edges == reference.triggers
    assert decoder.counters == reference.counters


@st.composite
def event_rows(draw):
    steps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 60, 70, WRAP_US // 3, WRAP_US, 3 * WRAP_US]), max_size=40))
    t, rows, edges, x, y = draw(st.integers(0, 3 * WRAP_US)), [], [], 0, 0
    for step in steps:
        t += step
        x = draw(st.just((x + 1) % WIDTH) | st.integers(0, WIDTH - 1))
        y = draw(st.just(y) | st.just(y) | st.integers(0, HEIGHT - 1))
        rows.append((t, x, y, draw(st.sampled_from([1, 1, 1, 0]))))
        if draw(st.integers(0, 5)) == 0:
            edges.append((t, draw(st.integers(0, 31)), draw(st.integers(0, 1))))
    return rows, edges


@pytest.mark.parametrize("legacy", [None, False, True], ids=["evt2", "evt21", "evt21-legacy"])
@given(drawn=event_rows(), cut_us=st.integers(0, 6 * WRAP_US))
def test_round_trip(legacy, drawn, cut_us):
    """Events and triggers of two packets come back exactly, but for whole wraps before the first time."""
    rows, edges = drawn
    encoder = make_encoder("evt2", WIDTH, HEIGHT) if legacy is None else Evt21Encoder(WIDTH, HEIGHT, legacy)
    decoder = make_decoder("evt2", WIDTH, HEIGHT) if legacy is None else Evt21Decoder(WIDTH, HEIGHT, legacy=legacy)
    shift = rows[0][0] // WRAP_US * WRAP_US if rows else 0
    for is_first in (True, False):
        part = [row for row in rows if (row[0] < cut_us) == is_first]
        edge_part = [edge for edge in edges if (edge[0] < cut_us) == is_first]
        payload, time_base = encoder.encode(make(part), make_triggers(edge_part))
        assert time_base == 0
        assert rows_of(decoder.decode(payload)) == [(t - shift, *rest) for t, *rest in part]
        assert triggers_of(decoder.triggers) == [(t - shift, *rest) for t, *rest in edge_part]
    assert sum(count for name, count in decoder.counters.items() if name != "triggers") == 0


@pytest.mark.parametrize("encoding", ["evt2", "evt21"])
@pytest.mark.parametrize(
    ("highs", "expected"),
    [
        ([2**28 - 1, 0], [2**28 - 1, 2**28]),
        ([2**28 - 1, 0, 2**28 - 2, 1], [2**28 - 1, 2**28, 2**28 - 2, 2**28 + 1]),  # disorder around the wrap
        ([1000, 900], [1000, 900]),
        ([2 * QUARTER, 0], [2 * QUARTER, 0]),  # a camera that was reset is no wrap
        ([3 * QUARTER, 0], [3 * QUARTER, 4 * QUARTER]),
    ],
)
def test_time_wraps(encoding, highs, expected):
    halves = [half for high in highs for half in ((time_high(high), 0), (event(1, 2, low=7), 1))]
    events = decoder_of(encoding).decode(payload_of(halves, encoding))
    assert events.t.tolist() == [high * 64 + 7 for high in expected]


def test_a_row_of_32_columns_is_one_word():
    rows = [(5, x, 3, 1) for x in range(96)]
    assert len(make_encoder("evt21", WIDTH, HEIGHT).encode(make(rows))[0]) == 8 * 4


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (1 << 16, 1 << 16)], ids=["sensor", "unknown-sensor"])
@given(seed=st.integers(0, 2**31), sparse=st.booleans())
def test_which_half_is_the_address_is_found_and_kept(legacy, size, seed, sparse):
    rng = np.random.default_rng(seed)
    encoder, decoder = Evt21Encoder(WIDTH, HEIGHT, legacy), make_decoder("evt21", *size)
    for packet in range(4):
        t = np.sort(rng.integers(0, 1000, 30)) + 1000 * packet
        x = rng.integers(0, WIDTH, 30) if sparse else np.arange(30)
        y = rng.integers(0, HEIGHT, 30) if sparse else np.full(30, rng.integers(HEIGHT))
        rows = [(int(a), int(b), int(c), int(a) & 1) for a, b, c in zip(t, x, y, strict=True)]
        assert rows_of(decoder.decode(encoder.encode(make(rows))[0])) == rows
    assert decoder.legacy is legacy
    decoder.resynchronise()
    assert decoder.legacy is legacy
    decoder.reset()
    assert decoder.legacy is None


def test_what_a_refused_packet_seems_to_show_does_not_count():
    decoder = make_decoder("evt21", WIDTH, HEIGHT)
    with pytest.raises(DecodeError):
        decoder.decode(np.random.default_rng(0).bytes(8 * 400))
    assert decoder.legacy is None
    payload = Evt21Encoder(WIDTH, HEIGHT, legacy=True).encode(make([(64 * i, 3, 4, 1) for i in range(9)]))[0]
    assert len(decoder.decode(payload)) == 9
    assert decoder.legacy is True


def test_unaligned_columns_do_not_mislead():
    """OpenEB's own tests begin words at any column."""
    halves = [(time_high(0), 0), (event(2, 1, 0), 1), (event(3, 1, 1), 1)]
    for legacy in (False, True):
        decoder = make_decoder("evt21", WIDTH, HEIGHT)
        assert rows_of(decoder.decode(payload_of(halves, "evt21", legacy))) == [(0, 2, 1, 0), (0, 3, 1, 1)]


@pytest.mark.parametrize("encoding", ["evt2", "evt21"])
def test_encoders_refuse_what_they_cannot_say(encoding):
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    encoder.encode(make([(10, 0, 0, 1)]))
    with pytest.raises(InputError, match="rising times"):
        encoder.encode(make([(9, 0, 0, 1)]))
    with pytest.raises(InputError, match="5 bits for a trigger's number, 32 does not fit"):
        encoder.encode(Events.empty(), make_triggers([(20, 32, 1)]))
    with pytest.raises(InputError, match="11 bits per coordinate"):
        make_encoder(encoding, 2049, 10)


def test_known_truth_of_a_raw_file(test_data):
    raw = (test_data / "recordings" / "raw" / "evt2.raw").read_bytes()
    words = raw[raw.index(b"% evt 2.0\n") + len(b"% evt 2.0\n") :]
    decoder = make_decoder("evt2", 640, 480)
    events = decoder.decode(words)
    assert len(events) == 521_252
    assert np.all(np.diff(events.t) >= 0)
    assert sum(decoder.counters.values()) == 0
    for encoding in ("evt2", "evt21"):
        again = make_decoder(encoding, 640, 480).decode(make_encoder(encoding, 640, 480).encode(events)[0])
        for name in ("t", "x", "y", "p"):
            np.testing.assert_array_equal(getattr(again, name), getattr(events, name))
