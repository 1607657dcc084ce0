"""What came out of a run, and its files: point clouds, poses.csv, summary.json, the printed table."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MARK = {"made_by": "event-sam3d demo"}
_STATE = (*_MARK, "complete", "reason")
# Reasons of reconstruction_node that cost a frame its result; after the others it goes on, or there was no frame.
_COSTS_A_FRAME = (
    "dropped_latest_wins stale missing_mask empty_mask object_too_small nothing_solid size_mismatch no_camera_info "
    "not_calibrated bad_calibration bad_encoding bad_image out_of_memory inference_error"
).split()
POSE_COLUMNS = "stamp_ns id x y z qx qy qz qw sx sy sz score metric".split()


@dataclass(frozen=True)
class ObjectResult:
    """One ReconstructedObject. ``points``: (N, 3) float32 metres, camera optical frame; ``colors``: (N, 3) uint8 RGB;
    ``quaternion``: x y z w, object -> camera; ``size``: (3,) metres along the object's axes."""

    id: int
    score: float
    metric: bool
    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]
    size: NDArray[np.float64]
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]


@dataclass(frozen=True)
class FrameResult:
    """One message of reconstructed objects. ``latency_ms``: from the frame's stamp to its arrival, simulated time; None
    where /clock had not told the time yet."""

    stamp_ns: int
    latency_ms: float | None
    processing_ms: float
    event_count: int
    objects: tuple[ObjectResult, ...]


@dataclass
class RunResult:
    """A whole run. ``frames``: RGB frames played; ``dropped``: what reconstruction_node counted, by reason."""

    frames: int
    duration_s: float
    model: str = ""
    results: list[FrameResult] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def reconstruction_count(self) -> int:
        """Objects over all frames."""
        return sum(len(result.objects) for result in self.results)


def write_point_clouds(folder: Path, run: RunResult, frame_numbers: Mapping[int, int]) -> None:
    """``<id>_<frame>.ply`` for every object; ``frame_numbers``: stamp -> number of the frame in the recording."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in run.results:
        for item in result.objects:
            write_ply(folder / f"{item.id}_{frame_numbers[result.stamp_ns]:06d}.ply", item.points, item.colors)


def write_ply(path: Path, points: NDArray[np.floating], colors: NDArray[np.uint8]) -> None:
    """Binary PLY of points (N, 3) in metres with colours (N, 3)."""
    path.write_bytes(ply_bytes(points, colors))


def ply_bytes(points: NDArray[np.floating], colors: NDArray[np.uint8]) -> bytes:
    """The content of such a file."""
    cloud = np.empty(len(points), np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    cloud["xyz"], cloud["rgb"] = points, colors
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    return "\n".join([*header, "end_header", ""]).encode() + cloud.tobytes()


def write_poses(path: Path, run: RunResult) -> None:
    """One line per object and frame, metres and x y z w quaternions in the camera's optical frame."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(POSE_COLUMNS)
        for result in run.results:
            for item in result.objects:
                numbers = np.concatenate([item.position, item.quaternion, item.size, [item.score]])
                row = [f"{number:.6g}" for number in numbers]
                writer.writerow([result.stamp_ns, item.id, *row, int(item.metric)])


