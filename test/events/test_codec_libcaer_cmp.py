"""libcaer_cmp against a slow decoder, and the defects of its driver's encoder, which are made here on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codecs import make_decoder, make_encoder, parse_event_packet_cdr
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.rosbag2 import Rosbag2Recording

WIDTH, HEIGHT = 346, 260
BASE_US = 1_700_000_000_000_000


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True))


def make(rows) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def decode_slowly(words, state):
    """Events of one packet; ``state`` (x, base, polarity) goes on to the next."""
    high = low = 0
    rows, unknown, early = [], 0, 0
    for word in words:
        kind, value = word // 4096, word % 4096
        if kind == 0:
            high = value
        elif kind == 1:
            low = value
        elif kind == 2:
            state["x"] = value % 2048
        elif kind == 3:
            rows.append((high * 4096 + low, state.get("x"), value % 2048, value // 2048))
        elif kind == 4:
            state["base"], state["p"] = value % 2048, value // 2048
        elif kind == 5:
            for k in range(8):
                if value // 2**k % 2:
                    x = state.get("x") if "base" in state else None
                    rows.append((high * 4096 + low, x, state.get("base", 0) + k, state.get("p")))
            if "base" in state:
                state["base"] += 8
        else:
            unknown += 1
    early = sum(row[1] is None for row in rows)
    known = [row for row in rows if row[1] is not None]
    inside = [row for row in known if row[1] < WIDTH and row[2] < HEIGHT]
    return inside, {
        "unknown_words": unknown,
        "unsynchronised_events": early,
        "out_of_range_events": len(known) - len(inside),
    }


ROW_WORD = st.tuples(st.integers(0, HEIGHT + 9), st.integers(0, 1)).map(lambda drawn: drawn[0] | drawn[1] << 11)
WORD = st.one_of(
    st.integers(0, 0xFFF),
    st.integers(0x1000, 0x1FFF),
    st.integers(0x2000, 0x2000 + WIDTH + 3),
    ROW_WORD.map(lambda value: 0x3000 | value),
    ROW_WORD.map(lambda value: 0x3000 | value),
    ROW_WORD.map(lambda value: 0x4000 | value),
    st.integers(0x5000, 0x5FFF),
    st.integers(0, 0xFFFF),
)


@given(st.lists(st.lists(WORD, max_size=40) | st.none(), max_size=5))
def test_equals_the_reference_across_packets(packets):
    decoder, state = make_decoder("libcaer_cmp", WIDTH, HEIGHT), {}
    expected_counters = dict.fromkeys(decoder.counters, 0)
    for words in packets:
        if words is None:
            decoder.resynchronise()
            state = {}
            continue
        after = dict(state)
        expected, counters = decode_slowly(words, after)
        try:
            rows = rows_of(decoder.decode(np.array(words, "<u2").tobytes(), BASE_US * 1000 + 999))
        except DecodeError as error:
            assert error.reason == "corrupt_packet"
            continue
        state = after
        assert rows == [(BASE_US + t, *rest) for t, *rest in expected]
        for name, count in counters.items():
            expected_counters[name] += count
    assert {**decoder.counters, "folded_times": 0} == expected_counters


@st.composite
def event_rows(draw):
    t, rows, x, y = draw(st.integers(0, 2 * BASE_US)), [], 0, 0
    for step in draw(st.lists(st.sampled_from([0, 0, 0, 1, 4095, 4096, 70_000]), max_size=60)):
        t += step
        x = draw(st.just(x) | st.just(x) | st.integers(0, WIDTH - 1))
        y = draw(st.just((y + 1) % HEIGHT) | st.integers(0, HEIGHT - 1))
        rows.append((t, x, y, draw(st.sampled_from([1, 1, 0]))))
    return rows


@given(event_rows())
def test_round_trip(rows):
    payload, time_base_ns = make_encoder("libcaer_cmp", WIDTH, HEIGHT).encode(make(rows))
    decoder = make_decoder("libcaer_cmp", WIDTH, HEIGHT)
    assert rows_of(decoder.decode(payload, time_base_ns)) == rows
    assert not any(decoder.counters.values())
    assert not decoder.warnings


def test_a_packet_may_span_24_bits():
    encoder = make_encoder("libcaer_cmp", WIDTH, HEIGHT)
    rows = [(7, 1, 1, 1), (7 + (1 << 24) - 1, 2, 2, 0)]
    payload, time_base_ns = encoder.encode(make(rows))
    assert rows_of(make_decoder("libcaer_cmp", WIDTH, HEIGHT).decode(payload, time_base_ns)) == rows
    with pytest.raises(InputError, match="do not fit one libcaer_cmp packet"):
        encoder.encode(make([(7, 1, 1, 1), (7 + (1 << 24), 2, 2, 0)]))


def faulty_packet(rows) -> bytes:
    """Single events as the driver sends them: the row of the first one in a block of 8, and 4 bits of TIME_HIGH."""
    start, words = rows[0][0], []
    high, low, x, block, row = 0, 0, None, None, None
    for t, column, y, p in rows:
        dt = t - start
        if dt & 0xFFF000 != high:
            high = dt & 0xF000
            words.append(high >> 12)
        if dt & 0xFFF != low:
            low = dt & 0xFFF
            words.append(0x1000 | low)
        if column != x:
            x = column
            words.append(0x2000 | x)
        if y // 8 != block:
            block, row = y // 8, y
        words.append(0x3000 | p << 11 | row)
    return np.array(words, "<u2").tobytes()


def random_rows(count: int, step_us: int, rng) -> list[tuple[int, int, int, int]]:
    # An edge, so that events stay in a block of rows for a while.
    y = np.clip(np.cumsum(rng.integers(-3, 4, count)) + HEIGHT // 2, 0, HEIGHT - 1)
    return [(BASE_US + i * step_us, int(rng.integers(WIDTH)), int(y[i]), int(rng.integers(2))) for i in range(count)]


@pytest.mark.parametrize(
    ("step_us", "expected"), [(1, {"libcaer_cmp_stale_y"}), (100, {"libcaer_cmp_stale_y", "libcaer_cmp_time_fold"})]
)
def test_defects_of_the_driver_are_named_and_the_sound_encoder_is_not_blamed(step_us, expected):
    rng = np.random.default_rng(0)
    faulty, sound = make_decoder("libcaer_cmp", WIDTH, HEIGHT), make_decoder("libcaer_cmp", WIDTH, HEIGHT)
    encoder = make_encoder("libcaer_cmp", WIDTH, HEIGHT)
    for _ in range(3):
        rows = random_rows(2000, step_us, rng)
        faulty.decode(faulty_packet(rows), rows[0][0] * 1000)
        assert rows_of(sound.decode(*encoder.encode(make(rows)))) == rows
    assert set(faulty.warnings) == expected
    assert all("encoding:=libcaer" in sentence for sentence in faulty.warnings.values())
    assert (faulty.counters["folded_times"] > 0) == ("libcaer_cmp_time_fold" in expected)
    assert not sound.warnings
    faulty.reset()
    assert set(faulty.warnings) == expected  # said once, of this source


def test_hot_pixels_of_one_row_are_no_defect():
    decoder, encoder = make_decoder("libcaer_cmp", WIDTH, HEIGHT), make_encoder("libcaer_cmp", WIDTH, HEIGHT)
    decoder.decode(*encoder.encode(make([(BASE_US + i, 5 + i % 2, 77, 1) for i in range(2000)])))
    assert not decoder.warnings


def test_known_truth(test_data):
    """An upstream recording; all of its single events show the driver's defect."""
    recording = Rosbag2Recording(test_data / "recordings" / "ecpy_test2")
    packets = [parse_event_packet_cdr(message.cdr) for message in recording.raw_messages()]
    decoder = make_decoder("libcaer_cmp", packets[0].width, packets[0].height)
    events = concatenate([decoder.decode(packet.payload, packet.time_base) for packet in packets])
    assert (len(events), int(events.p.sum())) == (571_266, 211_043)
    assert int((events.t - events.t[0]).sum()) == 335_555_680_277
    assert not any(decoder.counters.values())
    assert set(decoder.warnings) == {"libcaer_cmp_stale_y"}
