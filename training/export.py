"""Writes a trained model as it ships.

``python -m training.export trained.safetensors weights/event-sam3d-nano.safetensors``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from event_sam3d_ros import __version__
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path)
    parser.add_argument("shipped", type=Path)
    parser.add_argument("--tag", default="synthetic", help="what the weights were trained on")
    options = parser.parse_args()
    network, _ = load_checkpoint(options.trained)
    save_checkpoint(options.shipped, network, {"tag": options.tag, "version": __version__, "licence": "Apache-2.0"})


if __name__ == "__main__":
    main()
