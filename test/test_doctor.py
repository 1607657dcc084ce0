"""The doctor, on streams with one thing wrong each, and on real recordings whose state is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.cli import main
from event_sam3d_ros.doctor import StreamDoctor, examine, examine_recording
from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import encode_dvs_event_array_cdr, encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.files import EventChunk, write_rosbag2

WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000_000_000_000
PACKET_US, COUNT = 10_000, 300


def events_of(number, count=500, max_x=WIDTH, max_y=HEIGHT, p=2):
    generator = np.random.default_rng(number)
    return Events(
        np.sort(generator.integers(0, PACKET_US, count)) + PACKET_US * number,
        generator.integers(0, max_x, count).astype(np.uint16),
        generator.integers(0, max_y, count).astype(np.uint16),
        generator.integers(2 - p, 2, count).astype(np.uint8),
    )


def stream(packets=COUNT, encoding="evt3", drift_ppm=0, **of_events):
    """Fields of packets of 10 ms as a healthy camera sends them, a delay of up to 1 ms included."""
    encoder = make_encoder(encoding, WIDTH, HEIGHT)
    for number in range(packets):
        events = events_of(number, **of_events)
        t_us = int(events.t[0]) if len(events) else PACKET_US * number
        delay_ns = int(np.random.default_rng(number).integers(0, 1_000_000))
        payload, time_base = encoder.encode(events)
        yield {
            "stamp_ns": START_NS + t_us * 1000 + t_us * drift_ppm // 1000 + delay_ns,
            "frame_id": "events",
            "width": WIDTH,
            "height": HEIGHT,
            "seq": number,
            "time_base": time_base,
            "encoding": encoding,
            "payload": payload,
        }


def doctor_of(packets, received=lambda fields: None):
    doctor = StreamDoctor()
    for fields in packets:
        doctor.add_message(encode_event_packet_cdr(**fields), received(fields))
    return doctor


def reasons(packets, **options):
    return [finding.reason for finding in doctor_of(packets, **options).findings()]


def test_a_healthy_stream_has_facts_and_no_findings():
    doctor = doctor_of(stream())
    assert doctor.findings() == []
    facts = "\n".join(doctor.facts())
    assert "64x48, evt3, frame_id 'events'" in facts
    assert "300 packets in 2.9" in facts and "0 lost" in facts
    assert "150000 events" in facts and "50% positive" in facts
    assert "drift +0.0 ppm" in facts
    assert "ROS time minus sensor time 1700000000.00" in facts


def test_rates_of_a_recording_that_goes_round_are_those_of_all_rounds():
    facts = "\n".join(doctor_of([*stream(150), *stream(150), *stream(150)]).facts())
    assert "450 packets in 4.4" in facts and "0.051 million/s" in facts


def swapped(payload):
    return np.frombuffer(payload, np.uint16).byteswap().tobytes()


def changed(packets, place, **fields):
    """The packets with some fields of one, or of all, changed."""
    for number, packet in enumerate(packets):
        yield packet | fields if place is None or number == place else packet


def without(packets, dropped):
    return (packet for number, packet in enumerate(packets) if number not in dropped)


def in_pairs_swapped(packets):
    packets = list(packets)
    yield from packets[:10]
    for number in range(10, 20, 2):
        yield packets[number + 1]
        yield packets[number]
    yield from packets[20:]


SICK = {
    "sequence_gap": lambda: without(stream(), range(100, 110)),
    "backward_time": lambda: [*stream(150), *stream(150)],
    "stream_restarted": lambda: [*stream(150), *changed(stream(150), None, stamp_ns=START_NS + 5 * 10**9)],
    "zero_stamp": lambda: changed(stream(), None, stamp_ns=0),
    "bad_geometry": lambda: changed(stream(), None, width=0, height=0),
    "unknown_encoding": lambda: changed(stream(), None, encoding="evt9"),
    "clock_drift": lambda: stream(3000, drift_ppm=300, count=20),
    "silent_camera": lambda: stream(count=0),
    "geometry_too_large": lambda: stream(max_x=20, max_y=20),
    "one_polarity": lambda: stream(p=1),
    "gap": lambda: without(stream(), range(100, 260)),
    "truncated_packet": lambda: changed(stream(), 20, payload=b"abc"),
    "duplicate_packet": lambda: (packet for packet in stream() for _ in range(2)),
    "late_packet": lambda: in_pairs_swapped(stream()),
    "byte_order": lambda: (packet | {"payload": swapped(packet["payload"])} for packet in stream()),
    "small_messages": lambda: (
        packet | {"stamp_ns": START_NS + 100_000 * number, "seq": number, "payload": b""}
        for packet in stream(1)
        for number in range(12_000)
    ),
}


@pytest.mark.parametrize("reason", SICK)
def test_what_is_wrong_is_named(reason):
    found = reasons(SICK[reason]())
    assert reason in found
    allowed = {
        "gap": {"sequence_gap", "gap"},
        "byte_order": {"byte_order", "corrupt_packet"},
        "small_messages": {"small_messages", "silent_camera"},
        "stream_restarted": {"stream_restarted", "gap", "time_jump", "backward_time"},
    }
    assert set(found) <= allowed.get(reason, {reason})


def test_what_is_said_of_a_long_name_is_short():
    doctor = doctor_of(changed(stream(20), None, frame_id="f" * 5000 + "\n"))
    assert len(doctor.facts()[0]) < 100 and doctor.facts()[0].isprintable()


def test_packets_lost_at_the_very_end_count_too():
    doctor = doctor_of(without(stream(), range(297, 299)))
    assert [finding.reason for finding in doctor.findings()] == ["sequence_gap"]
    assert doctor.facts()[1].endswith(", 2 lost")


def test_no_message_at_all():
    assert reasons([]) == ["no_messages"]


def test_more_events_than_a_second_of_the_buffer_holds(monkeypatch):
    monkeypatch.setattr("event_sam3d_ros.doctor.EventBuffer", lambda: EventBuffer(1_000_000, 10_000))
    (finding,) = doctor_of(stream()).findings()
    assert finding.reason == "buffer_overflow"
    assert "of 10000" in finding.sentence and "0.1 million" in finding.sentence


def test_stamps_far_from_the_time_of_arrival():
    assert reasons(stream(), received=lambda fields: fields["stamp_ns"] + 3 * 10**6) == []
    assert reasons(stream(), received=lambda fields: fields["stamp_ns"] + 3 * 10**9) == ["stamps_not_now"]


def test_event_arrays_are_examined_too():
    doctor = StreamDoctor("dvs_msgs/msg/EventArray")
    for number in range(50):
        events = events_of(number)
        absolute = Events(events.t + START_NS // 1000, events.x, events.y, events.p)
        doctor.add_message(encode_dvs_event_array_cdr(START_NS, "events", WIDTH, HEIGHT, absolute))
    assert doctor.findings() == []
    assert doctor.facts()[0] == "64x48"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ecc_evt3_trigger", []),
        ("ecc_libcaer_rollover", []),
        ("ecc_mono_cd", []),
        ("ecpy_test1", []),
        ("ecpy_test2", ["libcaer_cmp_stale_y"]),
        ("ecd_slider_depth", []),
        ("raw/dvs.es", []),
        ("raw/sample.aedat4", []),
    ],
)
def test_real_recordings(test_data, name, expected):
    (diagnosis,) = examine_recording(test_data / "recordings" / name)
    assert [finding.reason for finding in diagnosis.findings] == expected
    assert len(diagnosis.facts) >= 3


def chunks(packets=20, **of_events):
    for number in range(packets):
        events = events_of(number, **of_events)
        stamp_ns = START_NS + int(events.t[0]) * 1000
        yield EventChunk(stamp_ns, stamp_ns, "events", WIDTH, HEIGHT, events)


def test_the_command_says_healthy_or_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rosbag2(tmp_path / "bag", chunks())
    assert main(["doctor", str(tmp_path / "bag")]) == 0
    assert capsys.readouterr().out.endswith("  healthy\n")
    write_rosbag2(tmp_path / "sick", chunks(250, p=1))
    assert main(["doctor", str(tmp_path / "sick")]) == 1
    assert "  WRONG one_polarity: " in capsys.readouterr().out


def test_a_file_of_no_kind_and_a_name_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(RecordingError, match="is of no kind"):
        examine(str(tmp_path / "notes.json"), 1.0)
    with pytest.raises(RecordingError, match="does not exist, and is no name of a topic"):
        examine(str(tmp_path / "missing.mcap"), 1.0)
