"""``event-sam3d import-sam3d`` and ``model-info``: models and their files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    take = commands.add_parser("import-sam3d", help="turn the official SAM 3D weights into a model file")
    take.add_argument("folder", type=Path, help="the official checkpoints/hf, or a folder that holds it")
    take.add_argument("out", type=Path, nargs="?", help="model file to write (event-sam3d-full.safetensors)")
    take.add_argument(
        "--config", type=Path, metavar="YAML", help="of weights of another size (config/models/full.yaml)"
    )
    take.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="type to store (as in the official files)")
    take.add_argument("--events", action="store_true", help="with a new event branch, which changes nothing untrained")
    take.add_argument("--force", action="store_true", help="overwrite the output")
    take.set_defaults(command=_import_sam3d)

    model_info = commands.add_parser("model-info", help="say what a model takes: parameters, memory, FLOPs per stage")
    model_info.add_argument(
        "model", metavar="NAME|FILE", help="nano, small, base, full, a YAML file, or a .safetensors file"
    )
    model_info.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    model_info.set_defaults(command=_model_info)


def _import_sam3d(options: argparse.Namespace) -> None:
    from event_sam3d_ros.reconstructor import share_folder
    from event_sam3d_ros.sam3d.checkpoint import PRECISIONS
    from event_sam3d_ros.sam3d.config import ModelConfig
    from event_sam3d_ros.sam3d.import_released import import_released

    config = ModelConfig.from_yaml(options.config or share_folder() / "config" / "models" / "full.yaml")
    out = options.out or Path(f"event-sam3d-{config.name}.safetensors")
    dtype = PRECISIONS[options.dtype] if options.dtype else None

    def report(what: str) -> None:
        print(what, file=sys.stderr)

    imported = import_released(options.folder, out, config, dtype, options.events, options.force, report)
    print("\n".join(imported.lines()))


def _model_info(options: argparse.Namespace) -> None:
    import json

    from event_sam3d_ros.reconstructor import share_folder
    from event_sam3d_ros.sam3d.model_info import describe, find_model

    info = describe(*find_model(options.model, share_folder() / "config" / "models"))
    print(json.dumps(info.as_dict(), indent=2) if options.json else "\n".join(info.lines()))
