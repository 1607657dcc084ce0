"""Images of events against their definitions, pixel by pixel; Tencode in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events import events as events_module
from event_sam3d_ros.events import representations
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import (
    histogram,
    tencode,
    tencode_reference,
    time_surface,
    voxel_grid,
)
from event_sam3d_ros.events.warmup import warm_up

WIDTH, HEIGHT = 4, 3


def make(rows: list[tuple[int, int, int, int]]) -> Events:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Events(*(np.array(c, d) for c, d in zip(columns, ("i8", "u2", "u2", "u1"), strict=True)))


def reference(rows, t0, t1):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            here = [(t, i, p) for i, (t, x, y, p) in enumerate(rows) if (x, y) == (column, row) and t0 <= t < t1]
            if here:
                t, _, p = max(here)
                green = round(255 * (1 - Fraction(t - t0, t1 - t0)))
                image[row, column] = (255, green, 0) if p else (0, green, 255)
    return image


EVENT = st.tuples(st.integers(-5, 70), st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, 1))


@given(
    st.lists(EVENT, max_size=80), st.integers(-5, 20), st.integers(1, 70), st.sampled_from([0, 1_700_000_000_000_000])
)
def test_equals_the_definition_for_any_order(rows, t0, span, epoch):
    """Unsorted times, events outside window and image, equal times, windows of all lengths, times since 1970."""
    rows = [(t + epoch, x, y, p) for t, x, y, p in rows]
    t0 += epoch
    image = tencode(make(rows), t0, t0 + span, WIDTH, HEIGHT)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, reference(rows, t0, t0 + span))


def test_halves_are_rounded_to_even():
    # 255 * (1 - 1/2) = 127.5 -> 128, 255 * (1 - 3/10) = 178.5 -> 178
    assert tencode(make([(1, 0, 0, 1)]), 0, 2, 1, 1)[0, 0].tolist() == [255, 128, 0]
    assert tencode(make([(3, 0, 0, 0)]), 0, 10, 1, 1)[0, 0].tolist() == [0, 178, 255]


def test_later_in_the_stream_wins_ties():
    assert tencode(make([(5, 0, 0, 1), (5, 0, 0, 0)]), 0, 10, 1, 1)[0, 0].tolist() == [0, 128, 255]


def test_window_is_half_open():
    image = tencode(make([(10, 0, 0, 1), (20, 1, 0, 1), (9, 2, 0, 1)]), 10, 20, 3, 1)
    assert image[0].tolist() == [[255, 255, 0], [0, 0, 0], [0, 0, 0]]


def test_no_events_give_a_black_image():
    assert not tencode(Events.empty(), 0, 1, WIDTH, HEIGHT).any()


def test_sorted_and_unsorted_events_give_the_same_image():
    """The sweep over sorted events and the search among unsorted ones, at a size where pixels are hit many times."""
    rng = np.random.default_rng(1)
    events = random_events(rng, 20_000)
    image = tencode(events, 0, 1000, 40, 30)
    # Order inside one microsecond decides ties, so it has to survive: whole microseconds change places.
    shuffled = np.argsort(rng.permutation(1000)[events.t], kind="stable")
    np.testing.assert_array_equal(tencode(events[shuffled], 0, 1000, 40, 30), image)
    assert np.all(image[..., 0] | image[..., 2] == 255)


def random_events(rng, count, width=40, height=30, span=1000):
    return Events(
        np.sort(rng.integers(0, span, count)),
        rng.integers(0, width, count).astype(np.uint16),
        rng.integers(0, height, count).astype(np.uint16),
        rng.integers(0, 2, count).astype(np.uint8),
    )


# event_sam3d's Tencode


def slow_event_sam3d(events: Events, white: bool) -> np.ndarray:
    """Its definition and its way to uint8, in float32 where it has float32; the last event in the stream wins."""
    floats = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for t, x, y, p in zip(events.t.tolist(), events.x, events.y, events.p, strict=True):
        if x < WIDTH and y < HEIGHT:
            first, last = float(events.t[0]), float(events.t[-1])
            green = np.float32(255.0 * (1 - (t - first) / (last - first)))
            floats[y, x] = np.array([255 * p, green, 255 * (1 - p)], np.float32) / np.float32(255)
    image = (floats * np.float32(255)).astype(np.uint8)
    if white:
        image[(image == 0).all(axis=2)] = 255
    return image


@given(st.lists(EVENT, min_size=2, max_size=60), st.booleans(), st.sampled_from([0, 1_700_000_000_000_000]))
def test_reference_equals_event_sam3d_for_sorted_events(rows, white, epoch):
    """Events outside the image too: they count for the first and last time."""
    events = make(sorted((7 * t + epoch, x, y, p) for t, x, y, p in rows))
    if events.t[0] < events.t[-1]:
        np.testing.assert_array_equal(tencode_reference(events, WIDTH, HEIGHT, white), slow_event_sam3d(events, white))
        shuffled = events[np.argsort(-events.t, kind="stable")]
        np.testing.assert_array_equal(
            tencode_reference(shuffled, WIDTH, HEIGHT, white), slow_event_sam3d(events, white)
        )


def test_reference_of_one_time_is_bright_and_of_nothing_background():
    image = tencode_reference(make([(7, 0, 0, 1), (7, 1, 0, 0)]), 3, 1)
    assert image[0].tolist() == [[255, 255, 0], [0, 255, 255], [255, 255, 255]]
    assert tencode_reference(make([(-3, 0, 0, 1)]), 2, 1, white_background=False)[0].tolist() == [
        [255, 255, 0],
        [0, 0, 0],
    ]
    assert (tencode_reference(Events.empty(), 2, 1) == 255).all()
    assert not tencode_reference(Events.empty(), 2, 1, white_background=False).any()


# The other representations

WINDOW = st.tuples(st.integers(-5, 20), st.integers(1, 70))


@given(st.lists(EVENT, max_size=60), WINDOW, st.integers(1, 6), st.sampled_from([1, 40_000_000_000]))
def test_voxel_grid_equals_its_definition(rows, window, bins, unit):
    """Windows from a microsecond to many days."""
    (t0, span), expected = window, np.zeros((bins, HEIGHT, WIDTH))
    for t, x, y, p in rows:
        if t0 <= t < t0 + span and x < WIDTH and y < HEIGHT:
            position = Fraction((bins - 1) * (t - t0), span)
            left = int(position)
            expected[left, y, x] += (1 if p else -1) * (1 - (position - left))
            if left + 1 < bins:
                expected[left + 1, y, x] += (1 if p else -1) * (position - left)
    rows = [(t * unit, x, y, p) for t, x, y, p in rows]
    grid = voxel_grid(make(rows), t0 * unit, (t0 + span) * unit, WIDTH, HEIGHT, bins)
    assert grid.dtype == np.float32
    np.testing.assert_allclose(grid, expected, atol=2e-6 * max(1, len(rows)))


def test_voxel_grid_of_more_events_than_a_block_keeps_all():
    events = random_events(np.random.default_rng(2), 5000)
    grid = voxel_grid(events, 0, 1000, 40, 30, 3)
    assert grid.sum() == pytest.approx(2.0 * int(events.p.sum()) - len(events), abs=1e-2)
    mean_bin = float((grid * np.arange(3)[:, None, None]).sum())
    signed_times = (2.0 * events.p - 1) * events.t
    assert mean_bin == pytest.approx(2 * signed_times.sum() / 1000, abs=1e-2)


def test_normalised_voxels_have_mean_0_and_deviation_1():
    events = random_events(np.random.default_rng(3), 300)
    plain = voxel_grid(events, 0, 1000, 40, 30)
    grid = voxel_grid(events, 0, 1000, 40, 30, normalise=True)
    used = plain[plain != 0]
    np.testing.assert_allclose(grid[plain != 0], (used - used.mean()) / used.std(), atol=1e-4)
    assert not grid[plain == 0].any()
    assert not voxel_grid(make([(0, 0, 0, 1)]), 0, 10, 2, 2, normalise=True).any()  # one voxel has no deviation
    assert not voxel_grid(Events.empty(), 0, 10, 2, 2, normalise=True).any()


@given(st.lists(EVENT, max_size=60), WINDOW)
def test_histogram_and_time_surface_equal_their_definitions(rows, window):
    t0, span = window
    counts, surface = np.zeros((2, HEIGHT, WIDTH), int), np.zeros((2, HEIGHT, WIDTH))
    for t, x, y, p in rows:
        if t0 <= t < t0 + span and x < WIDTH and y < HEIGHT:
            counts[p, y, x] += 1
            surface[p, y, x] = max(surface[p, y, x], np.exp((t - t0 - span) / 12.5))
    result = histogram(make(rows), t0, t0 + span, WIDTH, HEIGHT)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, counts)
    result = time_surface(make(rows), t0, t0 + span, WIDTH, HEIGHT, tau_us=12.5)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, surface, rtol=1e-6)


@pytest.mark.parametrize("bins", [0, -1, 2**30])
def test_impossible_bins_are_refused(bins):
    with pytest.raises(InputError, match="bins") as error:
        voxel_grid(Events.empty(), 0, 1, 2, 2, bins)
    assert error.value.reason == "bad_bins"


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_decay_is_refused(tau):
    with pytest.raises(InputError, match="tau_us") as error:
        time_surface(Events.empty(), 0, 1, 2, 2, tau)
    assert error.value.reason == "bad_tau"


REPRESENTATIONS = [tencode, voxel_grid, histogram, time_surface]


@pytest.mark.parametrize("represent", REPRESENTATIONS)
@pytest.mark.parametrize(("t0", "t1"), [(5, 5), (6, 5)])
def test_window_without_duration_is_refused(represent, t0, t1):
    with pytest.raises(InputError, match="no duration") as error:
        represent(Events.empty(), t0, t1, WIDTH, HEIGHT)
    assert error.value.reason == "bad_window"


@pytest.mark.parametrize("represent", REPRESENTATIONS)
@pytest.mark.parametrize(("width", "height"), [(0, 3), (4, -1)])
def test_image_without_pixels_is_refused(represent, width, height):
    with pytest.raises(InputError, match="no pixels") as error:
        represent(Events.empty(), 0, 1, width, height)
    assert error.value.reason == "bad_geometry"


def test_warm_up_compiles_every_kernel_once():
    """Whatever integers and booleans a caller has: a window's bounds of numpy, sizes of a message."""
    warm_up()
    events = make([(3, 1, 1, 1), (2, 0, 0, 0)])
    for image_of in (tencode, voxel_grid, histogram, time_surface):
        image_of(events, np.int64(0), 5, np.int32(WIDTH), HEIGHT)
        image_of(events[::-1], 0, np.int64(5), WIDTH, np.uint16(HEIGHT))
    voxel_grid(events, 0, 5, WIDTH, HEIGHT, np.int64(3), normalise=True)
    tencode_reference(events, WIDTH, HEIGHT, np.bool_(False))
    values = (vars(representations) | vars(events_module)).values()
    kernels = [value for value in values if hasattr(value, "signatures")]
    compiled = {kernel.py_func.__name__: len(kernel.signatures) for kernel in kernels}
    inlined = {"_pixel", "_green"}  # part of the others: not compiled by themselves where those come from the cache
    assert len(compiled) > 10
    assert {name for name, count in compiled.items() if count != 1} <= inlined
    assert all(count <= 2 for count in compiled.values())
