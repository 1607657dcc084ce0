"""What the loop does around the losses: each falls on a tiny batch, validation stops it, processes find each other,
pictures and logs are written; and the options of the stages.
"""

import json
import os
from concurrent.futures import Future
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from event_sam3d_ros.errors import CheckpointError, ConfigurationError, EventSam3dError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, read_safetensors, save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network, build
from training import distill, fuse, pretrain
from training.augmentations import AugmentationConfig
from training.datasets import MOTIONS, Batches, DataConfig, render
from training.distributed import Place, find_place
from training.engine import load_stage_input, train
from training.export import export
from training.losses import feature_loss, teacher_loss
from training.monitor import Monitor
from training.pictures import sheet
from training.settings import DistillConfig, FuseConfig, PretrainConfig, StageConfig, load_config
from training.sources import AHEAD, Stream

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig.from_yaml(ROOT / "training/config/toy_model.yaml")
DATA = DataConfig(cases=10, sensor=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    render(folder, DATA, MODEL, workers=1)
    return folder


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(MODEL)


def losses(network):
    """Loss function and trained modules of each stage, with the options that nano.yaml leaves off."""
    return {
        "pretrain": (
            lambda b, r: pretrain.loss(network, b, r, PretrainConfig(blurry=0.5, drop_image=0.2)),
            [network.condition.rgb_encoder, network.geometry],
        ),
        "distill": (
            lambda b, r: distill.loss(network, b, r, DistillConfig(attention=True)),
            [network.condition.event_encoder],
        ),
        "fuse": (
            lambda b, r: fuse.fusion_loss(network, b, r, FuseConfig(drop_events=0.2, drop_image=0.2)),
            [network.condition.fusion],
        ),
        "unfreeze": (lambda b, r: fuse.finishing_loss(network, b, r), [network]),
    }


def test_each_loss_falls_on_a_tiny_batch(folder, network, tmp_path):
    """One stage after the other, as users train them."""
    batch = Batches(folder, MODEL, 4, 0, 6, validation=4).held_out(0)
    stage = StageConfig(steps=25, warmup=2, ema=0.5, learning_rate=1e-2)
    for name, (loss, trained) in losses(network).items():
        if name == "distill":
            network.condition.event_encoder.load_state_dict(network.condition.rgb_encoder.state_dict())
        before = mean_loss(loss, batch)
        train(name, network, trained, loss, lambda step: batch, stage, tmp_path / f"{name}.safetensors", "cpu")
        # the fusion's targets are probabilities: even the teacher itself has a loss against them
        floor = teacher_floor(network, batch) if name == "fuse" else 0.0
        assert mean_loss(loss, batch) - floor < 0.9 * (before - floor), name
        assert network.geometry.columns.weight.requires_grad == (name in ("pretrain", "unfreeze"))


def teacher_floor(network, batch):
    with torch.no_grad():
        teacher = network(batch["degraded_sharp"], None, batch["degraded_true_mask"])
        return float(teacher_loss(teacher, teacher)[0])


def mean_loss(loss, batch):
    with torch.no_grad():
        return np.mean([float(loss(batch, np.random.default_rng(seed))[0]) for seed in range(4)])


def test_bf16_computes_almost_the_same(folder, network, tmp_path):
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, (loss, trained) in losses(network).items():
        logged = []
        for precision in ("fp32", "bf16"):
            network.load_state_dict(start)
            stage = StageConfig(steps=1, batch_size=4, precision=precision)
            out = tmp_path / f"{name}_{precision}.safetensors"
            train(name, network, trained, loss, Batches(folder, MODEL, 4, 0, 8), stage, out, "cpu")
            logged.append(json.loads(out.with_suffix(".jsonl").read_text())["loss"])
            assert all(tensor.dtype == torch.float32 for tensor in network.state_dict().values())
        assert logged[0] != logged[1] and logged[0] == pytest.approx(logged[1], rel=0.03), name


def test_identical_inputs_have_no_distance(folder, network):
    network.condition.event_encoder.load_state_dict(network.condition.rgb_encoder.state_dict())
    batch = Batches(folder, MODEL, 4, 0, 8)(0)
    batch["degraded_events"], batch["degraded_mask"] = batch["degraded_sharp"], batch["degraded_true_mask"]
    for stage in (DistillConfig(), DistillConfig(attention=True), DistillConfig(stems=(0,), blocks=(1,))):
        assert distill.loss(network, batch, np.random.default_rng(0), stage)[0] == 0


def test_the_official_model_s_configuration_fits_its_network():
    config, model = load_config(ROOT / "training/config/full.yaml")
    with torch.device("meta"):
        network = build(model)
    assert distill.compared_stages(network, config.distill) == tuple(f"block.{i}" for i in range(2, 24, 3))
    trained = {id(p) for part in distill.trained_parts(network, config.distill) for p in part.parameters()}
    names = {name for name, p in network.named_parameters() if id(p) in trained}
    encoder = "condition.event_encoder."
    blocks = {name.split(".")[3] for name in names if ".blocks." in name}
    assert all(name.startswith(encoder) for name in names) and blocks == {"2", "5", "8", "11", "14", "17", "20", "23"}
    assert {f"{encoder}patch_embed.proj.weight", f"{encoder}norm.bias"} < names
    assert all(".mlp." in name for name in names if ".blocks." in name)


def test_attention_weighs_tokens(folder, network):
    batch = Batches(folder, MODEL, 4, 0, 8)(0)
    encoder = network.condition.rgb_encoder
    image = torch.cat([batch["degraded_sharp"], batch["degraded_true_mask"]], dim=1)
    with distill.class_attention(encoder, ["stem.0", "block.1"]) as attention:
        teacher = encoder(image)
    weights = attention.pop("block.1")
    assert not attention and weights.shape == (4, 65, 1)
    torch.testing.assert_close(weights.mean(1), torch.ones(4, 1))
    # a difference at the token that is looked at most costs more than one at the least
    costs = []
    for token in (int(weights[0].argmax()), int(weights[0].argmin())):
        stages = {"block.1": teacher.stages["block.1"].clone()}
        stages["block.1"][0, token] += 1
        student = type(teacher)(teacher.tokens, teacher.prenorm, stages)
        costs.append(float(feature_loss(student, teacher, ["block.1"], {"block.1": weights}).detach()))
    assert costs[0] > costs[1] > 0
    assert not encoder.blocks[1].attn._forward_pre_hooks


def test_a_stage_that_the_encoder_lacks_is_named(network):
    with pytest.raises(ConfigurationError, match="block.7, stem.5"):
        distill.compared_stages(network, DistillConfig(stems=(5,), blocks=(1, 7)))


def test_validation_keeps_the_best_weights_and_stops(folder, tmp_path):
    """A loss that is best after 4 steps: the weight passes zero and goes on."""

    class Walk(nn.Module):
        config = MODEL

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([4.0]))

    written = []

    def run(steps):
        walk = Walk()
        stage = StageConfig(
            steps=steps, learning_rate=1.0, warmup=0, ema=0.0, weight_decay=0.0, batch_size=1, save_every=1,
            validation=1, validate_every=1, patience=3,
        )  # fmt: skip

        def loss(batch, rng):
            held_out = "held_out" in batch
            return (walk.weight.abs().sum() if held_out else walk.weight.sum()), {"weight": walk.weight.sum()}

        train(
            "walk", walk, [walk], loss, lambda step: {"x": torch.zeros(1)}, stage, tmp_path / "walk.safetensors", "cpu",
            held_out=lambda number: {"held_out": torch.zeros(1)},
        )  # fmt: skip
        return [json.loads(line) for line in (tmp_path / "walk.jsonl").read_text().splitlines()]

    def keep(path, network, *rest):
        written.append(float(network.weight.detach()))
        path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.engine.save_checkpoint", keep)
        lines = run(100)
        again = run(100)  # a stage that has stopped stays so
    seen = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert seen == [line["validation/loss"] for line in again if "validation/loss" in line]
    best = int(np.argmin(seen))
    assert len(seen) == best + 1 + 3 and abs(written[-1]) == pytest.approx(seen[best], abs=1e-5)
    assert len(written) == best + 1


