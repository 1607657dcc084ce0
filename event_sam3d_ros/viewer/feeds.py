"""Frames that a thread makes while they are watched: of a recording, and of the results of an evaluation."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.demo.results import ObjectResult
from event_sam3d_ros.errors import EventSam3dError, RecordingError
from event_sam3d_ros.evaluation.bag_inputs import open_input
from event_sam3d_ros.evaluation.bag_log import Row, pose_of_row, read_rows, reconstruction_of_row
from event_sam3d_ros.evaluation.camera_transforms import matrix
from event_sam3d_ros.evaluation.replay import Replay, ReplayedFrame
from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.events.windows import WindowSettings
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.files import Recording
from event_sam3d_ros.sequence_maker import SequenceResult, SequenceStep, model_name, nothing_usable, sequence_steps
from event_sam3d_ros.viewer.frames import SCENE_POINTS, FrameStore, ViewFrame, ViewObject, evenly
from event_sam3d_ros.viewer.truths import NO_TRUTH, ViewTruth, read_view_truth

EVALUATION_MARK = "event-sam3d evaluate"
_BEING_READ = "still being read"
_RESULT_COLOR = (255, 140, 0)


class NotWanted(Exception):
    """The feed was closed: there is no use in reading on."""


class Feed(FrameStore):
    """The frames of ``make(feed)``, which works in a thread of its own. What stops it is told as the status, and so is
    what it has noted."""

    def __init__(self, title: str, make: Callable[[Feed], Iterator[ViewFrame]]) -> None:
        super().__init__(title)
        self._notes: list[str] = []
        self._thread = threading.Thread(target=self._work, args=(make,), name="viewer feed", daemon=True)
        self.tell(_BEING_READ)
        self._thread.start()

    def _work(self, make: Callable[[Feed], Iterator[ViewFrame]]) -> None:
        status = "the reading ended with an error: see the terminal"
        try:
            for frame in make(self):
                if not self.append(frame):
                    break
            status = ""
        except NotWanted:
            status = ""
        except EventSam3dError as error:
            status = str(error)
        except OSError as error:
            status = f"{error.filename or self.title}: {error.strerror or error}"
        finally:
            self.tell(self._with_notes(status), complete=True)

    def note(self, sentence: str) -> None:
        """Something that the user should know from now on; for ``make``."""
        self._notes.append(sentence)
        self.tell(self._with_notes(_BEING_READ))

    def _with_notes(self, status: str) -> str:
        return ". ".join(filter(None, [*self._notes, status]))

    def check(self, _: object = None) -> None:
        """NotWanted once the feed is closed; for ``make``, at every message, for frames may be long in coming."""
        if self._closed:
            raise NotWanted

    def close(self) -> None:
        """See `Frames`."""
        super().close()
        self._thread.join()


def recording_frames(
    feed: Feed, recording: Recording, reconstructor: Reconstructor, truth: ViewTruth = NO_TRUTH
) -> Iterator[ViewFrame]:
    """A recording, reconstructed and tracked as for a sequence. RecordingError where no frame can be used; what was
    left out, and clocks that disagree, are noted."""
    result = SequenceResult()
    steps = sequence_steps(recording, reconstructor, result, truth.camera, observer=feed.check)
    made = (_sequence_frame(step, truth) for step in steps)
    count = 0
    for frame in _beside_truth(feed, made, truth):
        count += 1
        yield frame
    if not count:
        raise nothing_usable(recording, result)
    for sentence in (*result.clocks.values(), *result.counts()):
        feed.note(sentence)


def _sequence_frame(step: SequenceStep, truth: ViewTruth) -> ViewFrame:
    assert step.frame.observation is not None
    pose = np.eye(4) if step.pose is None else step.pose
    objects = tuple(map(shown, step.tracked.reconstructions))
    ids = dict(zip(step.tracked.labels, (one.id for one in objects), strict=True))
    return replace(
        _observed(step.frame.stamp_ns, step.frame.observation, ids),
        camera_to_world=pose,
        pose_known=step.pose is not None,
        objects=tuple(replace(one, pose=pose @ one.pose) for one in objects),
        truths=truth.at(step.frame.stamp_ns, pose),
        milliseconds=step.milliseconds,
    )


def _beside_truth(feed: Feed, frames: Iterator[ViewFrame], truth: ViewTruth) -> Iterator[ViewFrame]:
    """The frames. Noted as soon as it shows: that the truth lies at another time than all of them."""
    first_ns = last_ns = None
    told = False
    for frame in frames:
        last_ns = frame.stamp_ns
        if first_ns is None:
            first_ns = last_ns
            told = _is_apart(feed, truth, first_ns, None)
        yield frame
    if first_ns is not None and not told:
        _is_apart(feed, truth, first_ns, last_ns)


def _is_apart(feed: Feed, truth: ViewTruth, first_ns: int, last_ns: int | None) -> bool:
    try:
        truth.truth.check_overlap(first_ns, last_ns)
    except RecordingError as error:
        feed.note(str(error))
        return True
    return False


def open_recording_feed(path: Path, topics: Mapping[str, str], weights: str, device: str, truth: ViewTruth) -> Feed:
    """Opens the recording and the model; an EventSam3dError says why that is not possible."""
    recording, _ = open_input(path, topics, ("fused",))
    reconstructor = Reconstructor.from_pretrained(weights, device)
    title = f"{recording.path.name}: {model_name(reconstructor)}"
    return Feed(title, lambda feed: recording_frames(feed, recording, reconstructor, truth))


# An evaluation's results


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of an evaluation of recordings; None for another folder."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    is_one = isinstance(summary, dict) and summary.get("made_by") == EVALUATION_MARK
    return summary if is_one and isinstance(summary.get("bags"), list) else None


@dataclass(frozen=True)
class _Run:
    """One recording of an evaluation, as it was evaluated. ``truth``: its file, or None."""

    path: Path
    modes: tuple[str, ...]
    topics: Mapping[str, str]
    truth: Path | None
    settings: WindowSettings


def _runs(folder: Path, summary: Mapping[str, Any]) -> dict[str, _Run]:
    """By name. RecordingError for a summary that lacks something."""
    try:
        options = summary["configuration"]
        modes, topics = tuple(map(str, options["modes"])), dict(options["topics"])
        window_ms = next(iter(summary["models"].values()))["window_ms"]  # all models of an evaluation have the same
        settings = WindowSettings(length_ns=round(window_ms * 1e6))
        paths = {str(one["name"]): Path(one["path"]) for one in summary["bags"]}
        truths = {name: options["ground_truth"][name]["path"] for name in paths}
        return {
            name: _Run(path, modes, topics, Path(truths[name]) if truths[name] else None, settings)
            for name, path in paths.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise RecordingError(
            f"{folder / 'summary.json'} is not as event-sam3d evaluate writes it ({error!r}): run the command of this "
            "evaluation again, it writes the file anew",
            reason="bad_summary",
        ) from error


def open_results_feed(
    folder: Path, summary: Mapping[str, Any], bag: str, topics: Mapping[str, str], truth: Path | None
) -> Feed:
    """The results of one recording of an evaluation: ``bag``, by default the first. Where the recording is still
    there, with its pictures and events; with ``truth``, else with that of the evaluation where it is still there.
    ``topics``: other than those of the evaluation. RecordingError for a name that is not among them, a truth or topics
    that can't be used, or a damaged summary."""
    runs = _runs(folder, summary)
    name = bag or next(iter(runs), "")
    log = folder / "frames" / f"{name}.jsonl"
    if name not in runs or not log.is_file():
        raise RecordingError(
            f"{folder} has no results of {name or 'any recording'}; it has: {', '.join(runs) or 'none'}",
            reason="missing_file",
        )
    run, known, recording, title = runs[name], NO_TRUTH, None, f"{name}: evaluation"
    try:
        if truth is not None or run.truth is not None:
            known = read_view_truth(run.path, truth or run.truth)
    except (EventSam3dError, OSError) as error:
        if truth is not None:
            raise
        title += f", without ground truth ({error})"
    try:
        recording, _ = open_input(run.path, {**run.topics, **topics}, run.modes)
    except (EventSam3dError, OSError) as error:
        if topics and run.path.exists():
            raise
        title += f", without pictures ({error})"

    def make(feed: Feed) -> Iterator[ViewFrame]:
        rows = (row for row in read_rows(log) if "stamp_ns" in row)
        frames: Iterator[ReplayedFrame] = iter(())
        if recording is not None:
            replay = Replay(recording, 0, lambda *_: None, feed.check, run.settings)
            frames = _as_far_as_possible(feed, replay.frames())
        return _beside_truth(feed, result_frames(rows, frames, known), known)

    return Feed(title, make)


