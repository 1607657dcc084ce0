"""Judges a model on held-out objects: every mode and blur tier, two baselines, and a control.

Objects are procedural ones (`synthetic_tasks`) or users' meshes (`mesh_tasks`), in the same world. Rows: the four
input modes; ``mean_shape`` and ``inflated_silhouette`` (`baselines.py`); ``shuffled``, the control: the model sees the
sharp frame and the mask of another object, and is judged by this one's shape. ``add_s`` and ``iou3d_box`` of ``fused``
come from a second pass with depth.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, InputError
from event_sam3d_ros.evaluation.baselines import BASELINES_FILE, Baselines
from event_sam3d_ros.evaluation.cases import MODES, TIERS, CaseKey, EvaluationCase, MeshObject, cached_case
from event_sam3d_ros.evaluation.metrics import depth_metrics, evaluate, shape_metrics
from event_sam3d_ros.evaluation.solids import Solid
from event_sam3d_ros.evaluation.tables import summarise
from event_sam3d_ros.meshes import mesh_files
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor, share_folder
from event_sam3d_ros.synthetic.world import HELD_OUT_OBJECT_SEEDS
from event_sam3d_ros.worker_processes import end_with_parent

RESULTS_VERSION = 1  # of metrics, baselines and rows; raised with any change, so that no older results are mixed in
SUBSET_OBJECTS = 100  # the first ones: `emd` and `icp_rot` are taken on these alone

Model = Callable[[Observation], list[Reconstruction]]


@dataclass(frozen=True)
class Task:
    """One case, the case whose images the control takes (None: there is no other object), and whether the object is
    one of the subset for `emd` and `icp_rot`."""

    key: CaseKey
    other: CaseKey | None
    subset: bool


@dataclass(frozen=True)
class Suite:
    """What is to be judged; ``left_out``: objects that can't be, {name: reason}."""

    tasks: list[Task]
    left_out: dict[str, str] = field(default_factory=dict)


def synthetic_suite(objects: int, seeds: int, tiers: Sequence[str] = TIERS) -> Suite:
    """The first ``objects`` of the held-out procedural objects."""
    if not 2 <= objects <= len(HELD_OUT_OBJECT_SEEDS):
        raise ConfigurationError(
            f"{objects} objects: give 2 to {len(HELD_OUT_OBJECT_SEEDS)}, so many are held out", reason="bad_suite"
        )
    return Suite(_tasks(HELD_OUT_OBJECT_SEEDS[:objects], seeds, tiers))


def mesh_suite(folder: Path, up: str | None, seeds: int, tiers: Sequence[str] = TIERS) -> Suite:
    """The meshes of a folder, ``up`` as in `mesh_shape`. Those whose inside can't be told are left out; InputError
    where none is left."""
    usable: list[MeshObject] = []
    left_out: dict[str, str] = {}
    for path in tqdm(mesh_files(folder), desc="reading meshes", unit="mesh"):
        mesh = MeshObject(path, up)
        try:
            mesh.shape()
        except InputError as error:
            left_out[path.name] = error.reason
        else:
            usable.append(mesh)
    if not usable:
        named = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        raise InputError(f"{folder}: none of its meshes can be made solid: {named}", reason="no_input")
    return Suite(_tasks(usable, seeds, tiers), left_out)


