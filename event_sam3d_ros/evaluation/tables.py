"""From one record per case to means, intervals and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError

BOOTSTRAP_ROUNDS = 2000
ALL_METRICS = (
    *("iou", "iou_camera", "viou_surface", "chamfer", "f1@0.01", "f1@0.05", "emd", "icp_rot"),
    *("mask_iou", "up_error_deg", "add_s", "add_s@0.1", "iou3d_box"),
)
SMALLER_IS_BETTER = ("chamfer", "emd", "icp_rot", "up_error_deg", "add_s")

Record = Mapping[str, Any]
"""A case: {"tier", "seed", "object", "metrics": {mode: {metric: value}}, "failures": {mode: reason}}."""


def summarise(records: Sequence[Record], model: str) -> dict[str, Any]:
    """The results file: ``{"tiers": {tier: {mode: {metric: {"mean", "std", "n"}}}}, "recovered": ..., "failures": ...,
    "model", "seeds", "objects"}``. ``mean`` over cases; ``std`` over seeds, of the seeds' means; ``n`` cases."""
    if not records:
        raise InputError("no cases to summarise", reason="no_input")
    tiers = list(dict.fromkeys(record["tier"] for record in records))
    by_tier = {tier: [record for record in records if record["tier"] == tier] for tier in tiers}
    return {
        "tiers": {tier: _modes(cases) for tier, cases in by_tier.items()},
        "recovered": {
            tier: {metric: recovered_share(cases, metric) for metric in ALL_METRICS if _compares(cases, metric)}
            for tier, cases in by_tier.items()
        },
        "failures": {tier: _failures(cases) for tier, cases in by_tier.items()},
        "model": model,
        "seeds": sorted({record["seed"] for record in records}),
        "objects": len({record["object"] for record in records}),
    }


def _modes(records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    modes = list(dict.fromkeys(mode for record in records for mode in record["metrics"]))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for mode in modes:
        cases = [record for record in records if mode in record["metrics"]]
        metrics = dict.fromkeys(metric for record in cases for metric in record["metrics"][mode])
        result[mode] = {
            metric: mean_and_std(
                [(r["seed"], r["metrics"][mode][metric]) for r in cases if metric in r["metrics"][mode]]
            )
            for metric in metrics
        }
    return result


def _compares(records: Sequence[Record], metric: str) -> bool:
    """Whether sharp, blurry and fused all have this metric somewhere."""
    return all(any(metric in r["metrics"].get(mode, {}) for r in records) for mode in ("sharp", "blurry", "fused"))


def _failures(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        for mode, reason in record["failures"].items():
            counts.setdefault(mode, {}).setdefault(reason, 0)
            counts[mode][reason] += 1
    return counts


def mean_and_std(values: Sequence[tuple[int, float]]) -> dict[str, float]:
    """``values``: (seed, value). Mean over all, sample standard deviation of the seeds' means (0 for one seed), count.

    InputError if there are none."""
    if not values:
        raise InputError("no values: a mean needs at least one case", reason="no_input")
    seeds = sorted({seed for seed, _ in values})
    means = [np.mean([value for s, value in values if s == seed]) for seed in seeds]
    return {
        "mean": float(np.mean([value for _, value in values])),
        "std": float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        "n": len(values),
    }


def recovered_share(records: Sequence[Record], metric: str) -> dict[str, float | None]:
    """How much of what blur cost comes back: (fused - blurry) / (sharp - blurry) over the cases that have all
    three, and ``gain`` = fused - blurry. 95 % intervals by a percentile bootstrap over objects (seeds stay together).
    ``share`` is None where blur costs nothing, its interval where blur costs nothing in some of the rounds."""
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0
    sums: dict[Any, NDArray[np.floating]] = {}  # by the object: a number or a name
    for record in records:
        modes = [record["metrics"].get(mode, {}).get(metric) for mode in ("fused", "blurry", "sharp")]
        if None not in modes:
            fused, blurry, sharp = modes
            row = np.array([fused - blurry, sharp - blurry, 1.0])
            sums[record["object"]] = sums.get(record["object"], np.zeros(3)) + row
    if not sums:
        return dict.fromkeys(("share", "share_low", "share_high", "gain", "gain_low", "gain_high"), None) | {"n": 0}
    table = np.array([sums[key] for key in sorted(sums)])
    rng = np.random.default_rng(0)
    rounds = table[rng.integers(len(table), size=(BOOTSTRAP_ROUNDS, len(table)))].sum(1)
    gain, cost, count = table.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(sign * rounds[:, 1] > 0, rounds[:, 0] / rounds[:, 1], np.nan)
    low, high = np.percentile(rounds[:, 0] / rounds[:, 2], [2.5, 97.5])
    known = sign * cost > 0 and bool(np.isfinite(shares).all())
    share_low, share_high = np.percentile(shares, [2.5, 97.5]) if known else (None, None)
    return {
        "share": float(gain / cost) if sign * cost > 0 else None,
        "share_low": None if share_low is None else float(share_low),
        "share_high": None if share_high is None else float(share_high),
        "gain": float(gain / count),
        "gain_low": float(low),
        "gain_high": float(high),
        "n": int(count),
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """The tables of a results file, for people."""
    lines = [
        f"{summary['objects']} held-out objects, seeds {', '.join(map(str, summary['seeds']))}; "
        "mean ± standard deviation over seeds.",
        "",
    ]
    left_out = [f"{name} ({reason})" for name, reason in summary.get("left_out", {}).items()]
    if left_out:
        lines += [f"Left out: {', '.join(left_out)}.", ""]
    for tier, modes in summary["tiers"].items():
        present = [metric for metric in ALL_METRICS if any(metric in values for values in modes.values())]
        lines += [f"### {tier}", "", f"| mode | {' | '.join(present)} | n |", f"| --- |{' --- |' * (len(present) + 1)}"]
        for mode, values in modes.items():
            cells = [_cell(values.get(metric)) for metric in present]
            lines.append(f"| {mode} | {' | '.join(cells)} | {values['iou']['n']} |")
        lines.append("")
        failures = [
            f"{mode} {count} ({reason})"
            for mode, reasons in summary["failures"][tier].items()
            for reason, count in reasons.items()
        ]
        if failures:
            lines += [f"No answer, left out of the means: {', '.join(failures)}.", ""]
        lines += [*_recovered_table(summary["recovered"][tier]), ""]
    return "\n".join(lines)


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None or not math.isfinite(value["mean"]):
        return "-"
    digits = 1 if abs(value["mean"]) >= 2 else 3
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def _recovered_table(recovered: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    rows = []
    for metric, value in recovered.items():
        if value["gain"] is None:
            gain, share = "no case has all of sharp, blurry and fused", "-"
        else:
            gain = f"{value['gain']:+.3f} [{value['gain_low']:+.3f}, {value['gain_high']:+.3f}]"
            if value["share"] is None:
                share = "blur costs nothing here"
            elif value["share_low"] is None:
                share = "not known: blur may cost nothing here"
            else:
                share = f"{value['share']:.0%} [{value['share_low']:.0%}, {value['share_high']:.0%}]"
        rows.append(f"| {metric} | {gain} | {share} |")
    if not rows:
        return ["No case has all of sharp, blurry and fused: nothing to compare."]
    return ["| metric | fused - blurry [95 %] | recovered share [95 %] |", "| --- | --- | --- |", *rows]
