"""What a model takes, from its configuration alone: parameters, memory, arithmetic.

Nothing is allocated and nothing computed: the network is built and run on the meta device, so that the numbers are
those of the code and not of formulas beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import PRECISIONS, read_header
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.flops import count_flops
from event_sam3d_ros.sam3d.flow import TIME_SCALE, draw_noise, schedule, seeded_generators
from event_sam3d_ros.sam3d.geometry_flow import SHAPE
from event_sam3d_ros.sam3d.memory import peak_memory
from event_sam3d_ros.sam3d.network import FlowNetwork, Network, build_empty
from event_sam3d_ros.sam3d.structure_vae import tokens_to_grid

COLUMNS = {"fp32": "fp32", "fp16": "16 bits"}
"""Of the table for people, by precision: bf16 takes what fp16 takes."""


@dataclass(frozen=True)
class StageInfo:
    """One stage of a network, for one object. By precision: ``weight_bytes``, and ``working_bytes``, what it makes
    beside the weights where that is most; of the direct head in fp32 alone, which its weights stay in whatever is
    computed in. ``events`` is what event images add to ``condition``."""

    name: str
    parameters: int
    tensors: int
    weight_bytes: dict[str, int]
    working_bytes: dict[str, int]
    flops: int


@dataclass(frozen=True)
class SamplingInfo:
    """The arithmetic of sampling one object. ``evaluations`` of the flow: one for each of ``steps``, one more for each
    that is guided; ``flops_without_savings``: keys and values made and attended to in every one."""

    steps: int
    guided_steps: int
    evaluations: int
    keys_and_values_flops: int
    evaluation_flops: int
    guided_step_flops: int
    flops: int
    flops_without_savings: int


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes: ``weights`` of all stages; ``object``: what each object that is worked on at once adds; ``total``: with
    one object; ``offload``: the same where the device has one stage at a time, None for the direct head, which has no
    offload. Without the library's own: a CUDA context takes some hundred MB."""

    weights: int
    object: int
    total: int
    offload: int | None

    def sentence(self) -> str:
        offload = "" if self.offload is None else f"; {_short(self.offload, 'B')} with one stage at a time"
        return f"{_short(self.total, 'B')} for one object, {_short(self.object, 'B')} for each further one{offload}"


@dataclass(frozen=True)
class ModelInfo:
    """A whole model. ``parameters_with_one_encoder``: as many remain if images and masks turn out to have the same
    encoder, which is recognised when weights are loaded; ``condition_tokens`` and ``sampling``: of the flow head."""

    name: str
    head: str
    parameters: int
    parameters_with_one_encoder: int
    tensors: int
    flops: int
    condition_tokens: int | None
    stages: list[StageInfo]
    sampling: SamplingInfo | None
    memory: dict[str, MemoryInfo]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        one_encoder = ""
        if self.parameters_with_one_encoder < self.parameters:
            count = _short(self.parameters_with_one_encoder)
            one_encoder = f" ({count} where images and masks have one encoder)"
        columns = {name: column for name, column in COLUMNS.items() if name in self.memory}
        sizes = "".join(
            f"{f'{what} {first}':>14}" + "".join(f"{column:>10}" for column in others)
            for what in ("weights", "working")
            for first, *others in [columns.values()]
        )
        lines = [
            f"{self.name}: {self.head} head, {_short(self.parameters)} parameters{one_encoder}, {self.tensors} tensors",
            "",
            f"{'stage':<10}{'parameters':>11}{'tensors':>9}{sizes}{'FLOPs':>10}",
        ]
        for stage in self.stages:
            sizes = "".join(
                f"{_short(size[name], 'B'):>{14 if name == 'fp32' else 10}}"
                for size in (stage.weight_bytes, stage.working_bytes)
                for name in columns
            )
            counts = f"{stage.name:<10}{_short(stage.parameters):>11}{stage.tensors:>9}"
            lines.append(f"{counts}{sizes}{_short(stage.flops):>10}")
        lines += ["", *(f"FLOPs of one object: {_short(self.flops)}", *self._sampling_lines()), ""]
        lines += [f"memory in {column}: {self.memory[name].sentence()}" for name, column in columns.items()]
        if self.head == "direct":
            lines.append("bf16 and fp16 are computed by autocast: the weights stay in fp32")
        return lines

    def _sampling_lines(self) -> list[str]:
        if self.sampling is None:
            return []
        s = self.sampling
        return [
            f"condition tokens: {self.condition_tokens}",
            f"sampling: {s.steps} steps, {s.guided_steps} of them guided, {s.evaluations} evaluations",
            f"  keys and values of the condition, once: {_short(s.keys_and_values_flops)}",
            f"  a step: {_short(s.evaluation_flops)}; a guided step: {_short(s.guided_step_flops)}",
            f"  in all: {_short(s.flops)}; without savings: {_short(s.flops_without_savings)}",
        ]


