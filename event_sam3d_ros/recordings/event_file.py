"""What all files of one event stream have in common: order in time, packets, the sensor's size, honest reports."""

from __future__ import annotations

import heapq
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError, RecordingWarning
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US
from event_sam3d_ros.events.events import Events, Triggers, concatenate
from event_sam3d_ros.events.packet_sequence import MAX_SIDE
from event_sam3d_ros.recordings.losses import Losses, counted, left_out
from event_sam3d_ros.recordings.samples import EventChunk, Sample, TriggerChunk
from event_sam3d_ros.recordings.time_jumps import excursions

PACKET_US = 4000
FRAME_ID = "camera_optical_frame"
NS = 1_000_000_000
# Bytes, or rows, that are read at once.
BLOCK_BYTES = 1 << 18
BLOCK_ROWS = 1 << 16

# Sizes of the sensors that are or were sold, the smallest first.
SENSORS = ((128, 128), (240, 180), (304, 240), (320, 240), (346, 260), (320, 320), (640, 480), (1280, 720), (1280, 800))
_PENDING_EVENTS = 4_000_000
# As codec_base.check_packet has it: a few events outside the sensor are noise, half of them a wrong size.
FEW = 8
_UNSIZED = 1 << 16
# Events of damaged places that the smallest usual sensor need not hold.
_STRAY_SHARE = 0.01
# Microseconds that a ROS stamp can tell: its seconds have 31 bits.
MAX_US = (1 << 31) * 1_000_000

Block = tuple[Events, Triggers | None]


