"""Recordings evaluated: read without playback through the core of the nodes, spread over processes, gone on with after
a kill, and written down as tables and a report.

A run's folder: configuration.json (what a run is: another configuration is another run), frames/NAME.jsonl (a line for
each frame that is done), pictures/, results.csv, summary.json, timings.json, report.html, and mcap/NAME/ if wanted.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, RecordingError
from event_sam3d_ros.evaluation.bag_inputs import MODES, open_input
from event_sam3d_ros.evaluation.bag_results import Results, summary_of, write_csv, write_json, write_text
from event_sam3d_ros.evaluation.bag_truth import Truth, find_truth, read_bag_truth
from event_sam3d_ros.evaluation.bag_worker import BagJob, BagOutcome, evaluate_bag
from event_sam3d_ros.evaluation.report import report_html
from event_sam3d_ros.reconstructor import Reconstructor, find_weights
from event_sam3d_ros.worker_processes import end_with_parent

CONFIGURATION = "configuration.json"
_POLL_S = 0.2
_KEPT = "what was done is kept: make room or give access, then run the same command again"


@dataclass(frozen=True)
class EvaluationOptions:
    """``bags``: recordings of any kind; ``out``: folder of the run; ``truths``: one file for all recordings or one for
    each; ``weights``: names or files; ``modes``: of rgb, events, fused; ``topics``: by kind, see `bag_inputs`;
    ``metrics``: False measures reconstruction alone."""

    bags: Sequence[Path]
    out: Path
    truths: Sequence[Path] = ()
    weights: Sequence[str] = ("nano",)
    modes: Sequence[str] = MODES
    topics: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    device: str = "auto"
    metrics: bool = True
    save_mcap: bool = False


class BagsFailed(EventSam3dError):
    """Some recordings could not be evaluated, or not to their end; the results of the others are written."""


def evaluate_bags(
    options: EvaluationOptions,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Evaluates and writes everything; the content of summary.json. ConfigurationError or CheckpointError before any
    work, BagsFailed after it, with one sentence for each recording at fault; OSError where a disk was."""
    begin = time.monotonic()
    jobs = _jobs(options)
    files = {label: find_weights(name) for label, name in _labels(options.weights).items()}
    truths = {job.name: read_bag_truth(job.path, job.truth) if job.truth else Truth() for job in jobs}
    outcomes, topics = {}, {}
    for job in jobs:
        try:
            topics[job.name] = _look(job, truths[job.name], say)
        except EventSam3dError as error:
            outcomes[job.name] = BagOutcome(job.name, error.reason, str(error))
        except OSError as error:
            outcomes[job.name] = BagOutcome(job.name, "os_error", f"{job.path}: {error.strerror or error}")
    todo = [job for job in jobs if job.name not in outcomes]
    if not todo:
        _raise_failures(list(outcomes.values()))
    configuration = _configuration(options, jobs, files, truths)
    models = _load(files, options.device)
    _prepare(options.out, configuration)  # behind all that can be wrong with the command line
    outcomes |= _run(todo, files, models, options, show_progress)
    for outcome in outcomes.values():
        for sentence in outcome.warnings:
            warn(sentence)
    try:
        summary = _write(options, jobs, outcomes, configuration, topics, files, models, time.monotonic() - begin)
    except OSError as error:
        raise OSError(f"{error.filename or options.out}: {error.strerror or error}\n{_KEPT}") from error
    _raise_failures(list(outcomes.values()))
    return summary


def _write(
    options: EvaluationOptions,
    jobs: Sequence[BagJob],
    outcomes: Mapping[str, BagOutcome],
    configuration: Mapping[str, Any],
    topics: Mapping[str, Mapping[str, str]],
    files: Mapping[str, Path],
    models: Mapping[str, Reconstructor],
    wall_s: float,
) -> dict[str, Any]:
    """All that people read; the content of summary.json."""
    results = Results([(model, mode) for model in files for mode in options.modes])
    write_csv(options.out / "results.csv", lambda write: results.read(outcomes, jobs, write))
    infos = {label: dict(sorted(model.info.items())) for label, model in models.items()}
    summary = summary_of(results, configuration, topics, infos)
    write_json(options.out / "summary.json", summary)
    run = {"wall_s": round(wall_s, 3), "workers": options.workers, "cpus": os.cpu_count()}
    timings = results.timing_summary() | {"latest_run": run}
    write_json(options.out / "timings.json", timings)
    write_text(options.out / "report.html", report_html(results, summary, timings, files, options.out))
    return summary


