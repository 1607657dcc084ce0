"""The flow head from an observation to objects: where a known solid comes to lie, and a tiny network end to end."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.flow_pipeline import expected_iou, reconstruct
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor, _dtype
from event_sam3d_ros.sam3d.checkpoint import save_checkpoint
from event_sam3d_ros.sam3d.config import (
    EncoderConfig,
    FlowConfig,
    FlowHeadConfig,
    FusionConfig,
    ModelConfig,
    PointmapConfig,
    SamplerConfig,
    StructureConfig,
)
from event_sam3d_ros.sam3d.embedder_fuser import POINTMAPS
from event_sam3d_ros.sam3d.layout import ObjectPose, encode_pose
from event_sam3d_ros.sam3d.memory import peak_memory
from event_sam3d_ros.sam3d.network import FlowGeometry, FlowNetwork
from event_sam3d_ros.sam3d.pointmap import pointmap_from_depth
from event_sam3d_ros.sam3d.preprocessing import object_inputs, scene_moments

HEIGHT, WIDTH = 60, 80
K = np.array([[70.0, 0, 39.5], [0, 70.0, 29.5], [0, 0, 1]])
TINY = ModelConfig(
    name="tiny",
    head="flow",
    encoder=EncoderConfig(28, 14, 3, 32, 2, 2, registers=2, stem=(), mask_token=True),
    fusion=FusionConfig(stems=(), blocks=(1,), heads=2),
    flow=FlowConfig(
        PointmapConfig(32, 8, 16, 2),
        FlowHeadConfig(32, 32, 2, 2, 2.0, 4, 4),
        StructureConfig((16, 8, 4), 1, 1),
        SamplerConfig(steps=3),
    ),
)


def observation() -> Observation:
    """Four objects, of which 2 and 300 have depth."""
    rng = np.random.default_rng(0)
    mask = np.zeros((HEIGHT, WIDTH), np.uint16)
    mask[10:30, 8:30], mask[25:50, 45:70], mask[40:56, 4:34], mask[2:20, 40:52] = 1, 2, 7, 300
    depth = np.where((mask == 2) | (mask == 300), 1.5 + 0.1 * rng.random(mask.shape), 0).astype(np.float32)
    image, events = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return Observation(image, mask, events, K, depth)


def alone(seen: Observation, *labels: int) -> Observation:
    return replace(seen, mask=np.where(np.isin(seen.mask, labels), seen.mask, 0).astype(np.uint16))


def tiny_network(config: ModelConfig = TINY) -> FlowNetwork:
    torch.manual_seed(0)
    network = FlowNetwork(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "adaLN" in name or "conv2" in name or "d_embedder" in name or name.endswith(("gate", "gate_mlp")):
                parameter.normal_(std=0.2)  # what starts at zero would hide what it does
    return network


@pytest.fixture(scope="module")
def network() -> FlowNetwork:
    """Stays on the CPU in float32: a test that wants it otherwise copies it."""
    return tiny_network()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What networks are called with from now on, and what they give."""
    made: list[SimpleNamespace] = []
    plain = FlowNetwork.forward

    def forward(self: FlowNetwork, views: Any, generators: Any, **named: Any) -> FlowGeometry:
        seeds = [generator.initial_seed() for generator in generators]
        result = plain(self, views, generators, **named)
        made.append(SimpleNamespace(views=views, seeds=seeds, result=result, **named))
        return result

    monkeypatch.setattr(FlowNetwork, "forward", forward)
    return made


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    logits = np.full((64, 64, 64), -4.0, np.float32)
    logits[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 4.0
    return logits


def test_a_known_box_lies_where_its_pose_says() -> None:
    rotation = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix()
    pose = ObjectPose(rotation, np.array([0.1, -0.2, 1.4]), 0.32)
    found = reconstruct(observation(), 2, box((8, 16, 24), (40, 32, 56)), pose, metric=True)
    assert found is not None and found.metric and found.id == 2
    np.testing.assert_allclose(found.size, np.array([32, 16, 32]) / 64 * 0.32, atol=1e-6)
    center = (np.array([24, 24, 40]) / 64 - 0.5) * 0.32
    np.testing.assert_allclose(found.position, rotation @ center + pose.position, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_quat(found.quaternion).as_matrix(), rotation, atol=1e-9)
    local = (found.points - found.position) @ rotation
    np.testing.assert_allclose(np.abs(local).max(0), found.size / 2, atol=1e-6)
    # Its cube has the longest edge: the box fills x and z, and a half of y, in the middle; edges are rounded.
    assert found.occupancy[1:63, 17:47, 1:63].all() and not found.occupancy[:, :15].any()
    assert found.occupancy.sum() == pytest.approx(64 * 32 * 64, rel=0.01)
    assert reconstruct(observation(), 2, np.full((64, 64, 64), -1.0, np.float32), pose, True) is None


def test_points_have_the_colour_of_the_pixel_before_them() -> None:
    seen = observation()
    found = reconstruct(
        seen, 2, box((30, 30, 30), (34, 34, 34)), ObjectPose(np.eye(3), np.array([0, 0, 1.0]), 0.1), True
    )
    assert found is not None and seen.image is not None
    u, v = np.rint(found.points[:, :2] / found.points[:, 2:] * 70 + (39.5, 29.5)).astype(int).T
    np.testing.assert_array_equal(found.colors, seen.image[v, u])
    behind = ObjectPose(np.eye(3), np.array([0, 0, -1.0]), 0.1)
    found = reconstruct(seen, 2, box((30, 30, 30), (34, 34, 34)), behind, True)
    assert found is not None and (found.colors == 128).all()


def test_the_expected_iou_is_high_for_what_is_certain() -> None:
    certain = expected_iou(box((8, 8, 8), (32, 32, 32)))
    assert 0.0 < expected_iou(box((8, 8, 8), (32, 32, 32)) / 4) < certain < 1.0
    assert expected_iou(box((8, 8, 8), (32, 32, 32)) * 10) > 0.999


def test_objects_with_and_without_depth(network: FlowNetwork, calls: list[SimpleNamespace]) -> None:
    found = Reconstructor(network, {}, "cpu")(observation())
    assert [(one.id, one.metric) for one in found] == [(1, False), (2, True), (7, False), (300, True)]
    for one in found:
        assert (
            one.points.dtype == np.float32 and one.colors.dtype == np.uint8 and len(one.points) == len(one.colors) > 0
        )
        assert one.occupancy.shape == (64, 64, 64) and one.occupancy.any() and 0 < one.score < 1
    (call,) = calls  # all in one batch; what stands in for a pointmap is for the pose's scale alone
    assert len(call.views["mask"]) == 4 and call.with_points.tolist() == [False, True, False, True]


def test_the_same_seed_gives_the_same_and_another_another(network: FlowNetwork) -> None:
    first, again, other = (Reconstructor(network, {}, "cpu", seed=seed)(observation()) for seed in (3, 3, 4))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.points, two.points)
        assert one.points.shape != three.points.shape or not np.allclose(one.points, three.points)


