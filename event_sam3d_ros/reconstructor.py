"""The one call that everybody uses: `Observation` in, `Reconstruction`s out."""

from __future__ import annotations

import math
import os
import re
import sysconfig
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from event_sam3d_ros.direct_pipeline import DirectPipeline
from event_sam3d_ros.errors import CheckpointError, ConfigurationError, InputError
from event_sam3d_ros.flow_pipeline import FlowPipeline
from event_sam3d_ros.preprocess import Observation, object_crops
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction
from event_sam3d_ros.sam3d.checkpoint import PRECISIONS, load_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.network import FlowNetwork, Network
from event_sam3d_ros.sam3d.pointmap import MonocularModel

__all__ = ["Reconstruction", "Reconstructor", "find_weights", "share_folder"]

SHORTCUT_STEPS = 4
"""Steps of the shortcut mode where nobody says how many."""

_SHIPPED = "event-sam3d-*.safetensors"
_LARGEST_SEED = 2**32 - 1


class Reconstructor:
    """A loaded model. Calls are independent of each other; one instance must not be called from two threads at once.

    ``device``: "auto" (CUDA where there is a GPU, else CPU), "cpu", "cuda", "cuda:1"; ``precision``: "auto" (fp32 on
    the CPU; on CUDA fp16 for the flow head, which computes so as released, and bf16 for the direct head), "fp32",
    "bf16", "fp16".

    For models with the flow head, which samples: ``seed`` of the noise, object k draws from ``seed + k - 1``;
    ``memory_gb``: what objects may take beside the weights, more of them are sampled in turn (0: no limit);
    ``offload``: the weights stay in main memory and each stage comes to the device for its turn; ``steps``: of the
    sampler; ``shortcut``: whether it takes few steps (1, 2, 4; 4 unless ``steps`` says otherwise) without guidance, for
    models trained for it; both None for what the model says; ``monocular``: estimates points where there is no depth
    (`pointmap.MonocularModel`).

    ``network`` is taken over: its weights are moved to the device and, of the flow head, turned into the precision in
    place, for a second copy may not fit. So two instances of one network must agree in both. Raises ConfigurationError
    for a setting that can't be used.
    """

    def __init__(
        self,
        network: Network | FlowNetwork,
        info: dict[str, Any],
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        memory_gb: float = 0.0,
        offload: bool = False,
        steps: int | None = None,
        shortcut: bool | None = None,
        monocular: MonocularModel | None = None,
    ) -> None:
        self.config: ModelConfig = network.config
        self.device = _device(device)
        dtype = _dtype(precision, self.device, self.config.head)
        _check_seed(seed)
        _check_monocular(monocular)
        memory = _memory(memory_gb)
        self.sampler: SamplerConfig = _sampler(self.config.flow.sampler, steps, shortcut)
        self._pipeline: DirectPipeline | FlowPipeline
        if self.config.head == "direct":
            self._pipeline = DirectPipeline(cast(Network, network), self.device, dtype)
        else:
            flow = cast(FlowNetwork, network)
            self._pipeline = FlowPipeline(flow, self.device, dtype, seed, memory, offload, self.sampler, monocular)
            if memory is not None and memory < flow.memory_per_object:
                least = math.ceil(flow.memory_per_object / 1e7) / 100
                raise ConfigurationError(
                    f"memory_gb {memory_gb:g} is too little: an object takes {least:g}; give at least as much, 0 for "
                    "no limit, or a shorter precision",
                    reason="bad_parameter",
                )
        self.info: dict[str, Any] = {
            "name": self.config.name,
            **info,
            "window_ms": self.config.preprocess.window_ms,
            "min_events": self.config.preprocess.min_events,
            "crop_size": self.config.encoder.size,
            "occupancy_resolution": OCCUPANCY_RESOLUTION,
            "parameters": sum(p.numel() for p in network.parameters()),
        }

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "nano",
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        memory_gb: float = 0.0,
        offload: bool = False,
        steps: int | None = None,
        shortcut: bool | None = None,
        monocular: MonocularModel | None = None,
    ) -> Reconstructor:
        """Loads a shipped model by name or a file by path. Raises CheckpointError, ConfigurationError."""
        flow_dtype = _dtype(precision, _device(device), "flow")  # the direct head's weights are float32
        network, info = load_checkpoint(find_weights(name_or_path), flow_dtype)
        return cls(network, info, device, precision, seed, memory_gb, offload, steps, shortcut, monocular)

    def __call__(self, observation: Observation) -> list[Reconstruction]:
        """Reconstructs every object of the mask, by ascending label.

        An object is left out if its mask is under 3 pixels wide or high or the network finds nothing solid; InputError,
        with a reason, if the observation can't be used or no object remains.
        """
        observation.validate()
        crops = object_crops(observation.mask, self.config.preprocess.crop_factor)
        if not crops:
            raise InputError("every object in the mask is under 3 pixels wide or high", reason="object_too_small")
        reconstructions = self._pipeline(observation, crops)
        if not reconstructions:
            raise InputError("the network finds nothing solid behind the mask", reason="nothing_solid")
        return reconstructions

    def warm_up(self) -> None:
        """Runs the network once on a made-up scene, with all inputs that it can take: a process's first call takes many
        times as long as later ones."""
        side = 2 * self.config.encoder.size
        blank = np.zeros((side, side, 3), np.uint8)
        mask = np.pad(np.ones((side // 2, side // 2), np.uint8), side // 4)
        K = np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]])
        crops = object_crops(mask, self.config.preprocess.crop_factor)
        takes_events = self.config.head == "direct" or self.config.fusion.anywhere
        depth = np.ones_like(mask, dtype=np.float32)
        self._pipeline.warm_up(Observation(blank, mask, blank if takes_events else None, K, depth), crops)


