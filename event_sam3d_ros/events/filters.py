"""Filters of event streams: packets of Events in, those worth keeping out.

A filter is called with the events of one packet after another; its state goes on from each to the next, so that the
result does not depend on where a stream was cut into packets (the rate limiter's does). A chain of filters is a list:

    for keep in filters:
        events = keep(events)

Order in a chain: what drops by place or polarity first, hot pixels before background activity (a hot pixel would
support its neighbours), the rate limiter last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.events.events import Events

_NEVER = np.iinfo(np.int64).min // 2
_FEW_EVENTS = 1000


class EventFilter(ABC):
    """Events in, those kept out, in the same order; ``counters`` says how many were dropped since construction.

    A filter that knows the sensor's size raises InputError ``out_of_range_events`` for events outside it, and then its
    state is as if they had never come.
    """

    def __init__(self, counter: str, width: int = 65536, height: int = 65536) -> None:
        if not (1 <= width <= 65536 and 1 <= height <= 65536):
            raise InputError(f"sensor of {width}x{height} has no pixels: give its size", reason="bad_geometry")
        self._counter, self.width, self.height = counter, int(width), int(height)
        self.counters = {counter: 0}

    def __call__(self, events: Events) -> Events:
        if len(events) == 0:
            return events
        right, bottom = int(events.x.max()), int(events.y.max())
        if right >= self.width or bottom >= self.height:
            raise InputError(
                f"events reach ({right}, {bottom}), outside {self.width}x{self.height}: give the filter the camera's "
                "size",
                reason="out_of_range_events",
            )
        kept = self._filter(events)
        self.counters[self._counter] += len(events) - len(kept)
        return kept

    @abstractmethod
    def _filter(self, events: Events) -> Events:
        """What is kept of one or more events, all of them on the sensor."""

    def reset(self) -> None:  # noqa: B027 - most filters keep nothing from packet to packet
        """Forget the events so far, but not the counters: a new stream begins."""


class RegionOfInterest(EventFilter):
    """Keeps a rectangle of ``width`` x ``height`` pixels whose upper left one is (x, y). Coordinates stay as they are.

    Counter: ``outside_roi_events``. Raises ConfigurationError ``bad_filter`` for a rectangle without pixels.
    """

    def __init__(self, x: int, y: int, width: int, height: int) -> None:
        super().__init__("outside_roi_events")
        if min(x, y) < 0 or min(width, height) < 1:
            raise ConfigurationError(
                f"region of interest of {width}x{height} pixels at ({x}, {y}) holds no pixel of a sensor: give x, y >= "
                "0 and a size",
                reason="bad_filter",
            )
        self._x, self._y = (x, x + width), (y, y + height)

    def _filter(self, events: Events) -> Events:
        (left, right), (top, bottom) = self._x, self._y
        return _select(events, (events.x >= left) & (events.x < right) & (events.y >= top) & (events.y < bottom))


class PolarityFilter(EventFilter):
    """Keeps events of one polarity: 1 brighter, 0 darker.

    Counter: ``other_polarity_events``. Raises ConfigurationError ``bad_filter`` for another number.
    """

    def __init__(self, polarity: int) -> None:
        super().__init__("other_polarity_events")
        if polarity not in (0, 1):
            raise ConfigurationError(f"polarity {polarity} is neither 0 nor 1", reason="bad_filter")
        self._polarity = int(polarity)

    def _filter(self, events: Events) -> Events:
        return _select(events, (events.p != 0) == bool(self._polarity))


class BackgroundActivityFilter(EventFilter):
    """Keeps events that one of the 8 neighbours supports (Delbruck, "Frame-free dynamic digital vision", 2008).

    An event at t is kept if an earlier event of the stream, kept or not, of either polarity, hit a neighbouring pixel
    at t - max_age_us or later. The first event of anything new is lost; noise, which comes alone, is lost throughout.

    Counter: ``background_events``. Raises ConfigurationError ``bad_filter`` unless max_age_us is positive.
    """

    def __init__(self, width: int, height: int, max_age_us: int = 10_000) -> None:
        super().__init__("background_events", width, height)
        if max_age_us < 1:
            raise ConfigurationError(f"events can't be supported for {max_age_us} us: give more", reason="bad_filter")
        self._max_age_us = int(max_age_us)
        self.reset()

    def reset(self) -> None:
        # A frame of pixels that never fire spares the kernel a look at the borders.
        self._newest = np.full((self.height + 2, self.width + 2), _NEVER, np.int64)

    def _filter(self, events: Events) -> Events:
        return _select(events, _supported(self._newest, self._max_age_us, events.t, events.x, events.y))


class HotPixelFilter(EventFilter):
    """Drops pixels that fire far more often than those around them.

    Period after period the events of each pixel are counted. A pixel is hot during the next period if its rate was at
    least ``min_rate_hz``, and more than ``ratio`` times that of more than half of its (up to 8) neighbours. A light
    that flickers covers many pixels, of which none is hot. ``known`` (bool [height, width]) are hot from the start and
    for ever. A period lasts ``period_us`` and at least 1000 events; none is judged before its end.

    Counter: ``hot_pixel_events``. Raises ConfigurationError ``bad_filter`` for numbers that make no sense,
    InputError ``size_mismatch`` for a mask of another size.
    """

    def __init__(
        self,
        width: int,
        height: int,
        min_rate_hz: float = 100.0,
        ratio: float = 10.0,
        period_us: int = 1_000_000,
        known: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__("hot_pixel_events", width, height)
        if not (min_rate_hz > 0 and ratio >= 1 and period_us > 0):
            raise ConfigurationError(
                f"hot pixels of {min_rate_hz} Hz, {ratio} times their neighbours, in {period_us} us: rate and period "
                "must be positive, the ratio at least 1",
                reason="bad_filter",
            )
        if known is not None and known.shape != (height, width):
            raise InputError(
                f"mask of hot pixels is {known.shape}, the sensor {(height, width)}: store it with this camera",
                reason="size_mismatch",
            )
        self._min_rate_hz, self._ratio, self._period_us = float(min_rate_hz), float(ratio), int(period_us)
        self._known = np.zeros((height, width), np.bool_) if known is None else known.astype(np.bool_)
        self.reset()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels that are dropped now, bool [height, width]: a copy, to be kept for ``known``."""
        return self._hot.copy()

    def reset(self) -> None:
        self._hot = self._known.copy()
        self._counts = np.zeros((self.height, self.width), np.int64)
        self._begin_us: int | None = None
        self._events = 0

    def _filter(self, events: Events) -> Events:
        keep = np.empty(len(events), np.bool_)
        start = 0
        while start < len(events):
            if self._begin_us is None:
                self._begin_us = int(events.t[start])
            end_us = self._begin_us + self._period_us
            stop = start + _count(
                self._counts,
                self._hot,
                *(events.t[start:], events.x[start:], events.y[start:], keep[start:]),
                *(end_us, _FEW_EVENTS - self._events),
            )
            self._events += stop - start
            if stop < len(events):
                self._judge(int(events.t[stop]) - self._begin_us)
            start = stop
        return _select(events, keep)

    def _judge(self, duration_us: int) -> None:
        """End a period: the pixels that are hot during the next one."""
        least = max(1.0, self._min_rate_hz * duration_us / 1e6)
        self._hot = self._known | _hot_pixels(self._counts, least, self._ratio)
        self._counts[:] = 0
        self._begin_us, self._events = None, 0


