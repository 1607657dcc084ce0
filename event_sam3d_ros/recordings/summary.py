"""What a recording holds, counted in one pass, and pieces of it by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US
from event_sam3d_ros.recordings.files import Recording
from event_sam3d_ros.recordings.losses import Losses
from event_sam3d_ros.recordings.samples import (
    Calibration,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Sample,
    TriggerChunk,
)

_NS = 1_000_000_000
_QUIET_NS = 10 * _NS
_FOREVER_S = 4e9  # longer than ROS stamps reach


@dataclass
class Summary:
    """Counts of a recording. ``t_first_us``, ``t_last_us``: earliest and latest event on the sensor's clock, None
    without events; ``duration_s``: from the first sample, or event, to the last; ``frames``: RGB or grey pictures;
    ``losses``: what could not be read."""

    path: str
    encoding: str
    width: int
    height: int
    geometry_inferred: bool
    duration_s: float
    events: int = 0
    polarity_on: int = 0
    t_first_us: int | None = None
    t_last_us: int | None = None
    frames: int = 0
    masks: int = 0
    depths: int = 0
    triggers: int = 0
    imu: int = 0
    poses: int = 0
    losses: Losses = field(default_factory=Losses)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the losses' counts stand beside the others."""
        counts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "losses"}
        return counts | self.losses.counts


def summarize(recording: Recording) -> Summary:
    """Reads the recording once."""
    size = recording.width, recording.height
    summary = Summary(str(recording.path), recording.encoding, *size, recording.geometry_inferred, 0.0)
    first_ns = last_ns = None
    for sample in recording.samples():
        first_ns = sample.receive_ns if first_ns is None else first_ns
        last_ns = sample.receive_ns
        _count(summary, sample)
    if first_ns is not None and last_ns is not None:
        events_us = (summary.t_last_us or 0) - (summary.t_first_us or 0)
        summary.duration_s = max((last_ns - first_ns) / _NS, events_us / 1e6)
    summary.losses = recording.losses
    return summary


def _count(summary: Summary, sample: Sample) -> None:
    if isinstance(sample, EventChunk):
        events = sample.events
        summary.events += len(events)
        summary.polarity_on += int(np.count_nonzero(events.p))
        first, last = int(events.t.min()), int(events.t.max())
        summary.t_first_us = first if summary.t_first_us is None else min(summary.t_first_us, first)
        summary.t_last_us = last if summary.t_last_us is None else max(summary.t_last_us, last)
    elif isinstance(sample, Frame):
        name = {"image": "frames", "mask": "masks", "depth": "depths"}[sample.role]
        setattr(summary, name, getattr(summary, name) + 1)
    elif isinstance(sample, TriggerChunk):
        summary.triggers += len(sample.triggers)
    elif isinstance(sample, ImuChunk):
        summary.imu += len(sample.t)
    elif isinstance(sample, Pose):
        summary.poses += 1


def cut(recording: Recording, start_s: float, end_s: float) -> Iterator[Sample]:
    """The samples whose stamps lie in [start, end), seconds from the recording's first stamp.

    Event packets, triggers and inertial measurements are cut inside, by the sensor's time. The last calibration before
    the piece is given with its first sample, for many recordings have a single one at their begin. Reading ends where
    all streams have passed the end by more than the disorder that is allowed. RecordingError for a piece with nothing
    in it.
    """
    if not 0 <= start_s < end_s:
        raise RecordingError(
            f"a piece from {start_s:g} s to {end_s:g} s is empty: give 0 <= start < end", reason="empty_piece"
        )
    return _pieces(recording, start_s, end_s)


def _pieces(recording: Recording, start_s: float, end_s: float) -> Iterator[Sample]:
    begin = end = None
    is_empty = True
    calibration: Calibration | None = None
    newest: dict[Any, Sample] = {}
    for sample in recording.samples():
        if begin is None or end is None:
            begin, end = (sample.stamp_ns + round(min(time, _FOREVER_S) * _NS) for time in (start_s, end_s))
        piece = _inside(sample, begin, end)
        if _is_over(newest, sample, end):
            break
        if piece is None:
            if isinstance(sample, Calibration) and sample.stamp_ns < begin:
                calibration = sample
            continue
        if calibration is not None:
            yield replace(calibration, stamp_ns=piece.stamp_ns, receive_ns=piece.receive_ns)
            calibration = None
        yield piece
        is_empty = False
    if is_empty:
        until = "its end" if end_s == float("inf") else f"{end_s:g} s"
        raise RecordingError(
            f"{recording.path} has nothing from {start_s:g} s to {until}: event-sam3d info tells how long it is",
            reason="empty_piece",
        )


def _is_over(newest: dict[Any, Sample], sample: Sample, end_ns: int) -> bool:
    """Whether all streams are past the end. ``newest``: of each, which is brought up to date.

    One of which nothing came for long has ended; of calibrations many recordings have a single one.
    """
    if isinstance(sample, Calibration):
        return False
    newest[type(sample), getattr(sample, "role", "")] = sample
    over_ns = end_ns + BACKWARD_TOLERANCE_US * 1000
    return all(one.stamp_ns >= over_ns or sample.receive_ns - one.receive_ns > _QUIET_NS for one in newest.values())


def _inside(sample: Sample, begin_ns: int, end_ns: int) -> Sample | None:
    """What of a sample lies in [begin, end), None for nothing."""
    if isinstance(sample, EventChunk):
        t = sample.events.t
    elif isinstance(sample, TriggerChunk):
        t = sample.triggers.t
    elif isinstance(sample, ImuChunk):
        t = sample.t
    else:
        return sample if begin_ns <= sample.stamp_ns < end_ns else None
    stamps = sample.stamp_ns + (t - t[0]) * 1000
    keep = (begin_ns <= stamps) & (stamps < end_ns)
    if keep.all():
        return sample
    if not keep.any():
        return None
    stamp_ns = int(stamps[keep][0])
    if isinstance(sample, EventChunk):
        return replace(sample, stamp_ns=stamp_ns, events=sample.events[keep])
    if isinstance(sample, TriggerChunk):
        return replace(sample, stamp_ns=stamp_ns, triggers=sample.triggers[keep])
    rows = {name: getattr(sample, name)[keep] for name in ("t", "acceleration", "angular_velocity")}
    return replace(sample, stamp_ns=stamp_ns, **rows)
