"""A recording becomes a 4D sequence: replayed, reconstructed, tracked, written."""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError, RecordingError, RecordingWarning
from event_sam3d_ros.evaluation.camera_transforms import TF_TOPICS, CameraTransforms, matrix
from event_sam3d_ros.evaluation.poses import PoseTrack
from event_sam3d_ros.evaluation.replay import Replay, ReplayedFrame, disagreeing_clocks
from event_sam3d_ros.events.windows import WindowSettings
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.bag_messages import RawMessage
from event_sam3d_ros.recordings.files import Recording, Rosbag2Recording
from event_sam3d_ros.sequence_writer import SequenceWriter
from event_sam3d_ros.tracking import TrackedFrame, Tracker

# Transforms come behind the frames for which they count; the world's frame is chosen when as many frames have come.
_FRAMES_AHEAD = 10


@dataclass
class SequenceResult:
    """``frames``: written; ``left_out``: frames that have no place in it, by reason; ``reports``: all else that was
    said on the way, by reason; ``clocks``: see `disagreeing_clocks`; ``tracks``: see `SequenceWriter`; ``poses``:
    frames whose camera pose is known, in the frame ``world``."""

    frames: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    reports: Counter[str] = field(default_factory=Counter)
    clocks: dict[str, str] = field(default_factory=dict)
    tracks: list[dict[str, Any]] = field(default_factory=list)
    poses: int = 0
    world: str = ""
    first_ns: int = 0

    def counts(self) -> list[str]:
        """What was left out, and what else was counted, in words; nothing of what did not happen."""
        named = {"left out": self.left_out, "also counted": self.reports - self.left_out}
        return [
            f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
            for what, counts in named.items()
            if counts
        ]


@dataclass(frozen=True)
class SequenceStep:
    """One frame done: ``frame.observation`` is given. ``pose``: camera to world (4, 4), or None; ``milliseconds``:
    what it took, by stage."""

    frame: ReplayedFrame
    tracked: TrackedFrame
    pose: NDArray[np.float64] | None
    milliseconds: dict[str, float]