def test_every_object_has_noise_of_its_own(network: FlowNetwork, calls: list[SimpleNamespace]) -> None:
    seen = observation()
    for each in (seen, alone(seen, 300)):
        Reconstructor(network, {}, "cpu", seed=5)(each)
    assert [call.seeds for call in calls] == [[5, 6, 11, 304], [304]]


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_object_does_not_depend_on_the_others(network: FlowNetwork, at_once: int) -> None:
    seen = observation()
    bounded = Reconstructor(network, {}, "cpu", memory_gb=at_once * network.memory_per_object / 1e9)
    together, in_turn = Reconstructor(network, {}, "cpu")(seen), bounded(seen)
    for one, other in zip(together, in_turn, strict=True):
        (single,) = bounded(alone(seen, one.id))
        for again in (other, single):
            assert again.id == one.id and again.metric == one.metric
            np.testing.assert_allclose(again.position, one.position, atol=1e-3)
            np.testing.assert_allclose(again.size, one.size, rtol=1e-3)
            # a voxel at the edge of solid may flip, and with it its points
            assert cKDTree(one.points).query(again.points)[0].mean() < 1e-3 * one.size.max()
            assert (again.occupancy != one.occupancy).mean() < 1e-3
    assert not np.allclose(together[0].size, together[2].size) and not np.allclose(together[1].size, together[3].size)


