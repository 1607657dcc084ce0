"""EVT3 against a slow decoder written straight from the table of words, and around losses, wraps and garbage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codecs import make_decoder, make_encoder
from event_sam3d_ros.events.events import Events, Triggers, concatenate

WIDTH, HEIGHT = 40, 30
WRAP_US = 1 << 24


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True))


def triggers_of(triggers: Triggers) -> list[tuple[int, int, int]]:
    return list(zip(triggers.t.tolist(), triggers.id.tolist(), triggers.p.tolist(), strict=True))


def make(rows) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def payload_of(words) -> bytes:
    return np.array(words, "<u2").tobytes()


class Reference:
    """One word after another, nothing clever."""

    def __init__(self):
        self.high = self.low = self.y = self.base = self.polarity = None
        self.history = None
        self.triggers = []
        self.events, self.counters = [], dict.fromkeys(make_decoder("evt3", 1, 1).counters, 0)

    def emit(self, x, p):
        if self.low is None or self.y is None:
            self.counters["unsynchronised_events"] += 1
        elif x >= WIDTH or self.y >= HEIGHT:
            self.counters["out_of_range_events"] += 1
        else:
            self.events.append((self.high * 4096 + self.low, x, self.y, p))

    def word(self, word):
        kind, value = word // 4096, word % 4096
        if kind == 0x0:
            self.y = value % 2048
        elif kind == 0x2:
            self.emit(value % 2048, value // 2048)
        elif kind == 0x3:
            self.base, self.polarity = value % 2048, value // 2048
        elif kind in (0x4, 0x5):
            size = 12 if kind == 0x4 else 8
            for k in range(size):
                if value // 2**k % 2 and self.base is None:
                    self.counters["unsynchronised_events"] += 1
                elif value // 2**k % 2:
                    self.emit(self.base + k, self.polarity)
            if self.base is not None:
                self.base += size
        elif kind == 0x6:
            if self.high is not None:
                self.low = value
        elif kind == 0x8:
            self.time_high(value)
        elif kind == 0x9:
            self.counters["reserved_words"] += 1
        elif kind == 0xA and self.low is None:
            self.counters["unsynchronised_triggers"] += 1
        elif kind == 0xA:
            self.counters["triggers"] += 1
            self.triggers.append((self.high * 4096 + self.low, value // 256, value % 2))
        elif kind in (0x1, 0xB, 0xC, 0xD):
            self.counters["unknown_words"] += 1

    def time_high(self, value):
        old = self.history
        if old is None:
            new = value
        else:
            new = old - old % 4096 + value
            if old - new > (10 if self.high is None else 2047):
                new += 4096
            elif new - old >= 4086:
                new -= 4096
        if new != old and self.low is not None:
            self.low = 0
        self.high = self.history = new

    def resynchronise(self):
        self.high = self.low = self.y = self.base = None


def word(kind, values):
    return values.map(lambda value: kind << 12 | value)


POLARITY = st.integers(0, 1).map(lambda p: p << 11)
COLUMN = st.integers(0, WIDTH + 5)
WORD = st.one_of(
    word(0x0, st.integers(0, HEIGHT + 2) | st.integers(0, 0xFFF)),
    word(0x2, st.tuples(COLUMN, POLARITY).map(sum)),
    word(0x2, st.tuples(COLUMN, POLARITY).map(sum)),
    word(0x3, st.tuples(COLUMN, POLARITY).map(sum)),
    word(0x4, st.integers(0, 0xFFF)),
    word(0x5, st.integers(0, 0xFFF)),
    word(0x6, st.integers(0, 0xFFF)),
    word(0xA, st.integers(0, 0xFFF)),
    word(0x8, st.integers(0, 0xFFF) | st.integers(0, 12) | st.integers(0xFF0, 0xFFF)),
    st.integers(0, 0xFFFF),
)


@given(st.lists(st.lists(WORD, max_size=40) | st.none(), max_size=6))
def test_equals_the_reference_across_packets(packets):
    """Also across losses (None), and with events, counters and state untouched by packets that are refused."""
    decoder, reference = make_decoder("evt3", WIDTH, HEIGHT), Reference()
    decoded, edges = [], []
    for words in packets:
        if words is None:
            decoder.resynchronise()
            reference.resynchronise()
            continue
        try:
            decoded += rows_of(decoder.decode(payload_of(words)))
        except DecodeError as error:
            assert error.reason == "corrupt_packet"
            unknown = sum(w >> 12 in (0x1, 0xB, 0xC, 0xD) for w in words)
            assert unknown > 8 or any(w >> 12 in (0x2, 0x4, 0x5) for w in words)
            continue
        edges += triggers_of(decoder.triggers)
        for w in words:
            reference.word(w)
    assert decoded == reference.events
    assert edges == reference.triggers
    assert decoder.counters == reference.counters


@st.composite
def event_rows(draw):
    size = draw(st.integers(0, 60))
    steps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 4000, 5000, WRAP_US // 2, 3 * WRAP_US]), min_size=size))
    t = draw(st.integers(0, 4 * WRAP_US))
    rows, x, y = [], 0, 0
    for i in range(size):
        t += steps[i]
        # Often the next pixel of the same row, so that vectors form.
        x = draw(st.just((x + 1) % WIDTH) | st.integers(0, WIDTH - 1))
        y = draw(st.just(y) | st.just(y) | st.integers(0, HEIGHT - 1))
        rows.append((t, x, y, draw(st.sampled_from([1, 1, 1, 0]))))
    return rows


@given(event_rows(), st.lists(st.integers(0, 60), max_size=4))
def test_round_trip(rows, cuts):
    """Times come back exactly but for whole wraps before the first event; order, duplicates and packets are kept."""
    encoder, decoder = make_encoder("evt3", WIDTH, HEIGHT), make_decoder("evt3", WIDTH, HEIGHT)
    bounds = [0, *sorted(cuts), len(rows)]
    packets = [rows[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    shift = rows[0][0] // WRAP_US * WRAP_US if rows else 0
    for packet in packets:
        payload, time_base = encoder.encode(make(packet))
        assert time_base == 0
        assert rows_of(decoder.decode(payload)) == [(t - shift, x, y, p) for t, x, y, p in packet]
    assert not any(decoder.counters.values())


@pytest.mark.parametrize("pause_us", [WRAP_US // 2, WRAP_US - 5 * 4096, WRAP_US, WRAP_US + 1, 5 * WRAP_US - 4096])
def test_pauses_near_whole_wraps_are_bridged(pause_us):
    rows = [(3, 1, 1, 1), (3 + pause_us, 2, 2, 0)]
    payload, _ = make_encoder("evt3", WIDTH, HEIGHT).encode(make(rows))
    assert rows_of(make_decoder("evt3", WIDTH, HEIGHT).decode(payload)) == rows


def test_rows_of_events_become_vectors():
    rows = [(7, x, 3, 1) for x in range(32)]
    payload, _ = make_encoder("evt3", WIDTH, HEIGHT).encode(make(rows))
    assert len(payload) == 2 * 7  # TIME_HIGH TIME_LOW ADDR_Y BASE VECT_12 VECT_12 VECT_8


def sample_payload() -> bytes:
    rows = [(4090, x, 5, 1) for x in range(3, 20)] + [(4100, 7, 6, 0), (9000, 30, 29, 1), (9000, 2, 29, 0)]
    return make_encoder("evt3", WIDTH, HEIGHT).encode(make(rows))[0]


def test_cut_anywhere_between_words_changes_nothing():
    payload = sample_payload()
    whole = rows_of(make_decoder("evt3", WIDTH, HEIGHT).decode(payload))
    assert len(whole) == 20
    for cut in range(0, len(payload) + 1, 2):
        decoder = make_decoder("evt3", WIDTH, HEIGHT)
        parts = [decoder.decode(payload[:cut]), decoder.decode(payload[cut:])]
        assert rows_of(concatenate(parts)) == whole


def test_cut_inside_a_word_is_refused_and_leaves_no_trace():
    payload = sample_payload()
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    whole = rows_of(make_decoder("evt3", WIDTH, HEIGHT).decode(payload))
    for cut in range(1, len(payload), 2):
        with pytest.raises(DecodeError, match="cut off") as error:
            decoder.decode(payload[:cut])
        assert error.value.reason == "truncated_packet"
    assert rows_of(decoder.decode(payload)) == whole


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 2048), st.integers(1, 2048))
def test_random_bytes_never_crash_and_never_leave_the_image(payloads, width, height):
    decoder = make_decoder("evt3", width, height)
    for payload in payloads:
        try:
            events = decoder.decode(payload)
        except DecodeError:
            continue
        assert (events.x < width).all()
        assert (events.y < height).all()
        assert (events.p < 2).all()


def test_a_packet_of_noise_is_refused_and_leaves_no_trace():
    noise = np.random.default_rng(0).bytes(2000)
    decoder, undisturbed = make_decoder("evt3", WIDTH, HEIGHT), make_decoder("evt3", WIDTH, HEIGHT)
    encoder = make_encoder("evt3", WIDTH, HEIGHT)
    for i in range(3):
        payload, _ = encoder.encode(make([(5_000_000 * i + 7, 1, 2, 1), (5_000_000 * i + 9, 3, 2, 0)]))
        assert rows_of(decoder.decode(payload)) == rows_of(undisturbed.decode(payload))
        with pytest.raises(DecodeError) as error:
            decoder.decode(noise)
        assert error.value.reason == "corrupt_packet"
    assert decoder.counters == undisturbed.counters


def test_events_of_a_larger_sensor_are_refused_in_words():
    rows = [(i, 100 + i, 50, 1) for i in range(100)]
    payload, _ = make_encoder("evt3", 640, 480).encode(make(rows))
    with pytest.raises(DecodeError, match="100 of 100 events are outside the image"):
        make_decoder("evt3", WIDTH, HEIGHT).decode(payload)


def test_single_pixels_outside_are_dropped_and_counted():
    rows = [(0, 5, 5, 1), (1, WIDTH, 5, 1), (2, 5, HEIGHT, 1), (3, 6, 6, 0)]
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    events = decoder.decode(make_encoder("evt3", 640, 480).encode(make(rows))[0])
    assert rows_of(events) == [rows[0], rows[3]]
    assert decoder.counters["out_of_range_events"] == 2


@pytest.mark.parametrize(
    ("highs", "expected"),
    [
        ([100, 90], [100, 90]),  # bit noise
        ([3000, 953], [3000, 953]),  # a bit of the first that was damaged
        ([3000, 952], [3000, 4096 + 952]),  # half a wrap: how some encoders bridge long pauses
        ([4095, 0], [4095, 4096]),
        ([4095, 0, 4090, 3], [4095, 4096, 4090, 4099]),  # bit noise across the wrap counts once
        ([0, 2047, 4095, 2046], [0, 2047, 4095, 4096 + 2046]),
    ],
)
def test_time_wraps(highs, expected):
    words = [w for high in highs for w in (0x8000 | high, 0x6007, 0x0003, 0x2005)]
    events = make_decoder("evt3", WIDTH, HEIGHT).decode(payload_of(words))
    assert events.t.tolist() == [high * 4096 + 7 for high in expected]


# The highest bit of a word that repeats the one before moves it by half a wrap, which can't be told from a pause.
@pytest.mark.parametrize(("bit", "step"), [(bit, step) for bit in range(12) for step in (0, 1) if bit < 11 or step])
def test_a_damaged_bit_of_the_time_does_not_move_what_follows(bit, step):
    for high in (*range(12, 4080, 97), 2047, 2048, 4000):
        highs = [high, (high + step) ^ 1 << bit, high + 2 * step, high + 2 * step + 1]
        words = [w for high in highs for w in (0x8000 | high, 0x6007, 0x0003, 0x2005)]
        events = make_decoder("evt3", WIDTH, HEIGHT).decode(payload_of(words))
        assert (events.t[[0, 2, 3]] >> 12).tolist() == [high, high + 2 * step, high + 2 * step + 1]


def test_behind_a_loss_of_twelve_seconds_time_has_gone_forward():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    decoder.decode(payload_of([0x8000 | 3000, 0x6000, 0x0003, 0x2005]))
    decoder.resynchronise()
    events = decoder.decode(payload_of([0x8000 | 1904, 0x6000, 0x0003, 0x2005]))
    assert events.t.tolist() == [6000 * 4096]


def test_triggers_have_the_time_of_the_words_before_them():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    decoder.decode(payload_of([0xA101, 0x8001, 0xA101, 0x6002, 0xA701, 0x6003, 0xA200]))
    assert triggers_of(decoder.triggers) == [(4098, 7, 1), (4099, 2, 0)]
    assert decoder.counters["unsynchronised_triggers"] == 2
    decoder.decode(payload_of([0x6004]))
    assert len(decoder.triggers) == 0


def test_low_time_is_zero_until_it_follows_a_new_high_time():
    words = [0x8001, 0x6FFF, 0x0003, 0x2005, 0x8002, 0x2006, 0x6004, 0x2007, 0x8002, 0x2008]
    events = make_decoder("evt3", WIDTH, HEIGHT).decode(payload_of(words))
    assert events.t.tolist() == [8191, 8192, 8196, 8196]


def test_nothing_comes_out_before_time_and_row_are_known():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    words = [0x2001, 0x6001, 0x0002, 0x2002, 0x8001, 0x2003, 0x6005, 0x2004, 0x5003, 0x3801, 0x5003]
    assert rows_of(decoder.decode(payload_of(words))) == [(4101, 4, 2, 0), (4101, 1, 2, 1), (4101, 2, 2, 1)]
    assert decoder.counters["unsynchronised_events"] == 5


def test_resynchronise_drops_what_hangs_on_lost_words_and_time_goes_on():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    decoder.decode(payload_of([0x8FF0, 0x6000, 0x0003, 0x2005]))
    decoder.resynchronise()
    words = [0x2006, 0x600A, 0x2007, 0x8005, 0x6001, 0x2008, 0x0004, 0x2009]
    assert rows_of(decoder.decode(payload_of(words))) == [((4096 + 5) * 4096 + 1, 9, 4, 0)]
    assert decoder.counters["unsynchronised_events"] == 3


def test_reset_begins_a_new_stream():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    payload = sample_payload()
    first = rows_of(decoder.decode(payload))
    decoder.decode(payload_of([0x8F00]))
    decoder.reset()
    assert rows_of(decoder.decode(payload)) == first


def test_vendor_words_and_padding_are_skipped():
    decoder = make_decoder("evt3", WIDTH, HEIGHT)
    words = [0x8000, 0x6001, 0x0002, 0x9999, 0xE123, 0x7001, 0xF002, 0xA101, 0xB000, 0x2003, *[0x9999] * 50]
    assert rows_of(decoder.decode(payload_of(words))) == [(1, 3, 2, 0)]
    assert decoder.counters == {
        "unsynchronised_events": 0,
        "out_of_range_events": 0,
        "unknown_words": 1,
        "reserved_words": 51,
        "unsynchronised_triggers": 0,
        "triggers": 1,
    }


@pytest.mark.parametrize("payload", [b"", memoryview(sample_payload()), np.frombuffer(sample_payload(), np.uint8)])
def test_payloads_of_all_kinds(payload):
    expected = rows_of(make_decoder("evt3", WIDTH, HEIGHT).decode(bytes(payload)))
    assert rows_of(make_decoder("evt3", WIDTH, HEIGHT).decode(payload)) == expected


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(2, 0, 0, 1), (1, 0, 0, 1)], "unsorted_events"),
        ([(-1, 0, 0, 1)], "unsorted_events"),
        ([(0, WIDTH, 0, 1)], "out_of_range_events"),
        ([(0, 0, 0, 2)], "bad_events"),
    ],
)
def test_encoder_refuses_what_it_cannot_say(rows, reason):
    with pytest.raises(InputError) as error:
        make_encoder("evt3", WIDTH, HEIGHT).encode(make(rows))
    assert error.value.reason == reason


def test_encoder_refuses_packets_in_the_wrong_order_and_large_sensors():
    encoder = make_encoder("evt3", WIDTH, HEIGHT)
    encoder.encode(make([(10, 0, 0, 1)]))
    with pytest.raises(InputError, match="rising times"):
        encoder.encode(make([(9, 0, 0, 1)]))
    with pytest.raises(InputError, match="11 bits"):
        make_encoder("evt3", 2049, 10)
