"""Filters against slow definitions; the same stream must come out however it was cut into packets."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_sam3d_ros.camera.lens import rectified_pixels
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.events import filters
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.filters import (
    BackgroundActivityFilter,
    FilterSettings,
    HotPixelFilter,
    PolarityFilter,
    RateLimiter,
    Rectification,
    RegionOfInterest,
)
from event_sam3d_ros.events.warmup import warm_up

WIDTH, HEIGHT = 5, 4


def make(rows) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def rows_of(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


def same(one: Events, other: Events) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in "txyp")


def cut(events: Events, places: list[int]) -> list[Events]:
    bounds = [0, *sorted(min(place, len(events)) for place in places), len(events)]
    return [events[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


def flood(rate_hz: float, span_us: int, seed=0, width=64, height=48) -> Events:
    rng = np.random.default_rng(seed)
    count = int(rate_hz * span_us / 1e6)
    return Events(
        np.sort(rng.integers(0, span_us, count)),
        rng.integers(0, width, count).astype(np.uint16),
        rng.integers(0, height, count).astype(np.uint16),
        rng.integers(0, 2, count).astype(np.uint8),
    )


EVENT = st.tuples(st.integers(0, 60), st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(0, 1))
STREAM = st.lists(EVENT, max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=4)


# By place and polarity


@given(STREAM, st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5))
def test_region_and_polarity_keep_what_they_say(rows, x, y, width, height):
    region, bright, dark = RegionOfInterest(x, y, width, height), PolarityFilter(1), PolarityFilter(0)
    expected = [row for row in rows if x <= row[1] < x + width and y <= row[2] < y + height]
    assert rows_of(region(make(rows))) == expected
    assert region.counters == {"outside_roi_events": len(rows) - len(expected)}
    assert rows_of(bright(make(rows))) == [row for row in rows if row[3]]
    assert rows_of(dark(make(rows))) == [row for row in rows if not row[3]]
    assert bright.counters["other_polarity_events"] + dark.counters["other_polarity_events"] == len(rows)


def test_what_drops_nothing_copies_nothing():
    events = make([(1, 2, 3, 1)])
    assert RegionOfInterest(0, 0, 9, 9)(events) is events
    assert BackgroundActivityFilter(WIDTH, HEIGHT)(Events.empty()).t.size == 0


# Background activity


def slow_supported(rows, max_age):
    return [
        row
        for i, row in enumerate(rows)
        if any(max(abs(x - row[1]), abs(y - row[2])) == 1 and t >= row[0] - max_age for t, x, y, _ in rows[:i])
    ]


@given(STREAM, CUTS, st.integers(1, 30), st.booleans(), st.sampled_from([0, -(10**15), 1_700_000_000_000_000]))
def test_background_activity_equals_its_definition(rows, places, max_age, in_order, epoch):
    rows = [(t + epoch, x, y, p) for t, x, y, p in (sorted(rows) if in_order else rows)]
    keep = BackgroundActivityFilter(WIDTH, HEIGHT, max_age)
    kept = concatenate([keep(packet) for packet in cut(make(rows), places)])
    expected = slow_supported(rows, max_age)
    assert rows_of(kept) == expected
    assert keep.counters == {"background_events": len(rows) - len(expected)}


def test_background_activity_forgets_on_reset():
    keep = BackgroundActivityFilter(WIDTH, HEIGHT)
    keep(make([(100, 1, 1, 1)]))
    keep.reset()
    assert len(keep(make([(101, 2, 1, 1)]))) == 0
    assert len(keep(make([(102, 1, 1, 1)]))) == 1
    assert keep.counters == {"background_events": 2}


# Hot pixels


def scene_with_hot_pixels(seconds=2.0):
    """Noise everywhere, 20 Hz; two neighbours fire at 1 kHz; a patch of 5 x 5 flickers at 500 Hz."""
    rng = np.random.default_rng(3)
    rates = np.full((30, 40), 20.0)
    rates[5:10, 20:25] = 500
    rates[15, 7] = rates[15, 8] = rates[0, 0] = 1000
    counts = rng.poisson(rates * seconds)
    y, x = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(rates.shape))
    t = rng.integers(0, round(1e6 * seconds), y.size)
    order = np.argsort(t, kind="stable")
    return Events(t[order], x[order].astype(np.uint16), y[order].astype(np.uint16), np.ones(y.size, np.uint8))


HOT = [[0, 0], [15, 7], [15, 8]]


def test_hot_pixels_are_learned_and_flicker_is_not():
    events = scene_with_hot_pixels()
    keep = HotPixelFilter(40, 30)
    kept = keep(events)
    assert np.argwhere(keep.mask).tolist() == HOT
    late = events.t >= events.t[0] + 1_000_000
    hot = keep.mask[events.y, events.x]
    assert same(kept, events[~(late & hot)])
    assert keep.counters == {"hot_pixel_events": int((late & hot).sum())}
    keep.reset()
    assert not keep.mask.any()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60_000), max_size=5))
def test_hot_pixels_do_not_depend_on_packets(places):
    events = scene_with_hot_pixels(1.5)
    whole = HotPixelFilter(40, 30, period_us=300_000)
    parts = HotPixelFilter(40, 30, period_us=300_000)
    kept = concatenate([parts(packet) for packet in cut(events, places)])
    assert same(kept, whole(events))
    assert len(kept) < len(events)


def test_known_hot_pixels_are_dropped_from_the_start():
    events = scene_with_hot_pixels(0.5)
    known = np.zeros((30, 40), bool)
    known[2, 3] = True
    keep = HotPixelFilter(40, 30, known=known)
    assert len(keep(events)) == len(events) - int(((events.x == 3) & (events.y == 2)).sum())
    keep.reset()
    assert np.argwhere(keep.mask).tolist() == [[2, 3]]
    with pytest.raises(InputError, match="mask") as error:
        HotPixelFilter(30, 40, known=known)
    assert error.value.reason == "size_mismatch"


def test_a_stream_of_pauses_is_judged_rarely(monkeypatch):
    """Each event ends a period: judging all pixels each time would take minutes for one packet."""
    judged = []
    judge = HotPixelFilter._judge
    monkeypatch.setattr(HotPixelFilter, "_judge", lambda self, us: judged.append(us) or judge(self, us))
    count = 5500
    zeros = np.zeros(count, np.uint16)
    keep = HotPixelFilter(WIDTH, HEIGHT)
    keep(Events(np.arange(count) * 2_000_000, zeros, zeros, zeros.astype(np.uint8)))
    assert len(judged) == 5
    assert not keep.mask.any()  # 0.5 Hz


# Rate


@pytest.mark.parametrize("packet_us", [250, 1000, 4000, 100_000])
def test_flood_is_thinned_to_the_rate_and_keeps_its_statistics(packet_us):
    events = flood(4e6, 100_000)
    limit = RateLimiter(1e6)
    packets = cut(events, np.searchsorted(events.t, np.arange(packet_us, 100_000, packet_us) + 37).tolist())
    kept = concatenate([limit(packet) for packet in packets])
    assert np.bincount(kept.t // 1000).max() <= 1000
    assert 0.97 * 100_000 <= len(kept) <= 100_000
    assert limit.counters == {"rate_limited_events": len(events) - len(kept)}
    # Everywhere and at all times alike: shares of the columns and of the tenths of a slice.
    for values, bins in ((kept.x, 64), (kept.t % 1000 // 100, 10)):
        shares = np.bincount(values, minlength=bins) * bins / len(kept)
        np.testing.assert_allclose(shares, 1, atol=0.15)
    assert abs(float(kept.p.mean()) - float(events.p.mean())) < 0.01
    assert np.all(np.diff(kept.t) >= 0)
    again = RateLimiter(1e6)
    assert same(concatenate([again(packet) for packet in packets]), kept)
    other = RateLimiter(1e6, seed=1)
    assert not same(concatenate([other(packet) for packet in packets]), kept)


def test_stream_below_the_rate_passes():
    events = flood(0.5e6, 50_000)
    assert RateLimiter(1e6)(events) is events


@given(STREAM, CUTS, st.integers(1, 5))
def test_no_slice_gets_more_than_its_share_in_any_order(rows, places, share):
    limit = RateLimiter(share * 1e5, slice_us=10)
    kept = [limit(packet) for packet in cut(make(sorted(rows)), places)]
    assert all(count <= share for count in np.bincount(concatenate(kept).t // 10).tolist())
    # Out of order nothing breaks either: events stay in order of the stream, and are counted.
    limit.reset()
    before = limit.counters["rate_limited_events"]
    kept_rows = rows_of(limit(make(rows)))
    remaining = iter(rows)
    assert all(row in remaining for row in kept_rows)
    assert limit.counters["rate_limited_events"] - before == len(rows) - len(kept_rows)


def test_reset_begins_the_same_choice_again():
    limit, events = RateLimiter(1e6), flood(4e6, 3000)
    first = limit(events)
    limit.reset()
    assert same(limit(events), first)


# Rectification


def test_rectification_moves_events_as_opencv_moves_the_image():
    """The source pixel that OpenCV takes for a rectified one comes back to it, within the rounding of both."""
    camera = CameraModel([[60, 0, 31.2], [0, 62, 23.9], [0, 0, 1]], [-0.25, 0.05, 0.001, -0.002], 64, 48)
    rectify = Rectification(rectified_pixels(camera))
    rows, columns = np.indices((48, 64))
    pictures = np.stack([columns, rows], axis=-1).astype(np.float32)
    source = camera.rectify(pictures, nearest=False)
    target = np.argwhere(camera.rectify(np.ones((48, 64), np.uint8), nearest=False) > 0)
    inner = [(r, c) for r, c in target.tolist() if 2 <= r < 46 and 2 <= c < 62]
    events = make([(0, *np.rint(source[r, c]).astype(int).tolist(), 1) for r, c in inner])
    found = rectify(events)
    assert len(found) == len(inner) > 2000
    off = np.stack([found.y, found.x], axis=1).astype(int) - inner
    assert np.abs(off).max() <= 1
    assert rectify.counters == {"unrectified_events": 0}


def test_the_rectified_image_may_have_intrinsics_of_its_own():
    """As image_rect of ROS has those of CameraInfo's P."""
    camera = CameraModel([[60, 0, 31.2], [0, 62, 23.9], [0, 0, 1]], [-0.25, 0.05, 0.001, -0.002], 64, 48)
    rectified = CameraModel([[50, 0, 30], [0, 51, 25], [0, 0, 1]], [], 64, 48)
    corner = np.array([[[3.0, 5.0]]])
    expected = cv2.undistortPoints(corner, camera.K, camera.D, P=rectified.K).ravel()
    assert np.allclose(rectified_pixels(camera, rectified)[5, 3], expected, atol=0.01)


