"""Pairing by stamp: order, what is missing, what comes late, depth within a tolerance."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.pairing import StampPairing

MS = 1_000_000


class Setup:
    def __init__(self, near="", expected=False, **options):
        self.counts = Counter()
        self.expected = expected
        self.pairing = StampPairing(
            [("image",), ("mask",)],
            [("event_image",)],
            lambda reason, _: self.counts.update([reason]),
            near=near,
            near_expected=lambda: self.expected,
            **options,
        )

    def add(self, source, stamp_ms, now_s=0.0):
        return [frame.stamp_ns // MS for frame in self.frames(source, stamp_ms, now_s)]

    def frames(self, source, stamp_ms, now_s=0.0):
        return self.pairing.add(source, stamp_ms * MS, f"{source} {stamp_ms}", now_s)


def test_a_frame_leaves_when_everything_is_there():
    setup = Setup()
    assert setup.add("mask", 10) == []
    assert setup.add("event_image", 10) == []
    (frame,) = setup.frames("image", 10)
    assert frame.messages == {"image": "image 10", "mask": "mask 10", "event_image": "event_image 10"}
    assert not setup.counts


def test_an_older_frame_leaves_before_a_complete_newer_one_or_is_dropped():
    setup = Setup()
    for source in ("image", "mask"):
        setup.add(source, 10)
    setup.add("image", 20)
    for source in ("image", "mask"):
        setup.add(source, 30)
    assert setup.add("event_image", 30) == [10, 30]
    assert setup.counts == {"missing_event_image": 1, "missing_mask": 1}


def test_a_frame_that_lacks_everything_is_one_frame():
    setup = Setup()
    setup.add("event_image", 10)  # as where a recording was cut
    for source in ("image", "mask", "event_image"):
        setup.add(source, 20)
    assert setup.counts == {"missing_image": 1}


def test_after_the_time_is_over_optional_sources_are_done_without():
    setup = Setup()
    setup.add("image", 10, now_s=1.0)
    setup.add("mask", 10, now_s=1.1)
    assert setup.pairing.expire(1.2) == []
    assert [frame.stamp_ns for frame in setup.pairing.expire(1.3)] == [10 * MS]
    assert setup.counts == {"missing_event_image": 1}


def test_a_late_message_is_counted_and_does_not_make_a_second_frame():
    setup = Setup()
    setup.add("image", 10, now_s=1.0)
    assert setup.pairing.expire(2.0) == []
    assert setup.add("mask", 10, now_s=2.1) == []
    assert setup.pairing.expire(9.0) == []
    assert setup.counts == {"missing_mask": 1, "late_mask": 1}


def test_the_same_stamps_are_taken_again_when_a_bag_loops():
    setup = Setup()
    for now_s in (0.0, 3.0):
        ready = [setup.add(source, 10, now_s) for source in ("image", "mask", "event_image")]
        assert ready == [[], [], [10]]
    assert not setup.counts


def test_a_bag_that_loops_at_once_starts_anew_with_one_report():
    setup = Setup(near="depth", expected=True)
    stamps = range(1000, 4000, 100)
    for _ in range(2):
        for stamp in stamps:
            waiting = [setup.add(source, stamp) for source in ("image", "mask", "event_image")]
            (frame,) = setup.frames("depth", stamp + 1)
            assert waiting == [[], [], []]
            assert (frame.stamp_ns, frame.messages["depth"]) == (stamp * MS, f"depth {stamp + 1}")
    assert setup.counts == {"backward_time": 1}


def test_what_is_left_of_the_loop_before_does_not_start_anew_a_second_time():
    setup = Setup()
    for source in ("image", "mask", "event_image"):
        setup.add(source, 5000)
    setup.add("image", 6000)
    setup.add("image", 1000)
    setup.add("mask", 6000)  # late, of the loop before
    setup.add("event_image", 1000)
    assert 1000 in setup.add("mask", 1000)
    assert setup.counts["backward_time"] == 1


def test_parts_that_belong_together_count_as_one():
    counts = Counter()
    pairing = StampPairing([("image",)], [("event_image", "event_window")], lambda reason, _: counts.update([reason]))
    pairing.add("image", 10, "image", 0.0)
    pairing.add("event_window", 10, "window", 0.0)
    (frame,) = pairing.expire(1.0)
    assert frame.messages == {"image": "image"}
    assert counts == {"missing_event_image": 1}


def test_stamp_zero_is_refused():
    setup = Setup()
    assert setup.add("image", 0) == []
    assert setup.counts == {"zero_stamp": 1}


def test_depth_is_the_nearest_within_the_tolerance():
    setup = Setup(near="depth", expected=True)
    for stamp in (85, 95, 99):
        setup.add("depth", stamp)
    assert [setup.add(source, 100) for source in ("image", "mask", "event_image")] == [[], [], []]
    (frame,) = setup.frames("depth", 118)
    assert frame.messages["depth"] == "depth 99"


def test_depth_out_of_tolerance_is_counted_and_done_without():
    setup = Setup(near="depth", expected=True)
    setup.add("depth", 50)
    for source in ("image", "mask", "event_image"):
        setup.add(source, 100)
    (frame,) = setup.frames("depth", 150)
    assert "depth" not in frame.messages
    assert setup.counts == {"missing_depth": 1}


def test_without_a_depth_publisher_nobody_waits_for_depth():
    setup = Setup(near="depth", expected=False)
    assert [setup.add(source, 100) for source in ("image", "mask", "event_image")] == [[], [], [100]]
    assert not setup.counts


def test_no_more_frames_wait_than_allowed():
    setup = Setup(capacity=3)
    for stamp in range(10, 100, 10):
        setup.add("image", stamp)
    assert setup.counts["missing_mask"] == 6


@given(st.integers(1, 30), st.randoms(use_true_random=False), st.sets(st.tuples(st.integers(0, 29), st.integers(0, 2))))
def test_every_frame_with_its_required_messages_leaves_once_and_in_order(count, generator, lost):
    sources = ("image", "mask", "event_image")
    queues = {
        source: [frame + 1 for frame in range(count) if (frame, index) not in lost]
        for index, source in enumerate(sources)
    }
    expected = [frame for frame in range(1, count + 1) if frame in queues["image"] and frame in queues["mask"]]
    setup = Setup()
    out = []
    while any(queues.values()):
        source = generator.choice([source for source in sources if queues[source]])
        out += setup.add(source, queues[source].pop(0))
    out += [frame.stamp_ns // MS for frame in setup.pairing.expire(100.0)]
    assert out == expected
    assert isinstance(generator, random.Random)
