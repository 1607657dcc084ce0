"""Time and memory of each stage of the flow head at random weights.

    python benchmarks/geometry.py [--model small] [--objects 1 8] [--device auto] [--precision auto] [--steps 25]

Prints a table: by stage, wall time and the peak of memory meanwhile. Memory is what torch has allocated on a GPU,
weights included, and the resident size of the process on a CPU. Each row that an option adds is measured beside the
plain one in the same run: `--offload` (one stage at a time on the GPU), `--compile` (torch.compile;
`--compile reduce-overhead` has CUDA graphs), `--official DIR` (the flow transformer of
https://github.com/facebookresearch/sam-3d-objects at the same weights and steps, from its source; it needs loguru,
omegaconf, optree and astor).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import statistics
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from event_sam3d_ros.sam3d.checkpoint import PRECISIONS
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.flow import sample as integrate
from event_sam3d_ros.sam3d.flow import seeded_generators
from event_sam3d_ros.sam3d.geometry_flow import POSE, POSE_CHANNELS, SHAPE, GeometryFlow, draw_noise
from event_sam3d_ros.sam3d.model_info import example_views, find_model
from event_sam3d_ros.sam3d.network import FlowNetwork, build

MODELS = Path(__file__).resolve().parent.parent / "config" / "models"
STAGES = ("condition", "sampling", "decoder")
HEAD_WIDTH = 64


class Device:
    """Where the network computes: its clock and its memory."""

    def __init__(self, name: str) -> None:
        cuda = torch.cuda.is_available() if name == "auto" else name.startswith("cuda")
        self.torch = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
        self.is_cuda = cuda

    def __str__(self) -> str:
        if self.is_cuda:
            return torch.cuda.get_device_name(self.torch)
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        return f"{found[1] if found else 'CPU'}, {torch.get_num_threads()} threads"

    def now(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)
        return time.perf_counter()

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts from what is resident now

    def peak(self) -> int:
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.torch)
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


@dataclass(frozen=True)
class Measurement:
    """Seconds and peak bytes by stage; ``whole`` has the transfers of offload, too."""

    seconds: dict[str, float]
    peaks: dict[str, int]

    def row(self, name: str, objects: int) -> str:
        cells = [
            f"{_time(self.seconds[stage])}, {self.peaks[stage] / 1e9:.2f} GB" if stage in self.seconds else "-"
            for stage in (*STAGES, "whole")
        ]
        return f"| {name} | {objects} | {' | '.join(cells)} |"


class Stages:
    """Measures a network's stages while it runs as it always does, until `close`."""

    def __init__(self, network: FlowNetwork, device: Device) -> None:
        self.network, self.device = network, device
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        network.condition.forward = self._measured("condition", network.condition.forward)
        network.flow.sample = self._measured("sampling", network.flow.sample)
        network.decoder.forward = self._measured("decoder", network.decoder.forward)

    def close(self) -> None:
        """Lets go of the network. What measures its stages holds it, and it holds that: a circle, which would keep its
        memory after the last name for it is gone."""
        del self.network.condition.forward, self.network.flow.sample, self.network.decoder.forward
        del self.network

    @torch.inference_mode()
    def run(self, views: dict[str, torch.Tensor], sampler: SamplerConfig, memory: int | None) -> Measurement:
        self.seconds, self.peaks = {}, {"whole": 0}
        seeds = seeded_generators(range(len(views["image"])))
        self.device.reset_peak()
        start = self.device.now()
        self.network(views, seeds, sampler=sampler, device=self.device.torch, memory=memory)
        self.seconds["whole"] = self.device.now() - start
        self._note_peak("whole")
        return Measurement(self.seconds, self.peaks)

    def _measured(self, name: str, function: Callable) -> Callable:
        def run(*arguments, **named):
            self._note_peak("whole")  # of what lies between the stages
            self.device.reset_peak()
            start = self.device.now()
            result = function(*arguments, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.device.now() - start
            self._note_peak(name)
            return result

        return run

    def _note_peak(self, name: str) -> None:
        peak = self.device.peak()
        for each in (name, "whole"):
            self.peaks[each] = max(self.peaks.get(each, 0), peak)


def measure(
    stages: Stages, views: dict[str, torch.Tensor], sampler: SamplerConfig, memory: int | None, repeats: int
) -> Measurement:
    """The median time of each stage, and the highest peak; the first run warms up."""
    stages.run(views, sampler, memory)
    runs = [stages.run(views, sampler, memory) for _ in range(repeats)]
    return median(runs)


def median(runs: list[Measurement]) -> Measurement:
    return Measurement(
        {stage: statistics.median(run.seconds[stage] for run in runs) for stage in runs[0].seconds},
        {stage: max(run.peaks[stage] for run in runs) for stage in runs[0].peaks},
    )


def narrowed(config: ModelConfig, width: int) -> ModelConfig:
    """The same model with the flow ``width`` wide and all else in proportion: same tokens, same depth."""
    flow = config.flow
    share = width / flow.transformer.width

    def scaled(value: int) -> int:
        return max(HEAD_WIDTH, round(value * share / HEAD_WIDTH) * HEAD_WIDTH)

    def heads(value: int) -> int:
        return scaled(value) // HEAD_WIDTH

    encoder, pointmap, transformer = config.encoder, flow.pointmap, flow.transformer
    return replace(
        config,
        name=f"{config.name} at width {scaled(transformer.width)}",
        encoder=replace(encoder, width=scaled(encoder.width), heads=heads(encoder.width)),
        fusion=replace(config.fusion, heads=heads(encoder.width)),
        flow=replace(
            flow,
            pointmap=replace(pointmap, width=scaled(pointmap.width), heads=heads(pointmap.width)),
            transformer=replace(
                transformer,
                width=scaled(transformer.width),
                condition_width=scaled(max(encoder.width, pointmap.width)),
                heads=heads(transformer.width),
            ),
            structure=replace(
                flow.structure, channels=tuple(max(8, round(c * share)) for c in flow.structure.channels)
            ),
        ),
    )


@torch.no_grad()
def make_network(config: ModelConfig, place: torch.device, dtype: torch.dtype) -> FlowNetwork:
    """Random weights, also where training starts from zeros: some kernels are quicker with those."""
    torch.manual_seed(0)
    with place:
        network = build(config)
        assert isinstance(network, FlowNetwork)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network.to(dtype).eval()


def official_flow(folder: Path, flow: GeometryFlow) -> torch.nn.Module:
    """The official flow transformer, from its source in ``folder``, with the weights of ours, in float32."""
    os.environ["LIDRA_SKIP_INIT"] = "1"  # its package else starts what only whole pipelines need
    sys.path.insert(0, str(folder))
    package = "sam3d_objects.model.backbone.tdfy_dit.models"
    stub = types.ModuleType(package)  # in place of an __init__ that imports sparse convolutions
    stub.__path__ = [str(folder / package.replace(".", "/"))]
    sys.modules[package] = stub
    latents = importlib.import_module(f"{package}.mm_latent")
    transformer = importlib.import_module(f"{package}.mot_sparse_structure_flow").SparseStructureFlowTdfyWrapper
    config = flow.config
    mapping = {
        name: latents.Latent(
            channels,
            config.width,
            latents.ShapePositionEmbedder(config.width, config.resolution, 1)
            if name == SHAPE
            else latents.LearntPositionEmbedder(config.width, 1),
        )
        for name, (_, channels) in flow.latent_shapes.items()
    }
    official = transformer(
        mapping,
        {POSE: list(POSE_CHANNELS)},
        in_channels=config.channels,
        model_channels=config.width,
        cond_channels=config.condition_width,
        out_channels=config.channels,
        num_blocks=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qk_rms_norm=True,
        is_shortcut_model=True,
        force_zeros_cond=True,
    )
    official.load_state_dict({name: tensor.float() for name, tensor in flow.state_dict().items()})
    return official.eval()


def measure_official(
    official: torch.nn.Module,
    flow: GeometryFlow,
    device: Device,
    tokens: torch.Tensor,
    sampler: SamplerConfig,
    repeats: int,
) -> tuple[Measurement, float]:
    """One object after the other, as the official pipeline has it, and its precision: float32 weights under autocast.

    Returns with it the largest difference of our sample from the official one, relative to the official's largest
    value (at least 1).
    """
    dtype = flow.dtype

    def velocity(condition, latents, time, step_size, guided):
        conditional = official(latents, time, condition, d=step_size)
        return conditional, official(latents, time, condition, d=step_size, cfg=True) if guided else None

    def run() -> dict[str, torch.Tensor]:
        samples = []
        with torch.autocast(device.torch.type, dtype) if dtype is not torch.float32 else nullcontext():
            for i, one in enumerate(tokens.float().split(1)):
                noise = draw_noise(flow.latent_shapes, seeded_generators([i]), device.torch)
                samples.append(integrate(lambda *state, one=one: velocity(one, *state), noise, sampler))
        return {name: torch.cat([each[name] for each in samples]) for name in samples[0]}

    theirs = run()
    ours = flow.sample(tokens, seeded_generators(range(len(tokens))), sampler)
    difference = max(((ours[name] - x).abs().max() / x.abs().max().clamp(min=1)).item() for name, x in theirs.items())
    runs = []
    for _ in range(repeats):
        device.reset_peak()
        start = device.now()
        run()
        runs.append(Measurement({"sampling": device.now() - start}, {"sampling": device.peak()}))
    return median(runs), difference


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="small", help="small, base, full or a YAML file (%(default)s)")
    parser.add_argument("--width", type=int, help="of the flow, all else in proportion: same tokens, less work")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (CUDA where there is a GPU)")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="bf16 on CUDA, else fp32")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8], help="batches to measure (%(default)s)")
    parser.add_argument("--steps", type=int, help="of the sampler (the model's)")
    parser.add_argument("--shortcut", action="store_true", help="unguided steps that know their size")
    parser.add_argument("--events", action="store_true", help="with event images")
    parser.add_argument("--memory", type=float, help="GB that objects may take beside the weights (no limit)")
    parser.add_argument("--offload", action="store_true", help="also with weights on the CPU, one stage at a time")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="also compiled")
    parser.add_argument("--official", type=Path, metavar="DIR", help="also the official flow transformer")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs after one to warm up (%(default)s)")
    chosen = parser.parse_args()
    if chosen.offload and Device(chosen.device).torch.type != "cuda":
        parser.error("--offload takes weights from the CPU to a GPU, and there is none")
    return chosen


