"""report.html of an evaluation: one file that needs nothing else, written for somebody who knows nothing of the run."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from event_sam3d_ros import __version__
from event_sam3d_ros.evaluation.bag_results import (
    LISTED_FRAMES,
    METRICS,
    OWN_METRICS,
    TRUTH_METRICS,
    BagResults,
    Results,
)
from event_sam3d_ros.evaluation.report_plots import bar_plot, line_plot
from event_sam3d_ros.evaluation.report_text import MAIN, MEANING, PICTURES, REFERENCE

_MODES = {
    "rgb": "the frame and the mask",
    "events": "the event image and the mask",
    "fused": "frame, event image and mask",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#202124;max-width:1000px;margin:24px auto;padding:0 16px}
h1{font-size:26px}h2{font-size:20px;margin-top:36px;border-bottom:1px solid #dadce0}h3{font-size:16px}
table{border-collapse:collapse;margin:10px 0;font-variant-numeric:tabular-nums}
td,th{padding:3px 10px;border-bottom:1px solid #e8eaed;text-align:right;white-space:nowrap}
th{background:#f1f3f4;white-space:normal}td:first-child,th:first-child,td.text,th.text{text-align:left}td.text{white-space:normal;min-width:130px}
.wide{overflow-x:auto}svg{width:100%;max-width:800px;font-size:11px;fill:#5f6368}.grid{stroke:#e8eaed}
.legend span{margin-right:18px}
.legend i{display:inline-block;width:12px;height:12px;margin-right:5px;vertical-align:-1px}
img{max-width:100%;border:1px solid #dadce0}figure{margin:12px 0}figcaption,.pale{color:#5f6368}
.bad{background:#fce8e6;padding:8px 12px}.good{background:#e6f4ea;padding:8px 12px}
tr.main{background:#fef7e0;font-weight:600}
pre{background:#f8f9fa;padding:10px;overflow-x:auto;font-size:12px}
"""
_DIGITS = 3


def report_html(
    results: Results, summary: Mapping[str, Any], timings: Mapping[str, Any], files: Mapping[str, Path], out: Path
) -> str:
    """The page. ``files``: the models' files, beside which their cards lie; ``out``: where the pictures are."""
    frames = sum(bag["setups"][0]["frames"] for bag in summary["bags"])
    title = f"{_counted(frames, 'frame')} of {_counted(len(results.bags), 'recording')}"
    sections = [
        f"<h1>Evaluation: {title}</h1>",
        _introduction(results, summary),
        _states(summary),
        "<h2>Results</h2>",
        MAIN.get(summary["ranked_by"], ""),
        _total(summary),
        "<h2>What the numbers mean</h2>",
        _meanings(results, summary["ranked_by"]),
        "<h2>Best and worst frames</h2>",
        _pictures(summary, out),
        "<h2>Where the time goes</h2>",
        _timing(timings),
        "<h2>Recordings</h2>",
        *(_bag(bag, one, summary) for bag, one in zip(results.bags, summary["bags"], strict=True)),
        "<h2>Models</h2>",
        *(_model(label, info, files[label]) for label, info in summary["models"].items()),
        "<h2>Configuration and versions</h2>",
        _json(summary["configuration"]),
        _table(["program", "version"], _versions()),
    ]
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"


def _introduction(results: Results, summary: Mapping[str, Any]) -> str:
    modes = list(dict.fromkeys(mode for _, mode in results.setups))
    told = "; ".join(f"<b>{mode}</b>: {_MODES[mode]}" for mode in modes)
    with_truth = any(name in one["metrics"] for one in summary["total"] for name in TRUTH_METRICS)
    judged = (
        "True shapes and poses were given for (some of) the frames: results are compared with them, and with "
        "themselves over time."
        if with_truth
        else "No true shapes were given, so results are compared with their own inputs and with each other over time. "
        "That shows what is wrong, not that all is right."
    )
    return (
        "<p>A model was given masked objects of recorded camera frames, one frame after the other, and answered with "
        "a 3D shape and a pose for each. The recordings were read through the same code as on the robot, and no frame "
        f"was dropped for want of time. What the model saw, by mode: {told}. {judged}</p>"
    )