class EventFile(ABC):
    """A file with one stream of events, read block by block, as often as wanted.

    ``events.t`` of the samples is the file's own time in microseconds. Stamps are that time in nanoseconds, one second
    later where the file begins before its first second, for a ROS stamp of 0 means "not set".
    ``width``, ``height``: the sensor; ``geometry_inferred``: the file does not say them, they are those of the smallest
    usual sensor that holds all events. ``progress``: share of the file that the latest `samples` has read; ``losses``:
    what it has left out.
    """

    encoding: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = 0.0
        self.image_count = 0
        self.losses = Losses()
        self._warned: set[str] = set()
        said = self._said_size()
        self.geometry_inferred = said is None
        self.width, self.height = said or self._guessed_size()
        if max(self.width, self.height) > MAX_SIDE:
            whose = "whose events reach over" if said is None else "that says its sensor has"
            raise RecordingError(
                f"{path} is a file {whose} {self.width}x{self.height} pixels; sides up to {MAX_SIDE} are possible: it "
                "is damaged, or not of the kind it looks like",
                reason="bad_geometry",
            )

    def _said_size(self) -> tuple[int, int] | None:
        """Width and height that the file says, if it does."""
        return None

    def _guessed_size(self) -> tuple[int, int]:
        """That of the smallest usual sensor that holds all events; where none does, of the smallest that holds all but
        a few, which come of damage. Reads the file once."""
        self.width = self.height = _UNSIZED
        x = y = count = 0
        outside = np.zeros(len(SENSORS), np.int64)
        for events, triggers in self._blocks():
            self.losses.has_events |= len(events) > 0 or (triggers is not None and len(triggers) > 0)
            if len(events):
                x, y = max(x, int(events.x.max())), max(y, int(events.y.max()))
                outside += [np.count_nonzero((events.x >= size[0]) | (events.y >= size[1])) for size in SENSORS]
                count += len(events)
        self.losses.check()
        most = 0 if outside[-1] == 0 else _STRAY_SHARE * count
        return next((size for size, out in zip(SENSORS, outside, strict=True) if out <= most), (x + 1, y + 1))

    @abstractmethod
    def _blocks(self) -> Iterator[Block]:
        """The stream in blocks of bounded size, in the file's order; keeps ``progress`` up to date."""

    def _others(self) -> list[Iterator[Sample]]:
        """Streams beside the events, each by ascending receive time."""
        return []

    def _first_us(self) -> int:
        """The file's first time, microseconds."""
        return next((int(events.t[0]) for events, _ in self._blocks() if len(events)), 0)

    @cached_property
    def time_offset_ns(self) -> int:
        """What stamps are later than the file's times: the whole seconds that bring the first one to a second or more,
        one for a file that begins at 0."""
        losses, self.losses = self.losses, Losses()
        try:
            return max(0, -((self._first_us() * 1000 - NS) // NS)) * NS
        finally:
            self.losses = losses  # what this look at the begin left out counts when it is read

    @cached_property
    def start_ns(self) -> int:
        """Receive time of the first sample."""
        return next((sample.receive_ns for sample in self.samples()), 0)

    @cached_property
    def end_ns(self) -> int:
        """Receive time of the last sample; the file is read once to find it."""
        last = self.start_ns
        for sample in self.samples():
            last = sample.receive_ns
        return last

    def samples(self) -> Iterator[Sample]:
        """All samples by ascending receive time, unless the sensor's clock was started again on the way.

        What is damaged is left out, and said at the end; RecordingError where events are there but none can be read.
        """
        self.progress, self.losses = 0.0, Losses()
        yield from heapq.merge(self._packets(), *self._others(), key=lambda sample: sample.receive_ns)
        self.progress = 1.0
        self.losses.check()
        for sentence in self.losses.sentences():
            self._say(sentence)
        if unknown := self.losses.counts["unknown_words"]:
            words = counted(unknown, "word{s}")
            self.warn(f"has {words} of no type that {self.encoding} defines: {left_out(unknown)}")
        if outside := self.losses.counts["out_of_range_events"]:
            events = counted(outside, "event{s}")
            self.warn(f"has {events} outside {self.width}x{self.height}: {left_out(outside)}")

    def stamp_ns(self, t_us: int) -> int:
        """ROS stamp of a time of the file."""
        return t_us * 1000 + self.time_offset_ns

    def warn(self, sentence: str) -> None:
        """Say something about the file, once."""
        self._say(f"{self.path} {sentence}")

    def _say(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(RecordingWarning(sentence), stacklevel=4)

    def _packets(self) -> Iterator[Sample]:
        """Packets of 4 ms on a fixed grid; they are received with their last event."""
        parts: list[Events] = []  # sorted, none beginning before the end of the one before it
        triggers = Triggers.empty()
        restarts: list[tuple[int, int]] = []
        for runs, new_triggers in self._blocks_of_runs():
            if new_triggers is not None and len(new_triggers):
                triggers = _joined(triggers, new_triggers)
            for run in runs:
                if parts and run.t[0] < parts[-1].t[-1] - BACKWARD_TOLERANCE_US:
                    restarts.append((int(parts[-1].t[-1]), int(run.t[0])))
                    yield from self._cut(parts, Triggers.empty())
                    parts = []
                _insert(parts, run)
            # What the next block may still sort in before is kept back.
            newest = max((int(t[-1]) for t in (*(part.t for part in parts[-1:]), triggers.t) if len(t)), default=0)
            until = (newest - BACKWARD_TOLERANCE_US) // PACKET_US * PACKET_US
            if sum(map(len, parts)) > _PENDING_EVENTS:
                until = newest + 1
            settled, parts = _split(parts, until)
            n = int(np.searchsorted(triggers.t, until))
            yield from self._cut(settled, triggers[:n])
            triggers = triggers[n:]
        yield from self._cut(parts, triggers)
        if restarts:
            before, after = restarts[0]
            self.warn(
                f"has times that run backwards, at {counted(len(restarts), 'place{s}')}, the first from {before} us to "
                f"{after} us: "
                "events are given in the file's order there"
            )

    def _blocks_of_runs(self) -> Iterator[tuple[list[Events], Triggers | None]]:
        """The blocks, their events sorted, and cut where the clock was started again."""
        before_us: int | None = None
        for events, triggers in self._blocks():
            self.losses.has_events |= triggers is not None and len(triggers) > 0
            events, is_sorted = self._checked(events, before_us)
            before_us = int(events.t[-1]) if len(events) else before_us
            yield [events][: len(events)] if is_sorted else _sorted_runs(events), triggers

    def _checked(self, events: Events, before_us: int | None) -> tuple[Events, bool]:
        """The events of a block that are on the sensor, and whose times are sound, and whether they are sorted; none
        of a block that makes no sense. ``before_us``: time of the event before the block."""
        if not len(events):
            return events, True
        first, last, x_max, y_max, is_sorted = events.extent()
        outside = 0
        if x_max >= self.width or y_max >= self.height:
            inside = (events.x < self.width) & (events.y < self.height)
            outside = len(events) - int(np.count_nonzero(inside))
        if not -MAX_US < first <= last < MAX_US:
            problem = f"times from {first} us to {last} us, and a ROS stamp tells less than {MAX_US} us"
            self.leave_out(f"has {problem}: it is damaged, or not of the kind it looks like", "corrupt_event")
            return events[:0], True
        if outside > FEW and 2 * outside > len(events):
            problem = f"{outside} of {len(events)} events from {events.t[0]} us on outside {self.width}x{self.height}"
            self.leave_out(f"has {problem}: it is damaged, or not of the kind it looks like")
            return events[:0], True
        self.losses.has_events = True
        self.losses.counts["out_of_range_events"] += outside
        if outside:
            events = events[inside]
        if not is_sorted and len(events):  # times that rise do not come back
            events = self._without_excursions(events, before_us)
        return events, is_sorted

    def _without_excursions(self, events: Events, before_us: int | None) -> Events:
        keep = np.ones(len(events), np.bool_)
        for begin, end, level in excursions(events.t, before_us):
            keep[begin:end] = False
            jump = f"from {level} us to {events.t[begin]} us and back to {events.t[end]} us"
            self.leave_out(f"is damaged: its times jump {jump}, for {counted(end - begin, 'event{s}')}")
        return events if keep.all() else events[keep]

    def leave_out(self, problem: str, reason: str = "corrupt_recording") -> None:
        """Count a piece of the events that makes no sense."""
        self.losses.leave_out("corrupt_packets", RecordingError(f"{self.path} {problem}", reason=reason))

    def _cut(self, parts: list[Events], triggers: Triggers) -> list[Sample]:
        samples: list[Sample] = []
        pieces = (part[begin:end] for part in parts for begin, end in _grid(part.t))
        for _, packet in itertools.groupby(pieces, key=lambda piece: int(piece.t[0]) // PACKET_US):
            events = concatenate(list(packet))
            times = self.stamp_ns(int(events.t[0])), self.stamp_ns(int(events.t[-1]))
            samples.append(EventChunk(*times, FRAME_ID, self.width, self.height, events))
        for begin, end in _grid(triggers.t):
            edges = triggers[begin:end]
            times = self.stamp_ns(int(edges.t[0])), self.stamp_ns(int(edges.t[-1]))
            samples.append(TriggerChunk(*times, FRAME_ID, edges))
        return sorted(samples, key=lambda sample: sample.receive_ns) if len(triggers) else samples


def _sorted_runs(events: Events) -> list[Events]:
    """The events, cut where the clock was started again, each piece sorted."""
    restarts = np.flatnonzero(np.diff(events.t) < -BACKWARD_TOLERANCE_US) + 1
    bounds = sorted({0, *restarts.tolist(), len(events)})
    runs = [events[begin:end] for begin, end in itertools.pairwise(bounds)]
    return [run[np.argsort(run.t, kind="stable")] for run in runs]


def _insert(parts: list[Events], run: Events) -> None:
    """Append sorted events to parts that follow each other in time; what is older than the newest is sorted in."""
    begin, newer = int(run.t[0]), []
    while parts and parts[-1].t[-1] > begin:
        part = parts.pop()
        n = int(np.searchsorted(part.t, begin, "right"))
        newer.append(part[n:])
        if n:
            parts.append(part[:n])
    if newer:
        both = concatenate([*reversed(newer), run])
        run = both[np.argsort(both.t, kind="stable")]
    parts.append(run)


def _split(parts: list[Events], until_us: int) -> tuple[list[Events], list[Events]]:
    """Parts before a time, and from it on."""
    before, after = [], []
    for part in parts:
        n = int(np.searchsorted(part.t, until_us))
        before += [part[:n]] if n else []
        after += [part[n:]] if n < len(part) else []
    return before, after


def _grid(t: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Begin and end of the packets in sorted times."""
    begin = 0
    while begin < len(t):
        end = begin + int(np.searchsorted(t[begin:], (int(t[begin]) // PACKET_US + 1) * PACKET_US))
        yield begin, end
        begin = end


def _joined(first: Triggers, second: Triggers) -> Triggers:
    columns = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("t", "id", "p")]
    order = np.argsort(columns[0], kind="stable")
    return Triggers(*(column[order] for column in columns))


def is_text(line: bytes) -> bool:
    """Whether a line of a header is text, for data that follow a header can begin as its lines do."""
    return line.isascii() and all(byte >= 0x20 or byte in b"\t\r\n" for byte in line)


class Unwrapped32:
    """Times of 32 bits made whole: microseconds that wrap after 71.6 minutes."""

    def __init__(self) -> None:
        self._loops, self._last = 0, 0

    def __call__(self, raw: NDArray[Any]) -> NDArray[np.int64]:
        if not len(raw):
            return np.empty(0, np.int64)
        t = raw.astype(np.int64)
        loops = np.cumsum(np.diff(t, prepend=self._last) < -(1 << 31)) + self._loops
        self._loops, self._last = int(loops[-1]), int(t[-1])
        return t + (loops << 32)


def events_from_columns(where: str, t: Any, x: Any, y: Any, p: Any) -> Events:
    """Events of arrays in whatever types a file has: ``t`` float seconds or integer microseconds, ``p`` 0/1 or -1/1.

    RecordingError that begins with ``where`` for pixels that no sensor has, other polarities, times that are none, and
    columns of several lengths.
    """
    t, x, y, p = (np.asarray(column) for column in (t, x, y, p))
    if any(column.shape != (t.size,) for column in (t, x, y, p)):
        shapes = ", ".join(f"{name} {column.shape}" for name, column in zip("txyp", (t, x, y, p), strict=True))
        raise RecordingError(f"{where}: arrays are not columns of one length: {shapes}", reason="size_mismatch")
    limit = MAX_US / 1e6 if t.dtype.kind == "f" else MAX_US
    # Written so that what is no number is bad.
    for name, bad in (
        ("time", ~((t > -limit) & (t < limit))),
        ("pixel", ~(_is_coordinate(x) & _is_coordinate(y))),
        ("polarity", (p != 0) & (p != 1) & (p != -1)),
    ):
        if bad.any():
            i = int(np.argmax(bad))
            raise RecordingError(
                f"{where}: event {i} (t {t[i]}, x {x[i]}, y {y[i]}, p {p[i]}) has a bad {name}", reason="bad_event"
            )
    if t.dtype.kind == "f":
        t = np.rint(t * 1e6)
    return Events(t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), (p > 0).astype(np.uint8))


def _is_coordinate(column: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (column >= 0) & (column < _UNSIZED)
    return inside & (column == np.floor(column)) if column.dtype.kind == "f" else inside
