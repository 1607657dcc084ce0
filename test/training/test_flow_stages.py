"""The flow head's stages on a handful of objects: each learns what it is for, changes its part alone and resumes."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, read_safetensors
from event_sam3d_ros.sam3d.config import FlowHeadConfig, SamplerConfig
from event_sam3d_ros.sam3d.embedder_fuser import IMAGES
from event_sam3d_ros.sam3d.flow import draw_noise, seeded_generators
from event_sam3d_ros.sam3d.geometry_flow import SHAPE, GeometryFlow
from event_sam3d_ros.sam3d.layout import decode_poses
from event_sam3d_ros.sam3d.structure_vae import tokens_to_grid
from training import distill, distributed, fuse, pretrain
from training.engine import train
from training.flow import matching, structure
from training.flow.batches import FlowBatches, pose_latents, views
from training.flow.matching import flow_matching_loss, random_long_steps, shortcut_loss, two_half_steps
from training.flow.stages import (
    blackened,
    finishing,
    fusion_loss,
    generator,
    matching_parts,
    mode_views,
    new_network,
    path,
    shortcut_parts,
    trainable,
    truth,
)
from training.flow.stages import matching as matching_stage
from training.flow.stages import pretrain as pretrain_flow
from training.flow.structure import StructureVae
from training.losses import grid_iou
from training.settings import DistillConfig, FuseConfig, StageConfig

OBJECTS = 4
FLOW_TOY = Path(distill.__file__).parent / "config" / "flow_toy.yaml"
MANY_STEPS = SamplerConfig(steps=25, rescale=1.0, strength=0.0)


def stage_of(steps, **settings):
    defaults = {"batch_size": OBJECTS, "learning_rate": 5e-3, "weight_decay": 0.0, "warmup": 5, "ema": 0.9}
    return StageConfig(steps=steps, **{**defaults, **settings})


@pytest.fixture(scope="module")
def model(flow_config):
    return flow_config[1]


@pytest.fixture(scope="module")
def batch(flow_folder, model):
    """Four objects in fast motion, as they are: every other case is of the same object."""
    source = FlowBatches(flow_folder, model, OBJECTS, 0, 8)
    return source.read(np.array([1, 3, 5, 7]), True)


def fit(name, network, trained, loss, batch, stage, out):
    """Trains on one batch again and again; the loss at the beginning and at the end, means of a tenth of the steps."""
    losses = []

    def watched(batch, rng):
        value, parts = loss(batch, rng)
        losses.append(float(value.detach()))
        return value, parts

    train(name, network, trained, watched, lambda step: batch, stage, out, "cpu")
    tenth = max(1, stage.steps // 10)
    return np.mean(losses[:tenth]), np.mean(losses[-tenth:])


@pytest.fixture(scope="module")
def coded(batch, model, tmp_path_factory):
    """A structure VAE that learned the four shapes, and its losses before and after."""
    torch.manual_seed(0)
    vae, file = StructureVae(model), tmp_path_factory.mktemp("vae") / "structure.safetensors"
    losses = fit("structure", vae, [vae], lambda b, r: structure.loss(vae, b, r), batch, stage_of(60), file)
    return structure.load(file, model), losses


@pytest.fixture(scope="module")
def vae(coded):
    return coded[0]


@pytest.fixture(scope="module")
def matched(batch, model, vae, tmp_path_factory):
    """A network that learned the four objects by flow matching: file, the network before, losses before and after."""
    torch.manual_seed(0)
    network, file = new_network(model, vae), tmp_path_factory.mktemp("flow") / "matched.safetensors"
    network.condition.event_encoder.load_state_dict(network.condition.fuser.image_encoder.state_dict())
    before = copy.deepcopy(network.state_dict())

    def loss(batch, rng):
        """That of the stage, with six noises for every object: here the encoders take the time."""
        tokens = network.condition(views(batch, "sharp")).repeat(6, 1, 1)
        data = {name: x.repeat(6, 1, 1) for name, x in truth(vae, batch).items()}
        return flow_matching_loss(network.flow, tokens, data, generator(rng))

    losses = fit("pretrain", network, matching_parts(network), loss, batch, stage_of(120), file)
    return file, before, losses


@pytest.fixture
def network(matched, model):
    return trainable(matched[0], model).eval()


def changed(network, before):
    return {name for name, x in network.state_dict().items() if not torch.equal(x, before[name])}


@torch.no_grad()
def sampled(network, seen, sampler=MANY_STEPS):
    """What the network draws for the objects, and its logits."""
    latents = network.flow.sample(network.condition(seen), seeded_generators(range(OBJECTS)), sampler)
    return latents, network.decoder(tokens_to_grid(latents[SHAPE]))[:, 0]


def off(a, b):
    """Root mean squared difference."""
    return float((a - b).square().mean().sqrt())


def test_the_vae_learns_the_shapes(coded, batch):
    vae, (first, last) = coded
    assert last < 0.5 * first
    with torch.no_grad():
        tokens = vae.shape_tokens(batch["occupancy"])
        iou = grid_iou(vae.decoder(tokens_to_grid(tokens))[:, 0], batch["occupancy"][:, 0])
    assert tokens.shape == (OBJECTS, 8, 8) and 0.3 < tokens.std() < 3
    assert iou.min() > 0.9
    # it does not only know one shape: these differ by far more
    others = grid_iou(batch["occupancy"][:, 0] * 2 - 1, batch["occupancy"].roll(1, 0)[:, 0])
    assert others.max() < 0.8


def test_flow_matching_learns_the_objects(matched, network, batch, vae):
    _, _, (first, last) = matched
    assert last < 0.3 * first
    latents, logits = sampled(network, views(batch, "sharp"))
    target = truth(vae, batch)
    assert grid_iou(logits, batch["occupancy"][:, 0]).min() > 0.8
    distances = torch.cdist(latents[SHAPE].flatten(1), target[SHAPE].flatten(1))
    assert (distances.argmin(1) == torch.arange(OBJECTS)).all()
    for name in (SHAPE, "6drotation_normalized", "scale"):
        assert off(latents[name], target[name]) < 0.6 * off(target[name], target[name].mean(0)), name
    unit = np.ones((OBJECTS, 3)), np.zeros((OBJECTS, 3))
    found, true = (decode_poses({k: v.numpy() for k, v in x.items()}, *unit) for x in (latents, pose_latents(batch)))
    for a, b in zip(found, true, strict=True):
        angle = np.degrees(np.arccos(np.clip((np.trace(a.rotation @ b.rotation.T) - 1) / 2, -1, 1)))
        assert angle < 40  # of two random rotations: 127 degrees in the mean


def test_flow_matching_leaves_the_decoder_events_and_step_sizes_alone(matched, network):
    parts = {name.split(".")[0] + "." + name.split(".")[1] for name in changed(network, matched[1])}
    assert parts == {"condition.fuser", "flow.t_embedder", "flow.blocks", "flow.latent_mapping"}


def test_one_step_goes_where_many_go_only_after_the_shortcut_phase(monkeypatch):
    """Latents anywhere on a line, the same condition for all: the velocity at the noise points to their mean, so that
    one step of plain flow matching gives one and the same object."""
    monkeypatch.setattr(matching, "FINEST", 8)  # fewer doublings to learn
    torch.manual_seed(0)
    flow = GeometryFlow(FlowHeadConfig(32, 16, depth=1, heads=2, mlp_ratio=2.0, resolution=1, channels=4))
    line = {name: torch.randn(1, *shape).sign() for name, shape in flow.latent_shapes.items()}
    tokens, random, count = torch.randn(1, 3, 16), torch.Generator().manual_seed(1), 32

    def learn(objective, parameters, steps):
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
        for _ in range(steps):
            place = torch.randn(count, 1, 1, generator=random)
            data = {name: place * x for name, x in line.items()}
            loss, _ = objective(flow, tokens.expand(count, -1, -1), data, random)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            rate.step()

    def distance(steps):
        """Of few steps from many, over the spread of what many give."""
        shortcut = SamplerConfig(steps=steps, rescale=1.0, shortcut=True)
        many, few = (
            flow.sample(tokens.expand(count, -1, -1), seeded_generators(range(count)), sampler)[SHAPE]
            for sampler in (SamplerConfig(steps=64, rescale=1.0, strength=0.0), shortcut)
        )
        return off(few, many) / float(many.std())

    learn(flow_matching_loss, [p for name, p in flow.named_parameters() if not name.startswith("d_embedder")], 150)
    before = {steps: distance(steps) for steps in (1, 2, 4)}
    learn(shortcut_loss, flow.parameters(), 150)
    after = {steps: distance(steps) for steps in (1, 2, 4)}
    assert before[1] > 0.4
    assert after[1] < 0.65 * before[1] and after[1] < 0.3 and after[2] < 0.2 and after[4] < 0.15


def test_two_half_steps_of_a_constant_velocity_are_that_velocity(network, batch, monkeypatch):
    flow, tokens = network.flow, network.condition(views(batch, "sharp")).detach()
    constant = draw_noise(flow.latent_shapes, seeded_generators(range(OBJECTS)))
    told = []

    def forward(state, time, step_size, condition, guided=False):
        told.append((time, step_size))
        return constant, constant if guided else None

    monkeypatch.setattr(flow, "forward", forward)
    time, step = torch.tensor([0.0, 0.25, 0.5, 0.75]), torch.tensor([1.0, 0.25, 1 / 64, 1 / 32])
    mean = two_half_steps(flow, tokens, constant, time, step)
    assert all(torch.equal(mean[name], constant[name]) for name in constant)
    (first, sizes), (second, _) = told
    torch.testing.assert_close(first, 1000 * time)
    torch.testing.assert_close(second, 1000 * (time + step / 2))
    torch.testing.assert_close(sizes, torch.tensor([500.0, 125.0, 0.0, 1000 / 64]))  # the finest ask for velocities


def test_long_steps_lie_where_a_sampler_takes_them():
    step, time = random_long_steps(4000, torch.Generator().manual_seed(0))
    assert set(step.tolist()) == {2.0**-k for k in range(7)}
    assert (time >= 0).all() and (time + step <= 1).all() and (time % step == 0).all()
    assert {float(t) for t in time[step == 0.25]} == {0.0, 0.25, 0.5, 0.75}


def test_the_modality_weights_are_the_papers():
    ones = {name: torch.ones(2, 3, 4) for name in matching.WEIGHTS}
    zeros = {name: torch.zeros(2, 3, 4) for name in matching.WEIGHTS}
    total, parts = matching.velocity_errors(ones, zeros)
    assert total == pytest.approx(1.0 + 0.1 + 1.0 + 0.1)
    assert set(parts) == {"shape", "6drotation", "translation", "scale"}


def test_events_as_sharp_as_the_frame_distil_to_nothing(network, batch):
    alike = {**batch, "blurry.event_image": batch["sharp.image"], "blurry.rgb_event_image": batch["sharp.rgb_image"]}
    network.condition.event_encoder.load_state_dict(network.condition.fuser.image_encoder.state_dict())
    settings = DistillConfig(attention=True)
    assert distill.loss(network, alike, np.random.default_rng(0), settings)[0] == 0
    assert distill.loss(network, batch, np.random.default_rng(0), settings)[0] > 0.01


def test_closed_gates_on_a_sharp_frame_cost_nothing(network, batch):
    alike = {name: batch[name.replace("blurry", "sharp")] if "event" not in name else x for name, x in batch.items()}
    assert fusion_loss(network, alike, np.random.default_rng(0), FuseConfig())[0] == 0
    assert fusion_loss(network, batch, np.random.default_rng(0), FuseConfig())[0] > 0


def test_dropped_views_are_black_together(batch):
    seen = views(batch, "blurry")
    dropped = blackened(seen, IMAGES, 0.5, np.random.default_rng(1))
    black = ~dropped["image"].flatten(1).any(1)
    assert 0 < black.sum() < OBJECTS
    for name, view in dropped.items():
        gone = black & (name in IMAGES)
        assert not view[gone].any() and torch.equal(view[~gone].nan_to_num(), seen[name][~gone].nan_to_num())


def test_the_teachers_way_is_the_samplers(network, batch):
    tokens, sampler = network.condition(views(batch, "sharp")).detach(), network.config.flow.sampler
    noise = draw_noise(network.flow.latent_shapes, seeded_generators(range(OBJECTS)))
    steps = path(network.flow, tokens, noise, sampler)
    assert [float(step.time) for step in steps] == [0, 250, 500, 750]
    assert {float(step.step_size) for step in steps} == {250.0}
    end = {name: x + 0.25 * steps[-1].velocity[name] for name, x in steps[-1].state.items()}
    for name, x in network.flow.sample(tokens, seeded_generators(range(OBJECTS)), sampler).items():
        torch.testing.assert_close(end[name], x, rtol=0, atol=1e-5)


def test_fusion_brings_the_blurry_frame_to_the_sharp_one(network, batch, model, tmp_path):
    @torch.no_grad()
    def distance(network):
        """The stage's loss, always on the same steps of the same ways."""
        losses = [fusion_loss(network, batch, np.random.default_rng(i), FuseConfig())[0] for i in range(16)]
        return float(torch.stack(losses).mean())

    before, untrained = copy.deepcopy(network.state_dict()), distance(network)
    sampler = model.flow.sampler
    sharp, _ = sampled(network, views(batch, "sharp"), sampler)
    blurry, _ = sampled(network, mode_views(batch, "blurry"), sampler)
    fit(
        "fuse",
        network,
        [network.condition.fusion],
        lambda b, r: fusion_loss(network, b, r, FuseConfig()),
        batch,
        stage_of(80, learning_rate=0.1, matrix_learning_rate=0.1),
        tmp_path / "fused.safetensors",
    )
    fused = trainable(tmp_path / "fused.safetensors", model).eval()
    assert distance(fused) < 0.7 * untrained
    moved = changed(fused, before)
    assert moved and all(name.startswith("condition.fusion.") for name in moved)
    assert all(bool(gate.detach().any()) for gate in fused.condition.fusion.gates().values())
    latents, _ = sampled(fused, mode_views(batch, "fused"), sampler)
    assert off(latents[SHAPE], sharp[SHAPE]) < 0.85 * off(blurry[SHAPE], sharp[SHAPE])
    alone, _ = sampled(fused, mode_views(batch, "blurry"), sampler)
    assert all(torch.equal(alone[name], x) for name, x in blurry.items())  # without events nothing changed