class RateLimiter(EventFilter):
    """Thins a flood out to ``max_rate_hz`` events per second, at random and evenly, so that its statistics stay.

    Sensor time is cut into slices of ``slice_us``. A slice never lets more through than its share of the rate; of a
    packet that brings more, that many are chosen, every event with the same probability (selection sampling: Knuth,
    TAOCP 3.4.2, algorithm S). A packet that ends inside a slice has the slice's share up to there, so that the packets
    of one slice are thinned alike. The same stream of packets and ``seed`` give the same events.

    Counter: ``rate_limited_events``. Raises ConfigurationError ``bad_filter`` for a share of less than one event.
    """

    def __init__(self, max_rate_hz: float, slice_us: int = 1000, seed: int = 0) -> None:
        super().__init__("rate_limited_events")
        if not (slice_us > 0 and 1 <= max_rate_hz * slice_us / 1e6 < 2**53):
            raise ConfigurationError(
                f"{max_rate_hz} events per second are less than one in {slice_us} us: raise the rate or the slices",
                reason="bad_filter",
            )
        self._share, self._slice_us, self._seed = int(max_rate_hz * slice_us / 1e6), int(slice_us), int(seed)
        self.reset()

    def reset(self) -> None:
        # End of the slice, events let through in it, microseconds of it so far, state of the random numbers.
        self._state = np.array([_NEVER, 0, 0, self._seed], np.int64)

    def _filter(self, events: Events) -> Events:
        return _select(events, _thin(self._state, self._share, self._slice_us, events.t))