@torch.no_grad()
def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    device = Device(chosen.device)
    config, _ = find_model(chosen.model, MODELS)
    config = narrowed(config, chosen.width) if chosen.width else config
    precision = chosen.precision if chosen.precision != "auto" else "bf16" if device.is_cuda else "fp32"
    sampler = config.flow.sampler
    sampler = replace(sampler, steps=chosen.steps or sampler.steps, shortcut=chosen.shortcut or sampler.shortcut)
    memory = int(1e9 * chosen.memory) if chosen.memory else None
    print(
        f"{config.name}, {sampler.steps} {'shortcut' if sampler.shortcut else 'guided'} steps, {precision}, torch "
        f"{torch.__version__}, {device}, median of {chosen.repeats}\n"
    )
    columns = ("", "objects", *STAGES, "whole")
    print(f"| {' | '.join(columns)} |\n| {' | '.join(['---'] * len(columns))} |", flush=True)
    wholes: dict[tuple[str, int], Measurement] = {}

    def report(name: str, objects: int, measurement: Measurement) -> None:
        wholes[name, objects] = measurement
        print(measurement.row(name, objects), flush=True)

    def views_of(objects: int) -> dict[str, torch.Tensor]:
        return example_views(config, objects, chosen.events, device.torch)

    if chosen.offload:  # first: nothing else is on the GPU yet
        stages = Stages(make_network(config, torch.device("cpu"), PRECISIONS[precision]), device)
        for objects in chosen.objects:
            report("offload", objects, measure(stages, views_of(objects), sampler, memory, chosen.repeats))
        stages.close()
    network = make_network(config, device.torch, PRECISIONS[precision])
    stages = Stages(network, device)
    for objects in chosen.objects:
        report("plain", objects, measure(stages, views_of(objects), sampler, memory, chosen.repeats))
    notes = []
    if chosen.official:
        official = official_flow(chosen.official, network.flow).to(device.torch)
        for objects in chosen.objects:
            tokens = network.condition(views_of(objects))
            measurement, difference = measure_official(official, network.flow, device, tokens, sampler, chosen.repeats)
            report("official", objects, measurement)
            ratio = measurement.seconds["sampling"] / wholes["plain", objects].seconds["sampling"]
            notes.append(
                f"sampling {objects} object(s): {ratio:.2f} times faster than official, samples differ by "
                f"{difference:.1g}"
            )
        del official
    if chosen.compile:
        network.flow.compile(mode=chosen.compile)
        for objects in chosen.objects:
            report("compiled", objects, measure(stages, views_of(objects), sampler, memory, chosen.repeats))
            ratio = wholes["plain", objects].seconds["sampling"] / wholes["compiled", objects].seconds["sampling"]
            notes.append(f"sampling {objects} object(s): {ratio:.2f} times faster compiled")
    if 1 in chosen.objects:
        for (name, objects), measurement in wholes.items():
            if objects > 1 and "whole" in measurement.seconds:
                share = measurement.seconds["whole"] / objects / wholes[name, 1].seconds["whole"]
                notes.append(f"{name}: {objects} objects take {share:.2f} of {objects} times one")
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()
