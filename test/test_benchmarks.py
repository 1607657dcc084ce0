"""Benchmarks run, and leave nothing behind that would be measured with what comes after."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch

from event_sam3d_ros.sam3d.config import (
    EncoderConfig,
    FlowConfig,
    FlowHeadConfig,
    FusionConfig,
    ModelConfig,
    PointmapConfig,
    StructureConfig,
)
from event_sam3d_ros.sam3d.model_info import example_views

ROOT = Path(__file__).parents[1]
TINY = ModelConfig(
    name="tiny",
    head="flow",
    encoder=EncoderConfig(28, 14, 3, 32, 2, 2, registers=2, stem=(), mask_token=True),
    fusion=FusionConfig(stems=(), blocks=(1,), heads=2),
    flow=FlowConfig(
        PointmapConfig(32, 8, 16, 2), FlowHeadConfig(32, 32, 2, 2, 2.0, 4, 4), StructureConfig((8, 8), 1, 1)
    ),
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def test_the_time_of_a_reconstruction() -> None:
    script = ROOT / "benchmarks" / "reconstruction.py"
    command = [sys.executable, str(script), "--repeats", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"one object: median \d+ ms, p95 \d+ ms", done.stdout)
    share = re.search(r"network: (\d+)% of the time", done.stdout)
    assert share is not None and 0 < int(share[1]) < 100


def test_a_network_that_was_measured_is_let_go() -> None:
    geometry = load("geometry")
    device = geometry.Device("cpu")
    network = geometry.make_network(TINY, device.torch, torch.float32)
    views = example_views(TINY, 1, False, device.torch)
    stages = geometry.Stages(network, device)
    assert stages.run(views, TINY.flow.sampler, None).seconds.keys() == {*geometry.STAGES, "whole"}
    alive = weakref.ref(network)
    gc.disable()
    try:
        stages.close()
        del stages, network
        assert alive() is None
    finally:
        gc.enable()


def test_offload_is_measured_with_nothing_else_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = load("geometry")
    made: list[weakref.ref[torch.nn.Module]] = []
    plain = geometry.make_network

    def make_network(*arguments: object) -> torch.nn.Module:
        assert all(network() is None for network in made)
        network = plain(*arguments)
        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(geometry, "make_network", make_network)
    monkeypatch.setattr(geometry, "find_model", lambda *_: (TINY, None))
    arguments = "--objects 1 --steps 1 --repeats 1 --offload --device cpu".split()
    monkeypatch.setattr(sys, "argv", ["geometry.py", *arguments])
    monkeypatch.setattr(geometry.argparse.ArgumentParser, "error", lambda *_: None)  # that there is no GPU
    gc.disable()
    try:
        geometry.main()
    finally:
        gc.enable()
    assert len(made) == 2