def test_a_state_of_another_stage_is_refused(folder, network, tmp_path):
    loss, trained = losses(network)["distill"]
    arguments = (network, trained, loss, Batches(folder, MODEL, 4, 0, 8), StageConfig(steps=1, batch_size=4))
    train("distill", *arguments, tmp_path / "out.safetensors", "cpu")
    with pytest.raises(CheckpointError, match="stage is distill there, but fuse here; delete it"):
        train("fuse", *arguments, tmp_path / "out.safetensors", "cpu")
    (tmp_path / "out.state").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="delete it"):
        train("distill", *arguments, tmp_path / "out.safetensors", "cpu")


class Line(nn.Module):
    """One weight; the loss that goes with it falls with the weight, on a slope that a batch may make steep."""

    config = MODEL

    def __init__(self, origin=""):
        super().__init__()
        self.weight, self.origin, self.seen = nn.Parameter(torch.tensor([4.0])), origin, []

    def loss(self, batch, rng):
        self.seen.append(float(self.weight.detach()))
        return (self.weight * batch["slope"].mean()).sum(), {"weight": self.weight.sum()}


def train_line(out, line=None, slopes=(1.0,) * 8, **settings):
    """A line trained with plain steps, one batch of one sample for each slope."""
    line = line or Line()
    defaults = {"steps": len(slopes), "batch_size": 1, "learning_rate": 0.1, "warmup": 2, "weight_decay": 0.0}
    stage = StageConfig(**{**defaults, "save_every": 4, **settings})
    source = lambda step: {"slope": torch.tensor([slopes[step]])}  # noqa: E731
    train("line", line, [line], line.loss, source, stage, out, "cpu", held_out=lambda number: source(0))
    return line