class Rectification(EventFilter):
    """Moves events to where a camera without lens distortion would have seen them.

    ``pixels`` (float [height, width, 2]) has the column and row in the rectified image for each pixel of the sensor,
    not finite where there is none: `rectified_pixels` of camera/lens.py, or a rectify_map of the DSEC data set. They
    are rounded to whole pixels: where the lens shrinks the picture, several share one, and where it stretches it, some
    are never hit. Events that leave the image are dropped.

    Counter: ``unrectified_events``. Raises InputError ``size_mismatch`` for another shape.
    """

    def __init__(self, pixels: NDArray[np.floating]) -> None:
        if pixels.ndim != 3 or pixels.shape[2] != 2:
            raise InputError(
                f"table of rectified pixels is {pixels.shape}, expected (height, width, 2)", reason="size_mismatch"
            )
        height, width = pixels.shape[:2]
        super().__init__("unrectified_events", width, height)
        rounded = np.rint(np.where(np.isfinite(pixels), pixels, -1.0))
        inside = np.asarray((rounded >= 0) & (rounded < (width, height)))
        self._inside: NDArray[np.bool_] = np.all(inside, axis=2)
        self._pixels = np.where(self._inside[..., None], rounded, 0).astype(np.uint16)

    def _filter(self, events: Events) -> Events:
        x, y, keep = _moved(self._pixels, self._inside, events.x, events.y)
        return _select(Events(events.t, x, y, events.p), keep)


@dataclass(frozen=True)
class FilterSettings:
    """The filters of a stream, as the node's parameters say; by default none.

    roi             x, y, width, height in pixels of the sensor
    polarity        both, on or off
    hot_pixels      whether to learn and drop them
    background_ms   how long a neighbour supports an event, 0: no event needs support
    max_event_rate  events per second, 0: any
    rectified       where each pixel is in the rectified image, see `Rectification`; None: events stay where they are
    """

    roi: tuple[int, int, int, int] | None = None
    polarity: Literal["both", "on", "off"] = "both"
    hot_pixels: bool = False
    background_ms: float = 0.0
    max_event_rate: float = 0.0
    rectified: NDArray[np.floating] | None = None

    def make(self, width: int, height: int) -> list[EventFilter]:
        """New filters for a sensor of that size, in the order that suits them.

        Raises ConfigurationError ``bad_filter``, and InputError ``size_mismatch`` for a table of another size.
        """
        filters: list[EventFilter] = []
        if self.roi is not None:
            x, y, *size = self.roi
            if x >= width or y >= height:
                raise ConfigurationError(
                    f"the region of interest, {size[0]}x{size[1]} pixels at ({x}, {y}), lies outside the sensor of "
                    f"{width}x{height}: no event would be left; correct roi_x and roi_y",
                    reason="bad_filter",
                )
            filters.append(RegionOfInterest(*self.roi))
        if self.polarity != "both":
            filters.append(PolarityFilter(1 if self.polarity == "on" else 0))
        if self.hot_pixels:
            filters.append(HotPixelFilter(width, height))
        if self.background_ms > 0:
            filters.append(BackgroundActivityFilter(width, height, max(1, round(1000 * self.background_ms))))
        if self.rectified is not None:
            if self.rectified.shape[:2] != (height, width):
                rows, columns = self.rectified.shape[:2]
                raise InputError(
                    f"events come from {width}x{height} pixels, the calibration to rectify them is for "
                    f"{columns}x{rows}: calibrate at the size that is used",
                    reason="size_mismatch",
                )
            filters.append(Rectification(self.rectified))
        if self.max_event_rate > 0:
            filters.append(RateLimiter(self.max_event_rate))
        return filters


