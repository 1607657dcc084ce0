"""One recording evaluated, in order, by any number of models and modes side by side."""

from __future__ import annotations

import heapq
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from event_sam3d_ros.errors import EventSam3dError, InputError, RecordingError, RecordingWarning
from event_sam3d_ros.evaluation.bag_check import Tally, check_recording, check_truth
from event_sam3d_ros.evaluation.bag_inputs import open_input
from event_sam3d_ros.evaluation.bag_log import (
    FrameLog,
    Row,
    object_row,
    pose_of_row,
    pose_row,
    reconstruction_of_row,
)
from event_sam3d_ros.evaluation.bag_mcap import McapOutputs
from event_sam3d_ros.evaluation.bag_pictures import draw_frame, write_picture
from event_sam3d_ros.evaluation.bag_truth import Truth, read_bag_truth
from event_sam3d_ros.evaluation.consistency import LONGEST_GAP_NS, Previous, agreement, edge_contrast, overlap
from event_sam3d_ros.evaluation.metrics import evaluate, silhouette
from event_sam3d_ros.evaluation.replay import Replay, ReplayedFrame
from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.events.windows import WindowSettings
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.bag_messages import RawMessage
from event_sam3d_ros.recordings.files import Recording
from event_sam3d_ros.tracking import TrackedFrame, Tracker

KEPT_PICTURES = 3  # best and worst frames of a recording, each
# By what frames are ranked: the first that any frame of a run has, so pictures are kept for both.
RANKING = ("iou_camera", "input_mask_iou")
Setup = tuple[str, str]  # model and mode


@dataclass(frozen=True)
class BagJob:
    """What is to be done with one recording. ``name``: unique among those of a run; ``modes``, ``topics``: see
    `bag_inputs`; ``out``: the folder of the run; ``truth``: a file, None where there is none."""

    name: str
    path: Path
    out: Path
    modes: tuple[str, ...]
    topics: Mapping[str, str] = field(default_factory=dict)
    truth: Path | None = None
    metrics: bool = True
    save_mcap: bool = False

    @property
    def log(self) -> Path:
        """The rows of its frames."""
        return self.out / "frames" / f"{self.name}.jsonl"

    def picture(self, frame: int) -> Path:
        """The picture of a frame."""
        return self.out / "pictures" / f"{self.name}_{frame:06d}.jpg"


@dataclass(frozen=True)
class BagOutcome:
    """How it ended: ``reason`` and ``message`` are empty where all went well; ``warnings`` of the recording."""

    name: str
    reason: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


def evaluate_bag(
    job: BagJob, models: Mapping[str, Reconstructor], progress: Callable[[float], None] = lambda share: None
) -> BagOutcome:
    """Evaluates what earlier runs have left to do. Never raises for a recording, a truth or a disk that is at fault:
    the outcome says what was."""
    reason = message = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RecordingWarning)
        try:
            _BagEvaluation(job, models, lambda: _told(caught)).run(progress)
        except EventSam3dError as error:
            reason, message = error.reason, str(error)
        except OSError as error:
            reason, message = "os_error", f"{error.filename or job.out}: {error.strerror or error}"
    for one in caught:
        if not issubclass(one.category, RecordingWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return BagOutcome(job.name, reason, message, tuple(_told(caught)))


def _told(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """What the recording had to say, each thing once."""
    return list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, RecordingWarning)))