def find_model(name_or_path: str | Path, folder: Path) -> tuple[ModelConfig, bool]:
    """The configuration of a model, and whether its file says that images and masks have one encoder.

    ``name_or_path``: one of the YAML files in ``folder`` by its name, another YAML file, or a model file. Raises
    ConfigurationError or CheckpointError.
    """
    path = Path(name_or_path).expanduser()
    named = folder / f"{name_or_path}.yaml"
    if not path.is_file() and named.is_file():
        path = named
    if path.suffix == ".safetensors":
        header = read_header(path)
        return header.config, header.one_encoder
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigurationError(
            f"there is no model {str(name_or_path)!r}: give a name ({known}), a YAML file or a .safetensors file",
            reason="unknown_model",
        )
    return ModelConfig.from_yaml(path), False


def describe(config: ModelConfig, one_encoder: bool = False) -> ModelInfo:
    """Builds and runs the network of ``config`` on the meta device. Raises ConfigurationError where nothing can be
    built of it."""
    network = build_empty(config).eval()
    separate = _count(network)[0]
    shared = separate
    if isinstance(network, FlowNetwork):
        shared -= _count(network.condition.fuser.image_encoder)[0]
        if one_encoder:
            network.condition.fuser.share_encoder()
    sampling = _sampling(network) if isinstance(network, FlowNetwork) else None
    stages = _stages(network, sampling)
    parameters, tensors, _ = _count(network)
    return ModelInfo(
        name=config.name,
        head=config.head,
        parameters=parameters,
        parameters_with_one_encoder=shared,
        tensors=tensors,
        flops=sum(stage.flops for stage in stages),
        condition_tokens=network.condition.fuser.tokens if isinstance(network, FlowNetwork) else None,
        stages=stages,
        sampling=sampling,
        memory={name: _memory(network.to(dtype), stages, name) for name, dtype in _precisions(network).items()},
    )


def example_views(config: ModelConfig, objects: int, events: bool, device: torch.device | str) -> dict[str, Tensor]:
    """Random inputs of the flow head in the shapes that the preprocessing gives."""
    size = config.encoder.size
    shapes = dict.fromkeys(("image", "pointmap", "rgb_pointmap"), (objects, 3))
    shapes |= {"rgb_image": (1, 3), "mask": (objects, 1), "rgb_image_mask": (objects, 1)}
    if events:
        shapes |= {"event_image": (objects, 3), "rgb_event_image": (1, 3)}
    return {name: torch.rand(*shape, size, size, device=device) for name, shape in shapes.items()}


class _Part(NamedTuple):
    """A stage while it is measured: its weights, and how it is run on one object."""

    name: str
    modules: Sequence[nn.Module]
    run: Callable[[], Any]


def _direct_parts(network: Network) -> list[_Part]:
    condition = network.condition
    size = network.config.encoder.image_size
    image, mask = (torch.empty(1, channels, size, size, device="meta") for channels in (3, 1))
    features = condition(image, None, mask)
    return [
        _Part("condition", [condition.rgb_encoder], lambda: condition(image, None, mask)),
        _Part("events", [condition.event_encoder, condition.fusion], lambda: condition(image, image, mask)),
        _Part("geometry", [network.geometry], lambda: network.geometry(features)),
    ]


def _flow_parts(network: FlowNetwork) -> list[_Part]:
    condition, flow, decoder = network.condition, network.flow, network.decoder
    plain, fused = (example_views(network.config, 1, events, "meta") for events in (False, True))
    tokens = torch.empty(1, condition.fuser.tokens, condition.fuser.width, device="meta", dtype=flow.dtype)
    sampler = SamplerConfig(steps=1)  # guided, as those that take most
    grid = tokens_to_grid(torch.empty(1, *flow.latent_shapes[SHAPE], device="meta", dtype=flow.dtype))
    parts = [_Part("condition", [condition.fuser], lambda: condition(plain))]
    if condition.event_encoder is not None and condition.fusion is not None:
        parts.append(_Part("events", [condition.event_encoder, condition.fusion], lambda: condition(fused)))
    return [
        *parts,
        _Part("flow", [flow], lambda: flow.sample(tokens, seeded_generators([0]), sampler)),
        _Part("decoder", [decoder], lambda: decoder(grid)),
    ]


