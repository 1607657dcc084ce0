"""Judges a model on held-out procedural objects: every mode and blur tier, two baselines, and a control.

    python -m event_sam3d_ros.evaluation.suites --weights nano --cache DIR --workers 2 --out results.json

Rows: the four input modes; ``mean_shape`` and ``inflated_silhouette`` (`baselines.py`); ``shuffled``, the control:
the model sees the sharp frame and the mask of another object, and is judged by this one's shape. ``add_s`` and
``iou3d_box`` of ``fused`` come from a second pass with depth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, InputError
from event_sam3d_ros.evaluation.baselines import Baselines
from event_sam3d_ros.evaluation.cases import MODES, TIERS, CaseKey, EvaluationCase, cached_case
from event_sam3d_ros.evaluation.metrics import depth_metrics, evaluate, shape_metrics
from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.evaluation.tables import markdown, summarise
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.synthetic.world import HELD_OUT_OBJECT_SEEDS

BASELINE_OBJECT_SEEDS = range(1_000_000, 1_000_200)  # training objects
BASELINE_TIER = "still"  # baselines see true masks only

Model = Callable[[Observation], list[Reconstruction]]


@dataclass(frozen=True)
class Task:
    """One case, and the case whose images the control takes."""

    key: CaseKey
    other: CaseKey


def tasks(objects: int, seeds: int, tiers: Sequence[str] = TIERS) -> list[Task]:
    """All cases of the suite, whole seeds after one another; the control's object is the one half the list away."""
    if not 2 <= objects <= len(HELD_OUT_OBJECT_SEEDS) or seeds < 1:
        raise ConfigurationError(
            f"objects is {objects} and seeds {seeds}; give 2..{len(HELD_OUT_OBJECT_SEEDS)} objects and at least 1 seed"
        )
    chosen = HELD_OUT_OBJECT_SEEDS[:objects]
    return [
        Task(CaseKey(tier, seed, chosen[i]), CaseKey(tier, seed, chosen[(i + objects // 2) % objects]))
        for seed in range(seeds)
        for tier in tiers
        for i in range(objects)
    ]


def evaluate_case(model: Model, baselines: Baselines, case: EvaluationCase, other: EvaluationCase) -> dict[str, Any]:
    """``metrics`` {mode: {metric: value}} of one case, and ``failures`` {mode: reason} where the model gave no
    answer."""
    metrics: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}

    def judge(mode: str, observation: Observation, metric: Callable[[Solid], dict[str, float]]) -> None:
        try:
            prediction = Solid.from_reconstruction(model(observation)[0])
        except InputError as error:
            failures[mode] = error.reason
        else:
            metrics[mode] = metrics.get(mode, {}) | metric(prediction)

    def all_metrics(prediction: Solid) -> dict[str, float]:
        return evaluate(prediction, case.truth, case.mask, case.K)

    for mode in MODES:
        judge(mode, case.observation(mode), all_metrics)
    judge("fused", case.observation("fused", depth=True), lambda solid: depth_metrics(solid, case.truth))
    metrics["mean_shape"] = all_metrics(baselines.mean_shape(case.mask, case.K))
    metrics["inflated_silhouette"] = all_metrics(baselines.inflated(case.mask, case.K))
    judge("shuffled", other.observation("sharp"), lambda solid: shape_metrics(solid, case.truth))
    return {"metrics": metrics, "failures": failures}


class _Worker:
    """What a worker process keeps between cases."""

    cache: Path
    model: Reconstructor
    baselines: Baselines


def _start_worker(cache: Path, weights: str | None) -> None:
    torch.set_num_threads(1)
    _Worker.cache = cache
    if weights is not None:
        _Worker.model = Reconstructor.from_pretrained(weights, device="cpu")
        _Worker.baselines = Baselines.load(_baselines_path(cache))


def _render(key: CaseKey) -> EvaluationCase:
    return cached_case(key, _Worker.cache)


def _evaluate(task: Task) -> dict[str, Any]:
    key = task.key
    result = evaluate_case(_Worker.model, _Worker.baselines, _render(key), _render(task.other))
    return {"tier": key.tier, "seed": key.seed, "object": key.object_seed, **result}


def _baselines_path(cache: Path) -> Path:
    return cache / "baselines.npz"


def _run(function: Callable, items: Sequence, workers: int, initial: tuple, label: str) -> Iterable:
    """Results of ``function`` over ``items`` from worker processes, as they come, under a progress bar."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, initial)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in tqdm(as_completed(futures), total=len(futures), desc=label, unit="case"):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def prepare(cache: Path, wanted: Sequence[Task], workers: int) -> None:
    """Renders what the cache lacks and fits the baselines."""
    missing = [task.key for task in wanted if not task.key.path(cache).exists()]
    for _ in _run(_render, missing, workers, (cache, None), "rendering"):
        pass
    if not _baselines_path(cache).exists():
        keys = [CaseKey(BASELINE_TIER, 0, seed) for seed in BASELINE_OBJECT_SEEDS]
        views = [case.view for case in _run(_render, keys, workers, (cache, None), "training objects for baselines")]
        print("fitting the baselines", file=sys.stderr)
        Baselines.fit(views).save(_baselines_path(cache))


def run_suite(weights: str, cache: Path, wanted: Sequence[Task], workers: int, out: Path) -> dict[str, Any]:
    """Evaluates what ``<out>.cases.jsonl`` lacks, adds it there case by case, and writes the summary to ``out``."""
    model = Reconstructor.from_pretrained(weights, device="cpu").info
    done_path = out.with_suffix(".cases.jsonl")
    records = _read_records(done_path, model["sha256"])
    done = {(record["tier"], record["seed"], record["object"]) for record in records}
    left = [task for task in wanted if (task.key.tier, task.key.seed, task.key.object_seed) not in done]
    with done_path.open("a", encoding="utf-8") as file:
        for record in _run(_evaluate, left, workers, (cache, weights), "evaluating"):
            record = {**record, "sha256": model["sha256"]}
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
    order = {task.key: i for i, task in enumerate(wanted)}
    chosen = [r for r in records if CaseKey(r["tier"], r["seed"], r["object"]) in order]
    chosen.sort(key=lambda r: order[CaseKey(r["tier"], r["seed"], r["object"])])
    summary = summarise(chosen, f"{model['name']} {model['sha256'][:12]}")
    out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _read_records(path: Path, sha256: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if any(record["sha256"] != sha256 for record in records):
        raise ConfigurationError(f"{path} holds results of other weights; remove it or give another --out")
    return records


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="event_sam3d_ros.evaluation.suites", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default="nano", help="a shipped model's name or a file (default: nano)")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of rendered cases, filled where it lacks some"
    )
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="results file (default: results.json)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument(
        "--objects", type=int, default=len(HELD_OUT_OBJECT_SEEDS), help="held-out objects (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of motion and noise (default: 3)")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS, help="blur tiers (default: all)")
    parser.add_argument("--only-cache", action="store_true", help="render the cases and fit the baselines, then stop")
    options = parser.parse_args(args)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one thread each
    try:
        wanted = tasks(options.objects, options.seeds, options.tiers)
        prepare(options.cache, wanted, options.workers)
        if not options.only_cache:
            print(markdown(run_suite(options.weights, options.cache, wanted, options.workers, options.out)))
    except EventSam3dError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
