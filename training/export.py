"""Writes a trained model as it ships: the averaged weights in half precision, with what there is to know in the header.

``python -m training.export trained.safetensors weights/event-sam3d-nano.safetensors``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, save_checkpoint
from training.settings import command


def export(trained: Path, shipped: Path, info: dict[str, str]) -> None:
    """Writes ``shipped`` with the header fields ``info`` beside version, and the last stage and its steps.

    Raises CheckpointError, and leaves no file, if a weight does not fit into half precision.
    """
    network, origin = load_checkpoint(trained)
    kept = {key: origin[key] for key in ("steps", "licence") if key in origin}
    unchecked = shipped.with_name(shipped.name + ".unchecked")
    save_checkpoint(unchecked, network, {**kept, "stage": origin["tag"], "version": __version__, **info})
    try:
        load_checkpoint(unchecked)  # names weights that became inf
        unchecked.replace(shipped)
    except CheckpointError as error:
        raise CheckpointError(f"{trained} does not fit into half precision: {error}", reason=error.reason) from error
    finally:
        unchecked.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path)
    parser.add_argument("shipped", type=Path)
    parser.add_argument("--tag", default="synthetic", help="what the weights were trained on, in a word")
    parser.add_argument("--licence", help="of the weights; without it that of the weights they were made from")
    parser.add_argument("--data", default="procedural objects", help="what the weights were trained on, in a sentence")
    parser.add_argument("--author", default="", help="who trained them")
    options = parser.parse_args()
    info = {"tag": options.tag, "licence": options.licence, "data": options.data, "author": options.author}
    export(options.trained, options.shipped, {key: value for key, value in info.items() if value})


if __name__ == "__main__":
    command(main)
