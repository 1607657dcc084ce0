"""From the frames' rows to results.csv, summary.json and timings.json, in one pass and with bounded memory."""

from __future__ import annotations

import csv
import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from event_sam3d_ros.evaluation.bag_log import Row, read_rows, whole_file
from event_sam3d_ros.evaluation.bag_worker import KEPT_PICTURES, RANKING, BagJob, BagOutcome, Setup, frame_value

TRUTH_METRICS = (
    *("iou", "viou_surface", "chamfer", "f1@0.01", "f1@0.05", "iou_camera", "mask_iou", "up_error_deg"),
    *("add_s", "add_s@0.1", "iou3d_box"),
)
OWN_METRICS = ("input_mask_iou", "shape_agreement", "edge_contrast", "world_step_m", "world_step_deg")
METRICS = TRUTH_METRICS + OWN_METRICS
COLUMNS = (
    *("bag", "frame", "stamp_ns", "model", "mode", "id", "label", "reason", "score", "metric"),
    *("x", "y", "z", "qx", "qy", "qz", "qw", "sx", "sy", "sz", "event_count"),
    *METRICS,
)
_SERIES_POINTS = 1024
LISTED_FRAMES = 50  # without any result, of each recording


@dataclass
class Running:
    """Mean and spread of numbers that pass by (Welford 1962)."""

    n: int = 0
    mean: float = 0.0
    _squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """One more number."""
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self._squares += before * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    def as_dict(self) -> dict[str, float]:
        """Six digits."""
        std = math.sqrt(self._squares / (self.n - 1)) if self.n > 1 else 0.0
        values = {"mean": self.mean, "std": std, "min": self.low, "max": self.high}
        return {name: float(f"{value:.6g}") for name, value in values.items()} | {"n": self.n}