def test_the_memory_bounds_what_the_network_takes(network: FlowNetwork, calls: list[SimpleNamespace]) -> None:
    taken = network.memory_per_object
    for memory_gb in (0.0, 2 * taken / 1e9):
        Reconstructor(network, {}, "cpu", memory_gb=memory_gb)(observation())
    assert [call.memory for call in calls] == [None, pytest.approx(2 * taken)]
    with pytest.raises(ConfigurationError, match="an object takes"):
        Reconstructor(network, {}, "cpu", memory_gb=0.9 * taken / 1e9)


def test_inputs_are_made_for_one_object_after_the_other() -> None:
    points = torch.rand(3, 300, 400)
    masks = torch.zeros(8, 300, 400, dtype=torch.uint8)
    masks[:, 50:150, 60:200] = 255
    image = torch.zeros(300, 400, 3, dtype=torch.uint8)

    def peak(objects: int) -> int:
        return peak_memory(lambda: object_inputs(image, masks[:objects], [points] * objects, image, size=28))

    views = (3 + 1 + 1 + 3 + 3 + 3) * 28 * 28 * 4
    assert peak(8) - peak(1) < 7 * 2.1 * views < 7 * masks[0].numel()  # each twice, while they are joined


def test_the_window_is_as_large_as_the_configuration_says(calls: list[SimpleNamespace]) -> None:
    for factor in (1.2, 2.4):
        config = replace(TINY, preprocess=replace(TINY.preprocess, crop_factor=factor))
        Reconstructor(tiny_network(config), {}, "cpu")(alone(observation(), 1))
    tight, wide = (float(call.views["mask"].mean()) for call in calls)
    assert tight / wide == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("offload", [False, True])
