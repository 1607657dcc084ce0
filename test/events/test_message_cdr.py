"""Serialised event messages against an independent serialiser (rosbags) and cut or scrambled bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codecs import (
    ARRAY_TYPES,
    PACKET_TYPES,
    decode_dvs_event_array_cdr,
    encode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events

PACKET = PACKET_TYPES[0]


@pytest.fixture(scope="module")
def store():
    store = get_typestore(Stores.ROS2_JAZZY)
    packet = """std_msgs/Header header
uint32 height
uint32 width
uint64 seq
uint64 time_base
string encoding
bool is_bigendian
uint8[] events"""
    event = "uint16 x\nuint16 y\nbuiltin_interfaces/Time ts\nbool polarity"
    store.register(get_types_from_msg(packet, PACKET))
    array = "std_msgs/Header header\nuint32 height\nuint32 width\nEvent[] events"
    for name in ARRAY_TYPES:
        store.register(get_types_from_msg(event, name.replace("EventArray", "Event")))
        store.register(get_types_from_msg(array, name))
    return store


def header(store, stamp_ns, frame_id):
    stamp = store.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 1_000_000_000))
    return store.types["std_msgs/msg/Header"](stamp, frame_id)


NAMES = st.text(max_size=9)
STAMPS = st.integers(0, 2**31 * 1_000_000_000 - 1)


@given(
    stamp_ns=STAMPS,
    frame_id=NAMES,
    encoding=NAMES,
    size=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    counts=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    is_bigendian=st.booleans(),
    payload=st.binary(max_size=20),
)
def test_event_packet_equals_rosbags(store, stamp_ns, frame_id, encoding, size, counts, is_bigendian, payload):
    (width, height), (seq, time_base) = size, counts
    message = store.types[PACKET](
        header(store, stamp_ns, frame_id),
        height,
        width,
        seq,
        time_base,
        encoding,
        is_bigendian,
        np.frombuffer(payload, np.uint8),
    )
    theirs = bytes(store.serialize_cdr(message, PACKET))
    fields = {
        "stamp_ns": stamp_ns,
        "frame_id": frame_id,
        "width": width,
        "height": height,
        "seq": seq,
        "time_base": time_base,
        "encoding": encoding,
        "is_bigendian": is_bigendian,
        "payload": payload,
    }
    ours = encode_event_packet_cdr(**fields)
    assert ours == theirs[: len(ours)]
    assert not any(theirs[len(ours) :])
    view = parse_event_packet_cdr(theirs)
    assert {**view._asdict(), "payload": bytes(view.payload)} == fields


EVENT = st.tuples(st.integers(0, 2**31 * 10**6 - 1), st.integers(0, 9), st.integers(0, 7), st.integers(0, 1))


@pytest.mark.parametrize("name", ARRAY_TYPES)
@given(stamp_ns=STAMPS, frame_id=NAMES, rows=st.lists(EVENT, max_size=9))
def test_event_arrays_equal_rosbags(store, name, stamp_ns, frame_id, rows):
    time = store.types["builtin_interfaces/msg/Time"]
    event = store.types[name.replace("EventArray", "Event")]
    theirs_events = [event(x, y, time(t // 10**6, t % 10**6 * 1000), bool(p)) for t, x, y, p in rows]
    message = store.types[name](header(store, stamp_ns, frame_id), 8, 10, theirs_events)
    theirs = bytes(store.serialize_cdr(message, name))
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    events = Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))
    ours = encode_dvs_event_array_cdr(stamp_ns, frame_id, 10, 8, events)
    assert ours == theirs[: len(ours)]
    assert not any(theirs[len(ours) :])
    stamp, width, height, decoded = decode_dvs_event_array_cdr(theirs)
    assert (stamp, width, height) == (stamp_ns, 10, 8)
    for column in ("t", "x", "y", "p"):
        np.testing.assert_array_equal(getattr(decoded, column), getattr(events, column))


def test_nanoseconds_are_rounded_down():
    events = Events(np.array([5]), np.zeros(1, np.uint16), np.zeros(1, np.uint16), np.ones(1, np.uint8))
    cdr = bytearray(encode_dvs_event_array_cdr(0, "", 1, 1, events))
    cdr[-5:-1] = (5999).to_bytes(4, "little")
    assert decode_dvs_event_array_cdr(cdr)[3].t.tolist() == [5]


def sample_packet() -> bytes:
    return encode_event_packet_cdr(
        stamp_ns=1, frame_id="camera", width=3, height=2, seq=7, time_base=9, encoding="evt3", payload=b"abcdef"
    )


def sample_array() -> bytes:
    pixels = np.arange(3, dtype=np.uint16)
    events = Events(np.arange(3, dtype=np.int64), pixels, pixels, np.zeros(3, np.uint8))
    return encode_dvs_event_array_cdr(1, "camera", 10, 8, events)


@pytest.mark.parametrize(
    ("sample", "parse"),
    [(sample_packet(), parse_event_packet_cdr), (sample_array(), decode_dvs_event_array_cdr)],
    ids=["EventPacket", "EventArray"],
)
def test_messages_cut_anywhere_are_refused(sample, parse):
    parse(sample)
    for cut in range(len(sample)):
        with pytest.raises(DecodeError) as error:
            parse(sample[:cut])
        assert error.value.reason == ("truncated_message" if cut >= 4 else "corrupt_message")


@given(data=st.binary(max_size=120), whole_header=st.booleans())
def test_random_bytes_raise_nothing_but_decode_errors(data, whole_header):
    for parse in (parse_event_packet_cdr, decode_dvs_event_array_cdr):
        try:
            parse((b"\x00\x01\x00\x00" if whole_header else b"") + data)
        except DecodeError as error:
            assert error.reason in ("truncated_message", "corrupt_message")


def test_big_endian_messages_are_refused():
    with pytest.raises(DecodeError, match="little-endian"):
        parse_event_packet_cdr(b"\x00\x00" + sample_packet()[2:])


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(DecodeError, match="UTF-8"):
        parse_event_packet_cdr(sample_packet().replace(b"camera", b"\xff" * 6))


def test_events_outside_their_own_message_are_refused():
    events = Events(np.zeros(1, np.int64), np.full(1, 10, np.uint16), np.zeros(1, np.uint16), np.ones(1, np.uint8))
    with pytest.raises(DecodeError, match=r"event at \(10, 0\) in a message of 10x8"):
        decode_dvs_event_array_cdr(encode_dvs_event_array_cdr(0, "", 10, 8, events))


@pytest.mark.parametrize("t", [-1, 2**31 * 10**6])
def test_times_that_ros_cannot_say_are_refused(t):
    events = Events(np.array([t]), np.zeros(1, np.uint16), np.zeros(1, np.uint16), np.ones(1, np.uint8))
    with pytest.raises(InputError, match="ROS time"):
        encode_dvs_event_array_cdr(0, "", 1, 1, events)