class _BagEvaluation:
    """``told`` gives the warnings of the recording so far."""

    def __init__(self, job: BagJob, models: Mapping[str, Reconstructor], told: Callable[[], list[str]]) -> None:
        self._job, self._models, self._told = job, models, told
        self._reports: Counter[str] = Counter()
        self._new_sentences: dict[str, str] = {}
        self._tally = Tally(RANKING[0])
        self._observer_ms = 0.0
        self._trackers = {(name, mode): Tracker() for name in models for mode in job.modes}
        self._previous: dict[tuple[str, str, int], Previous] = {}
        # Heaps of the best (1) and the worst (-1) frames.
        self._kept = {(name, sign): list[tuple[float, int]]() for name in RANKING for sign in (1, -1)}

    def run(self, progress: Callable[[float], None]) -> None:
        job = self._job
        with FrameLog(job.log) as log:
            if any("end" in row for row in log.earlier()):
                return
            if job.save_mcap:
                log.clear()  # an unfinished MCAP can't be gone on with
            recording, _ = open_input(job.path, job.topics, job.modes)
            truth = read_bag_truth(job.path, job.truth) if job.truth else Truth()
            settings = WindowSettings(length_ns=round(next(iter(self._models.values())).info["window_ms"] * 1e6))
            with _outputs(job, self._models) as outputs:
                # Models may need different numbers of events: `_mode_observation` knows them.
                observer = partial(self._copy, outputs) if outputs else None
                replay = Replay(recording, 0, self._report, observer, settings)
                self._run(log, replay, recording, truth, outputs, progress)

    def _run(
        self,
        log: FrameLog,
        replay: Replay,
        recording: Recording,
        truth: Truth,
        outputs: McapOutputs | None,
        progress: Callable[[float], None],
    ) -> None:
        earlier = log.earlier()
        for number, (frame, inputs_ms) in enumerate(_timed(replay.frames())):
            if number == 0:
                truth.check_overlap(frame.stamp_ns, None)
            row = next(earlier, None)
            if row is None:
                row = self._row(number, frame, truth, outputs)
                row["ms"]["inputs"] = round(inputs_ms - self._observer_ms, 3)
                row["ms"]["writing"] = round(row["ms"]["writing"] + self._observer_ms, 3)
                log.append(row)
            elif row["stamp_ns"] != frame.stamp_ns:
                raise RecordingError(
                    f"{self._job.path} has changed since {self._job.log} was written: give another --out",
                    reason="changed",
                )
            else:
                self._track_again(frame, row)
            self._reports.clear()
            self._new_sentences, self._observer_ms = {}, 0.0
            self._tally.add(row)
            self._remember(row)
            progress(recording.progress)
        next(earlier, None)  # a torn row behind the last whole one
        end = self._end(replay, recording)
        self._tally.add({"results": [], "truth": False, **end})
        check_recording(self._job.path, self._job.modes, replay.seen, self._tally)
        check_truth(self._job.path, truth, replay.seen["image"], self._tally, self._job.metrics)
        log.append({"end": end | {"warnings": self._told()}})
        self._remove_pictures()

    def _end(self, replay: Replay, recording: Recording) -> Row:
        return {
            "reports": dict(sorted(self._reports.items())),
            "sentences": dict(sorted(self._new_sentences.items())),
            "seen": {kind: vars(seen) for kind, seen in sorted(replay.seen.items())},
            "losses": str(recording.losses),
        }

    def _report(self, reason: str, sentence: str) -> None:
        self._reports[reason] += 1
        if reason not in self._tally.sentences:
            self._new_sentences.setdefault(reason, sentence)

    def _copy(self, outputs: McapOutputs, message: RawMessage) -> None:
        """A message into the MCAP, which does not count as reading."""
        begin = time.perf_counter()
        outputs.input(message)
        self._observer_ms += _since(begin)

    # One frame

    def _row(self, number: int, frame: ReplayedFrame, truth: Truth, outputs: McapOutputs | None) -> Row:
        camera_pose = truth.camera.at(frame.stamp_ns) if truth.camera else frame.camera_pose
        row: Row = {"frame": number, "stamp_ns": frame.stamp_ns, "event_count": frame.event_count}
        row |= {"camera_pose": pose_row(camera_pose), "truth": False, "results": [], "reports": {}}
        milliseconds: dict[str, Any] = {"reconstruct": {}}
        found: dict[Setup, TrackedFrame] = {}
        for name in self._models:
            for mode in self._job.modes:
                begin = time.perf_counter()
                reason, found[name, mode] = self._reconstruct(frame, name, mode)
                milliseconds["reconstruct"][f"{name} {mode}"] = _since(begin)
                row["results"].append({"model": name, "mode": mode, "reason": reason, "objects": []})
        begin = time.perf_counter()
        true = self._true_solids(frame, truth)
        row["truth"] = bool(true)
        self._add_metrics(row, frame, true, found)
        milliseconds["metrics"] = _since(begin)
        begin = time.perf_counter()
        if self._is_extreme(row) and frame.observation is not None:
            write_picture(self._job.picture(number), draw_frame(frame, found, true))
        if outputs:
            outputs.results(frame, found, sum(milliseconds["reconstruct"].values()))
        milliseconds["writing"] = _since(begin)
        row["reports"], row["ms"] = dict(sorted(self._reports.items())), milliseconds
        row["sentences"] = dict(sorted(self._new_sentences.items()))
        return row

    def _reconstruct(self, frame: ReplayedFrame, name: str, mode: str) -> tuple[str, TrackedFrame]:
        """Why there is no result, else an empty text, and the objects with the ids of their tracks."""
        nothing = TrackedFrame([], (), (), ())
        observation = None
        if frame.observation is None:
            return frame.reason, nothing
        try:
            observation = self._mode_observation(frame, frame.observation, name, mode, self._report)
            found = self._models[name](observation)
        except InputError as error:  # an empty mask, say: the nodes count it and go on
            self._report(error.reason, str(error))
            if observation is not None:
                self._trackers[name, mode].update(frame.stamp_ns, [], observation.mask)
            return error.reason, nothing
        left_out = len(set(np.unique(observation.mask).tolist()) - {0}) - len(found)
        for _ in range(left_out):
            self._report("object_left_out", "objects of a mask have no result: too small, or nothing solid there")
        return "", self._trackers[name, mode].update(frame.stamp_ns, found, observation.mask)

    def _track_again(self, frame: ReplayedFrame, row: Row) -> None:
        """Brings the trackers to where they were behind a frame of an earlier run."""
        for result in row["results"]:
            name, mode = result["model"], result["mode"]
            if frame.observation is None:
                continue
            try:
                observation = self._mode_observation(frame, frame.observation, name, mode, lambda *_: None)
            except InputError:
                continue
            objects = sorted(map(reconstruction_of_row, result["objects"]), key=lambda one: one.id)
            self._trackers[name, mode].update(frame.stamp_ns, objects, observation.mask)

    def _mode_observation(
        self, frame: ReplayedFrame, whole: Observation, name: str, mode: str, report: Callable[[str, str], None]
    ) -> Observation:
        """What the node sees with this `input_mode`. InputError where it would see nothing."""
        if mode == "rgb":
            return replace(whole, event_image=None)
        min_events = self._models[name].info["min_events"]
        few = whole.event_image is not None and frame.event_count < min_events
        if few:
            sentence = f"{frame.event_count} events in a window, the model needs {min_events}"
            if mode == "events":
                raise InputError(f"{sentence}, and there is no image to go on with", reason="few_events")
            report("few_events", f"{sentence}: the frame goes on without them")
        if mode == "fused":
            return replace(whole, event_image=None) if few else whole
        if whole.event_image is None:
            raise InputError(
                "no event image for a frame, and mode events has nothing else", reason="missing_event_image"
            )
        return replace(whole, image=None)

    def _add_metrics(
        self,
        row: Row,
        frame: ReplayedFrame,
        true: Mapping[int, Solid],
        found: Mapping[Setup, TrackedFrame],
    ) -> None:
        true_masks = {}
        if frame.observation is not None:
            height, width = frame.observation.mask.shape
            drawn = {id_: silhouette(solid, frame.observation.K, width, height) for id_, solid in true.items()}
            true_masks = {id_: mask.astype(np.uint8) for id_, mask in drawn.items() if mask.any()}
        camera_pose = pose_of_row(row["stamp_ns"], row["camera_pose"])
        for result in row["results"]:
            tracked = found[result["model"], result["mode"]]
            for one, label in zip(tracked.reconstructions, tracked.labels, strict=True):
                values: dict[str, float] = {}
                if self._job.metrics and frame.observation is not None:
                    solid = Solid.from_reconstruction(one)
                    values = _self_consistency(frame.observation, solid, label)
                    before = self._previous.get((result["model"], result["mode"], one.id))
                    values |= agreement(solid, one.metric, frame.stamp_ns, camera_pose, before)
                    if label in true_masks:
                        mask, K = true_masks[label], frame.observation.K
                        values |= evaluate(solid, true[label], mask, K, metric=one.metric)
                result["objects"].append(object_row(one, label, values))

    def _true_solids(self, frame: ReplayedFrame, truth: Truth) -> dict[int, Solid]:
        if not self._job.metrics or frame.observation is None:
            return {}
        solids = {label: truth.solid(label, frame.stamp_ns) for label in truth.objects or {}}
        return {label: solid for label, solid in solids.items() if solid is not None}

    # What the next frames need of this one

    def _remember(self, row: Row) -> None:
        pose = pose_of_row(row["stamp_ns"], row["camera_pose"])
        for result in row["results"]:
            for one in result["objects"]:
                key = result["model"], result["mode"], one["id"]
                solid = Solid.from_reconstruction(reconstruction_of_row(one))
                self._previous[key] = Previous(row["stamp_ns"], solid, one["metric"], pose)
        oldest = row["stamp_ns"] - LONGEST_GAP_NS  # what is older is not compared with
        self._previous = {key: one for key, one in self._previous.items() if one.stamp_ns >= oldest}
        for (name, sign), heap in self._kept.items():
            if (value := frame_value(row, name)) is not None:
                heapq.heappush(heap, (sign * value, -row["frame"]))
                if len(heap) > KEPT_PICTURES:
                    heapq.heappop(heap)

    def _is_extreme(self, row: Row) -> bool:
        for (name, sign), heap in self._kept.items():
            value = frame_value(row, name)
            if value is not None and (len(heap) < KEPT_PICTURES or (sign * value, -row["frame"]) > heap[0]):
                return True
        return False

    def _remove_pictures(self) -> None:
        """Of frames that were among the best or worst once."""
        kept = {self._job.picture(-number) for heap in self._kept.values() for _, number in heap}
        for path in self._job.out.joinpath("pictures").glob(f"{self._job.name}_[0-9]*.jpg"):
            if path not in kept and len(path.stem) == len(self._job.name) + 7:
                path.unlink()


