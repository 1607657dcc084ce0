"""Renders the synthetic training samples: ``python -m training.render --data DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.datasets import render
from training.settings import command, load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "config" / "nano.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder to write; an interrupted run is continued")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    config, model = load_config(options.config)
    render(options.data, config.data, model, options.workers)


if __name__ == "__main__":
    command(main)