def stored_weight(out):
    return float(read_safetensors(out)["weight"])


def test_the_file_holds_the_average_of_the_weights(tmp_path):
    line = train_line(tmp_path / "line.safetensors", ema=0.5)
    weights = [*line.seen, float(line.weight.detach())]
    average = weights[0]
    for step, weight in enumerate(weights[1:]):
        average += (1 - min(0.5, (step + 1) / (step + 10))) * (weight - average)
    assert stored_weight(tmp_path / "line.safetensors") == pytest.approx(average, rel=1e-6)
    assert abs(average - weights[-1]) > 0.01


def test_steps_warm_up_and_follow_a_cosine(tmp_path):
    """On a constant slope AdamW's steps are the learning rate."""
    line = train_line(tmp_path / "line.safetensors")
    steps = -np.diff([*line.seen, float(line.weight.detach())]) / 0.1
    cosine = 0.02 + 0.49 * (1 + np.cos(np.pi * np.arange(6) / 6))
    np.testing.assert_allclose(steps, [0.5, 1.0, *cosine], atol=1e-4)


def test_a_steep_batch_is_clipped(tmp_path):
    steep = train_line(tmp_path / "steep.safetensors", slopes=(1.0, 1.0, 1e3, *[1.0] * 5))
    plain = train_line(tmp_path / "plain.safetensors")
    np.testing.assert_allclose(steep.seen, plain.seen, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    line = Line()
    with pytest.raises(EventSam3dError, match="line: not finite at step 5: loss;"):
        train_line(tmp_path / "line.safetensors", line, slopes=(*[1.0] * 5, float("nan"), 1.0, 1.0))
    assert line.weight.isfinite() and stored_weight(tmp_path / "line.safetensors") < 4  # of step 4


@pytest.mark.parametrize(
    ("origin", "settings", "message"),
    [
        ("b", {}, "sha256 of the weights is a there, but b here"),
        ("a", {"steps": 9}, "steps is 8 there, but 9 here"),
        ("a", {"learning_rate": 0.2}, "learning_rate is 0.1 there, but 0.2 here"),
        ("a", {"seed": 1}, "seed is 0 there, but 1 here"),
        ("a", {"augmentation": AugmentationConfig(flip=0.25)}, "augmentation.flip is 0.5 there, but 0.25 here"),
    ],
)
def test_a_state_of_another_run_is_refused(tmp_path, origin, settings, message):
    out = tmp_path / "line.safetensors"
    train_line(out, Line("a"))
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train_line(out, Line(origin), **settings)
    assert out.read_bytes() == before
    train_line(out, Line("a"), save_every=1, picture_every=2)  # these change no weights


def test_a_model_file_that_was_lost_is_written_again(tmp_path):
    out = tmp_path / "line.safetensors"
    train_line(out)
    before = stored_weight(out)
    out.unlink()
    train_line(out)
    assert stored_weight(out) == before
    best = tmp_path / "best.safetensors"
    validated = {"validation": 1, "validate_every": 2}
    train_line(best, **validated)
    best.unlink()
    with pytest.raises(CheckpointError, match="best weights; delete .*best.state"):
        train_line(best, **validated)


def test_files_are_readable_as_the_umask_has_it(tmp_path):
    before = os.umask(0o027)
    try:
        train_line(tmp_path / "line.safetensors")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "line.safetensors": 0o640,
        "line.state": 0o640,
        "line.jsonl": 0o640,
    }