def _states(summary: Mapping[str, Any]) -> str:
    failed = [bag for bag in summary["bags"] if bag["reason"]]
    if not failed and summary["complete"]:
        return '<p class="good">All recordings were evaluated to their end.</p>'
    lines = "".join(f"<li><b>{escape(bag['name'])}</b>: {escape(bag['message'])}</li>" for bag in failed)
    sentence = "Not all recordings could be evaluated; the figures are of what was done."
    return f'<div class="bad">{sentence}<ul>{lines}</ul></div>'


def _total(summary: Mapping[str, Any]) -> str:
    parts = [_setup_table(summary["total"], summary["ranked_by"])]
    for difference in summary["differences"]:
        if difference["metrics"]:
            rows = [
                [name, f"{values['mean']:+.{_DIGITS}f}", f"{values['std']:.{_DIGITS}f}", str(values["n"])]
                for name, values in difference["metrics"].items()
            ]
            name = f"{difference['model']} {difference['mode']} minus {difference['minus']}"
            parts.append(f"<details><summary>{escape(name)}, object by object</summary>")
            parts.append(_table(["metric", "mean difference", "std", "objects"], rows) + "</details>")
    return "".join(parts)


def _setup_table(setups: Sequence[Mapping[str, Any]], main: str) -> str:
    """One column for each model and mode; the row of the ``main`` metric is marked."""
    names = [name for name in ("score", *METRICS) if any(name in one["metrics"] for one in setups)]
    rows = [
        ["frames", *(str(one["frames"]) for one in setups)],
        ["frames with a result", *(str(one["frames_with_result"]) for one in setups)],
        ["objects", *(str(one["objects"]) for one in setups)],
    ]
    for name in names:
        rows.append([name, *(_mean(one["metrics"].get(name)) for one in setups)])
    reasons = sorted({reason for one in setups for reason in one["without_result"]})
    for reason in reasons:
        rows.append([f"no result: {reason}", *(str(one["without_result"].get(reason, 0)) for one in setups)])
    head = ["mean ± standard deviation", *(f"{one['model']} {one['mode']}" for one in setups)]
    return f'<div class="wide">{_table(head, rows, main=main)}</div>'


def _mean(values: Mapping[str, float] | None) -> str:
    return "-" if not values else f"{values['mean']:.{_DIGITS}f} ± {values['std']:.{_DIGITS}f}"


def _meanings(results: Results, main: str) -> str:
    used = [name for name in MEANING if any(name in one.metrics for one in results.total.values())]
    rows = [[name, *MEANING[name], *REFERENCE.get(name, ("-", "-", "-"))] for name in used]
    head = ["metric", "meaning", "range or unit", "better", "mean shape", "inflated outline", "nano"]
    return (
        '<div class="wide">' + _table(head, rows, text_columns=(1,), main=main) + "</div>"
        "<p class=pale>The last three columns say what is good. They were measured on 200 procedural objects that no "
        "training saw: what can be had without any model, from the mean shape or by inflating the true silhouette, and "
        "the model nano with a sharp frame and the true mask (add_s, iou3d_box: with events and depth). The objects "
        "of a recording may be harder or easier than those.</p>"
    )


def _pictures(summary: Mapping[str, Any], out: Path) -> str:
    if not summary["ranked_by"]:
        return "<p>Without metrics frames are not ranked.</p>"
    parts = [f"<p>Ranked by <code>{summary['ranked_by']}</code>, the mean over models and modes. {PICTURES}</p>"]
    for kind in ("best", "worst"):
        parts.append(f"<h3>{kind.capitalize()}</h3>")
        for one in summary[kind]:
            path = out / "pictures" / f"{one['bag']}_{one['frame']:06d}.jpg"
            if path.is_file():
                data = base64.b64encode(path.read_bytes()).decode()
                caption = (
                    f"{one['bag']}, {one['seconds']:.3f} s after its first frame (frame {one['frame']}): "
                    f"{summary['ranked_by']} {one['value']:.{_DIGITS}f}"
                )
                image = f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
                parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    return "".join(parts)


