"""The released SAM 3D weights -> one model file of this package.

The official folder ``checkpoints/hf`` (facebookresearch/sam-3d-objects) holds, for the geometry stage, two pickles of
tensors: ``ss_generator.ckpt`` with the condition stage and the flow, ``ss_decoder.ckpt`` with the structure decoder.
Both are mapped; nothing in them is executed; and every tensor is checked against the network of the
released size before anything is written.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import (
    IMAGE_ENCODER,
    MASK_ENCODER,
    converted,
    file_sha256,
    read_safetensors,
    tensor_problems,
    type_name,
    write_state,
)
from event_sam3d_ros.sam3d.config import FusionConfig, ModelConfig
from event_sam3d_ros.sam3d.embedder_fuser import same_tensors
from event_sam3d_ros.sam3d.event_fusion import EventFusion
from event_sam3d_ros.sam3d.network import build_empty

ENDINGS = (".ckpt", ".safetensors")
FOLDERS = ("", "hf", "checkpoints/hf", "checkpoints")
"""Where the files may lie below the folder that is given: itself, the code's repository, the model's repository."""

NO_FUSION = FusionConfig(stems=(), blocks=())
EVENT_ENCODER = "condition.event_encoder."
EVENT_FUSION = "condition.fusion."

LFS_POINTER = b"version https://git-lfs."
"""What a file begins with that was cloned without Git LFS."""


@dataclass(frozen=True)
class SourceFile:
    """One official file. ``parts``: its prefix -> ours, of the tensors that are used; ``unused``: prefix of tensors
    that are left out, empty if there are none."""

    name: str
    parts: dict[str, str]
    unused: str = ""


SOURCES = (
    SourceFile(
        "ss_generator",
        {
            "_base_models.condition_embedder.": "condition.fuser.",
            "_base_models.generator.reverse_fn.backbone.": "flow.",
        },
        unused="_base_models.decoder.",  # a copy of ss_decoder's
    ),
    SourceFile("ss_decoder", {"": "decoder."}),
)


@dataclass(frozen=True)
class Imported:
    """What an import wrote. ``values``: numbers in the file; ``encoders_shared``: image and mask encoder are equal and
    stored once; ``left_out``: tensors of the sources without use; ``not_used``: files without use so far."""

    path: Path
    values: int
    dtype: torch.dtype
    encoders_shared: bool
    left_out: int
    not_used: list[str]

    def lines(self) -> list[str]:
        """The same in words."""
        size = f"{self.values / 1e6:.1f} million values as {type_name(self.dtype)}"
        lines = [f"{self.path}: {size}, {self.path.stat().st_size / 1e9:.2f} GB"]
        same = "are equal and stored once" if self.encoders_shared else "differ, both are stored"
        lines.append(f"the encoders of images and masks {same}")
        if self.left_out:
            lines.append(f"left out: {self.left_out} tensors of a second copy of the decoder")
        if self.not_used:
            lines.append(f"not used yet: {', '.join(self.not_used)}")
        return lines


def import_released(
    folder: str | Path,
    out: str | Path,
    config: ModelConfig,
    dtype: torch.dtype | None = None,
    events: bool = False,
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Imported:
    """Writes the weights in ``folder`` to the model file ``out``.

    ``config``: of the network that they belong to, "full" for the released ones; ``dtype``: None for the widest type
    that the sources have, which loses nothing; ``events``: with the event branch that the configuration describes, new:
    a copy of the image encoder behind closed gates; ``force``: overwrite ``out``; ``report`` is told what is done.

    Takes memory for the largest source (a mapped ``.ckpt``, which the system can take back) and, where its type
    differs, the output. Raises CheckpointError for files that are missing, damaged or do not fit, with all that does
    not, and ConfigurationError for a configuration with another head.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    if config.head != "flow":
        raise ConfigurationError(f"configuration {config.name!r} has the head {config.head!r}; SAM 3D's is 'flow'")
    if events and not config.fusion.anywhere:
        raise ConfigurationError(f"configuration {config.name!r} has no fusion of events to import with")
    if not events:
        config = replace(config, fusion=NO_FUSION)
    if not out.parent.is_dir():
        raise CheckpointError(f"{out} can't be written: there is no folder {out.parent}", reason="no_output_folder")
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already: choose another name, or --force", reason="output_exists")
    paths = find_sources(folder)
    if out.exists() and any(out.samefile(path) for path in paths):
        raise CheckpointError(f"{out} is read, it can't be written: choose another name", reason="output_exists")

    state, left_out = _read_all(paths, config, report)
    encoders_shared = same_tensors(_part(state, IMAGE_ENCODER), _part(state, MASK_ENCODER))
    if encoders_shared:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(MASK_ENCODER)}
    if events:
        state |= event_branch(state, config)
    dtype = dtype or reduce(torch.promote_types, {tensor.dtype for tensor in state.values()})
    report(f"writing {out} as {type_name(dtype)}")
    state = {name: converted(name, tensor, dtype).contiguous() for name, tensor in state.items()}
    hashes = ", ".join(f"{path.name} sha256 {file_sha256(path)}" for path in paths)
    info = {"name": "sam3d", "tag": config.name, "version": __version__, "licence": "SAM License", "sources": hashes}
    write_state(out, state, config, info)
    others = {path for path in paths[0].parent.iterdir() if path.suffix in (*ENDINGS, ".pt")}
    not_used = sorted(path.name for path in others - {*paths, out})
    return Imported(out, sum(x.numel() for x in state.values()), dtype, encoders_shared, left_out, not_used)


