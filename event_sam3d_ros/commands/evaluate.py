"""``event-sam3d evaluate``: how good a model is, in tables; on recordings, with a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from event_sam3d_ros.commands import evaluate_bags

TIERS = ("easy", "medium", "hard")
DEFAULT_OBJECTS = 100

_DESCRIPTION = f"""
BAG ... --out DIR: evaluates recordings without playing them, and writes report.html, results.csv, summary.json and
timings.json (docs/evaluation.md).

--suite NAME --json FILE: judges a model on objects that it was not trained on, before a moving camera: sharp, blurry,
events and both fused, at three speeds, beside two baselines without a network. Prints tables and writes them to a JSON
file. An interrupted run goes on where it was when it is called again.

--suite synthetic: procedural objects. By default {DEFAULT_OBJECTS} objects, 3 seeds of motion and noise and all tiers:
about 20 minutes on two CPU cores, 2 s of one core for each case, a quarter of it to render what the cache lacks. The
figures of the model card are those of --objects 200, twice as long.

--suite meshes: the meshes of a folder, the same for each mesh, seed and tier. Those whose inside can't be told, having
holes, are listed and left out.
"""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    command = commands.add_parser(
        "evaluate",
        help="judge models on recordings, with a report, or on held-out objects, in tables",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--suite", choices=("synthetic", "meshes"), help="what to judge on")
    command.add_argument("--json", type=Path, metavar="FILE", help="results file of a suite")
    command.add_argument("--meshes", type=Path, metavar="DIR", help="folder of GLB, OBJ, OFF, PLY, STL files")
    command.add_argument("--up", choices=("y", "z"), help="axis of the meshes that points up (GLB, OBJ y, others z)")
    command.add_argument("--objects", type=int, help=f"procedural objects, 2 to 200 ({DEFAULT_OBJECTS})")
    command.add_argument("--seeds", type=int, default=3, help="seeds of motion and noise (%(default)s)")
    command.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS, help="speeds (all)")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    command.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder for rendered cases (~/.cache/event_sam3d/evaluation)"
    )
    evaluate_bags.add_arguments(command)
    command.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    _check(options)
    if options.bags:
        evaluate_bags.evaluate(options)
        return
    from event_sam3d_ros.evaluation.suites import mesh_suite, run_suite, synthetic_suite
    from event_sam3d_ros.evaluation.tables import markdown

    if options.suite == "meshes":
        suite = mesh_suite(options.meshes, options.up, options.seeds, options.tiers)
    else:
        objects = DEFAULT_OBJECTS if options.objects is None else options.objects
        suite = synthetic_suite(objects, options.seeds, options.tiers)
    print(
        markdown(run_suite(suite, options.weights[0], options.cache or cache_folder(), options.workers, options.json))
    )


def _check(options: argparse.Namespace) -> None:
    """ConfigurationError for options that don't go together."""
    from event_sam3d_ros.errors import ConfigurationError

    if bool(options.bags) == bool(options.suite):
        raise ConfigurationError("give recordings, or --suite synthetic or meshes", reason="bad_options")
    if options.suite and options.json is None:
        raise ConfigurationError("--suite needs a file for the results: add --json FILE", reason="bad_options")
    if options.suite and len(options.weights) != 1:
        raise ConfigurationError("a suite judges one model: give one to --weights", reason="bad_options")
    if options.suite == "meshes":
        if options.meshes is None:
            raise ConfigurationError("--suite meshes needs a folder of meshes: add --meshes DIR", reason="bad_options")
        if options.objects is not None:
            raise ConfigurationError("--objects goes with --suite synthetic alone", reason="bad_options")
    elif options.meshes is not None or options.up is not None:
        raise ConfigurationError("--meshes and --up go with --suite meshes alone", reason="bad_options")


def cache_folder() -> Path:
    """Where rendered cases are kept unless the user says otherwise: the XDG cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "event_sam3d" / "evaluation"
