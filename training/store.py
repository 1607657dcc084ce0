"""A folder of rendered samples: one memory-mapped ``.npy`` for each field, and ``progress.json``, which says what the
samples were made for and which of them are done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.config import DirectHeadConfig, ModelConfig, PreprocessConfig, to_dict
from event_sam3d_ros.synthetic.options import DEFAULT_WORLD, WorldOptions

PROGRESS = "progress.json"
Fields = Mapping[str, tuple[tuple[int, ...], type]]


def made_for(config: ModelConfig) -> dict[str, Any]:
    """What of a model its samples depend on: the crops' side in pixels, or that they are whole frames; where crops lie
    and how their grid does."""
    if config.head == "flow":
        return {"size": "frames"}
    crop = {"crop_factor": config.preprocess.crop_factor}
    grid = {"depth_range": config.direct.depth_range, "resolution": config.direct.resolution}
    return {"size": config.encoder.image_size} | crop | grid


def world_settings(world: WorldOptions) -> dict[str, Any]:
    """What of a world its samples depend on: all settings but where they are rendered."""
    return {name: value for name, value in to_dict(world).items() if name != "render_device"}


# What folders have that were rendered before these were stored.
_BEFORE = {
    "crop_factor": PreprocessConfig().crop_factor,
    "depth_range": DirectHeadConfig().depth_range,
    "resolution": DirectHeadConfig().resolution,
}


def read_progress(folder: Path) -> dict[str, Any]:
    """The content of the folder's progress.json; InputError where it is missing or damaged."""
    file = folder / PROGRESS
    again = "render the samples with python -m training.render --data FOLDER"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {again}", reason="no_data")
    try:
        progress = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no rendered samples ({PROGRESS} is missing); {again}", reason="no_data"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(progress, dict):
        raise _damaged(file, "not a mapping")
    numbers = [progress.get(name) for name in ("cases", "sensor", "first_seed")]
    done = progress.get("done")
    if not (isinstance(done, list) and "size" in progress and all(type(n) is int for n in [*numbers, *done])):
        raise _damaged(file, "not what training.render writes")
    progress["world"] = world_settings(DEFAULT_WORLD) | progress.get("world", {})
    return progress if progress["size"] == "frames" else _BEFORE | progress


def write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Writes progress.json at once: an interruption leaves the file before."""
    partial = folder / f"{PROGRESS}.partial"
    partial.write_text(json.dumps(progress), encoding="utf-8")
    os.replace(partial, folder / PROGRESS)


def check_made_for(folder: Path, progress: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """InputError where the folder's samples differ from ``wanted`` in any of its settings."""
    differing = [name for name, value in wanted.items() if progress.get(name) != value]
    if differing:
        said = ", ".join(f"{name} {progress.get(name)} instead of {wanted[name]}" for name in differing)
        raise InputError(
            f"{folder} holds samples of other settings ({said}); render into another folder, or delete this one",
            reason="other_data",
        )


def create_fields(folder: Path, fields: Fields, cases: int) -> None:
    """Makes an empty file for each field."""
    for name, (shape, dtype) in fields.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (cases, *shape))


def open_fields(folder: Path, fields: Fields, cases: int, mode: str = "r") -> dict[str, npt.NDArray]:
    """The memory-mapped fields, (cases, ...) each; InputError for a file that is missing, cut off, or of another
    shape."""
    stores: dict[str, npt.NDArray] = {}
    for name, (shape, dtype) in fields.items():
        file = folder / f"{name}.npy"
        try:
            store = np.lib.format.open_memmap(file, mode)
        except (OSError, ValueError) as error:
            raise _damaged(file, str(error) or type(error).__name__) from error
        if store.shape != (cases, *shape) or store.dtype != dtype:
            raise _damaged(file, f"{store.dtype} {store.shape} instead of {np.dtype(dtype)} {(cases, *shape)}")
        stores[name] = store
    return stores


def _damaged(file: Path, why: str) -> InputError:
    return InputError(
        f"{file} is missing or damaged ({why}); delete the folder and render it again", reason="damaged_data"
    )