def make_sequence(
    recording: Recording,
    reconstructor: Reconstructor,
    folder: Path,
    poses: PoseTrack | None = None,
    world: str = "",
    every: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> SequenceResult:
    """Writes the sequence of every ``every``-th frame to ``folder``. ``poses``: of the camera; without them those of
    the recording (its TF, in the frame ``world``, or its poses) count. ``progress`` is called for each frame read.

    RecordingError for a folder that is not empty, or a recording of which no frame can be used; and, behind the work,
    where the events or the given poses lie at another time than the frames. However it ends, the folder holds what was
    done before, and is not there if that is nothing.
    """
    check_folder(folder)
    result = SequenceResult()
    info: dict[str, Any] = {"recording": recording.path.name, "model": model_name(reconstructor), "every": every}
    writer = SequenceWriter(folder, info)
    try:
        with writer:
            for step in sequence_steps(recording, reconstructor, result, poses, world, every, progress):
                assert step.frame.observation is not None
                if poses is not None and step.frame.stamp_ns > poses.last_ns and not writer.count:
                    raise _no_poses(recording, poses, "nothing was done")
                writer.add(step.frame.observation, step.tracked, step.pose)
                writer.info["world_frame"] = result.world
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    result.frames, result.tracks = writer.count, writer.tracks
    if not writer.count:
        raise nothing_usable(recording, result)
    if poses is not None and not result.poses:
        raise _no_poses(recording, poses, f"the sequence in {folder} is without poses")
    if "events" in result.clocks:
        sentence = f"{result.clocks['events']}. The sequence in {folder} is without events"
        raise RecordingError(sentence, reason="clock_mismatch")
    for sentence in result.clocks.values():
        warnings.warn(RecordingWarning(sentence), stacklevel=2)
    return result


def _no_poses(recording: Recording, poses: PoseTrack, outcome: str) -> RecordingError:
    return RecordingError(
        f"{recording.path}: no frame has one of the given camera poses, which go from {poses.first_ns / 1e9:.3f} s to "
        f"{poses.last_ns / 1e9:.3f} s; {outcome}. Both need the clock of the frames' stamps",
        reason="no_overlap",
    )


def sequence_steps(
    recording: Recording,
    reconstructor: Reconstructor,
    result: SequenceResult,
    poses: PoseTrack | None = None,
    world: str = "",
    every: int = 1,
    progress: Callable[[], None] = lambda: None,
    observer: Callable[[RawMessage], None] = lambda _: None,
) -> Iterator[SequenceStep]:
    """The frames that a sequence is made of, one by one; see `make_sequence`. What is counted on the way, and the
    world's name, stand in ``result``; ``observer`` gets every message as it is read."""

    def report(reason: str, sentence: str) -> None:
        result.reports[reason] += 1

    def observe(message: RawMessage) -> None:
        observer(message)
        transforms.observe(message)

    transforms = CameraTransforms(world, report)
    settings = WindowSettings(length_ns=round(reconstructor.info["window_ms"] * 1e6))
    replay = Replay(recording, reconstructor.info["min_events"], report, observe, settings)
    with_tf = isinstance(recording, Rosbag2Recording) and any(topic in recording.types for topic in TF_TOPICS)
    source = _with_poses(_counted(replay.frames(), progress), poses, transforms if with_tf else None)
    tracker = Tracker()
    begin = time.perf_counter()
    for number, (frame, pose) in enumerate(source):
        if number % every:
            continue
        if frame.observation is None:
            result.left_out[frame.reason] += 1
            continue
        ready = time.perf_counter()
        try:
            reconstructions = reconstructor(frame.observation)
        except InputError as error:  # an empty mask, say: a frame without objects
            report(error.reason, str(error))
            reconstructions = []
        done = time.perf_counter()
        tracked = tracker.update(frame.stamp_ns, reconstructions, frame.observation.mask, pose)
        result.first_ns = result.first_ns or frame.stamp_ns
        result.poses += pose is not None
        result.world = _world_of(poses, transforms, world) if result.poses else ""
        milliseconds = {"inputs": (ready - begin) * 1e3, "model": (done - ready) * 1e3}
        yield SequenceStep(frame, tracked, pose, milliseconds)
        begin = time.perf_counter()
    result.clocks = disagreeing_clocks(recording.path, replay.seen)


def nothing_usable(recording: Recording, result: SequenceResult) -> RecordingError:
    """Says why no frame could be used."""
    if "mask" in result.clocks:
        return RecordingError(result.clocks["mask"], reason="clock_mismatch")
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.left_out.most_common()) or "there is none"
    return RecordingError(
        f"{recording.path}: no frame can be used ({reasons}): a sequence needs frames, masks of their stamps and "
        "a calibration",
        reason="no_input",
    )


def check_folder(folder: Path) -> None:
    """RecordingError where a sequence can't be written without touching something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordingError(f"{folder} exists already: choose another folder, or remove it first", reason="bad_output")


def _counted(frames: Iterator[ReplayedFrame], progress: Callable[[], None]) -> Iterator[ReplayedFrame]:
    for frame in frames:
        progress()
        yield frame


def _with_poses(
    frames: Iterator[ReplayedFrame], given: PoseTrack | None, transforms: CameraTransforms | None
) -> Iterator[tuple[ReplayedFrame, NDArray[np.float64] | None]]:
    """Each frame with the camera's pose (4, 4) in the world, if it is known."""
    if given is not None or transforms is None:
        for frame in frames:
            known = frame.camera_pose if given is None else given.at(frame.stamp_ns)
            yield frame, None if known is None else matrix(known)
        return
    waiting: deque[ReplayedFrame] = deque()
    for frame in frames:
        waiting.append(frame)
        if len(waiting) > _FRAMES_AHEAD:
            first = waiting.popleft()
            yield first, transforms.pose(first.frame_id, first.stamp_ns)
    for frame in waiting:
        yield frame, transforms.pose(frame.frame_id, frame.stamp_ns)


def _world_of(poses: PoseTrack | None, transforms: CameraTransforms, named: str) -> str:
    """The name of the frame of the poses, as far as there is one."""
    return named or ("" if poses is not None else transforms.world) or "world"


def model_name(reconstructor: Reconstructor) -> str:
    """Name and tag, as far as it has them."""
    info = reconstructor.info
    return ".".join(str(info[key]) for key in ("name", "tag") if key in info)
