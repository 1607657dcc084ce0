"""Model files: safetensors with the configuration and the model's identity in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict, to_dict
from event_sam3d_ros.sam3d.network import FlowNetwork, Network, build_empty

FORMAT = "event_sam3d_ros/1"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What weights are stored in and computed in, by the names that users give."""
STORED_TYPES = tuple(PRECISIONS.values())

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
        unfinished.touch()
        mode = unfinished.stat().st_mode  # as the umask has it; the library's files are readable by their owner alone
        save_file(_apart(state), str(unfinished), metadata=metadata)
        unfinished.chmod(mode)
        unfinished.replace(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be written: {error}", reason="checkpoint_not_written") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with copies of tensors whose memory another one has: a file can't hold one under two names."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return apart


class Header(NamedTuple):
    """What a model file says of itself. ``info``: tag, version, licence, ...; ``one_encoder``: images and masks have
    the same, and the file has it once."""

    config: ModelConfig
    info: dict[str, str]
    one_encoder: bool


def read_header(path: Path) -> Header:
    """Raises CheckpointError if the file is missing, damaged, or not made by this package."""
    with _opened(path) as file:
        metadata, names = file.metadata() or {}, list(file.keys())
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not made for this package: its format is {metadata.get('format')!r}, expected {FORMAT!r}",
            reason="foreign_checkpoint",
        )
    try:
        config = from_dict(ModelConfig, json.loads(metadata["config"]), where=f"configuration in {path}")
    except (KeyError, ValueError, ConfigurationError) as error:
        raise CheckpointError(f"{path} holds no usable configuration: {error}", reason="foreign_checkpoint") from error
    info = {key: value for key, value in metadata.items() if key not in ("format", "config")}
    return Header(config, info, config.head == "flow" and not any(name.startswith(MASK_ENCODER) for name in names))


def load_checkpoint(path: str | Path, dtype: torch.dtype | None = None) -> tuple[Network | FlowNetwork, dict[str, Any]]:
    """Reads a model file -> the network (evaluation mode, CPU) and its identity (header fields and ``sha256``).

    ``dtype``: of a network with the flow head, None for the type that is stored; one with the direct head is float32.
    The weights are in memory once, and one tensor of them twice.

    Every tensor is checked by name, shape and type against the network that the header's configuration builds. Raises
    CheckpointError if the file is missing, damaged, or not made by this package.
    """
    path = Path(path)
    config, info, one_encoder = read_header(path)
    try:
        network = build_empty(config)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} holds no usable configuration: {error}", reason="foreign_checkpoint") from error
    state = read_safetensors(path, torch.float32 if config.head == "direct" else dtype)
    _check(path, state, network, one_encoder)
    if one_encoder:
        image_encoder = {name: tensor for name, tensor in state.items() if name.startswith(IMAGE_ENCODER)}
        state |= {name.replace(IMAGE_ENCODER, MASK_ENCODER, 1): tensor for name, tensor in image_encoder.items()}
    network.load_state_dict(state, assign=True)
    return network.eval(), {**info, "sha256": file_sha256(path)}


def _check(path: Path, state: Mapping[str, Tensor], network: Network | FlowNetwork, one_encoder: bool) -> None:
    expected = network.state_dict()
    if one_encoder:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(MASK_ENCODER)}
    problems = tensor_problems(state, expected)
    types = sorted({type_name(tensor.dtype) for tensor in state.values()})
    if len(types) > 1:
        problems.append(f"several types: {', '.join(types)}")
    if problems:
        raise CheckpointError(f"{path} does not fit the network: {'; '.join(problems)}", reason="wrong_checkpoint")


def read_safetensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file, those of `PRECISIONS` as ``dtype`` (None: as they are). Raises CheckpointError if it is
    missing or damaged, or if a number is too large for ``dtype``.

    The copies begin where torch lets tensors begin. As they lie in the file they begin anywhere, and some kernels of
    the CPU then add in another order: results would depend on the length of the header.
    """
    with _opened(path) as file:
        return {name: _read(file, path, name, dtype) for name in file.keys()}


def _read(file: Any, path: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    tensor = file.get_tensor(name)
    if dtype in (None, tensor.dtype) or tensor.dtype not in STORED_TYPES:
        return tensor.clone()
    return converted(f"{name} of {path}", tensor, dtype)


def converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` as ``dtype``; CheckpointError, with its ``name``, where that has no room for its numbers."""
    result = tensor.to(dtype)
    if not result.isfinite().all() and tensor.isfinite().all():
        raise CheckpointError(f"{name} is too large for {type_name(dtype)}: use bf16", reason="wrong_checkpoint")
    return result


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, for what reads it to turn into CheckpointError what the library finds wrong with it."""
    if not path.is_file():
        raise CheckpointError(f"no model file at {path}; give the path of a .safetensors file", reason="no_checkpoint")
    try:
        with safe_open(str(path), framework="pt", backend="pread") as file:
            yield file
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
