"""The benchmark of the flow head runs where it has to: without a GPU, and with every part narrowed alike."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from event_sam3d_ros.sam3d.config import ModelConfig, to_dict
from event_sam3d_ros.sam3d.network import FlowNetwork, build

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "geometry.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_it_measures_every_stage_on_the_cpu(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(to_dict(TINY)))  # JSON is YAML
    done = run(
        "--model", str(path), "--device", "cpu", "--steps", "2", "--objects", "1", "3", "--repeats", "2", "--events"
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| plain")]
    assert [int(row[1]) for row in rows] == [1, 3]
    for row in rows:
        *stages, whole = [cell.strip() for cell in row[2:]]
        assert len(stages) == 3 and all(re.fullmatch(r"[\d.]+ m?s, \d+\.\d\d GB", cell) for cell in (*stages, whole))
    assert re.search(r"plain: 3 objects take \d\.\d\d of 3 times one", done.stdout)


def test_offload_without_a_gpu_is_refused():
    done = run("--device", "cpu", "--offload")
    assert done.returncode == 2 and "GPU" in done.stderr


@pytest.mark.parametrize("name", ["small", "base", "full"])
def test_a_narrow_model_keeps_its_tokens_and_depth(name):
    spec = importlib.util.spec_from_file_location("geometry_benchmark", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    config = ModelConfig.from_yaml(ROOT / "config" / "models" / f"{name}.yaml")
    narrow = benchmark.narrowed(config, 64)
    with torch.device("meta"):
        small, large = build(narrow), build(config)
    assert isinstance(small, FlowNetwork) and isinstance(large, FlowNetwork)
    assert narrow.flow.transformer.width == 64 and narrow.flow.transformer.depth == config.flow.transformer.depth
    assert small.condition.fuser.tokens == large.condition.fuser.tokens
    assert len(small.state_dict()) == len(large.state_dict())