@torch.inference_mode()
def _stages(network: Network | FlowNetwork, sampling: SamplingInfo | None) -> list[StageInfo]:
    working: dict[str, dict[int, int]] = {}  # by the bytes of a number: bf16 takes what fp16 takes
    flops: dict[str, int] = {}
    sizes = {precision: dtype.itemsize for precision, dtype in _precisions(network).items()}
    for dtype in {dtype.itemsize: dtype for dtype in _precisions(network).values()}.values():
        network.to(dtype)
        parts = _flow_parts(network) if isinstance(network, FlowNetwork) else _direct_parts(network)
        for part in parts:
            run = partial(_keep_peak, working.setdefault(part.name, {}), dtype.itemsize, part.run)
            if dtype is torch.float32 and not (sampling and part.name == "flow"):
                flops[part.name] = count_flops(run)  # in the same pass
            else:
                run()
    if "events" in flops:  # was counted with the condition stage, which it is part of
        flops["events"] -= flops["condition"]
    if sampling is not None:
        flops["flow"] = sampling.flops
    stages = []
    for part in parts:
        parameters, tensors, values = _count(*part.modules)
        weights = {precision: values * size for precision, size in sizes.items()}
        peaks = {precision: working[part.name][size] for precision, size in sizes.items()}
        stages.append(StageInfo(part.name, parameters, tensors, weights, peaks, flops[part.name]))
    return stages


def _precisions(network: Network | FlowNetwork) -> dict[str, torch.dtype]:
    """What the network's weights can be in: of the direct head float32."""
    return PRECISIONS if isinstance(network, FlowNetwork) else {"fp32": torch.float32}


def _keep_peak(peaks: dict[int, int], key: int, run: Callable[[], Any]) -> None:
    peaks[key] = peak_memory(run)


@torch.inference_mode()
def _sampling(network: FlowNetwork) -> SamplingInfo:
    """One evaluation of each kind is counted, and taken for all of its kind."""
    flow, config = network.flow, network.config.flow.sampler
    tokens = torch.empty(1, network.condition.fuser.tokens, flow.config.condition_width, device="meta")
    condition, time = flow.condition(tokens), torch.zeros(1, device="meta")
    latents = draw_noise(flow.latent_shapes, seeded_generators([0]), "meta")
    keys_and_values = count_flops(lambda: flow.condition(tokens))
    plain, guided = (count_flops(partial(flow, latents, time, time, condition, pair)) for pair in (False, True))
    guided_steps = sum(config.guided((TIME_SCALE * schedule(config.steps, config.rescale))[:-1].tolist()))
    evaluations = config.steps + guided_steps
    return SamplingInfo(
        steps=config.steps,
        guided_steps=guided_steps,
        evaluations=evaluations,
        keys_and_values_flops=keys_and_values,
        evaluation_flops=plain,
        guided_step_flops=guided,
        flops=keys_and_values + (config.steps - guided_steps) * plain + guided_steps * guided,
        flops_without_savings=evaluations * (keys_and_values + plain),
    )


def _memory(network: Network | FlowNetwork, stages: list[StageInfo], precision: str) -> MemoryInfo:
    """``network``: in that precision."""
    weights = {stage.name: stage.weight_bytes[precision] for stage in stages}
    working = {stage.name: stage.working_bytes[precision] for stage in stages}
    total = sum(weights.values())
    if not isinstance(network, FlowNetwork):
        each = max(working.values())
        return MemoryInfo(total, each, total + each, None)
    each = network.memory_per_object
    placed = max(weights["condition"] + weights.get("events", 0), weights["flow"], weights["decoder"])
    return MemoryInfo(total, each, total + each, placed + each)


def _count(*modules: nn.Module) -> tuple[int, int, int]:
    """Parameters, tensors, and values in them (fixed ones included); what modules share is counted once."""
    tensors = {id(tensor): tensor for module in modules for tensor in module.state_dict(keep_vars=True).values()}
    parameters = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    return parameters, len(tensors), sum(tensor.numel() for tensor in tensors.values())


def _short(value: int, unit: str = "") -> str:
    """Three digits and a letter: 960 M, 1.73 GB."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            scaled = value / scale
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {letter}{unit}"
    return f"{value} {unit}".rstrip()
