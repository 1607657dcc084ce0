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
    """One message of reconstructed objects. ``latency_ms``: from the frame's stamp to its arrival, simulated time."""

    stamp_ns: int
    latency_ms: float
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
    cloud = np.empty(len(points), np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    cloud["xyz"], cloud["rgb"] = points, colors
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + cloud.tobytes())


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
    latencies = [result.latency_ms for result in run.results]
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
        "latency_ms": {"median": _rounded(np.median(latencies)), "p95": _rounded(np.percentile(latencies, 95))},
        "processing_ms": _rounded(np.median([result.processing_ms for result in run.results])),
        "events_per_frame": _rounded(np.median([result.event_count for result in run.results])),
        "model": run.model,
        "objects": objects,
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """summary.json, with the mark of a demo run."""
    path.write_text(json.dumps({**_MARK, **summary}, indent=2) + "\n")


def is_of_a_demo(path: Path) -> bool:
    """Whether a summary.json bears the mark of a demo run."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(content.get(name) == value for name, value in _MARK.items())


def table(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    latency = summary["latency_ms"]
    reasons = ", ".join(f"{count} {name}" for name, count in summary["dropped_by_reason"].items() if count)
    lines = [
        f"frames            {summary['frames']}, without result {summary['dropped']}"
        + (f" ({reasons})" if reasons else ""),
        f"reconstructions   {summary['reconstructions']}, {summary['reconstructions_per_second']:.1f} per second",
        f"latency           {latency['median']:.0f} ms median, {latency['p95']:.0f} ms p95, from the frame's stamp",
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