@pytest.mark.parametrize("phase", ["structure", "shortcut", "fuse", "unfreeze"])
def test_shares_of_a_batch_have_its_loss_in_the_mean(phase, network, vae, batch, monkeypatch):
    """What chance decides for an object does not depend on how many processes share the batch."""
    loss = {
        "structure": lambda b, r: structure.loss(vae, b, r),
        "shortcut": matching_stage(network, vae, shortcut_loss, drop_image=0.5),
        "fuse": lambda b, r: fusion_loss(network, b, r, FuseConfig(drop_image=0.5, drop_events=0.5)),
        "unfreeze": finishing(network, vae),
    }[phase]
    with torch.no_grad():
        whole, shares = loss(batch, np.random.default_rng(3))[0], []
        for rank in range(2):
            monkeypatch.setattr(distributed, "_rank_and_count", lambda rank=rank: (rank, 2))
            share = {name: tensor[rank::2] for name, tensor in batch.items()}
            shares.append(loss(share, np.random.default_rng(3))[0])
    assert torch.stack(shares).mean() == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("phase", ["structure", "shortcut", "fuse", "unfreeze"])
def test_a_killed_phase_resumes_bit_identically(phase, batch, model, vae, matched, tmp_path):
    def started():
        torch.manual_seed(0)
        if phase == "structure":
            network = StructureVae(model)
            return network, [network], lambda b, r: structure.loss(network, b, r)
        network = trainable(matched[0], model)
        if phase == "shortcut":
            return network, shortcut_parts(network), matching_stage(network, vae, shortcut_loss, drop_image=0.3)
        if phase == "unfreeze":
            return network, [network.condition, network.flow], finishing(network, vae)
        settings = FuseConfig(drop_events=0.3)
        return network, [network.condition.fusion], lambda b, r: fusion_loss(network, b, r, settings)

    stage = stage_of(4, save_every=2)

    def run(out, dies_at=None):
        network, trained, loss = started()
        calls = iter(range(9))

        def watched(batch, rng):
            if next(calls) == dies_at:
                raise KeyboardInterrupt
            return loss(batch, rng)

        train(phase, network, trained, watched, lambda step: batch, stage, out, "cpu")

    run(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.safetensors", dies_at=3)
    run(tmp_path / "killed.safetensors")
    whole, resumed = (read_safetensors(tmp_path / f"{name}.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(x, resumed[name]) for name, x in whole.items())


def test_a_structure_vae_of_another_model_is_refused(vae, model, tmp_path):
    structure.save(tmp_path / "vae.safetensors", vae)
    flow = dataclasses.replace(model.flow, transformer=dataclasses.replace(model.flow.transformer, channels=4))
    with pytest.raises(CheckpointError, match="wrong shape"):
        structure.load(tmp_path / "vae.safetensors", dataclasses.replace(model, flow=flow))
    with pytest.raises(CheckpointError, match="no structure VAE"):
        structure.load(tmp_path / "none.safetensors", model)


def test_all_commands_run(flow_folder, flow_config, tmp_path, monkeypatch):
    def run(module, out, *options):
        common = [
            "--config",
            str(FLOW_TOY),
            "--data",
            str(flow_folder),
            "--out",
            str(tmp_path / out),
            "--device",
            "cpu",
        ]
        monkeypatch.setattr(sys, "argv", [module.__name__, *common, *map(str, options)])
        module.main()
        return tmp_path / out

    first = run(pretrain, "pretrained.safetensors")
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {
        "pretrained.safetensors",
        "pretrained.structure.safetensors",
        "pretrained.matched.safetensors",
    }
    run(pretrain, "more.safetensors", "--weights", first)
    distilled = run(distill, "distilled.safetensors", "--weights", first)
    fused = run(fuse, "fused.safetensors", "--weights", distilled)
    vae_file = tmp_path / "more.structure.safetensors"
    finished = run(fuse, "finished.safetensors", "--weights", fused, "--unfreeze", "--structure", vae_file)
    network, info = load_checkpoint(finished)
    assert info["tag"] == "unfreeze" and network.config == flow_config[1]
    assert load_checkpoint(fused)[0].condition.fusion.gates()


def test_settings_of_the_other_head_are_refused(flow_config):
    config, model = flow_config
    blurry = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, blurry=0.5))
    with pytest.raises(ConfigurationError, match="blurry"):
        pretrain_flow(None, blurry, model)