def _tasks(objects: Sequence[int | MeshObject], seeds: int, tiers: Sequence[str]) -> list[Task]:
    """Whole seeds after one another; the control's object is the one half the list away."""
    if seeds < 1:
        raise ConfigurationError(f"{seeds} seeds: give at least 1", reason="bad_suite")
    count = len(objects)
    return [
        Task(
            CaseKey(tier, seed, objects[i]),
            CaseKey(tier, seed, objects[(i + count // 2) % count]) if count > 1 else None,
            i < SUBSET_OBJECTS,
        )
        for seed in range(seeds)
        for tier in tiers
        for i in range(count)
    ]


def evaluate_case(
    model: Model, baselines: Baselines, case: EvaluationCase, other: EvaluationCase | None, *, subset: bool = False
) -> dict[str, Any]:
    """``metrics`` {mode: {metric: value}} of one case, and ``failures`` {mode: reason} where the model gave no
    answer. ``other``: the control's; ``subset``: with `emd` and `icp_rot`."""
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
        return evaluate(prediction, case.truth, case.mask, case.K, subset=subset)

    for mode in MODES:
        judge(mode, case.observation(mode), all_metrics)
    judge("fused", case.observation("fused", depth=True), lambda solid: depth_metrics(solid, case.truth))
    metrics["mean_shape"] = all_metrics(baselines.mean_shape(case.mask, case.K))
    metrics["inflated_silhouette"] = all_metrics(baselines.inflated(case.mask, case.K))
    if other is not None:
        judge("shuffled", other.observation("sharp"), lambda solid: shape_metrics(solid, case.truth, subset=subset))
    return {"metrics": metrics, "failures": failures}


class _Worker:
    """What a worker process keeps between cases."""

    cache: Path
    model: Reconstructor
    baselines: Baselines


def _start_worker(cache: Path, weights: str) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's business
    torch.set_num_threads(1)
    _Worker.cache = cache
    _Worker.model = Reconstructor.from_pretrained(weights, device="cpu")
    _Worker.baselines = Baselines.load(share_folder() / BASELINES_FILE)


def _evaluate(task: Task) -> dict[str, Any]:
    key, other = task.key, None if task.other is None else cached_case(task.other, _Worker.cache)
    case = cached_case(key, _Worker.cache)
    result = evaluate_case(_Worker.model, _Worker.baselines, case, other, subset=task.subset)
    return {"tier": key.tier, "seed": key.seed, "object": key.name, "task": _identity(task), **result}


def _run(function: Callable, items: Sequence, workers: int, initial: tuple, label: str) -> Iterable:
    """Results of ``function`` over ``items`` from worker processes, as they come, under a progress bar."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: one thread each
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, initial)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in tqdm(as_completed(futures), total=len(futures), desc=label, unit="case"):
            yield future.result()
    except BrokenProcessPool as error:
        raise EventSam3dError(
            "a worker process died, perhaps for want of memory: run it again with fewer --workers; what is done stays",
            reason="worker_died",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def run_suite(suite: Suite, model: str, cache: Path, workers: int, out: Path) -> dict[str, Any]:
    """Evaluates a model (name or file) and returns what it writes to ``out``: the summary of `summarise`, with
    ``left_out``.

    Two places keep what is done, so that an interrupted run goes on where it was: ``cache``, the rendered cases, the
    same for every model; ``<out>.cases.jsonl``, this model's results case by case.
    """
    if workers < 1:
        raise ConfigurationError(f"{workers} workers: give at least 1", reason="bad_suite")
    info = Reconstructor.from_pretrained(model, device="cpu").info
    out.parent.mkdir(parents=True, exist_ok=True)
    with _open_records(out.with_suffix(".cases.jsonl"), info["sha256"]) as file:
        records = [json.loads(line) for line in file]
        done = {record["task"] for record in records}
        left = [task for task in suite.tasks if _identity(task) not in done]
        for record in _run(_evaluate, left, workers, (cache, model), "evaluating"):
            record = {**record, "sha256": info["sha256"], "version": RESULTS_VERSION}
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
    order = {_identity(task): i for i, task in enumerate(suite.tasks)}
    chosen = sorted((r for r in records if r["task"] in order), key=lambda r: order[r["task"]])
    summary = summarise(chosen, f"{info['name']} {info['sha256'][:12]}") | {"left_out": suite.left_out}
    out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _identity(task: Task) -> str:
    """What a task's results depend on beside the model: its case, and which rows and metrics there are. Any other
    object will do as the control, so that a larger suite takes over what a smaller one did."""
    return " ".join([task.key.identity] + ["control"] * (task.other is not None) + ["subset"] * task.subset)


def _open_records(path: Path, sha256: str) -> TextIO:
    """The file of results case by case, at its begin, to be read and then written on. A last line that an
    interruption cut off is taken away. ConfigurationError where results of other weights, of another version of the
    suites or of something else are in it."""
    file = path.open("a+", encoding="utf-8")
    file.seek(0)
    text = file.read()
    whole = text.rfind("\n") + 1
    try:
        records = [json.loads(line) for line in text[:whole].splitlines()]
        others = any((r["sha256"], r["version"]) != (sha256, RESULTS_VERSION) or not r["task"] for r in records)
    except (ValueError, KeyError, TypeError):
        others = True
    if others:
        file.close()
        raise ConfigurationError(
            f"{path} holds results of other weights, of another version of the suites or of something else; remove "
            "it or give another --json",
            reason="bad_output",
        )
    file.truncate(len(text[:whole].encode()))
    file.seek(0)
    return file
