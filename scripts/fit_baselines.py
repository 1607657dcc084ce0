"""Fits the evaluation's baselines on training objects and writes the file that is shipped.

    python scripts/fit_baselines.py [weights/baselines.npz] [--cache DIR]

Renders 200 cases first, unless the cache has them. The result depends on the world and the metrics alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from event_sam3d_ros.commands.evaluate import cache_folder
from event_sam3d_ros.evaluation.baselines import BASELINE_OBJECT_SEEDS, BASELINES_FILE, Baselines
from event_sam3d_ros.evaluation.cases import CaseKey, cached_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).parents[1] / BASELINES_FILE)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    options = parser.parse_args()
    keys = [CaseKey("still", 0, seed) for seed in BASELINE_OBJECT_SEEDS]
    views = [cached_case(key, options.cache).view for key in tqdm(keys, desc="training objects", unit="case")]
    Baselines.fit(views).save(options.file)


if __name__ == "__main__":
    main()
