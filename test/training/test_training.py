"""The training stages, on a handful of real samples: targets that agree with the pictures, exact resuming, frozen
parts.
"""

import dataclasses

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import CheckpointError, ConfigurationError, InputError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.geometry_direct import Geometry
from event_sam3d_ros.sam3d.network import Network
from training import distill, distributed, fuse, pretrain
from training.datasets import Batches, DataConfig, augment, render
from training.engine import load_stage_input, make_optimizers, train
from training.losses import depth_losses, focal_loss, geometry_loss, grid_iou, occupancy_loss, silhouette_loss
from training.muon import Muon
from training.settings import DistillConfig, FuseConfig, PretrainConfig, StageConfig, load_config

CONFIG = ModelConfig()
DATA = DataConfig(cases=6, sensor=96)
STAGE = StageConfig(cases=6, steps=4, batch_size=3, warmup=1, save_every=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    render(folder, DATA, CONFIG, workers=1)
    return folder


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(CONFIG)


def test_targets_agree_with_the_masks(folder):
    batch = Batches(folder, CONFIG, 6, 0, 6)(0)
    for crop, mask in (("true", "true_mask"), ("degraded", "degraded_true_mask")):
        silhouette = batch[f"{crop}_occupancy"].amax(1) > 0
        seen = torch.nn.functional.avg_pool2d(batch[mask], 2)[:, 0] > 0.5
        iou = (silhouette & seen).sum((1, 2)) / (silhouette | seen).sum((1, 2))
        assert iou.min() > 0.85, crop


def test_the_same_step_gives_the_same_batch(folder):
    first, again, other = (Batches(folder, CONFIG, 3, 0, 6)(step) for step in (7, 7, 8))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["degraded_sharp"], other["degraded_sharp"])


def test_cases_that_are_not_rendered_are_asked_for(folder):
    with pytest.raises(InputError, match="render them first"):
        Batches(folder, CONFIG, 3, 0, 7)


def test_rendering_again_changes_nothing_and_other_settings_are_refused(folder):
    before = (folder / "degraded_events.npy").read_bytes()
    render(folder, DATA, CONFIG, workers=1)
    assert (folder / "degraded_events.npy").read_bytes() == before
    with pytest.raises(InputError, match="other settings"):
        render(folder, dataclasses.replace(DATA, cases=7), CONFIG, workers=1)


def test_mirroring_keeps_images_and_targets_together(folder):
    batch = Batches(folder, CONFIG, 3, 0, 6)(0)
    mirrored = augment(batch, np.random.default_rng(2))
    for i in range(3):
        flipped = not torch.equal(mirrored["true_occupancy"][i], batch["true_occupancy"][i])
        expected = batch["true_mask"][i].flip(-1) if flipped else batch["true_mask"][i]
        assert torch.equal(mirrored["true_mask"][i], expected)
        assert torch.equal(mirrored["true_up"][i, 0], batch["true_up"][i, 0] * (-1 if flipped else 1))


@pytest.mark.parametrize("stage", ["pretrain", "fuse"])
def test_shares_of_a_batch_have_its_loss_in_the_mean(folder, network, monkeypatch, stage):
    """What chance decides for a sample does not depend on how many processes share the batch."""
    batch = Batches(folder, CONFIG, 6, 0, 6)(0)
    batch["true_occupancy"][0::2] *= torch.rand(3, 1, 32, 32) > 0.5  # shares with different numbers of solid columns
    solid = (batch["true_occupancy"].amax(1) > 0.5).sum((1, 2)).float()

    def loss(batch):
        rng = np.random.default_rng(3)  # a step of pretraining on the true mask
        if stage == "fuse":
            return fuse.fusion_loss(network, batch, rng, FuseConfig(drop_image=0.5, drop_events=0.5))[0]
        return pretrain.loss(network, batch, rng, PretrainConfig(drop_image=0.5))[0]

    with torch.no_grad():
        whole, shares = loss(batch), []
        for rank in range(2):
            monkeypatch.setattr(distributed, "_rank_and_count", lambda rank=rank: (rank, 2))
            monkeypatch.setattr("training.losses.mean", lambda count: solid.sum() / 2)
            shares.append(loss({name: tensor[rank::2] for name, tensor in batch.items()}))
    assert torch.stack(shares).mean() == pytest.approx(float(whole), rel=1e-5)


def pretrain_loss(network, batch, rng):
    return pretrain.loss(network, batch, rng, PretrainConfig())


def distill_loss(network, batch, rng):
    return distill.loss(network, batch, rng, DistillConfig())


def fusion_loss(network, batch, rng):
    return fuse.fusion_loss(network, batch, rng, FuseConfig())


def run(network, folder, out, loss=pretrain_loss, trained=None, stage=STAGE):
    batches = Batches(folder, CONFIG, stage.batch_size, stage.seed, stage.cases)
    train("test", network, trained or [network], lambda b, r: loss(network, b, r), batches, stage, out, "cpu")


def test_a_killed_run_resumes_bit_identically(folder, network, tmp_path):
    start = {k: v.clone() for k, v in network.state_dict().items()}
    run(network, folder, tmp_path / "whole.safetensors")

    calls = iter(range(9))

    def dies(network, batch, rng):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return pretrain_loss(network, batch, rng)

    network.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        run(network, folder, tmp_path / "killed.safetensors", dies)
    run(Network(CONFIG), folder, tmp_path / "killed.safetensors")
    whole, _ = load_checkpoint(tmp_path / "whole.safetensors")
    resumed, _ = load_checkpoint(tmp_path / "killed.safetensors")
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize(
    ("loss", "part"),
    [(distill_loss, "condition.event_encoder."), (fusion_loss, "condition.fusion."), (fuse.finishing_loss, "")],
)
def test_each_stage_changes_its_part_alone(folder, network, tmp_path, loss, part):
    start = {k: v.clone() for k, v in network.state_dict().items()}
    run(network, folder, tmp_path / "out.safetensors", loss, [network.get_submodule(part.rstrip("."))])
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, start[k])}
    assert changed and all(k.startswith(part) for k in changed)


