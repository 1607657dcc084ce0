"""The one call that everybody uses: `Observation` in, `Reconstruction`s out."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from event_sam3d_ros.direct_pipeline import DirectPipeline
from event_sam3d_ros.errors import CheckpointError, ConfigurationError, InputError
from event_sam3d_ros.flow_pipeline import FlowPipeline
from event_sam3d_ros.preprocess import Observation, object_crops
from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import FlowNetwork, Network
from event_sam3d_ros.sam3d.pointmap import MonocularModel

__all__ = ["Reconstruction", "Reconstructor", "find_weights", "share_folder"]

_SHIPPED = "event-sam3d-*.safetensors"


class Reconstructor:
    """A loaded model. Calls are independent of each other; one instance must not be called from two threads at once.

    ``device``: "auto" (CUDA where there is a GPU, else CPU), "cpu", "cuda", "cuda:1"; ``precision``: "auto" (bf16 on
    CUDA, fp32 on the CPU), "fp32", "bf16", "fp16".

    For models with the flow head, which samples: ``seed`` of every object's noise; ``memory_gb``: what objects may take
    beside the weights, more of them are sampled in turn (0: no limit); ``offload``: the weights stay in main memory and
    each stage comes to the device for its turn; ``monocular``: estimates points where there is no depth
    (`pointmap.MonocularModel`).
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
        monocular: MonocularModel | None = None,
    ) -> None:
        self.device = _device(device)
        dtype = _dtype(precision, self.device)
        self.config: ModelConfig = network.config
        self._pipeline: DirectPipeline | FlowPipeline
        if self.config.head == "direct":
            self._pipeline = DirectPipeline(cast(Network, network), self.device, dtype)
        else:
            memory = int(memory_gb * 1e9) or None
            flow = cast(FlowNetwork, network)
            self._pipeline = FlowPipeline(flow, self.device, dtype, seed, memory, offload, monocular)
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
        monocular: MonocularModel | None = None,
    ) -> Reconstructor:
        """Loads a shipped model by name or a file by path. Raises CheckpointError, ConfigurationError."""
        network, info = load_checkpoint(find_weights(name_or_path))
        return cls(network, info, device, precision, seed, memory_gb, offload, monocular)

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
        """Runs the network once on a made-up scene: a process's first call takes many times as long as later ones."""
        side = 2 * self.config.encoder.size
        blank = np.zeros((side, side, 3), np.uint8)
        mask = np.pad(np.ones((side // 2, side // 2), np.uint8), side // 4)
        K = np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]])
        crops = object_crops(mask, self.config.preprocess.crop_factor)
        self._pipeline.warm_up(Observation(blank, mask, blank, K), crops)


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


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision not in known:
        raise ConfigurationError(
            f"precision {precision!r} is unknown; give auto, {', '.join(known)}", reason="bad_precision"
        )
    return known[precision]