def _look(job: BagJob, truth: Truth, say: Callable[[str], None]) -> dict[str, str]:
    """Says which topics and which truth are used; the topics by kind, in words."""
    _, topics = open_input(job.path, job.topics, job.modes)
    say(f"{job.name}: {job.path}")
    for kind, source in topics.items():
        say(f"  {kind:<12} {source}")
    say(f"  {'ground truth':<12} {truth.kind if truth.path is None else f'{truth.path} ({truth.kind})'}")
    return topics


def _jobs(options: EvaluationOptions) -> list[BagJob]:
    if options.workers < 1:
        raise ConfigurationError(f"{options.workers} workers: give 1 or more", reason="bad_parameter")
    if not options.modes or set(options.modes) - set(MODES) or len(set(options.modes)) < len(options.modes):
        raise ConfigurationError(f"modes: give each of {', '.join(MODES)} at most once", reason="bad_parameter")
    if len(options.truths) not in (0, 1, len(options.bags)):
        raise ConfigurationError(
            f"{len(options.truths)} ground truth files for {len(options.bags)} recordings: give one for all, or one "
            "for each in their order",
            reason="bad_parameter",
        )
    truths = list(options.truths) * (len(options.bags) if len(options.truths) == 1 else 1)
    jobs: list[BagJob] = []
    paths = [Path(os.path.abspath(path.expanduser())) for path in options.bags]
    if len(set(paths)) < len(paths):
        raise ConfigurationError("a recording is given twice: give each once", reason="bad_parameter")
    for number, path in enumerate(paths):
        stem = re.sub(r"[^\w.+-]", "_", path.name if path.is_dir() else path.stem) or "recording"
        name, count = stem, 1
        while any(job.name == name for job in jobs):
            count += 1
            name = f"{stem}_{count}"
        truth = Path(os.path.abspath(truths[number].expanduser())) if truths else find_truth(path)
        modes, topics = tuple(options.modes), dict(options.topics)
        jobs.append(BagJob(name, path, options.out, modes, topics, truth, options.metrics, options.save_mcap))
    return jobs


def _labels(weights: Sequence[str]) -> dict[str, str]:
    """A short, unique name for each model."""
    labels: dict[str, str] = {}
    for given in weights:
        stem = Path(given).stem if given.endswith(".safetensors") else Path(given).name
        label, count = stem.removeprefix("event-sam3d-"), 1
        while label in labels:
            count += 1
            label = f"{stem.removeprefix('event-sam3d-')}_{count}"
        labels[label] = given
    return labels


def _load(files: Mapping[str, Path], device: str) -> dict[str, Reconstructor]:
    models = {label: Reconstructor.from_pretrained(path, device) for label, path in files.items()}
    windows = {label: model.info["window_ms"] for label, model in models.items()}
    if len(set(windows.values())) > 1:
        raise ConfigurationError(
            f"the models were trained with event windows of different lengths ({windows}): evaluate them in two runs",
            reason="window_mismatch",
        )
    return models


# What a run is, and whether a folder holds it


def _configuration(
    options: EvaluationOptions, jobs: Sequence[BagJob], files: Mapping[str, Path], truths: Mapping[str, Truth]
) -> dict[str, Any]:
    return {
        "version": __version__,
        "bags": {
            job.name: {"path": str(job.path), "bytes": _size(job.path)}
            for job in sorted(jobs, key=lambda one: one.name)
        },
        "ground_truth": {
            name: {"kind": truth.kind, "path": str(truth.path or ""), "files": [_fingerprint(f) for f in truth.files]}
            for name, truth in sorted(truths.items())
        },
        "models": {label: _fingerprint(path) for label, path in files.items()},
        "modes": list(options.modes),
        "topics": dict(sorted(options.topics.items())),
        "device": options.device,
        "metrics": options.metrics,
        "save_mcap": options.save_mcap,
    }


def _fingerprint(path: Path) -> str:
    try:
        return f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        raise RecordingError(f"{path} can't be read ({error.strerror})", reason="missing_file") from error


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in sorted(path.rglob("*")) if one.is_file()]
    return sum(one.stat().st_size for one in files)