def test_offloaded_weights_stay_in_main_memory(
    network: FlowNetwork, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("event_sam3d_ros.reconstructor._device", lambda _: torch.device("meta"))
    copied = copy.deepcopy(network)
    Reconstructor(copied, {}, offload=offload)
    assert {parameter.device.type for parameter in copied.parameters()} == {"cpu" if offload else "meta"}


def test_each_stage_runs_where_it_was_asked_to(network: FlowNetwork, calls: list[SimpleNamespace]) -> None:
    Reconstructor(network, {}, "cpu", offload=True)(observation())
    assert [call.device for call in calls] == [torch.device("cpu")]


class Oracle(torch.nn.Module):
    """A network that knows where its box is: it answers with the latents of its pose."""

    memory_per_object = 1

    def __init__(self, logits: np.ndarray, latents: list[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self.config, self.logits, self.latents = TINY, logits, latents

    def forward(self, views: dict[str, torch.Tensor], *_: Any, **__: Any) -> FlowGeometry:
        count = len(views["mask"])
        pose = {k: torch.tensor(np.stack([one[k] for one in self.latents[:count]])) for k in self.latents[0]}
        return FlowGeometry(torch.from_numpy(self.logits).expand(count, -1, -1, -1), pose)


def test_a_known_pose_is_published_in_the_optical_frame() -> None:
    seen = alone(observation(), 2, 300)
    truths = [
        ObjectPose(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), np.array(position), scale)
        for angles, position, scale in (([20, -35, 110], [0.3, 0.2, 1.4], 0.32), ([-70, 10, 5], [-0.1, 0.4, 2.0], 0.5))
    ]
    scene = pointmap_from_depth(seen.depth, K).points
    latents = []
    for label, truth in zip((2, 300), truths, strict=True):
        scale, shift = scene_moments(scene, torch.from_numpy(seen.mask == label).float())
        latents.append(encode_pose(truth.turned(), scale.double().numpy(), shift.double().numpy()))
    found = Reconstructor(Oracle(box((8, 16, 24), (40, 32, 56)), latents), {}, "cpu")(seen)
    center = np.array([24, 24, 40]) / 64 - 0.5
    for one, truth in zip(found, truths, strict=True):
        np.testing.assert_allclose(one.position, truth.to_camera(center), atol=1e-6)
        np.testing.assert_allclose(Rotation.from_quat(one.quaternion).as_matrix(), truth.rotation, atol=1e-6)
        np.testing.assert_allclose(one.size, np.array([32, 16, 32]) / 64 * truth.scale, atol=1e-6)


def test_modes_differ_and_none_is_needed(network: FlowNetwork) -> None:
    seen = observation()
    reconstruct_all = Reconstructor(network, {}, "cpu")
    fused, rgb, events = (
        reconstruct_all(one)[1].position for one in (seen, replace(seen, event_image=None), replace(seen, image=None))
    )
    assert not np.allclose(fused, rgb) and not np.allclose(fused, events) and not np.allclose(rgb, events)


class FlatWorld:
    """A monocular model: everything is 2 m away."""

    metric = True

    def __call__(self, image: np.ndarray, K: np.ndarray) -> np.ndarray:
        ys, xs = np.indices(image.shape[:2])
        rays = np.stack([xs, ys, np.ones_like(xs)], -1) @ np.linalg.inv(K).T
        return 2.0 * rays


def test_a_monocular_model_stands_in_for_depth(network: FlowNetwork) -> None:
    seen = replace(observation(), depth=None)
    assert [one.metric for one in Reconstructor(network, {}, "cpu")(seen)] == [False] * 4
    assert [one.metric for one in Reconstructor(network, {}, "cpu", monocular=FlatWorld())(seen)] == [True] * 4


def test_no_object_of_a_usable_size(network: FlowNetwork) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3, 4] = 1
    with pytest.raises(InputError, match="under 3 pixels"):
        Reconstructor(network, {}, "cpu")(replace(observation(), mask=mask))


def documented_moge(monkeypatch: pytest.MonkeyPatch, infer: Any) -> dict[str, Any]:
    """Runs the example of docs/sam3d-weights.md with ``infer`` in MoGe's place."""
    text = (Path(__file__).parents[1] / "docs" / "sam3d-weights.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(import numpy.*?)```", text, re.DOTALL)
    assert example is not None

    class MoGeModel:
        @classmethod
        def from_pretrained(cls, name: str) -> Any:
            model = torch.nn.Module()
            model.infer = infer
            return model

    package = ModuleType("moge.model.v2")
    package.MoGeModel = MoGeModel  # type: ignore[attr-defined]
    for name, module in (
        ("moge", ModuleType("moge")),
        ("moge.model", ModuleType("moge.model")),
        (package.__name__, package),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Reconstructor, "from_pretrained", lambda *_, **named: named["monocular"])
    names: dict[str, Any] = {}
    exec(example[1], names)
    return names


def test_the_documented_model_gives_points_on_the_rays_of_K(
    network: FlowNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def infer(image: torch.Tensor, fov_x: float) -> dict[str, torch.Tensor]:
        given.append((image, fov_x))
        depth = torch.full(image.shape[1:], 2.0)
        depth[0, 0] = torch.inf  # as MoGe marks what it does not know
        return {"depth": depth}

    model = documented_moge(monkeypatch, infer)["reconstruct"]
    seen = replace(observation(), depth=None)
    assert seen.image is not None
    points = model(seen.image, K)
    (image, fov_x), *_ = given
    torch.testing.assert_close(image.cpu(), torch.from_numpy(seen.image).permute(2, 0, 1) / 255)
    assert fov_x == pytest.approx(2 * np.degrees(np.arctan(WIDTH / 2 / 70)))
    assert not np.isfinite(points[0, 0]).any()
    projected = points[1:, :, :2] / points[1:, :, 2:] * 70 + (39.5, 29.5)
    np.testing.assert_allclose(projected, np.stack(np.meshgrid(range(WIDTH), range(1, HEIGHT)), -1), atol=1e-4)
    monkeypatch.undo()
    found = Reconstructor(network, {}, "cpu", monocular=model)(seen)
    measured = Reconstructor(network, {}, "cpu")(replace(seen, depth=np.full(seen.mask.shape, 2, np.float32)))
    for one, other in zip(found, measured, strict=True):
        assert one.metric and other.metric
        np.testing.assert_allclose(one.position, other.position, atol=1e-3)


def test_a_monocular_model_is_looked_at_before_it_is_needed(network: FlowNetwork) -> None:
    def without_metric(image: np.ndarray, K: np.ndarray) -> np.ndarray:
        raise AssertionError

    for wrong in (without_metric, SimpleNamespace(metric=True), "moge"):
        with pytest.raises(ConfigurationError, match="metric"):
            Reconstructor(network, {}, "cpu", monocular=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_gb": np.nan},
        {"memory_gb": -1.0},
        {"memory_gb": "8"},
        {"memory_gb": 1e-30},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.0},
        {"seed": None},
        {"steps": 0},
        {"steps": 2.0},
        {"shortcut": 1},
    ],
)
def test_settings_that_cannot_be_used(network: FlowNetwork, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))) as error:
        Reconstructor(network, {}, "cpu", **wrong)
    assert error.value.reason == "bad_parameter"