class Series:
    """Numbers over time, of which at most 1024, evenly spread, are kept."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.total = 0.0
        self._stride = 1
        self._count = 0

    def add(self, time: float, value: float) -> None:
        """One more number."""
        if self._count % self._stride == 0:
            self.points.append((time, value))
            if len(self.points) > _SERIES_POINTS:
                self.points, self._stride = self.points[::2], self._stride * 2
        self._count += 1
        self.total += value

    def as_dict(self) -> dict[str, float]:
        """Of milliseconds: their number, mean, sum in seconds, and percentiles of those that are kept."""
        values = [value for _, value in self.points]
        percentiles = {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95)}
        mean = round(self.total / self._count, 3)
        return {"n": self._count, "mean": mean, **percentiles, "total_s": round(self.total / 1e3, 3)}


@dataclass
class SetupResults:
    """One model in one mode on one recording, or on all."""

    frames: int = 0
    frames_with_result: int = 0
    objects: int = 0
    without_result: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Running] = field(default_factory=lambda: defaultdict(Running))

    def as_dict(self, setup: Setup) -> dict[str, Any]:
        """For summary.json."""
        return {
            "model": setup[0],
            "mode": setup[1],
            "frames": self.frames,
            "frames_with_result": self.frames_with_result,
            "objects": self.objects,
            "without_result": dict(sorted(self.without_result.items())),
            "metrics": {name: self.metrics[name].as_dict() for name in ("score", *METRICS) if name in self.metrics},
        }


@dataclass
class BagResults:
    """What one recording gave. ``series``: (what, model and mode) -> numbers over the seconds since its first frame;
    ``without``: number, seconds and reasons of the first frames that have no result at all."""

    job: BagJob
    outcome: BagOutcome
    setups: dict[Setup, SetupResults] = field(default_factory=dict)
    reports: Counter[str] = field(default_factory=Counter)
    sentences: dict[str, str] = field(default_factory=dict)
    losses: str = ""
    warnings: list[str] = field(default_factory=list)
    is_complete: bool = False
    first_ns: int | None = None
    duration_s: float = 0.0
    without: list[tuple[int, float, str]] = field(default_factory=list)
    without_count: int = 0
    series: dict[tuple[str, str], Series] = field(default_factory=lambda: defaultdict(Series))


class Results:
    """All of a run. ``timings``: stage -> milliseconds of each frame."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        self.setups = list(setups)
        self.bags: list[BagResults] = []
        self.total = {setup: SetupResults() for setup in self.setups}
        self.differences: dict[Setup, dict[str, Running]] = {one: defaultdict(Running) for one in self.setups[1:]}
        self.timings: dict[str, Series] = defaultdict(Series)
        self._ranked: dict[tuple[str, int], list[tuple[float, int, str, int, float]]] = {
            (name, sign): [] for name in RANKING for sign in (1, -1)
        }

    @property
    def ranked_by(self) -> str:
        """The metric by which frames are ranked: one for the whole run; empty where no frame has any."""
        return next((name for name in RANKING if self._ranked[name, 1]), "")

    def best(self, sign: int = 1) -> list[dict[str, Any]]:
        """The frames with the highest (``sign`` -1: lowest) values, the extreme one first; only those that have one."""
        return [
            {"bag": bag, "frame": frame, "seconds": round(seconds, 6), "value": round(sign * value, 6)}
            for value, _, bag, frame, seconds in sorted(self._ranked.get((self.ranked_by, sign), ()), reverse=True)
        ]

    def read(
        self, outcomes: Mapping[str, BagOutcome], jobs: Sequence[BagJob], write: Callable[[list[Any]], Any]
    ) -> None:
        """Takes in the rows of all recordings, by name; ``write`` gets the rows of results.csv."""
        for job in sorted(jobs, key=lambda one: one.name):
            bag = BagResults(job, outcomes[job.name], {setup: SetupResults() for setup in self.setups})
            bag.warnings = list(bag.outcome.warnings)
            self.bags.append(bag)
            for row in read_rows(job.log):
                if "end" in row:
                    bag.is_complete, end = True, row["end"]
                    bag.reports.update(end["reports"])
                    bag.sentences = {**end["sentences"], **bag.sentences}
                    bag.losses, bag.warnings = end["losses"], end["warnings"]
                    continue
                self._take(bag, row)
                for line in _lines(job.name, row):
                    write(line)

    def _take(self, bag: BagResults, row: Row) -> None:
        bag.first_ns = row["stamp_ns"] if bag.first_ns is None else bag.first_ns
        seconds = (row["stamp_ns"] - bag.first_ns) / 1e9
        bag.duration_s = max(bag.duration_s, seconds)
        bag.reports.update(row["reports"])
        bag.sentences = {**row["sentences"], **bag.sentences}
        bag.series["event_count", ""].add(seconds, row["event_count"])
        for stage, value in _stages(row["ms"]).items():
            self.timings[stage].add(seconds, value)
        values: dict[Setup, dict[int, dict[str, float]]] = {}
        for result in row["results"]:
            setup = result["model"], result["mode"]
            values[setup] = {one["id"]: {"score": one["score"], **one["metrics"]} for one in result["objects"]}
            for results in (bag.setups[setup], self.total[setup]):
                _count(results, result, values[setup])
            for name in ("score", *METRICS):
                found = [one[name] for one in values[setup].values() if name in one]
                if found:
                    bag.series[name, " ".join(setup)].add(seconds, float(np.mean(found)))
        self._compare(values)
        self._rank(bag.job, row, seconds)
        if not any(values.values()):
            bag.without_count += 1
            if bag.without_count <= LISTED_FRAMES:
                reasons = dict.fromkeys(result["reason"] or "no_object" for result in row["results"])
                bag.without.append((row["frame"], seconds, ", ".join(reasons)))

    def _compare(self, values: Mapping[Setup, Mapping[int, Mapping[str, float]]]) -> None:
        """Differences to the first model and mode, over the objects that both have."""
        first = values[self.setups[0]]
        for setup, differences in self.differences.items():
            for id_ in values[setup].keys() & first.keys():
                for name in values[setup][id_].keys() & first[id_].keys():
                    differences[name].add(values[setup][id_][name] - first[id_][name])

    def _rank(self, job: BagJob, row: Row, seconds: float) -> None:
        for (name, sign), heap in self._ranked.items():
            value = frame_value(row, name)
            if value is None:
                continue
            heapq.heappush(heap, (sign * value, -row["frame"], job.name, row["frame"], seconds))
            if len(heap) > KEPT_PICTURES:
                heapq.heappop(heap)

    def timing_summary(self) -> dict[str, Any]:
        """For timings.json. ``share_of_inputs``: reading, decoding and windows, of all but metrics and pictures."""
        stages = {stage: series.as_dict() for stage, series in sorted(self.timings.items())}
        inputs = self.timings["inputs"].total if "inputs" in self.timings else 0.0
        models = sum(series.total for stage, series in self.timings.items() if stage.startswith("reconstruct"))
        share = inputs / (inputs + models) if models else 0.0
        return {"unit": "ms per frame", "stages": stages, "share_of_inputs": round(share, 4)}


