"""From packets and frame stamps to event images: against the offline functions, with bad packets in between."""

from collections import Counter

import numpy as np
import pytest

from event_sam3d_ros.errors import ConfigurationError, DecodeError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import (
    encode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    make_decoder,
    make_encoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.filters import FilterSettings
from event_sam3d_ros.events.representations import tencode, tencode_reference
from event_sam3d_ros.events.windows import EventWindows, WindowSettings

WIDTH, HEIGHT = 64, 48
START_NS = 1_700_000_000_000_000_000
PACKET_US = 5000
MS = 1_000_000


def random_events(count=4000, duration_us=200_000, seed=0):
    generator = np.random.default_rng(seed)
    return Events(
        np.sort(generator.integers(0, duration_us, count)),
        generator.integers(0, WIDTH, count).astype(np.uint16),
        generator.integers(0, HEIGHT, count).astype(np.uint16),
        generator.integers(0, 2, count).astype(np.uint8),
    )


def packets(events, encoding="evt3", shift_ns=0, width=WIDTH):
    """Serialized packets of 5 ms each, stamped when their first event happens."""
    encoder = make_encoder(encoding, width, HEIGHT)
    made = []
    for seq, t0 in enumerate(range(0, int(events.t[-1]) + 1, PACKET_US)):
        part = events[(events.t >= t0) & (events.t < t0 + PACKET_US)]
        payload, time_base = encoder.encode(part)
        made.append(
            encode_event_packet_cdr(
                stamp_ns=START_NS + int(part.t[0]) * 1000 + shift_ns,
                frame_id="events",
                width=width,
                height=HEIGHT,
                seq=seq,
                time_base=time_base,
                encoding=encoding,
                payload=payload,
            )
        )
    return made


class Setup:
    def __init__(
        self, message_type="event_camera_msgs/msg/EventPacket", limits=(1_000_000, 1_000_000), filters=None, **settings
    ):
        self.reports = []
        self.windows = EventWindows(
            message_type,
            WindowSettings(**settings),
            EventBuffer(*limits, 1 << 30),
            lambda reason, sentence: self.reports.append((reason, sentence)),
            filters=filters,
        )

    @property
    def counts(self):
        return Counter(reason for reason, _ in self.reports)

    def feed(self, cdrs):
        for cdr in cdrs:
            self.windows.add_packet(cdr)

    def window_at(self, stamp_ms, now_s=0.0):
        self.windows.add_frame(START_NS + stamp_ms * MS, "camera", now_s)
        return self.windows.ready(now_s)


def expected_image(events, t0_us, t1_us):
    inside = events[(events.t >= t0_us) & (events.t < t1_us)]
    return len(inside), tencode(inside, t0_us, t1_us, WIDTH, HEIGHT)


@pytest.mark.parametrize("encoding", ["evt3", "mono", "libcaer"])
@pytest.mark.parametrize(
    "settings, t0_us, t1_us",
    [
        ({}, 75_000, 125_000),
        ({"length_ns": 20 * MS}, 90_000, 110_000),
        ({"alignment": "end"}, 50_000, 100_000),
        ({"alignment": "end", "exposure_offset_ns": -5 * MS}, 45_000, 95_000),
        ({"alignment": "exposure", "exposure_ns": 30 * MS}, 85_000, 115_000),
        ({"alignment": "exposure", "exposure_ns": 30 * MS, "exposure_offset_ns": 15 * MS}, 100_000, 130_000),
    ],
)
def test_a_frame_gets_the_events_around_its_stamp(encoding, settings, t0_us, t1_us):
    events = random_events()
    setup = Setup(**settings)
    setup.feed(packets(events, encoding))
    (window,) = setup.window_at(100)
    count, image = expected_image(events, t0_us, t1_us)
    assert (window.stamp_ns, window.ros_ns, window.frame_id) == (*[START_NS + 100 * MS] * 2, "camera")
    assert (window.start_ns, window.end_ns) == (START_NS + t0_us * 1000, START_NS + t1_us * 1000)
    assert window.event_count == count > 100
    assert np.array_equal(window.image, image)
    assert not setup.reports


def test_a_frame_with_an_exposure_of_its_own_gets_that():
    setup = Setup(alignment="exposure", exposure_ns=30 * MS)
    setup.feed(packets(random_events()))
    setup.windows.add_frame(START_NS + 100 * MS, "camera", 0.0, 10 * MS)
    setup.windows.add_frame(START_NS + 150 * MS, "camera", 0.0)
    bounds = [(window.start_ns - START_NS, window.end_ns - START_NS) for window in setup.windows.ready(0.0)]
    assert bounds == [(95 * MS, 105 * MS), (135 * MS, 165 * MS)]
    setup = Setup(length_ns=50 * MS)  # and where windows are of one length it does not matter
    setup.feed(packets(random_events()))
    setup.windows.add_frame(START_NS + 100 * MS, "camera", 0.0, 10 * MS)
    (window,) = setup.windows.ready(0.0)
    assert window.end_ns - window.start_ns == 50 * MS


@pytest.mark.parametrize("colour", ["white", "black"])
def test_windows_as_event_sam3d_draws_them(colour):
    events = random_events()
    setup = Setup(representation=f"reference_{colour}")
    setup.feed(packets(events))
    (window,) = setup.window_at(100)
    inside = events[(events.t >= 75_000) & (events.t < 125_000)]
    assert np.array_equal(window.image, tencode_reference(inside, WIDTH, HEIGHT, colour == "white"))


@pytest.mark.parametrize("roi", [(WIDTH, 0, 5, 5), (0, HEIGHT, 5, 5)])
def test_a_region_of_interest_beside_the_sensor_is_named(roi):
    setup = Setup(filters=FilterSettings(roi=roi))
    with pytest.raises(ConfigurationError, match=f"lies outside the sensor of {WIDTH}x{HEIGHT}") as error:
        setup.feed(packets(random_events())[:1])
    assert error.value.reason == "bad_filter"
    Setup(filters=FilterSettings(roi=(WIDTH - 1, HEIGHT - 1, 5, 5))).feed(packets(random_events())[:1])


@pytest.mark.parametrize("mode", ["frame", "continuous"])
def test_filters_stand_before_the_windows(mode):
    events = random_events()
    setup = Setup(mode=mode, filters=FilterSettings(roi=(10, 0, 20, HEIGHT), polarity="on"))
    setup.feed(packets(events))
    inside = (events.x >= 10) & (events.x < 30)
    kept = events[inside & (events.p == 1)]
    if mode == "frame":
        (window,), t0_us = setup.window_at(100), 75_000
    else:
        window, t0_us = setup.windows.ready(0.0)[1], int(kept.t[0]) + 50_000
    count, image = expected_image(kept, t0_us, t0_us + 50_000)
    assert window.event_count == count > 50
    assert np.array_equal(window.image, image)
    values = setup.windows.stream.values
    assert values["events/total"] == str(len(events))
    assert values["events/outside_roi_events"] == str(np.count_nonzero(~inside))
    assert values["events/other_polarity_events"] == str(np.count_nonzero(inside & (events.p == 0)))
    assert not setup.reports


def test_frames_do_not_wait_for_events_that_are_filtered_out():
    setup = Setup(filters=FilterSettings(polarity="on"))
    made = random_events()
    events = Events(made.t, made.x, made.y, np.zeros_like(made.p))
    *first, last = packets(events)
    setup.feed(first)
    (window,) = setup.window_at(100)
    assert window.event_count == 0 and not window.image.any()
    assert (window.start_ns, window.end_ns) == (START_NS + 75 * MS, START_NS + 125 * MS)
    assert not setup.reports
    setup.feed([packets(events, shift_ns=2000 * MS)[-1], last])
    assert setup.counts == {"time_jump": 1}  # packets are judged by all of their events


def test_filters_start_anew_with_the_stream_and_fit_its_size():
    setup = Setup(filters=FilterSettings(background_ms=5.0))
    setup.feed(packets(random_events()))
    before = int(setup.windows.stream.values["events/background_events"])
    columns = ([0, 10, 200_000], "i8"), ([99, 99, 0], "u2"), ([3, 4, 5], "u2"), ([1, 1, 1], "u1")
    wide = Events(*(np.array(values, kind) for values, kind in columns))
    encoder = make_encoder("evt3", 100, HEIGHT)
    for seq in range(2):
        payload, time_base = encoder.encode(wide[2 * seq : 2 * seq + 2])
        fields = {"width": 100, "encoding": "evt3", "payload": payload, "time_base": time_base}
        setup.feed([packet(stamp_ns=START_NS + 300 * MS + seq * 200 * MS, seq=seq, **fields)])
    assert setup.counts == {"stream_changed": 1} and before > 100
    assert setup.windows.stream.values["events/background_events"] == str(before + 2)


def test_a_calibration_of_another_size_rectifies_nothing_and_says_so():
    setup = Setup(filters=FilterSettings(rectified=np.zeros((HEIGHT, WIDTH + 1, 2), np.float32)))
    with pytest.raises(InputError, match="events come from 64x48 pixels.* is for 65x48") as error:
        setup.feed(packets(random_events()))
    assert error.value.reason == "size_mismatch"


def test_frames_on_the_sensors_clock_take_the_events_own_times():
    """As of libcaer_driver: times of events and frames from one clock, stamps of packets from another that drifts."""
    events = random_events()
    lead_ns = 300 * MS  # what the host's clock is ahead
    encoder = make_encoder("libcaer", WIDTH, HEIGHT)
    setup = Setup(frame_clock="sensor")
    sensor_start_us = START_NS // 1000
    for seq, t0 in enumerate(range(0, 200_000, PACKET_US)):
        part = events[(events.t >= t0) & (events.t < t0 + PACKET_US)]
        absolute = Events(part.t + sensor_start_us, part.x, part.y, part.p)
        payload, time_base = encoder.encode(absolute)
        stamp_ns = int(absolute.t[0]) * 1000 + lead_ns
        setup.feed([packet(stamp_ns=stamp_ns, seq=seq, time_base=time_base, encoding="libcaer", payload=payload)])
    (window,) = setup.window_at(100)
    count, image = expected_image(events, 75_000, 125_000)
    assert window.event_count == count and np.array_equal(window.image, image)
    assert (window.start_ns, window.end_ns) == (START_NS + 75 * MS, START_NS + 125 * MS)
    assert window.ros_ns == window.stamp_ns + lead_ns
    assert not setup.reports


@pytest.mark.parametrize("kind", ["dvs_msgs", "prophesee_event_msgs", "dv_ros2_msgs"])
def test_event_arrays_go_by_three_names(kind):
    events = random_events()
    absolute = Events(events.t + START_NS // 1000, events.x, events.y, events.p)
    setup = Setup(f"{kind}/msg/EventArray")
    setup.feed([encode_dvs_event_array_cdr(START_NS, "events", WIDTH, HEIGHT, absolute)])
    assert setup.window_at(100)[0].event_count == expected_image(events, 75_000, 125_000)[0]


def test_dvs_messages_carry_ros_time_whatever_their_stamp_says():
    events = random_events()
    absolute = Events(events.t + START_NS // 1000, events.x, events.y, events.p)
    setup = Setup("dvs_msgs/msg/EventArray")
    for t0 in range(0, 200_000, PACKET_US):
        part = absolute[(events.t >= t0) & (events.t < t0 + PACKET_US)]
        setup.feed([encode_dvs_event_array_cdr(START_NS + (t0 + PACKET_US) * 1000, "events", WIDTH, HEIGHT, part)])
    (window,) = setup.window_at(100)
    count, image = expected_image(events, 75_000, 125_000)
    assert window.event_count == count and np.array_equal(window.image, image)
    assert not setup.reports


def test_a_frame_waits_for_the_end_of_its_window_or_until_its_time_is_over():
    events = random_events()
    cdrs = packets(events)
    setup = Setup()
    setup.feed(cdrs[:24])  # events until 120 ms, the window ends at 125 ms
    assert setup.window_at(100, now_s=1.0) == []
    assert setup.windows.ready(1.09) == []
    (window,) = setup.windows.ready(1.11)
    assert window.event_count == np.count_nonzero((events.t >= 75_000) & (events.t < 120_000))
    assert setup.counts == {"incomplete_window": 1}
    assert "0.005 s after the newest event" in setup.reports[0][1]
    assert setup.window_at(100, now_s=2.0) == []
    setup.feed(cdrs[24:26])
    assert len(setup.windows.ready(2.0)) == 1


@pytest.mark.parametrize("limits, lost", [((60_000, 10**6), 1), ((10**6, 600), 1), ((200_000, 4000), 0)])
def test_events_that_the_buffer_dropped_are_missed_at_the_start_of_a_window(limits, lost):
    setup = Setup(limits=limits)
    setup.feed(packets(random_events())[:30])  # 150 ms
    assert len(setup.window_at(100)) == 1
    assert setup.counts["incomplete_window"] == lost
    assert all("start of a frame's window" in sentence for _, sentence in setup.reports)


def test_damaged_times_that_empty_the_buffer_are_no_reason_to_raise_it():
    events = random_events()
    cdrs = packets(events)
    damaged = Events(np.array([190_000, 1_100_000]), events.x[:2], events.y[:2], events.p[:2])
    payload, _ = make_encoder("evt3", WIDTH, HEIGHT).encode(damaged)
    ahead = packet(seq=38, stamp_ns=START_NS + 190 * MS, payload=payload)
    for buffer_us, end, advice in ((1_000_000, [ahead], "packets are damaged"), (50_000, cdrs[38:], "raise buffer_ms")):
        setup = Setup(limits=(buffer_us, 10**6))
        setup.feed(cdrs[:38] + end)
        setup.window_at(100)
        (report,) = [sentence for reason, sentence in setup.reports if reason == "incomplete_window"]
        assert advice in report


def test_a_frame_far_from_the_events_hints_at_the_clocks():
    setup = Setup()
    setup.feed(packets(random_events()))
    assert setup.window_at(100_000, now_s=1.0) == []
    assert setup.windows.ready(2.0)[0].event_count == 0
    assert "99.8" in setup.reports[0][1] and "frame_clock" in setup.reports[0][1]


def test_a_frame_before_any_event_is_counted_and_given_up():
    setup = Setup()
    assert setup.window_at(100, now_s=1.0) == []
    assert setup.windows.ready(1.2) == []
    assert setup.counts == {"no_events_yet": 1}


def test_windows_back_to_back_share_out_all_events():
    events = random_events()
    setup = Setup(mode="continuous")
    windows = []
    for cdr in packets(events):
        setup.feed([cdr])
        windows += setup.windows.ready(0.0)
    starts = [window.start_ns for window in windows]
    first = START_NS + int(events.t[0]) * 1000
    assert starts == [first + index * 50 * MS for index in range(3)]
    assert [window.stamp_ns for window in windows] == [start + 25 * MS for start in starts]
    for window in windows:
        t0 = (window.start_ns - START_NS) // 1000
        assert window.event_count == expected_image(events, t0, t0 + 50_000)[0]


def test_windows_back_to_back_lose_no_event_while_the_clock_is_being_fitted():
    """The first packets are late, so that the offset falls by 40 ms meanwhile."""
    events = random_events()
    made = packets(events)
    late = packets(events, shift_ns=40 * MS)
    setup = Setup(mode="continuous", length_ns=10 * MS)
    setup.feed(late[:1])
    windows = setup.windows.ready(0.0)
    for cdr in made[1:]:
        setup.feed([cdr])
        windows += setup.windows.ready(0.0)
    assert len(windows) == 19
    given = sum(window.event_count for window in windows)
    assert given == np.count_nonzero(events.t < events.t[0] + 190_000)


@pytest.mark.parametrize("alignment", ["centre", "end"])
def test_windows_of_equal_count_share_out_all_events_in_order(alignment):
    events = random_events()
    coarse = Events(events.t // 1000 * 1000, events.x, events.y, events.p)  # many of one time
    setup = Setup(mode="count", events=130, alignment=alignment)
    windows = []
    for cdr in packets(coarse):
        setup.feed([cdr])
        windows += setup.windows.ready(0.0)
    assert len(windows) == 4000 // 130
    for number, window in enumerate(windows):
        part = coarse[130 * number : 130 * number + 130]
        t0, t1 = int(part.t[0]), int(part.t[-1]) + 1
        assert (window.start_ns, window.end_ns) == (START_NS + t0 * 1000, START_NS + t1 * 1000)
        assert window.stamp_ns == (window.end_ns if alignment == "end" else (window.start_ns + window.end_ns) // 2)
        assert window.event_count == 130
        assert np.array_equal(window.image, tencode(part, t0, t1, WIDTH, HEIGHT))
    assert not setup.reports


def test_more_events_of_one_time_than_a_window_holds():
    events = random_events(1000)
    same = Events(np.full(1000, 7), events.x, events.y, events.p)
    setup = Setup(mode="count", events=300)
    setup.feed(packets(same))
    windows = setup.windows.ready(0.0)
    assert [window.event_count for window in windows] == [300] * 3
    for number, window in enumerate(windows):
        part = same[300 * number : 300 * number + 300]
        assert np.array_equal(window.image, tencode(part, 7, 8, WIDTH, HEIGHT))


def test_a_count_that_the_buffer_never_reaches_is_reported():
    setup = Setup(mode="count", events=2000, limits=(40_000, 10**6))
    for cdr in packets(random_events()):
        setup.feed([cdr])
        assert setup.windows.ready(0.0) == []
    assert set(setup.counts) == {"incomplete_window"}
    assert "window_events" in setup.reports[0][1]


def test_windows_back_to_back_of_dvs_messages_keep_their_frame():
    events = random_events()
    absolute = Events(events.t + START_NS // 1000, events.x, events.y, events.p)
    setup = Setup("dvs_msgs/msg/EventArray", mode="continuous")
    setup.feed([encode_dvs_event_array_cdr(START_NS, "dvs_optical", WIDTH, HEIGHT, absolute)])
    assert [window.frame_id for window in setup.windows.ready(0.0)] == ["dvs_optical"] * 3


def test_lost_packets_are_seen_from_their_numbers():
    cdrs = packets(random_events())
    setup = Setup()
    setup.feed(cdrs[:10] + cdrs[13:])
    assert setup.windows.stream.lost_packets == 3
    assert setup.counts == {"sequence_gap": 1}
    (window,) = setup.window_at(130)
    assert window.event_count > 100


def test_a_driver_that_is_started_again_starts_the_stream_anew():
    """Its numbers begin at 0, its stamps go on, and its sensor's time is less than what a wrap would explain."""
    events = random_events()
    setup = Setup()
    setup.feed(packets(events))
    setup.feed(packets(random_events(seed=1), shift_ns=4000 * MS))
    (window,) = setup.window_at(4100)
    assert window.event_count == expected_image(random_events(seed=1), 75_000, 125_000)[0]
    assert setup.counts == {"stream_restarted": 1}
    assert setup.windows.stream.lost_packets == 0


def test_what_a_decoder_finds_wrong_with_its_source_is_reported_once(monkeypatch):
    setup = Setup()
    cdrs = packets(random_events())
    setup.feed(cdrs[:2])
    decoder = type(make_decoder("evt3", WIDTH, HEIGHT))

    def look(self):
        self.warnings["stale_rows"] = "choose another encoding"

    monkeypatch.setattr(decoder, "_look_for_defects", look)
    setup.feed(cdrs[2:])
    setup.feed(cdrs)  # as a bag that loops
    assert setup.reports[0] == ("stale_rows", "choose another encoding")
    assert setup.counts == {"stale_rows": 1, "backward_time": 1}


def test_a_host_clock_that_is_set_is_reported_and_followed():
    events = random_events(4000, 10_000_000)
    encoder = make_encoder("evt3", WIDTH, HEIGHT)
    setup = Setup()
    for seq, t0 in enumerate(range(0, 10_000_000, 100_000)):
        part = events[(events.t >= t0) & (events.t < t0 + 100_000)]
        stamp_ns = START_NS + 1000 * int(part.t[0]) - (50 * MS if t0 >= 8_000_000 else 0)
        setup.feed([packet(stamp_ns=stamp_ns, seq=seq, payload=encoder.encode(part)[0])])
    (window,) = setup.window_at(9450)
    assert window.event_count == expected_image(events, 9_475_000, 9_525_000)[0]
    assert setup.counts == {"clock_step": 1}


def some_payload(shift_us=50_000):
    events = random_events()
    shifted = Events(events.t[:50] + shift_us, events.x[:50], events.y[:50], events.p[:50])
    return make_encoder("evt3", WIDTH, HEIGHT).encode(shifted)[0]


def far_payload(cdrs):
    """A packet of the stream whose time words point some seconds ahead."""
    return packet(payload=some_payload(shift_us=5_000_000))


def packet(**changes):
    fields = {
        "stamp_ns": START_NS + 50 * MS,
        "frame_id": "events",
        "width": WIDTH,
        "height": HEIGHT,
        "seq": 10,
        "time_base": 0,
        "encoding": "evt3",
        "payload": b"",
    }
    return encode_event_packet_cdr(**(fields | changes))


def garbage():
    return packet(payload=np.random.default_rng(1).integers(0, 256, 4000, np.uint8).tobytes())


REFUSED_AT_ONCE = {
    "truncated_message": lambda cdrs: cdrs[10][:60],
    "truncated_packet": lambda cdrs: packet(payload=b"abc"),
    "corrupt_packet": lambda cdrs: garbage(),
    "corrupt_message": lambda cdrs: b"nothing that was ever a message",
    "zero_stamp": lambda cdrs: packet(stamp_ns=0),
    "bad_geometry": lambda cdrs: packet(width=100_000, height=100_000),
}
SET_ASIDE = {
    "stream_changed": [
        lambda cdrs: packet(width=32),
        lambda cdrs: packet(encoding="mono"),
        lambda cdrs: packet(encoding="made_up"),
    ],
    "stream_restarted": [lambda cdrs: packet(seq=3), lambda cdrs: packet(seq=2**63)],
    "backward_time": [lambda cdrs: packet(stamp_ns=START_NS - 10_000 * MS)],
    "time_jump": [far_payload, lambda cdrs: packet(stamp_ns=START_NS + 60_000 * MS, payload=some_payload())],
}


@pytest.mark.parametrize("reason", REFUSED_AT_ONCE)
def test_a_packet_that_makes_no_sense_changes_nothing(reason):
    cdrs = packets(random_events())
    clean, setup = Setup(), Setup()
    clean.feed(cdrs)
    setup.feed(cdrs[:10])
    with pytest.raises((DecodeError, InputError)) as error:
        setup.feed([REFUSED_AT_ONCE[reason](cdrs)])
    assert error.value.reason == reason
    setup.feed(cdrs[10:])
    assert np.array_equal(setup.window_at(100)[0].image, clean.window_at(100)[0].image)
    assert not setup.reports


@pytest.mark.parametrize("width, height", [(100_000, 100_000), (0, 48), (64, 8193)])
def test_a_first_message_of_an_impossible_sensor_is_refused(width, height):
    dvs = encode_dvs_event_array_cdr(START_NS, "events", width, height, Events.empty())
    for setup, cdr in [(Setup(), packet(width=width, height=height)), (Setup("dvs_msgs/msg/EventArray"), dvs)]:
        with pytest.raises(DecodeError, match="pixels") as error:
            setup.feed([cdr])
        assert error.value.reason == "bad_geometry"
        assert setup.window_at(100, now_s=1.0) == setup.windows.ready(2.0) == []


@pytest.mark.parametrize("reason, bad", [(reason, bad) for reason, bads in SET_ASIDE.items() for bad in bads])
def test_one_packet_of_another_stream_is_dropped_with_one_report(reason, bad):
    cdrs = packets(random_events())
    odd = bad(cdrs)
    clean, setup = Setup(), Setup()
    clean.feed(cdrs)
    setup.feed(cdrs[:10] + [odd] + cdrs[10:])
    (window,), (expected,) = setup.window_at(100), clean.window_at(100)
    assert window.event_count == expected.event_count
    assert np.array_equal(window.image, expected.image)
    assert setup.counts == {reason: 1}


def test_empty_packets_do_not_move_the_stream_whatever_their_stamp():
    cdrs = packets(random_events())
    setup = Setup()
    empty = [packet(stamp_ns=START_NS + 60_000 * MS, seq=9), packet(seq=9)]
    setup.feed(cdrs[:10] + empty + cdrs[10:])
    assert setup.window_at(100)[0].event_count > 100
    assert not setup.reports


def test_a_looping_bag_starts_anew_with_one_report_and_no_loss():
    events = random_events(duration_us=400_000, count=8000)
    cdrs = packets(events)
    once, looped = Setup(), Setup()
    once.feed(cdrs)
    looped.feed(cdrs + cdrs)
    assert looped.counts == {"backward_time": 1}
    (window,), (expected,) = looped.window_at(100), once.window_at(100)
    assert np.array_equal(window.image, expected.image)
    assert window.event_count == expected.event_count


@pytest.mark.parametrize("frame_clock", ["host", "sensor"])
def test_frames_that_wait_across_a_restart_are_kept_or_counted(frame_clock):
    events = random_events(duration_us=4_000_000, count=8000)
    cdrs, setup = packets(events), Setup(frame_clock=frame_clock)
    begin_ns = START_NS if frame_clock == "host" else 0
    setup.feed(cdrs)
    for stamp_ms in (3990, 200):  # the end of the old stream, and a moment of the new one
        setup.windows.add_frame(begin_ns + stamp_ms * MS, "camera", 0.0)
    setup.feed(cdrs[:80])
    (window,) = setup.windows.ready(0.0)
    assert window.stamp_ns == begin_ns + 200 * MS
    assert window.event_count == expected_image(events, 175_000, 225_000)[0]
    assert setup.counts == {"backward_time": 1, "incomplete_window": 1}


def test_packets_that_contradict_each_other_are_each_reported():
    setup = Setup()
    events = random_events()
    cdrs = packets(events)
    setup.feed(cdrs[:-1])
    encoder = make_encoder("mono", WIDTH, HEIGHT)
    payload, time_base = encoder.encode(events[:100])
    # Two packets of another encoding, a minute of sensor time apart but a millisecond by their stamps.
    for index in range(2):
        stamp_ns = START_NS + 10**12 + index * MS
        later = time_base + index * 60 * 10**9
        setup.feed([packet(stamp_ns=stamp_ns, seq=index, time_base=later, encoding="mono", payload=payload)])
    assert setup.counts == {"stream_changed": 1}  # the second may still begin a stream
    setup.feed(cdrs[-1:])
    assert setup.counts == {"stream_changed": 2}
    assert setup.windows.stream.events == len(events) and setup.windows.stream.starts == 0


def test_another_camera_takes_over_with_one_report():
    setup = Setup()
    setup.feed(packets(random_events()))
    narrow = random_events(seed=1)
    setup.feed(packets(narrow, width=80, shift_ns=1000 * MS))
    (window,) = setup.window_at(1100)
    assert window.image.shape == (HEIGHT, 80, 3)
    assert setup.counts == {"stream_changed": 1}


def test_no_more_frames_wait_than_allowed():
    setup = Setup()
    for index in range(70):
        setup.windows.add_frame(START_NS + index, "camera", 0.0)
    assert setup.counts == {"too_many_frames": 6}


# What happens to packets on their way: twice, late, refused.


def array_messages(events):
    for t0 in range(0, int(events.t[-1]) + 1, PACKET_US):
        part = events[(events.t >= t0) & (events.t < t0 + PACKET_US)]
        absolute = Events(part.t + START_NS // 1000, part.x, part.y, part.p)
        yield encode_dvs_event_array_cdr(START_NS, "events", WIDTH, HEIGHT, absolute)


def renumbered(cdrs, seq):
    for cdr in cdrs:
        view = parse_event_packet_cdr(cdr)
        yield encode_event_packet_cdr(**view._replace(seq=seq)._asdict())


def assert_same(setup, clean):
    (window,), (expected,) = setup.window_at(100), clean.window_at(100)
    assert window.event_count == expected.event_count > 0
    assert np.array_equal(window.image, expected.image)
    assert setup.windows.stream.events == clean.windows.stream.events


@pytest.mark.parametrize(
    "kind, apart", [("evt3", 1), ("evt3", 2), ("mono", 1), ("mono", 2), ("all numbers 0", 1), ("dvs", 1)]
)
def test_packets_that_come_twice_are_taken_once_and_counted(kind, apart):
    events = random_events()
    of_type = ("dvs_msgs/msg/EventArray",) if kind == "dvs" else ()
    cdrs = list(array_messages(events)) if kind == "dvs" else packets(events, "mono" if kind == "mono" else "evt3")
    if kind == "all numbers 0":
        cdrs = list(renumbered(cdrs, 0))
    clean, setup = Setup(*of_type), Setup(*of_type)
    clean.feed(cdrs)
    for first in range(0, len(cdrs), apart):
        setup.feed(2 * cdrs[first : first + apart])
    assert setup.counts == {"duplicate_packet": len(cdrs)}
    assert setup.windows.stream.values["events/duplicate_packets"] == str(len(cdrs))
    assert setup.windows.stream.packets == len(cdrs) and setup.windows.stream.lost_packets == 0
    assert_same(setup, clean)


def test_packets_of_one_number_stamp_and_size_are_not_the_same():
    events = random_events(200, duration_us=4000)
    setup = Setup()
    parts = [events[i : i + 10] for i in range(0, 200, 10)]
    encoder = make_encoder("mono", WIDTH, HEIGHT)
    for part in parts:
        payload, time_base = encoder.encode(part)
        setup.feed([packet(seq=0, encoding="mono", time_base=time_base, payload=payload)])
    assert setup.windows.stream.events == 200
    assert not setup.reports


@pytest.mark.parametrize("odd", [lambda: packet(width=32, payload=b"ab"), lambda: packet(seq=2**62, payload=b"ab")])
def test_an_odd_packet_that_comes_twice_starts_no_stream(odd):
    cdrs = packets(random_events())
    clean, setup = Setup(), Setup()
    clean.feed(cdrs)
    setup.feed([*cdrs[:10], odd(), odd(), *cdrs[10:]])
    assert setup.windows.stream.starts == 0 and setup.counts["duplicate_packet"] == 1
    assert_same(setup, clean)


@pytest.mark.parametrize("encoding", ["mono", "libcaer", "evt3"])
def test_swapped_packets_are_late_not_lost_and_no_restart(encoding):
    events = random_events()
    cdrs = packets(events, encoding)
    swapped = cdrs.copy()
    for place in (10, 20, 30):
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    clean, setup = Setup(), Setup()
    clean.feed(cdrs)
    setup.feed(swapped)
    assert setup.counts == {"late_packet": 3}
    assert "out of order (number 10 after 11)" in setup.reports[0][1]
    stream = setup.windows.stream
    assert stream.lost_packets == 0 and stream.newest.seq == clean.windows.stream.newest.seq
    if encoding != "evt3":
        assert_same(setup, clean)
        return
    assert "left out, for evt3" in setup.reports[0][1]
    # Without the three, the others are decoded as if those had been lost: no event at a wrong place or time.
    lossy = Setup()
    lossy.feed(cdr for place, cdr in enumerate(cdrs) if place not in (10, 20, 30))
    lossy.windows.stream.end()
    assert lossy.counts == {"sequence_gap": 3} and lossy.windows.stream.lost_packets == 3
    assert_same(setup, lossy)


def test_a_packet_that_comes_again_later_is_known_if_it_came_late_before():
    cdrs = packets(random_events())
    setup = Setup()
    setup.feed([*cdrs[:10], cdrs[11], cdrs[10], cdrs[10], *cdrs[12:]])
    assert setup.counts == {"late_packet": 1, "duplicate_packet": 1}


@pytest.mark.parametrize("reason", ["truncated_message", "truncated_packet", "corrupt_packet", "zero_stamp"])
def test_a_packet_that_came_and_was_refused_is_not_lost(reason):
    cdrs = packets(random_events())
    setup = Setup()
    setup.feed(cdrs[:10])
    with pytest.raises((DecodeError, InputError)):
        setup.feed([REFUSED_AT_ONCE[reason](cdrs)])  # instead of number 10
    setup.feed(cdrs[11:20] + cdrs[22:])  # numbers 20 and 21 are lost
    setup.windows.stream.end()
    assert setup.counts == {"sequence_gap": 1} and setup.windows.stream.lost_packets == 2
    assert setup.reports[0][1] == "2 event packets were lost on the way (seq jumps to 22)"


@pytest.mark.parametrize("reason", ["stream_changed", "time_jump"])
def test_a_packet_that_was_set_aside_and_dropped_is_not_lost(reason):
    cdrs = packets(random_events())
    setup = Setup()
    setup.feed([*cdrs[:10], SET_ASIDE[reason][0](cdrs), *cdrs[11:]])
    setup.windows.stream.end()
    assert setup.counts == {reason: 1} and setup.windows.stream.lost_packets == 0


def test_what_is_lost_before_a_stream_ends_is_counted_when_another_begins():
    cdrs = packets(random_events(duration_us=400_000, count=8000))
    setup = Setup()
    setup.feed([*cdrs[:40], *cdrs[45:47], *cdrs])
    assert setup.counts == {"sequence_gap": 1, "backward_time": 1}
    assert setup.windows.stream.lost_packets == 5


def test_counters_are_totals_over_all_streams():
    events = random_events(duration_us=400_000, count=8000)
    x = events.x.copy()
    x[100] = WIDTH + 5
    kept = events[np.arange(len(events)) != 100]
    wide = packets(Events(events.t, x, events.y, events.p), width=WIDTH + 10)
    cdrs = [encode_event_packet_cdr(**parse_event_packet_cdr(cdr)._replace(width=WIDTH)._asdict()) for cdr in wide]
    setup = Setup(filters=FilterSettings(polarity="on"))
    for round in (1, 2):
        setup.feed(cdrs)
        values = setup.windows.stream.values
        assert values["events/out_of_range_events"] == str(round)
        assert values["events/other_polarity_events"] == str(round * np.count_nonzero(kept.p == 0))
    assert setup.windows.stream.starts == 1


def test_no_sentence_repeats_more_than_a_piece_of_what_a_packet_says():
    cdrs = packets(random_events())
    endless = "x" * 5000 + "\n\x07"
    setup = Setup()
    setup.feed([*cdrs[:10], packet(encoding=endless), cdrs[10]])
    assert "640" not in setup.reports[0][1] and len(setup.reports[0][1]) < 200
    with pytest.raises(DecodeError) as error:
        Setup().feed([packet(encoding="\n\x07" + endless)])
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_a_step_back_says_what_happens_once():
    cdrs = packets(random_events())
    setup = Setup()
    setup.feed([*cdrs[:10], packet(stamp_ns=START_NS - 10_000 * MS), *cdrs[10:]])
    assert "dropped: stamp of the event packets ran backwards" in setup.reports[0][1]
    assert "anew" not in setup.reports[0][1]
