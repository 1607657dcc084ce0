"""Model files: safetensors with the configuration and the model's identity in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict, to_dict
from event_sam3d_ros.sam3d.network import FlowNetwork, Network, build

FORMAT = "event_sam3d_ros/1"
STORED_TYPES = (torch.float32, torch.bfloat16, torch.float16)

# Where a flow network's encoders are one (`EmbedderFuser`), the mask encoder's tensors are left out of the file.
IMAGE_ENCODER = "condition.fuser.module_list.0."
MASK_ENCODER = "condition.fuser.module_list.1."


def save_checkpoint(
    path: str | Path, network: Network | FlowNetwork, info: dict[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Writes the network's weights as ``dtype``; ``info`` (tag, version, licence, ...) goes into the header."""
    shared = isinstance(network, FlowNetwork) and network.condition.fuser.shares_encoder
    state = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
        if not (shared and name.startswith(MASK_ENCODER))
    }
    write_state(path, state, network.config, info)


def write_state(path: str | Path, state: dict[str, Tensor], config: ModelConfig, info: dict[str, str]) -> None:
    """Writes the tensors of a network with ``config`` whole or not at all; a file that is in use keeps its content.

    Raises CheckpointError where it can't be written.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    metadata = {"format": FORMAT, "config": json.dumps(to_dict(config)), **info}
    try:
        save_file(state, str(unfinished), metadata=metadata)
        unfinished.replace(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be written: {error}", reason="checkpoint_not_written") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> tuple[Network | FlowNetwork, dict[str, Any]]:
    """Reads a model file -> the network (evaluation mode, CPU) and its identity (header fields and ``sha256``).

    A network with the direct head is float32; one with the flow head has the type that is stored. The weights are in
    memory once, and one tensor of them twice.

    Every tensor is checked by name, shape and type against the network that the header's configuration builds. Raises
    CheckpointError if the file is missing, damaged, or not made by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no model file at {path}; give the path of a .safetensors file", reason="no_checkpoint")
    state, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not made for this package: its format is {metadata.get('format')!r}, expected {FORMAT!r}",
            reason="foreign_checkpoint",
        )
    network = _build(path, metadata)
    shared = network.config.head == "flow" and not any(name.startswith(MASK_ENCODER) for name in state)
    _check(path, state, network, shared)
    if network.config.head == "direct":
        state = {name: tensor.float() for name, tensor in state.items()}
    if shared:
        image_encoder = {name: tensor for name, tensor in state.items() if name.startswith(IMAGE_ENCODER)}
        state |= {name.replace(IMAGE_ENCODER, MASK_ENCODER, 1): tensor for name, tensor in image_encoder.items()}
    network.load_state_dict(state, assign=True)
    info = {key: value for key, value in metadata.items() if key not in ("format", "config")}
    return network.eval(), {**info, "sha256": file_sha256(path)}


def _build(path: Path, metadata: Mapping[str, str]) -> Network | FlowNetwork:
    """The network that the header describes, on the meta device: without memory for weights that the file has."""
    try:
        config = from_dict(ModelConfig, json.loads(metadata["config"]), where=f"configuration in {path}")
        with torch.device("meta"):
            return build(config)
    except (LookupError, ValueError, ArithmeticError, RuntimeError, ConfigurationError) as error:
        raise CheckpointError(f"{path} holds no usable configuration: {error}", reason="foreign_checkpoint") from error


def _check(path: Path, state: Mapping[str, Tensor], network: Network | FlowNetwork, shared: bool) -> None:
    expected = network.state_dict()
    if shared:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(MASK_ENCODER)}
    problems = tensor_problems(state, expected)
    types = sorted({type_name(tensor.dtype) for tensor in state.values()})
    if network.config.head == "flow" and len(types) > 1:
        problems.append(f"several types: {', '.join(types)}")
    if problems:
        raise CheckpointError(f"{path} does not fit the network: {'; '.join(problems)}", reason="wrong_checkpoint")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header's texts. Raises CheckpointError if the file is damaged.

    The copies begin where torch lets tensors begin. As they lie in the file they begin anywhere, and some kernels of
    the CPU then add in another order: results would depend on the length of the header.
    """
    try:
        with safe_open(str(path), framework="pt", backend="pread") as file:
            names = file.keys()
            return {name: file.get_tensor(name).clone() for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: copy or download it again",
            reason="corrupt_checkpoint",
        ) from error


def tensor_problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What tells tensors from the expected ones: names, shapes, types that nothing computes in, NaN and inf. Values of
    ``expected`` are not looked at, so they may be on the meta device."""
    both = [name for name in expected if name in found]
    usable = [name for name in both if found[name].dtype in STORED_TYPES]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "wrong shape": [
            f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        "wrong type": [
            f"{name} is {type_name(found[name].dtype)}" for name in both if found[name].dtype not in STORED_TYPES
        ],
        "NaN or inf": [name for name in usable if not torch.isfinite(found[name]).all()],
    }
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Collection[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(list(names)[:shown]) + more


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