def _count(results: SetupResults, result: Row, values: Mapping[int, Mapping[str, float]]) -> None:
    results.frames += 1
    results.frames_with_result += bool(values)
    results.objects += len(values)
    if not values:
        results.without_result[result["reason"] or "no_object"] += 1
    for one in values.values():
        for name, value in one.items():
            results.metrics[name].add(value)


def _stages(milliseconds: Row) -> dict[str, float]:
    stages = {name: value for name, value in milliseconds.items() if name != "reconstruct"}
    return stages | {f"reconstruct {setup}": value for setup, value in milliseconds["reconstruct"].items()}


def _lines(bag: str, row: Row) -> list[list[Any]]:
    """The lines of one frame for results.csv, by model, mode and id; nine digits."""
    lines = []
    for result in sorted(row["results"], key=lambda one: (one["model"], one["mode"])):
        head = [bag, row["frame"], row["stamp_ns"], result["model"], result["mode"]]
        if not result["objects"]:
            blank = [""] * (len(COLUMNS) - len(head))
            blank[2], blank[15] = result["reason"] or "no_object", row["event_count"]
            lines.append(head + blank)
        for one in sorted(result["objects"], key=lambda one: one["id"]):
            numbers = [*one["position"], *one["quaternion"], *one["size"]]
            line = [
                *head,
                one["id"],
                one["label"],
                "",
                _digits(one["score"]),
                int(one["metric"]),
                *map(_digits, numbers),
            ]
            metrics = [_digits(one["metrics"][name]) if name in one["metrics"] else "" for name in METRICS]
            lines.append([*line, row["event_count"], *metrics])
    return lines


def _digits(value: float) -> str:
    return f"{value:.9g}"


def write_csv(path: Path, fill: Callable[[Callable[[list[Any]], Any]], None]) -> None:
    """results.csv; ``fill`` gets the function that writes a line. The file appears when it is whole."""
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        fill(writer.writerow)


def write_text(path: Path, text: str) -> None:
    """A file that appears when it is whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may be no text


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As above."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def summary_of(
    results: Results,
    configuration: Mapping[str, Any],
    topics: Mapping[str, Mapping[str, str]],
    models: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of summary.json. ``topics``: by recording and kind, in words."""
    return {
        "made_by": "event-sam3d evaluate",
        "complete": all(bag.is_complete for bag in results.bags),
        "total": [results.total[setup].as_dict(setup) for setup in results.setups],
        "differences": [
            {
                "model": setup[0],
                "mode": setup[1],
                "minus": " ".join(results.setups[0]),
                "metrics": {name: found[name].as_dict() for name in ("score", *METRICS) if name in found},
            }
            for setup, found in results.differences.items()
        ],
        "ranked_by": results.ranked_by,
        "best": results.best(),
        "worst": results.best(-1),
        "bags": [_bag_summary(bag, topics.get(bag.job.name, {})) for bag in results.bags],
        "models": dict(models),
        "configuration": dict(configuration),
    }


def _bag_summary(bag: BagResults, topics: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": bag.job.name,
        "path": str(bag.job.path),
        "complete": bag.is_complete,
        "reason": bag.outcome.reason,
        "message": bag.outcome.message,
        "topics": dict(topics),
        "warnings": bag.warnings,
        "losses": bag.losses,
        "reports": dict(sorted(bag.reports.items())),
        "setups": [results.as_dict(setup) for setup, results in bag.setups.items()],
    }