def find_weights(name_or_path: str | Path) -> Path:
    """A shipped model's name -> its file, else the path itself.

    Searched: the installed share folder (in a source tree its ``weights/``), then ``$EVENT_SAM3D_WEIGHTS``, if set.
    """
    name = f"event-sam3d-{name_or_path}.safetensors"
    folders = [share_folder() / "weights"]
    if os.environ.get("EVENT_SAM3D_WEIGHTS"):
        folders.append(Path(os.environ["EVENT_SAM3D_WEIGHTS"]))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = sorted({file.stem.removeprefix("event-sam3d-") for one in folders for file in one.glob(_SHIPPED)})
    kind = "model file" if path.suffix == ".safetensors" or path.name != str(name_or_path) else "model"
    raise CheckpointError(
        f"there is no {kind} {str(name_or_path)!r}: give the path of a .safetensors file or a name "
        f"({', '.join(known) or 'none is installed'}); EVENT_SAM3D_WEIGHTS may name a folder with more models",
        reason="no_checkpoint",
    )


def share_folder() -> Path:
    """The folder that holds weights/, config/, launch/ and data/: the source tree, or the installed share folder."""
    source = Path(__file__).resolve().parent.parent
    if (source / "weights").is_dir():
        return source
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) + [sysconfig.get_path("data")]
    for prefix in prefixes:
        share = Path(prefix) / "share" / "event_sam3d_ros"
        if prefix and (share / "weights").is_dir():
            return share
    return source


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigurationError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:N", reason="bad_device")
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigurationError(
            f"device {name!r} was asked for, but torch finds {count} CUDA GPUs; give auto or cpu", reason="bad_device"
        )
    return device


def _dtype(precision: str, device: torch.device, head: str) -> torch.dtype:
    if precision == "auto":
        on_gpu = torch.float16 if head == "flow" else torch.bfloat16
        return on_gpu if device.type == "cuda" else torch.float32
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision {precision!r} is unknown; give auto, {', '.join(PRECISIONS)}", reason="bad_precision"
        )
    return PRECISIONS[precision]


def _memory(memory_gb: float) -> int | None:
    """Bytes, None for no limit."""
    if isinstance(memory_gb, bool) or not isinstance(memory_gb, Real) or not 0 <= memory_gb < math.inf:
        raise ConfigurationError(
            f"memory_gb can't be {memory_gb!r}: give a number of gigabytes, 0 for no limit", reason="bad_parameter"
        )
    return math.ceil(memory_gb * 1e9) if memory_gb else None


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed <= _LARGEST_SEED:
        raise ConfigurationError(
            f"seed can't be {seed!r}: give a whole number from 0 to {_LARGEST_SEED}", reason="bad_parameter"
        )


def _check_monocular(model: MonocularModel | None) -> None:
    if model is not None and not (callable(model) and isinstance(getattr(model, "metric", None), bool)):
        raise ConfigurationError(
            f"monocular is {type(model).__name__}: give an object that can be called with (image, K) and whose "
            "`metric` is True or False (docs/sam3d-weights.md)",
            reason="bad_parameter",
        )


def _sampler(config: SamplerConfig, steps: int | None, shortcut: bool | None) -> SamplerConfig:
    """The model's sampler with what the user changes of it."""
    if shortcut is not None and not isinstance(shortcut, bool):
        raise ConfigurationError(f"shortcut can't be {shortcut!r}: give True or False", reason="bad_parameter")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1):
        raise ConfigurationError(
            f"steps can't be {steps!r}: give a whole number of at least 1, None for the model's", reason="bad_parameter"
        )
    if steps is None:
        steps = SHORTCUT_STEPS if shortcut and not config.shortcut else config.steps
    return replace(config, steps=int(steps), shortcut=config.shortcut if shortcut is None else shortcut)
