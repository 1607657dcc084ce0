"""What is wrong with a recording or its truth, as it shows when all of it has been read."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from event_sam3d_ros.errors import RecordingError, RecordingWarning
from event_sam3d_ros.evaluation.bag_log import Row
from event_sam3d_ros.evaluation.bag_truth import Truth
from event_sam3d_ros.evaluation.replay import Seen, disagreeing_clocks


@dataclass
class Tally:
    """Counts over the frames of a recording. ``reports``, ``sentences``: what was skipped or unusual, by reason;
    ``truth_metric``: a metric that only objects with a truth have."""

    truth_metric: str
    usable: int = 0
    with_truth: int = 0
    compared: int = 0
    labels: set[int] = field(default_factory=set)
    reports: Counter[str] = field(default_factory=Counter)
    sentences: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """One frame."""
        objects = [one for result in row["results"] for one in result["objects"]]
        self.usable += bool(objects)
        self.with_truth += row["truth"]
        self.compared += sum(self.truth_metric in one["metrics"] for one in objects)
        self.labels |= {one["label"] for one in objects}
        self.reports.update(row["reports"])
        for reason, sentence in row["sentences"].items():
            self.sentences.setdefault(reason, sentence)

    def most_frequent(self) -> str:
        """What happened most often, in its first sentence."""
        known = [(count, reason) for reason, count in self.reports.items() if reason in self.sentences]
        return self.sentences[max(known)[1]] if known else "every mask is empty"


def check_recording(path: Path, modes: Collection[str], seen: Mapping[str, Seen], tally: Tally) -> None:
    """RecordingError where nothing came out, or not what was asked for; a warning where clocks disagree and the results
    are only poorer for it."""
    needs_events = bool(set(modes) - {"rgb"})
    kinds = ["image", "mask", "camera_info"] + ["events"] * needs_events
    missing = [kind for kind in kinds if not seen[kind].count]
    if missing:
        why = next((f": {s}" for r, s in tally.sentences.items() if r.startswith(("bad_", "unsupp"))), "")
        raise RecordingError(
            f"{path} has no {' and no '.join(missing)} that can be read{why}. Needed are frames, label masks with "
            "their stamps, a calibration, and for the modes events and fused events",
            reason="missing_topic",
        )
    apart = disagreeing_clocks(path, seen)
    for kind, sentence in apart.items():
        if kind == "mask" or (kind == "events" and needs_events):
            raise RecordingError(sentence, reason="clock_mismatch")
    if not tally.usable:
        counted = ", ".join(f"{name} {count}" for name, count in tally.reports.most_common()) or "nothing"
        raise RecordingError(
            f"{path}: nothing was reconstructed from {seen['image'].count} frames. Counted: {counted}. "
            f"The most frequent: {tally.most_frequent()}",
            reason="nothing_reconstructed",
        )
    for sentence in apart.values():
        warnings.warn(RecordingWarning(sentence), stacklevel=2)


def check_truth(path: Path, truth: Truth, image: Seen, tally: Tally, metrics: bool) -> None:
    """RecordingError where a truth was of no use."""
    if truth.camera:
        truth.check_overlap(image.first_ns, image.last_ns)
    if not metrics or not truth.objects or tally.compared:
        return
    truth.check_overlap(image.first_ns, image.last_ns)
    if not tally.with_truth:
        raise RecordingError(
            f"{truth.path}: no frame of {path} has a true pose. Poses have to lie at the frames' stamps, or around "
            "them at most 0.2 s apart",
            reason="no_overlap",
        )
    if tally.labels.isdisjoint(truth.objects):
        raise RecordingError(
            f"{truth.path}: nothing of {path} was compared with it. It knows the objects {_listed(truth.objects)}, the "
            f"masks hold {_listed(tally.labels)}: the ids of the truth have to be the labels of the masks",
            reason="no_match",
        )
    raise RecordingError(
        f"{truth.path}: nothing of {path} was compared with it. Objects were reconstructed with the labels "
        f"{_listed(tally.labels)}, but those of the truth ({_listed(truth.objects)}) have no pose in these frames, or "
        "lie outside the picture: look at the poses, which go from the mesh to the camera's optical frame",
        reason="no_match",
    )


def _listed(labels: Collection[int]) -> str:
    return ", ".join(map(str, sorted(labels))) or "nothing"