def test_stage_input_of_another_configuration_is_refused(folder, network, tmp_path):
    run(network, folder, tmp_path / "out.safetensors")
    other = dataclasses.replace(CONFIG, name="other")
    with pytest.raises(CheckpointError, match="another configuration: name is nano there, but other here"):
        load_stage_input(tmp_path / "out.safetensors", other)


def test_an_unknown_training_setting_is_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("pretrain: {stepz: 3}\n")
    with pytest.raises(ConfigurationError, match="stepz"):
        load_config(path)


def test_perfect_logits_have_almost_no_loss():
    target = torch.zeros(1, 8, 8, 8)
    target[:, 2:5, 2:6, 2:6] = 1
    logits = (target * 2 - 1) * 20
    assert occupancy_loss(logits, target) < 1e-3
    assert focal_loss(logits, target) < 1e-6
    undecided = focal_loss(torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8))
    assert undecided == pytest.approx(0.5**2 * np.log(2))  # half wrong: a quarter of the cross-entropy counts
    front, thickness = depth_losses(logits, target)
    assert front < 1e-3 and thickness < 1e-3
    assert grid_iou(logits, target) == 1
    shifted = torch.roll(logits, 2, dims=1)
    assert depth_losses(shifted, target)[0] == pytest.approx(2 / 8, abs=1e-3)


def test_nothing_solid_has_finite_losses():
    assert all(loss == 0 for loss in depth_losses(torch.randn(2, 8, 8, 8), torch.zeros(2, 8, 8, 8)))


class Watch:
    """Notes which images a network was shown, by input."""

    def __init__(self):
        self.images, self.events = [], []

    def __call__(self, image, event_image, mask):
        self.images.append(image)
        self.events.append(event_image)
        count = len(mask)
        return Geometry(torch.zeros(count, 32, 32, 32), torch.ones(count, 3), torch.zeros(count))


def test_dropped_inputs_are_black(folder):
    """As many as the settings say, the others as they were."""
    batch = Batches(folder, CONFIG, 6, 0, 6)(0)
    watch = Watch()
    fuse.fusion_loss(watch, batch, np.random.default_rng(0), FuseConfig(drop_image=1.0, drop_events=0.5))
    assert not watch.images[1].any() and torch.equal(watch.images[0], batch["degraded_sharp"])  # the teacher's
    black = ~watch.events[1].flatten(1).any(1)
    assert 0 < black.sum() < 6 and torch.equal(watch.events[1][~black], batch["degraded_events"][~black])
    pretrain.loss(watch, batch, np.random.default_rng(0), PretrainConfig(drop_image=1.0))
    assert not watch.images[2].any()
    share = pretrain.blacken(torch.ones(4000, 1, 1, 1), 0.3, np.random.default_rng(0)).mean()
    assert share == pytest.approx(0.7, abs=0.03)


def test_the_finishing_phase_trains_all_input_modes(folder):
    batch = Batches(folder, CONFIG, 6, 0, 6)(0)
    watch, counts = Watch(), dict.fromkeys(("fused", "sharp", "blurry", "events"), 0)
    for seed in range(200):
        _, parts = fuse.finishing_loss(watch, batch, np.random.default_rng(seed))
        mode = next(iter(parts)).removesuffix("_iou")
        counts[mode] += 1
        image, events = watch.images[-1], watch.events[-1]
        assert (image is None) == (mode == "events") and (events is None) == (mode in ("sharp", "blurry"))
        assert mode != "sharp" or torch.equal(image, batch["true_sharp"])
    assert 80 < counts["fused"] < 120 and min(counts.values()) > 8


def test_an_outline_that_ends_too_early_costs():
    target = torch.zeros(1, 8, 8, 8)
    target[:, 2:5, 2:6, 1:7] = 1
    short = target.clone()
    short[..., 6] = 0
    assert silhouette_loss((target * 2 - 1) * 20, target) < 1e-3
    assert silhouette_loss((short * 2 - 1) * 20, target) > 0.5


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 8, 3, 3)])
def test_muon_steps_are_orthogonal(shape):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    (weight * torch.randn(shape)).sum().backward()
    Muon([weight], lr=1.0).step()
    rows, columns = weight.flatten(1).shape
    singular = torch.linalg.svdvals(weight.detach().flatten(1)) / max(1, rows / columns) ** 0.5
    assert 0.5 < singular.min() and singular.max() < 1.3


def test_every_parameter_has_one_optimizer(network):
    optimizers = make_optimizers([network], STAGE)
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    matrices = {id(p) for p in optimizers[0].param_groups[0]["params"]}
    assert id(network.condition.rgb_encoder.blocks[0].mlp.fc1.weight) in matrices
    assert id(network.geometry.columns.weight) not in matrices


def test_the_score_learns_without_shaping_the_geometry(network):
    x = torch.rand(2, 3, 64, 64)
    geometry: Geometry = network(x, None, x[:, :1])
    _, parts = geometry_loss(geometry, torch.ones(2, 32, 32, 32), torch.tensor([[0.0, -1, 0]] * 2))
    parts["score"].backward()
    assert network.geometry.columns.weight.grad is None
    assert network.geometry.score[0].weight.grad is not None