def _select(events: Events, keep: NDArray[np.bool_]) -> Events:
    kept = int(np.count_nonzero(keep))
    if kept == len(events):
        return events
    return Events(*_compact(keep, kept, events.t, events.x, events.y, events.p))


@njit(cache=True, nogil=True)
def _compact(keep, kept, t, x, y, p):  # type: ignore[no-untyped-def]
    # One place too many, where events that are not kept are written after the last that is: no branch.
    new_t, new_x = np.empty(kept + 1, np.int64), np.empty(kept + 1, np.uint16)
    new_y, new_p = np.empty(kept + 1, np.uint16), np.empty(kept + 1, np.uint8)
    n = np.uint64(0)
    for i in range(keep.size):
        new_t[n], new_x[n], new_y[n], new_p[n] = t[i], x[i], y[i], p[i]
        n += np.uint64(keep[i])
    return new_t[:kept], new_x[:kept], new_y[:kept], new_p[:kept]


@njit(cache=True, nogil=True)
def _moved(pixels, inside, x, y):  # type: ignore[no-untyped-def]
    new_x, new_y, keep = np.empty_like(x), np.empty_like(y), np.empty(x.size, np.bool_)
    for i in range(x.size):
        new_x[i], new_y[i] = pixels[y[i], x[i], 0], pixels[y[i], x[i], 1]
        keep[i] = inside[y[i], x[i]]
    return new_x, new_y, keep


@njit(cache=True, nogil=True)
def _supported(newest, max_age_us, t, x, y):  # type: ignore[no-untyped-def]
    keep = np.empty(t.size, np.bool_)
    for i in range(t.size):
        row, column = np.int64(y[i]), np.int64(x[i])  # of the upper left neighbour, behind the frame
        oldest = t[i] - max_age_us
        above, here, below = newest[row], newest[row + 1], newest[row + 2]
        support = (here[column] >= oldest) | (here[column + 2] >= oldest)
        for side in range(column, column + 3):
            support |= (above[side] >= oldest) | (below[side] >= oldest)
        keep[i] = support
        here[column + 1] = max(here[column + 1], t[i])
    return keep


@njit(cache=True, nogil=True)
def _count(counts, hot, t, x, y, keep, end_us, least):  # type: ignore[no-untyped-def]
    """Count and judge events up to the period's end; how many there were."""
    for i in range(t.size):
        if t[i] >= end_us and i >= least:
            return i
        counts[y[i], x[i]] += 1
        keep[i] = not hot[y[i], x[i]]
    return t.size


@njit(cache=True, nogil=True)
def _hot_pixels(counts, least, ratio):  # type: ignore[no-untyped-def]
    height, width = counts.shape
    hot = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            if counts[row, column] >= least:
                loud = 0
                for r in range(max(row - 1, 0), min(row + 2, height)):
                    for c in range(max(column - 1, 0), min(column + 2, width)):
                        loud += counts[row, column] <= ratio * counts[r, c]
                hot[row, column] = loud <= 2  # one of them is the pixel itself
    return hot


@njit(cache=True, nogil=True)
def _random(state):  # type: ignore[no-untyped-def]
    """Next uniform number in [0, 1) of SplitMix64 (Steele, Lea and Flood, 2014)."""
    z = np.uint64(state[3]) + np.uint64(0x9E3779B97F4A7C15)
    state[3] = np.int64(z)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True, error_model="numpy")
def _thin(state, share, slice_us, t):  # type: ignore[no-untyped-def]
    keep = np.empty(t.size, np.bool_)
    start = 0
    while start < t.size:
        if t[start] >= state[0]:
            state[0] = (t[start] // slice_us + 1) * slice_us
            state[1] = state[2] = 0
        stop = start + 1
        while stop < t.size and t[stop] < state[0]:
            stop += 1
        last = t[stop - 1] if stop == t.size else state[0] - 1
        state[2] = max(state[2], last - (state[0] - slice_us) + 1)
        chosen = min(stop - start, np.int64(share * (state[2] / slice_us)) - state[1])
        state[1] += chosen
        for i in range(start, stop):
            keep[i] = chosen == stop - i or (chosen > 0 and _random(state) * (stop - i) < chosen)
            chosen -= keep[i]
        start = stop
    return keep