def test_events_that_leave_the_image_are_dropped_and_counted():
    table = np.zeros((2, 3, 2), np.float32)
    table[0] = [[0.4, 0.6], [-0.6, 0], [2.4, 1.4]]
    table[1] = [[np.nan, 0], [2.6, 0], [np.inf, np.inf]]
    rectify = Rectification(table)
    kept = rectify(make([(t, t % 3, t // 3, t % 2) for t in range(6)]))
    assert rows_of(kept) == [(0, 0, 1, 0), (2, 2, 1, 0)]
    assert rectify.counters == {"unrectified_events": 4}
    with pytest.raises(InputError, match="table") as error:
        Rectification(table[..., 0])
    assert error.value.reason == "size_mismatch"


def test_a_camera_without_distortion_changes_nothing():
    camera = CameraModel([[60, 0, 31.2], [0, 62, 23.9], [0, 0, 1]], [], 64, 48)
    events = flood(1e6, 5000)
    assert same(Rectification(rectified_pixels(camera))(events), events)


# All


@pytest.mark.parametrize(
    "make_filter",
    [
        lambda: RegionOfInterest(0, 0, 0, 3),
        lambda: RegionOfInterest(-1, 0, 3, 3),
        lambda: PolarityFilter(2),
        lambda: BackgroundActivityFilter(4, 4, 0),
        lambda: HotPixelFilter(4, 4, ratio=0.5),
        lambda: HotPixelFilter(4, 4, min_rate_hz=float("nan")),
        lambda: RateLimiter(10.0),
        lambda: RateLimiter(float("nan")),
        lambda: RateLimiter(1e6, slice_us=0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make_filter):
    with pytest.raises(ConfigurationError) as error:
        make_filter()
    assert error.value.reason == "bad_filter"


@pytest.mark.parametrize("make_filter", [BackgroundActivityFilter, HotPixelFilter])
def test_events_outside_the_sensor_are_refused_and_sizes_checked(make_filter):
    keep = make_filter(WIDTH, HEIGHT)
    with pytest.raises(InputError, match="outside 5x4") as error:
        keep(make([(0, 1, 1, 1), (1, WIDTH, 0, 1)]))
    assert error.value.reason == "out_of_range_events"
    assert sum(keep.counters.values()) == 0
    with pytest.raises(InputError, match="no pixels") as error:
        make_filter(0, 3)
    assert error.value.reason == "bad_geometry"


def test_settings_make_a_chain():
    assert FilterSettings().make(WIDTH, HEIGHT) == []
    chain = FilterSettings((1, 0, 3, 4), "on", True, 5.0, 2e6).make(WIDTH, HEIGHT)
    assert [type(keep) for keep in chain] == [
        RegionOfInterest,
        PolarityFilter,
        HotPixelFilter,
        BackgroundActivityFilter,
        RateLimiter,
    ]
    events = make([(0, 1, 1, 1), (1, 0, 1, 1), (2, 2, 1, 0), (5002, 2, 2, 1), (9000, 1, 1, 1)])
    for keep in chain:
        events = keep(events)
    assert rows_of(events) == [(9000, 1, 1, 1)]
    assert [count for keep in chain for count in keep.counters.values()] == [1, 1, 0, 2, 0]
    assert isinstance(FilterSettings(polarity="off").make(1, 1)[0], PolarityFilter)
    table = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    chain = FilterSettings(max_event_rate=2e6, rectified=table).make(WIDTH, HEIGHT)
    assert [type(keep) for keep in chain] == [Rectification, RateLimiter]
    with pytest.raises(InputError, match="for 5x4"):
        FilterSettings(rectified=table).make(HEIGHT, WIDTH)


def test_warm_up_compiles_every_kernel_once():
    warm_up()
    test_settings_make_a_chain()
    test_hot_pixels_are_learned_and_flicker_is_not()
    test_stream_below_the_rate_passes()
    test_events_that_leave_the_image_are_dropped_and_counted()
    kernels = [value for value in vars(filters).values() if hasattr(value, "signatures")]
    compiled = {kernel.py_func.__name__: len(kernel.signatures) for kernel in kernels}
    assert {name for name, count in compiled.items() if count != 1} <= {"_random"}  # part of another
    assert len(compiled) == 7