def _as_far_as_possible(feed: Feed, frames: Iterator[ReplayedFrame]) -> Iterator[ReplayedFrame]:
    """Where the recording breaks off, the results go on without pictures."""
    try:
        yield from frames
    except (EventSam3dError, OSError) as error:
        feed.note(f"the pictures end: {error}")


def result_frames(rows: Iterator[Row], frames: Iterator[ReplayedFrame], truth: ViewTruth) -> Iterator[ViewFrame]:
    """Rows of an evaluation, each with the replayed frame of its stamp as long as there are any. Of several models and
    modes the last one, fused unless others were asked for, is shown first."""
    for row in rows:
        stamp_ns = int(row["stamp_ns"])
        frame = next((one for one in frames if one.stamp_ns >= stamp_ns), None)
        pose = pose_of_row(stamp_ns, row["camera_pose"])
        world = np.eye(4) if pose is None else matrix(pose)
        results = row["results"]
        objects = tuple(
            replace(one, pose=world @ one.pose)
            for number, result in enumerate(results)
            for one in _result_objects(result, len(results) > 1, number < len(results) - 1)
        )
        ids = {one["label"]: one["id"] for one in results[-1]["objects"]} if results else {}
        observation = frame.observation if frame is not None and frame.stamp_ns == stamp_ns else None
        view = ViewFrame(stamp_ns) if observation is None else _observed(stamp_ns, observation, ids)
        ms = row["ms"]
        yield replace(
            view,
            camera_to_world=world,
            pose_known=pose is not None,
            objects=objects,
            truths=truth.at(stamp_ns, world),
            milliseconds={"inputs": ms["inputs"], **ms["reconstruct"]},
        )