def test_held_out_cases_are_never_drawn(folder):
    batches = Batches(folder, MODEL, 4, 0, 6, validation=4)
    held_out = batches.held_out(0)["true_up"]
    drawn = torch.cat([batches(step)["true_up"] for step in range(8)]).abs()  # mirroring changes a sign
    assert torch.cdist(held_out.abs(), drawn).min() > 1e-6
    assert torch.equal(batches.held_out(0)["true_up"], held_out)


def test_the_curriculum_begins_with_little_motion(folder):
    batches = Batches(folder, MODEL, 2, 0, 10, curriculum=10)
    motions = [{MOTIONS[row % len(MOTIONS)] for row in batches.allowed(step)} for step in (0, 5, 10)]
    assert motions == [{"still", "easy"}, {"still", "easy", "medium"}, set(MOTIONS)]
    with pytest.raises(ConfigurationError, match="little motion"):
        Batches(folder, MODEL, 6, 0, 10, curriculum=10)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"},
            Place(3, 1, 4, "a", 5),
        ),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "gpu[03-05,9],c1",
             "SLURM_JOB_ID": "7012"},
            Place(5, 1, 8, "gpu03", 29_512),
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "one,two"}, Place(1, 0, 2, "one", 29_500)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2].x"}, Place(0, 0, 2, "n1.x", 29_500)),
        # torchrun inside of a SLURM job: torchrun's word counts
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "m"},
            Place(1, 0, 2, "m", 29_500),
        ),
    ],
)  # fmt: skip
def test_a_process_finds_its_place(environment, place):
    assert find_place(environment) == place


@pytest.mark.parametrize("wrong", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_a_wrong_place_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="RANK"):
        find_place(wrong)


def test_a_stream_depends_on_the_seed_and_the_step_alone():
    class Now:
        """Renders when it is asked for what a pool would have rendered meanwhile."""

        begun = 0

        def submit(self, function, *arguments):
            self.begun += 1
            future = Future()
            future.result = lambda: function(*arguments)
            return future

    def stream(seed=0):
        return Stream(DATA, MODEL, 2, seed, Now())

    first = stream()
    one, two = first(3), first(4)
    assert first.pool.begun == 2 * (2 + AHEAD)  # a bounded number of steps ahead
    resumed = stream()
    assert all(torch.equal(two[name], tensor) for name, tensor in resumed(4).items())
    parts = [stream().share(3, rank, 2) for rank in range(2)]
    assert all(torch.equal(tensor, torch.cat([part[name] for part in parts])) for name, tensor in one.items())
    assert not torch.equal(one["true_up"], stream(seed=1)(3)["true_up"])
    held_out = first.held_out(0)
    assert held_out is first.held_out(0) and not torch.equal(held_out["true_up"], one["true_up"])


def test_the_monitor_drops_what_comes_again(tmp_path):
    out = tmp_path / "model.safetensors"
    monitor = Monitor(out, 0)
    for step in (10, 20, 30):
        monitor.scalars(step, {"loss": 1 / 3})
    with monitor.log.open("a") as file:
        file.write('{"step": 4')  # killed while it wrote
    resumed = Monitor(out, 20)
    resumed.scalars(30, {"loss": 2.0})
    lines = [json.loads(line) for line in resumed.log.read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 0.333333}, {"step": 20, "loss": 0.333333}, {"step": 30, "loss": 2.0}]
    image = torch.rand(3, 5, 7)
    resumed.picture(30, image)
    stored = cv2.imread(str(tmp_path / "model_samples/0000030.png"))[..., ::-1]
    np.testing.assert_array_equal(stored, (image * 255).round().byte().permute(1, 2, 0))