def find_sources(folder: Path) -> list[Path]:
    """The files of `SOURCES`, in their order. Raises CheckpointError if there is no folder or not all of them."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give that of the official files", reason="no_checkpoint")
    for place in FOLDERS:
        found = [_find(folder / place, source.name) for source in SOURCES]
        if any(found):
            break
    missing = [f"{source.name}.ckpt" for source, path in zip(SOURCES, found, strict=True) if path is None]
    if missing:
        where = folder / place if any(found) else f"{folder} or {', '.join(FOLDERS[1:])} below it"
        raise CheckpointError(
            f"no {' and no '.join(missing)} in {where}; docs/sam3d-weights.md says where the official files come from",
            reason="no_checkpoint",
        )
    return [path for path in found if path is not None]


def _find(folder: Path, name: str) -> Path | None:
    return next((path for ending in ENDINGS if (path := folder / (name + ending)).is_file()), None)


def _read_all(paths: list[Path], config: ModelConfig, report: Callable[[str], None]) -> tuple[dict[str, Tensor], int]:
    """The used tensors of all files under our names, and how many are left out; checked, what is wrong in one error."""
    expected = build_empty(replace(config, fusion=NO_FUSION)).state_dict()
    state: dict[str, Tensor] = {}
    problems = []
    left_out = 0
    for source, path in zip(SOURCES, paths, strict=True):
        report(f"checking {path}, {path.stat().st_size / 1e9:.2f} GB")
        tensors = read_source(path)
        used = {name: x for name, x in tensors.items() if not (source.unused and name.startswith(source.unused))}
        left_out += len(tensors) - len(used)
        wanted = {
            theirs + rest: x for theirs, ours in source.parts.items() for rest, x in _part(expected, ours).items()
        }
        problems += [f"{path.name}: {problem}" for problem in tensor_problems(used, wanted)]
        state |= {ours + rest: x for theirs, ours in source.parts.items() for rest, x in _part(used, theirs).items()}
    if problems:
        raise CheckpointError(
            f"{paths[0].parent} does not fit the configuration {config.name!r}: {'; '.join(problems)}",
            reason="wrong_checkpoint",
        )
    return state, left_out


def read_source(path: Path) -> dict[str, Tensor]:
    """The tensors of an official file by their official names. Raises CheckpointError."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path} is a pointer of Git LFS, not the weights themselves: fetch them with `git lfs pull`",
            reason="corrupt_checkpoint",
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not start.startswith(b"PK"):
        raise CheckpointError(f"{path} is not a file of torch.save; download it again", reason="corrupt_checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds something else than tensors, which could be a program: it is not loaded. Fetch the file "
            "from the official place",
            reason="unsafe_checkpoint",
        ) from error
    except Exception as error:  # a damaged pickle makes torch raise errors of any kind
        why = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is not readable ({why}); it may be truncated: copy or download it again",
            reason="corrupt_checkpoint",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in state.items()):
        raise CheckpointError(f"{path} holds no state dict: tensors by name", reason="foreign_checkpoint")
    without = [name for name, x in state.items() if x.is_meta or x.layout is not torch.strided]
    if without:
        raise CheckpointError(
            f"{path} holds {', '.join(without[:5])} sparse or without their numbers: save them as plain tensors",
            reason="foreign_checkpoint",
        )
    return state


def event_branch(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors of a new event branch, always the same: the encoder is that of images, the fusion's gates are closed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusion = EventFusion(config.encoder, config.fusion, config.flow.transformer.condition_width)
    encoder = _part(state, IMAGE_ENCODER + "backbone.")
    branch = {EVENT_ENCODER + name: tensor for name, tensor in encoder.items()}
    return branch | {EVENT_FUSION + name: tensor for name, tensor in fusion.state_dict().items()}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