def _result_objects(result: Row, is_named: bool, aside: bool) -> Iterator[ViewObject]:
    for row in result["objects"]:
        found = reconstruction_of_row(row)
        solid = Solid.from_reconstruction(found)
        points = (solid.surface * solid.side).astype(np.float32)
        colors = np.full((len(points), 3), _RESULT_COLOR, np.uint8)
        view = shown(replace(found, id=row["id"]))
        name = f"{row['id']} {result['model']} {result['mode']}" if is_named else str(row["id"])
        yield replace(view, name=name, points=points, colors=colors, values=dict(row["metrics"]), aside=aside)


# What they have in common


def shown(found: Reconstruction | ObjectResult) -> ViewObject:
    """A reconstruction in the camera's frame, with all its points."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(found.quaternion).as_matrix(), found.position
    points = (found.points - found.position) @ pose[:3, :3]
    return ViewObject(
        name=str(found.id),
        id=found.id,
        pose=pose,
        size=found.size,
        points=points.astype(np.float32),
        colors=found.colors,
        score=float(found.score),
        metric=found.metric,
    )


def _observed(stamp_ns: int, seen: Observation, ids: Mapping[int, int]) -> ViewFrame:
    """What the camera gave; ``ids``: track by the mask's label."""
    tracks: NDArray[np.uint32] = np.zeros(1 << 16, np.uint32)
    tracks[list(ids)] = list(ids.values())
    points, colors = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    if seen.depth is not None:
        known = np.flatnonzero(np.isfinite(seen.depth) & (seen.depth > 0))
        known = known[evenly(len(known), SCENE_POINTS)]
        rows, columns = np.divmod(known, seen.depth.shape[1])
        rays = np.stack([columns, rows, np.ones(len(known))], axis=1) @ np.linalg.inv(seen.K).T
        points = (rays * seen.depth[rows, columns, None]).astype(np.float32)
        colors = np.full((len(known), 3), 128, np.uint8) if seen.image is None else seen.image[rows, columns]
    return ViewFrame(
        stamp_ns=stamp_ns,
        rgb=seen.image,
        event_image=seen.event_image,
        tracks=tracks[seen.mask],
        K=np.asarray(seen.K, float),
        scene_points=points,
        scene_colors=colors,
    )