def test_the_picture_shows_target_and_prediction(folder, network):
    batch = Batches(folder, MODEL, 2, 0, 8)(0)
    geometry = network(batch["degraded_blurry"], batch["degraded_events"], batch["degraded_mask"])
    target = (batch["degraded_occupancy"] * 2 - 1) * 20
    perfect = sheet(batch, type(geometry)(target, geometry.up, geometry.score))
    assert perfect.shape == (3, 2 * 64, 8 * 64)
    columns = perfect.split(64, dim=-1)
    torch.testing.assert_close(columns[4], columns[5], atol=1e-3, rtol=0)
    torch.testing.assert_close(columns[6], columns[7], atol=1e-3, rtol=0)
    assert (columns[7] > 0).any()


def test_tensorboard_is_asked_for_only_when_wanted(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    Monitor(tmp_path / "a.safetensors", 0)
    with pytest.raises(ConfigurationError, match="pip install tensorboard"):
        Monitor(tmp_path / "a.safetensors", 0, tmp_path / "board")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("distill: {stages: [1]}", "stages"),
        ("distill: {trained: some}", "'all' and 'parts'"),
        ("fuse: {precision: fp8}", "precision"),
        ("fuse: {patience: 2}", "validate_every"),
        ("fuse: {validate_every: 2}", "validation"),
        ("fuse: {batch_size: 0}", "at least 1"),
        ("fuse: {seed: -1}", "seed must be at least 0, not -1"),
        ("fuse: {ema: 1.9}", "ema must be from 0 to 1"),
        ("fuse: {warmup: -5}", "warmup must be at least 0"),
        ("fuse: {learning_rate: -1.0e-3}", "learning_rate must be at least 0"),
        ("fuse: {matrix_learning_rate: .nan}", "matrix_learning_rate must be"),
        ("fuse: {clip: 0.0}", "clip must be positive"),
        ("fuse: {curriculum: -1}", "curriculum"),
        ("fuse: {validation: -1}", "validation"),
        ("fuse: {picture_every: -1}", "picture_every"),
        ("fuse: {drop_events: 1.5}", "drop_events must be from 0 to 1"),
        ("fuse: {drop_image: -0.5}", "drop_image"),
        ("pretrain: {blurry: 2.0}", "blurry"),
        ("data: {strean: true}", "strean"),
        ("- 1", "mapping"),
        ("a: b: c", "t.yaml: line 1, column 5: mapping values are not allowed here$"),
        ("a: \x07", "cannot read .*t.yaml: unacceptable character[^\n]*$"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    path = tmp_path / "t.yaml"
    path.write_text(settings + "\n")
    with pytest.raises(ConfigurationError, match=message):
        load_config(path)


def test_weights_keep_the_licence_of_what_they_were_made_from(folder, network, tmp_path):
    first, trained_file = tmp_path / "first.safetensors", tmp_path / "trained.safetensors"
    save_checkpoint(first, network, {"tag": "x", "licence": "SAM License"})
    network = load_stage_input(first, MODEL)
    loss, trained = losses(network)["fuse"]
    stage = StageConfig(steps=1, batch_size=4)
    train("fuse", network, trained, loss, Batches(folder, MODEL, 4, 0, 8), stage, trained_file, "cpu")
    export(trained_file, tmp_path / "shipped.safetensors", {"tag": "y"})
    assert load_checkpoint(tmp_path / "shipped.safetensors")[1]["licence"] == "SAM License"


def test_weights_beyond_half_precision_are_not_shipped(network, tmp_path):
    with torch.no_grad():
        network.geometry.columns.bias.fill_(1e6)
    save_checkpoint(tmp_path / "trained.safetensors", network, {"tag": "x"}, torch.float32)
    with pytest.raises(CheckpointError, match="half precision"):
        export(tmp_path / "trained.safetensors", tmp_path / "shipped.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["trained.safetensors"]
