"""Model files: safetensors with the configuration and the model's identity in the header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict, to_dict
from event_sam3d_ros.sam3d.network import Network

FORMAT = "event_sam3d_ros/1"


def save_checkpoint(
    path: str | Path, network: Network, info: dict[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Writes the network's weights as ``dtype``; ``info`` (tag, version, licence, ...) goes into the header."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(to_dict(network.config)), **info}
    save_file(state, str(path), metadata=metadata)


def load_checkpoint(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """Reads a model file -> the network (float32, evaluation mode, CPU) and its identity (header fields and
    ``sha256``).

    Every tensor is checked by name and shape against the network that the header's configuration builds. Raises
    CheckpointError if the file is missing, damaged, or not made by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no model file at {path}; give the path of a .safetensors file", reason="no_checkpoint")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: copy or download it again",
            reason="corrupt_checkpoint",
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not made for this package: its format is {metadata.get('format')!r}, expected {FORMAT!r}",
            reason="foreign_checkpoint",
        )
    try:
        config = from_dict(ModelConfig, json.loads(metadata["config"]), where=f"configuration in {path}")
    except (KeyError, json.JSONDecodeError, ConfigurationError) as error:
        raise CheckpointError(f"{path} holds no usable configuration: {error}", reason="foreign_checkpoint") from error
    network = Network(config)
    _check_tensors(path, state, network)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    info = {key: value for key, value in metadata.items() if key not in ("format", "config")}
    return network.eval(), {**info, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _check_tensors(path: Path, state: dict[str, torch.Tensor], network: Network) -> None:
    expected = network.state_dict()
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"extra {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [f"{name} holds NaN or inf" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{path} does not fit the network: {listed}", reason="wrong_checkpoint")
