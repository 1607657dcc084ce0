"""The commands of the stages as users run them: from nothing to a shipped file, killed and resumed, and shared by two
processes, all at toy size.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network
from training import distill, export, fuse, pretrain, render
from training.settings import command

ROOT = Path(__file__).parents[2]
TOY = ROOT / "training/config/toy.yaml"


def run(module, *arguments):
    """One command, in this process."""
    before, sys.argv = sys.argv, [module.__name__, *map(str, arguments)]
    try:
        module.main()
    finally:
        sys.argv = before


def spawn(*arguments, **environment):
    """One command, in a process of its own that computes as this one does."""
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, *map(str, arguments), "--threads", threads],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def log(out):
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


def weights(path):
    return load_checkpoint(path)[0].state_dict()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    run(render, "--config", TOY, "--data", folder, "--workers", 1)
    return folder


@pytest.fixture
def start(tmp_path):
    """A model file with a random network."""
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "start.safetensors",
        Network(ModelConfig.from_yaml(TOY.with_name("toy_model.yaml"))),
        {"tag": "random"},
        torch.float32,
    )
    return tmp_path / "start.safetensors"


@pytest.fixture
def config(tmp_path):
    """Makes the toy configuration with other settings of one stage."""

    def make(stage, **settings):
        values = yaml.safe_load(TOY.read_text())
        values["model"] = str(TOY.with_name("toy_model.yaml"))
        values[stage] = settings
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return make


def test_all_stages_from_nothing_to_a_shipped_file(data, tmp_path):
    common = ("--config", TOY, "--data", data, "--device", "cpu")
    out = {name: tmp_path / f"{name}.safetensors" for name in ("pre", "distilled", "fused", "finished", "shipped")}
    run(pretrain, *common, "--out", out["pre"])
    run(distill, *common, "--weights", out["pre"], "--out", out["distilled"])
    run(fuse, *common, "--weights", out["distilled"], "--out", out["fused"])
    run(fuse, *common, "--unfreeze", "--weights", out["fused"], "--out", out["finished"])
    run(export, out["finished"], out["shipped"], "--tag", "toy", "--data", "a few procedural objects")

    losses = [line["validation/loss"] for line in log(out["pre"]) if "validation/loss" in line]
    assert losses[-1] < losses[0]
    sheet = cv2.imread(str(tmp_path / "pre_samples/0000020.png"))
    assert sheet.shape == (8 * 64, 8 * 64, 3) and sheet.std() > 30

    pre, distilled, fused = (weights(out[name]) for name in ("pre", "distilled", "fused"))
    events = "condition.event_encoder."
    moved = {name for name in pre if not torch.equal(pre[name], distilled[name])}
    assert any(name.startswith(f"{events}patch_embed") for name in moved)
    assert any(name.startswith(f"{events}blocks.1.mlp") for name in moved)
    parts = (".stem.", ".patch_embed.", ".mlp.", f"{events}norm.")
    # beside those parts the event encoder has what it was initialised with
    for name in (name for name in pre if name.startswith(events) and not any(part in name for part in parts)):
        assert torch.equal(distilled[name], pre[name.replace("event_encoder", "rgb_encoder")])
    assert all(torch.equal(pre[name], distilled[name]) for name in pre if not name.startswith(events))
    moved = {name for name in fused if not torch.equal(distilled[name], fused[name])}
    assert all(name.startswith("condition.fusion.") for name in moved)
    gates = [name for name in fused if ".gate" in name]
    assert gates and set(gates) <= moved and all((distilled[name] == 0).all() for name in gates)

    network, info = load_checkpoint(out["shipped"])
    assert info["tag"] == "toy" and info["stage"] == "unfreeze" and info["licence"] == "Apache-2.0"
    finished = weights(out["finished"])
    assert all(torch.equal(v, finished[k].half().float()) for k, v in network.state_dict().items())
    # shipped weights alone are enough to go on from
    run(distill, *common, "--continue", "--weights", out["shipped"], "--out", tmp_path / "again.safetensors")
    again = weights(tmp_path / "again.safetensors")
    assert all(torch.equal(again[name], v) for name, v in network.state_dict().items() if not name.startswith(events))


def test_a_process_that_was_killed_resumes_bit_identically(data, start, config, tmp_path):
    settings = config("fuse", cases=32, steps=10, batch_size=4, warmup=1, save_every=2)
    arguments = ("--config", settings, "--data", data, "--weights", start, "--device", "cpu")
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    process = spawn("-m", "training.fuse", *arguments, "--out", killed)
    while not killed.with_suffix(".state").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    run(fuse, *arguments, "--out", killed)
    run(fuse, *arguments, "--out", whole)
    first, second = weights(killed), weights(whole)
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert log(killed) == log(whole)


def test_two_processes_compute_what_one_does(data, start, config, tmp_path):
    """Up to the order of additions, with what chance decides for single samples."""
    settings = config(
        "fuse", cases=32, steps=3, batch_size=4, warmup=1, validation=8, validate_every=3, drop_image=0.4,
        drop_events=0.4,
    )  # fmt: skip
    arguments = ("--config", settings, "--data", data, "--weights", start, "--device", "cpu")
    alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
    run(fuse, *arguments, "--out", alone)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    process = spawn(*launcher, "-m", "training.fuse", *arguments, "--out", shared)
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 0, message
    for one, two in zip(log(alone), log(shared), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-7)
    first, second = weights(alone), weights(shared)
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_two_processes_go_from_phase_to_phase_together(flow_folder, tmp_path):
    """The flow head's stage 0 has three of them, each reads what the last one wrote."""
    values = yaml.safe_load(TOY.with_name("flow_toy.yaml").read_text())
    values["model"] = str(TOY.with_name("flow_toy_model.yaml"))
    for phase in ("structure", "pretrain", "shortcut"):
        values[phase]["steps"] = 2
    settings = tmp_path / "config.yaml"
    settings.write_text(yaml.safe_dump(values))
    arguments = ("--config", settings, "--data", flow_folder, "--device", "cpu")
    run(pretrain, *arguments, "--out", tmp_path / "alone.safetensors")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    process = spawn(*launcher, "-m", "training.pretrain", *arguments, "--out", tmp_path / "shared.safetensors")
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 0, message
    for phase in ("structure.x", "matched.x", "x"):
        for one, two in zip(log(tmp_path / f"alone.{phase}"), log(tmp_path / f"shared.{phase}"), strict=True):
            assert one == pytest.approx(two, rel=1e-3), phase


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.safetensors"], "no model file at none.safetensors"),
        ([], "give --data"),
        (["--device", "gpu"], "--device gpu is not known"),
        (["--device", "cuda:99"], "--device cuda:99 can't be used: this torch"),
        (["--out", "/dev/null/out.safetensors"], "its folder can't be made"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--out", str(tmp_path / "out.safetensors"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        command(pretrain.main)
    assert stopped.value.code == 2
    assert re.fullmatch(f"pretrain: .*{message}.*\n", capsys.readouterr().err)


def test_of_several_processes_the_first_speaks(monkeypatch, capsys):
    """The others only if nobody ends them meanwhile."""

    class Ended(Exception):
        pass

    def end(seconds):
        raise Ended

    def main():
        raise ConfigurationError("too much")

    monkeypatch.setattr("time.sleep", end)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Ended):
        command(main)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        command(main)
    assert capsys.readouterr().err.endswith("too much\n")