def summarise(run: RunResult, scores: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """The content of summary.json. ``scores``: object id -> mean metrics against the truth; empty without truth."""
    latencies = [result.latency_ms for result in run.results if result.latency_ms is not None]
    by_id: dict[int, list[ObjectResult]] = defaultdict(list)
    for result in run.results:
        for item in result.objects:
            by_id[item.id].append(item)
    objects = [
        {
            "id": id_,
            "reconstructions": len(items),
            "score": _rounded(np.mean([item.score for item in items])),
            "metric": all(item.metric for item in items),
            "position": [_rounded(value) for value in np.median([item.position for item in items], axis=0)],
            "size": [_rounded(value) for value in np.median([item.size for item in items], axis=0)],
            **{name: _rounded(value) for name, value in scores.get(id_, {}).items()},
        }
        for id_, items in sorted(by_id.items())
    ]
    return {
        "frames": run.frames,
        "reconstructions": run.reconstruction_count,
        "dropped": max(0, run.frames - len(run.results)),
        "dropped_by_reason": dict(sorted(run.dropped.items())),
        "reconstructions_per_second": _rounded(run.reconstruction_count / run.duration_s),
        "latency_ms": {
            "median": _rounded(np.median(latencies)) if latencies else None,
            "p95": _rounded(np.percentile(latencies, 95)) if latencies else None,
            "unknown": len(run.results) - len(latencies),
        },
        "processing_ms": _rounded(np.median([result.processing_ms for result in run.results])),
        "events_per_frame": _rounded(np.median([result.event_count for result in run.results])),
        "model": run.model,
        "objects": objects,
    }


def write_summary(path: Path, summary: Mapping[str, Any], incomplete: str = "") -> None:
    """summary.json, with the mark of a demo run; ``incomplete``: why it is not all that a run gives."""
    state = {"complete": not incomplete} | ({"reason": incomplete} if incomplete else {})
    path.write_text(json.dumps({**_MARK, **state, **summary}, indent=2) + "\n")


def mark_incomplete(path: Path, reason: str) -> None:
    """Say in summary.json why the run ended before its end; what was written stays."""
    content = json.loads(path.read_text())
    write_summary(path, {name: value for name, value in content.items() if name not in _STATE}, reason)


def is_of_a_demo(path: Path) -> bool:
    """Whether a summary.json bears the mark of a demo run."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(content.get(name) == value for name, value in _MARK.items())


def table(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        *_frame_lines(summary),
        f"reconstructions   {summary['reconstructions']}, {summary['reconstructions_per_second']:.1f} per second",
        _latency_line(summary["latency_ms"]),
        f"model             {summary['model']}, {summary['processing_ms']:.0f} ms per frame",
        f"events per frame  {summary['events_per_frame']:.0f}",
        "",
    ]
    rows = [_object_row(item) for item in summary["objects"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    grid = [columns, *([row.get(name, "-") for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in grid]
    if not all(item["metric"] for item in summary["objects"]):
        lines.append("size and position without depth rest on a prior size: only their ratio means anything")
    return "\n".join(lines)


def _frame_lines(summary: Mapping[str, Any]) -> list[str]:
    """How many frames have no result and why: numbers that add up, then what else was counted."""
    counted = {name: count for name, count in summary["dropped_by_reason"].items() if count}
    costs = {name: counted[name] for name in _COSTS_A_FRAME if name in counted}
    unexplained = summary["dropped"] - sum(costs.values())
    if unexplained < 0:  # frames that the recording does not hold as such: no claim
        costs, unexplained = {}, 0
    others = {name: count for name, count in counted.items() if name not in costs}
    reasons = [f"{count} {name}" for name, count in costs.items()]
    if unexplained and costs:
        reasons.append(f"{unexplained} never complete")
    line = f"frames            {summary['frames']}, without result {summary['dropped']}"
    lines = [line + (f" ({', '.join(reasons)})" if reasons else "")]
    if others:
        lines.append("also counted      " + ", ".join(f"{count} {name}" for name, count in others.items()))
    return lines


def _latency_line(latency: Mapping[str, Any]) -> str:
    unknown = f"{latency['unknown']} unknown: results came before /clock" if latency["unknown"] else ""
    if latency["median"] is None:
        return f"latency           {unknown}"
    known = f"{latency['median']:.0f} ms median, {latency['p95']:.0f} ms p95, from the frame's stamp"
    return f"latency           {known}" + (f" ({unknown})" if unknown else "")


def _object_row(item: Mapping[str, Any]) -> dict[str, str]:
    row = {
        "object": str(item["id"]),
        "results": str(item["reconstructions"]),
        "score": f"{item['score']:.2f}",
        "position m": " ".join(f"{value:.2f}" for value in item["position"]),
        "size m": " ".join(f"{value:.2f}" for value in item["size"]),
    }
    known = {*row, "id", "reconstructions", "position", "size", "metric"}
    row.update({name: f"{value:.3f}" for name, value in item.items() if name not in known})
    return row


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def frame_numbers_of(stamps: Sequence[int]) -> dict[int, int]:
    """Stamp -> number of the frame, counted from 0 by time."""
    return {stamp: number for number, stamp in enumerate(sorted(set(stamps)))}