def _prepare(out: Path, configuration: Mapping[str, Any]) -> None:
    """A new folder, or that of the same run. ConfigurationError for all others: nothing of them is touched."""
    file = out / CONFIGURATION
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        try:
            earlier = json.loads(file.read_text())
        except (OSError, ValueError):
            earlier = None
        if not isinstance(earlier, dict):
            raise ConfigurationError(
                f"{out} exists and holds no evaluation: give another --out", reason="output_exists"
            )
        changed = [name for name in {**earlier, **configuration} if earlier.get(name) != configuration.get(name)]
        if changed:
            raise ConfigurationError(
                f"{out} holds an evaluation with other {', '.join(changed)}: give another --out, or the same options "
                "to go on with it",
                reason="output_exists",
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, configuration)


# Work


def _run(
    jobs: Sequence[BagJob],
    files: Mapping[str, Path],
    models: Mapping[str, Reconstructor],
    options: EvaluationOptions,
    show_progress: bool,
) -> dict[str, BagOutcome]:
    from tqdm import tqdm

    layout = "{l_bar}{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=float(len(jobs)), desc="evaluating", bar_format=layout, disable=not show_progress) as bar:

        def show(done: float) -> None:
            bar.update(max(0.0, min(done, len(jobs)) - bar.n))

        if options.workers == 1 or len(jobs) <= 1:
            return _run_here(jobs, models, show)
        return _run_in_processes(jobs, files, options, show)


def _run_here(
    jobs: Sequence[BagJob], models: Mapping[str, Reconstructor], show: Callable[[float], None]
) -> dict[str, BagOutcome]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be other bytes in results.csv
    try:
        _warm_up(models)
        outcomes = {}
        for number, job in enumerate(jobs):
            outcomes[job.name] = evaluate_bag(job, models, partial(_add_and_show, show, number))
            show(number + 1.0)
        return outcomes
    finally:
        torch.set_num_threads(threads)


def _add_and_show(show: Callable[[float], None], done: int, share: float) -> None:
    show(done + share)


def _run_in_processes(
    jobs: Sequence[BagJob], files: Mapping[str, Path], options: EvaluationOptions, show: Callable[[float], None]
) -> dict[str, BagOutcome]:
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    shares = context.Array("d", len(jobs))
    workers = min(options.workers, len(jobs))
    arguments = (dict(files), options.device, shares)
    with ProcessPoolExecutor(workers, context, _begin_worker, arguments) as pool:
        futures: dict[Future[BagOutcome], BagJob] = {
            pool.submit(_work, job, number): job for number, job in enumerate(jobs)
        }
        waiting = set(futures)
        try:
            while waiting:
                _, waiting = wait(waiting, _POLL_S)
                show(sum(shares[:]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        return {job.name: _outcome(job, future) for future, job in futures.items()}


def _outcome(job: BagJob, future: Future[BagOutcome]) -> BagOutcome:
    try:
        return future.result()
    except BrokenProcessPool:
        # When one process is ended from outside, the pool ends the others too.
        message = (
            f"{job.path}: a worker process was ended from outside before this recording was done, as the system does "
            "when memory runs short (see dmesg): the same command goes on; with fewer --workers it needs less"
        )
        return BagOutcome(job.name, "worker_died", message)


_of_worker: dict[str, Any] = {}


def _begin_worker(files: Mapping[str, Path], device: str, shares: Any) -> None:
    """In each process, once."""
    end_with_parent()
    import torch

    torch.set_num_threads(1)
    _of_worker.update(models=_load(files, device), shares=shares)
    _warm_up(_of_worker["models"])


def _work(job: BagJob, number: int) -> BagOutcome:
    def progress(share: float) -> None:
        _of_worker["shares"][number] = share

    outcome = evaluate_bag(job, _of_worker["models"], progress)
    progress(1.0)
    return outcome


def _warm_up(models: Mapping[str, Reconstructor]) -> None:
    """What is done once does not count as a frame's time."""
    from event_sam3d_ros.events.warmup import warm_up

    warm_up()
    for model in models.values():
        model.warm_up()


def _raise_failures(outcomes: Sequence[BagOutcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.reason]
    if not failed:
        return
    text = "\n".join(outcome.message for outcome in failed)
    if rest := len(outcomes) - len(failed):
        text += f"\n{rest} other recording{'s' * (rest > 1)} done"
    reasons = {outcome.reason for outcome in failed}
    if reasons & {"os_error", "worker_died"}:
        raise OSError(f"{text}\n{_KEPT}" if "os_error" in reasons else text)
    raise BagsFailed(text, reason=failed[0].reason)
