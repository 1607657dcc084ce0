"""``event-sam3d evaluate BAG``: the options of `evaluate` for recordings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

MODES = ("rgb", "events", "fused")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds them."""
    bags = command.add_argument_group("recordings", "BAG may be anything that `event-sam3d info` reads")
    bags.add_argument("bags", nargs="*", type=Path, metavar="BAG", help="recordings to evaluate")
    bags.add_argument("--out", type=Path, metavar="DIR", help="folder for results; an interrupted run goes on there")
    bags.add_argument(
        "--ground-truth",
        nargs="+",
        type=Path,
        default=(),
        metavar="FILE",
        help="YAML with meshes and poses, or camera poses in the TUM format: one for all, or one for each BAG "
        "(ground_truth.yaml beside a BAG is found)",
    )
    bags.add_argument("--weights", nargs="+", default=["nano"], metavar="NAME|FILE", help="models to compare (nano)")
    bags.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="what the models are given (all)")
    bags.add_argument(
        "--topics",
        nargs="+",
        default=(),
        metavar="KIND=/TOPIC",
        help="topics that are not found by themselves; kinds: events, image, camera_info, mask, depth, pose",
    )
    bags.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    bags.add_argument("--no-metrics", action="store_true", help="reconstruct only, to measure the time")
    bags.add_argument("--save-mcap", action="store_true", help="write inputs and outputs of each BAG as an MCAP")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluates the recordings and says where the results are."""
    from event_sam3d_ros.errors import ConfigurationError
    from event_sam3d_ros.evaluation.bag_evaluation import EvaluationOptions, evaluate_bags
    from event_sam3d_ros.evaluation.bag_inputs import parse_topics

    if options.out is None:
        raise ConfigurationError("recordings need a folder for the results: add --out DIR", reason="bad_options")
    chosen = EvaluationOptions(
        bags=options.bags,
        out=options.out,
        truths=options.ground_truth,
        weights=options.weights,
        modes=options.modes,
        topics=parse_topics(options.topics),
        workers=options.workers,
        device=options.device,
        metrics=not options.no_metrics,
        save_mcap=options.save_mcap,
    )

    def warn(sentence: str) -> None:
        print(f"event-sam3d evaluate: warning: {sentence}", file=sys.stderr)

    summary = evaluate_bags(chosen, warn=warn)
    for one in summary["total"]:
        means = ", ".join(
            f"{name} {values['mean']:.3f}"
            for name, values in one["metrics"].items()
            if name in ("iou", "iou_camera", "mask_iou", "input_mask_iou", "shape_agreement", "edge_contrast")
        )
        print(f"{one['model']} {one['mode']}: {one['objects']} objects in {one['frames']} frames; {means}")
    print(f"written to {options.out}/: report.html, results.csv, summary.json, timings.json")