def test_the_sampler_can_be_chosen(network: FlowNetwork, calls: list[SimpleNamespace]) -> None:
    seen = alone(observation(), 2)
    results = [
        Reconstructor(network, {}, "cpu", **settings)(seen)[0].points
        for settings in ({}, {"steps": 2}, {"shortcut": True}, {"steps": 2, "shortcut": True})
    ]
    assert [(call.sampler.steps, call.sampler.shortcut) for call in calls] == [
        (3, False),
        (2, False),
        (4, True),
        (2, True),
    ]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert one.shape != other.shape or not np.allclose(one, other)
    distilled = replace(TINY, flow=replace(TINY.flow, sampler=SamplerConfig(steps=2, shortcut=True)))
    for settings in ({}, {"shortcut": True}, {"steps": 1}, {"shortcut": False, "steps": 5}):
        Reconstructor(tiny_network(distilled), {}, "cpu", **settings)(seen)
    assert [(call.sampler.steps, call.sampler.shortcut) for call in calls[4:]] == [
        (2, True),
        (2, True),
        (1, True),
        (5, False),
    ]


def test_all_settings_reach_a_model_that_is_loaded(
    network: FlowNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", network, {})
    given: list[Any] = []
    monkeypatch.setattr("event_sam3d_ros.reconstructor.FlowPipeline", lambda _, *rest: given.extend(rest))
    monocular = FlatWorld()
    Reconstructor.from_pretrained(
        tmp_path / "tiny.safetensors", "cpu", "bf16", 5, 2.0, True, steps=2, shortcut=True, monocular=monocular
    )
    sampler = SamplerConfig(steps=2, shortcut=True)
    assert given == [torch.device("cpu"), torch.bfloat16, 5, 2 * 10**9, True, sampler, monocular]


@pytest.mark.parametrize("fusion", [TINY.fusion, FusionConfig(stems=(), blocks=())], ids=["events", "no events"])
def test_warm_up_runs_all_that_the_model_has(fusion: FusionConfig, calls: list[SimpleNamespace]) -> None:
    reconstructor = Reconstructor(tiny_network(replace(TINY, fusion=fusion)), {}, "cpu")
    reconstructor.warm_up()
    (call,) = calls
    assert call.sampler == replace(TINY.flow.sampler, steps=1)
    assert set(POINTMAPS) | {"image", "mask"} <= call.views.keys()
    assert ("event_image" in call.views) == fusion.anywhere
    seen = observation()
    assert len(reconstructor(replace(seen, event_image=None))) == 4
    if not fusion.anywhere:
        with pytest.raises(InputError) as error:
            reconstructor(seen)
        assert error.value.reason == "no_event_branch"


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("fp16", torch.float16, 0.02), ("bf16", torch.bfloat16, 0.15)]
)
def test_precisions(
    network: FlowNetwork, calls: list[SimpleNamespace], precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    copied = copy.deepcopy(network)
    for one, kind in ((network, "fp32"), (copied, precision)):
        reconstructor = Reconstructor(one, {}, "cpu", kind)
        reconstructor.warm_up()
        reconstructor(observation())
    assert {parameter.dtype for parameter in copied.parameters()} == {dtype}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    exact, short = calls[1].result, calls[3].result
    poses = [torch.cat(list(result.pose.values()), dim=-1) for result in (exact, short)]
    for one, other in ((exact.logits, short.logits), poses):
        assert 0 < float((other - one).norm() / one.norm()) < tolerance


def test_auto_precision_is_the_released_one_where_a_model_samples() -> None:
    chosen = {
        (device, head): _dtype("auto", torch.device(device), head)
        for device in ("cpu", "cuda")
        for head in ("direct", "flow")
    }
    assert chosen == {
        ("cpu", "direct"): torch.float32,
        ("cpu", "flow"): torch.float32,
        ("cuda", "direct"): torch.bfloat16,
        ("cuda", "flow"): torch.float16,
    }