def frame_value(row: Row, name: str) -> float | None:
    """The mean of a metric over models, modes and objects; None where none has it."""
    values = [one["metrics"][name] for result in row["results"] for one in result["objects"] if name in one["metrics"]]
    return float(np.mean(values)) if values else None


def _self_consistency(observation: Observation, solid: Solid, label: int) -> dict[str, float]:
    height, width = observation.mask.shape
    drawn = silhouette(solid, observation.K, width, height)
    values = {"input_mask_iou": overlap(drawn, observation.mask == label)}
    contrast = None if observation.event_image is None else edge_contrast(observation.event_image, drawn)
    return values if contrast is None else values | {"edge_contrast": contrast}


def _timed(frames: Iterator[ReplayedFrame]) -> Iterator[tuple[ReplayedFrame, float]]:
    """Each frame and the milliseconds that it took to come."""
    begin = time.perf_counter()
    for frame in frames:
        yield frame, _since(begin)
        begin = time.perf_counter()


def _since(begin: float) -> float:
    return round((time.perf_counter() - begin) * 1e3, 3)


def _outputs(job: BagJob, models: Mapping[str, Reconstructor]) -> AbstractContextManager[McapOutputs | None]:
    """The MCAP of this recording, if one is wanted."""
    if not job.save_mcap:
        return nullcontext()
    names = {
        label: ".".join(str(model.info[key]) for key in ("name", "tag") if key in model.info)
        for label, model in models.items()
    }
    return McapOutputs(job.out / "mcap" / job.name, names, job.modes)