def _timing(timings: Mapping[str, Any]) -> str:
    stages = timings["stages"]
    if not stages:
        return "<p>No frame was evaluated.</p>"
    names = {"inputs": "reading, decoding, windows, pairing", "metrics": "metrics", "writing": "pictures and MCAP"}
    parts = {names.get(stage, stage): values["mean"] for stage, values in stages.items()}
    rows = [
        [names.get(stage, stage), *(f"{values[one]:.1f}" for one in ("mean", "p50", "p95")), f"{values['total_s']:.1f}"]
        for stage, values in stages.items()
    ]
    latest = timings["latest_run"]
    return (
        f"<p>Reading, decoding and windows take <b>{timings['share_of_inputs']:.1%}</b> of the time without metrics "
        f"and pictures. The latest run took {latest['wall_s']:.1f} s with {latest['workers']} worker(s) on "
        f"{latest['cpus']} CPU cores, one thread each.</p>"
        + bar_plot(parts, "ms")
        + _table(["stage", "mean, ms per frame", "median", "95 %", "sum, s"], rows)
    )


def _bag(bag: BagResults, summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    parts = [f"<h3>{escape(bag.job.name)}</h3><p class='pale'>{escape(str(bag.job.path))}</p>"]
    parts += [f'<p class="bad">{escape(sentence)}</p>' for sentence in (bag.outcome.message, *bag.warnings)
              if sentence]  # fmt: skip
    parts.append(_setup_table(summary["setups"], run["ranked_by"]))
    if summary["topics"]:
        truth = run["configuration"]["ground_truth"][bag.job.name]
        named = f"{truth['path']} ({truth['kind']})" if truth["path"] else truth["kind"]
        rows = [*map(list, summary["topics"].items()), ["ground truth", named]]
        parts.append("<h4>What was read</h4>" + _table(["kind", "from"], rows, text_columns=(1,)))
    parts.append(f"<p>Left out because it could not be read: {escape(bag.losses) or 'nothing'}.</p>")
    parts.append(_without_result(bag))
    for metric in ("iou_camera", *OWN_METRICS, "score"):
        series = {setup: one.points for (name, setup), one in bag.series.items() if name == metric}
        unit = MEANING[metric][1]
        bounds = {"0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0)}.get(unit)
        if plot := line_plot(series, f"{metric}, {unit}", (0.0, bag.duration_s), bounds):
            parts.append(f"<h4>{metric} over time</h4>{plot}")
    events = bag.series.get(("event_count", ""))
    if events is not None:
        plot = line_plot({"events": events.points}, "events in the frame's window", (0.0, bag.duration_s))
        parts.append(f"<h4>events in the window over time</h4>{plot}")
    if bag.reports:
        rows = [[name, str(count), bag.sentences.get(name, "")] for name, count in sorted(bag.reports.items())]
        parts.append("<h4>What was skipped or unusual</h4>")
        parts.append(_table(["reason", "times", "the first"], rows, text_columns=(2,)))
    return "".join(parts)


def _without_result(bag: BagResults) -> str:
    """The frames of which no model and mode made anything."""
    if not bag.without_count:
        return ""
    rows = [[str(frame), f"{seconds:.3f}", reasons] for frame, seconds, reasons in bag.without]
    more = f"<p>The first {LISTED_FRAMES} are listed.</p>" if bag.without_count > len(rows) else ""
    table = _table(["frame", "seconds", "reason"], rows, text_columns=(2,))
    head = f"{_counted(bag.without_count, 'frame')} without any result"
    return f"<details><summary>{head}</summary>{table}{more}</details>"


def _model(label: str, info: Mapping[str, Any], file: Path) -> str:
    card = file.parent / "MODEL_CARD.md"
    parts = [f"<h3>{escape(label)}</h3>", _json(info)]
    if card.is_file():
        text = escape(card.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<details><summary>Model card</summary><pre>{text}</pre></details>")
    return "".join(parts)


def _versions() -> list[list[str]]:
    rows = [["event_sam3d_ros", __version__], ["Python", platform.python_version()], ["system", platform.platform()]]
    for name in ("torch", "numpy", "scipy", "numba", "opencv-python-headless", "rosbags"):
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:  # ROS may bring OpenCV without its metadata
            rows.append([name, "unknown"])
    return rows


def _json(content: Any) -> str:
    return f"<pre>{escape(json.dumps(content, indent=2, default=str))}</pre>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (), main: str = "") -> str:
    """``main``: the first cell of a row to mark."""
    text = [" class=text" * (place in text_columns) for place in range(len(head))]
    header = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(text, head, strict=True))
    body = "".join(
        f"<tr{' class=main' * (row[0] == main)}>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(text, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{header}</tr>{body}</table>"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
