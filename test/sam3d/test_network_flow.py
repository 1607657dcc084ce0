"""The network with the flow head: no object sees its batch, events are free when off, weights go where they must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY, assert_close, make_views, randomise
from torch import Tensor

from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig
from event_sam3d_ros.sam3d.flow import seeded_generators
from event_sam3d_ros.sam3d.memory import peak_memory
from event_sam3d_ros.sam3d.network import FlowGeometry, FlowNetwork, Network, build, resolved

OBJECTS = 3
BATCH_TOLERANCE = 2e-5  # of logits and poses after 5 steps; measured are 2e-6


def make_network(tokens: str = "") -> FlowNetwork:
    torch.manual_seed(0)
    network = build(replace(TINY, fusion=replace(TINY.fusion, tokens=tokens)))
    assert isinstance(network, FlowNetwork)
    return randomise(network)


@pytest.fixture
def network() -> FlowNetwork:
    return make_network()


@torch.inference_mode()
def run(network: FlowNetwork, views: dict[str, Tensor], seeds=range(OBJECTS), **options) -> FlowGeometry:
    return network(views, seeded_generators(seeds), **options)


def numbers(geometry: FlowGeometry) -> dict[str, Tensor]:
    return {"logits": geometry.logits, **geometry.pose}


def assert_same(a: FlowGeometry, b: FlowGeometry) -> None:
    assert all(torch.equal(x, numbers(b)[name]) for name, x in numbers(a).items())


def differ(a: FlowGeometry, b: FlowGeometry) -> bool:
    return all(not torch.allclose(x, numbers(b)[name], atol=1e-4) for name, x in numbers(a).items())


def row(views: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: view if len(view) == 1 else view[i : i + 1] for name, view in views.items()}


def open_gates(network: FlowNetwork) -> None:
    for gate in network.condition.fusion.gates().values():
        gate.data.fill_(0.5)


def test_the_head_chooses_the_network():
    assert isinstance(build(ModelConfig()), Network)
    assert isinstance(build(TINY), FlowNetwork)


def test_shapes_and_types(network):
    geometry = run(network, make_views(OBJECTS))
    assert geometry.logits.shape == (OBJECTS, *[TINY.flow.resolution] * 3)
    assert {name: tuple(x.shape) for name, x in geometry.pose.items()} == {
        "6drotation_normalized": (OBJECTS, 1, 6),
        "translation": (OBJECTS, 1, 3),
        "scale": (OBJECTS, 1, 3),
        "translation_scale": (OBJECTS, 1, 1),
    }
    assert all(x.dtype == torch.float32 for x in numbers(geometry).values())


def test_an_object_does_not_depend_on_its_batch(network):
    open_gates(network)
    views = make_views(OBJECTS, events=True)
    together = run(network, views)
    for i in range(OBJECTS):
        alone = run(network, row(views, i), [i])
        expected = FlowGeometry(together.logits[i : i + 1], {name: x[i : i + 1] for name, x in together.pose.items()})
        assert_close(numbers(alone), numbers(expected), BATCH_TOLERANCE)


@pytest.mark.parametrize("at_once", [0, 1, 2, 100])
def test_objects_in_turn_are_those_of_one_batch(network, at_once):
    views = make_views(OBJECTS, events=True)
    in_turn = run(network, views, memory=at_once * network.memory_per_object)
    assert_close(numbers(in_turn), numbers(run(network, views)), BATCH_TOLERANCE)


@pytest.mark.parametrize(("at_once", "calls"), [(0, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (7, [5])])
def test_the_memory_decides_how_many_objects_run_at_once(network, at_once, calls):
    rows = {stage: [] for stage in ("condition", "flow", "decoder")}
    network.condition.register_forward_pre_hook(lambda _, args: rows["condition"].append(len(args[0]["image"])))
    network.flow.blocks[0].register_forward_pre_hook(lambda _, args: rows["flow"].append(len(args[0]["shape"])))
    network.decoder.register_forward_pre_hook(lambda _, args: rows["decoder"].append(len(args[0])))
    run(network, make_views(5), range(5), memory=at_once * network.memory_per_object, sampler=SamplerConfig(1))
    assert rows == dict.fromkeys(rows, calls)


def test_objects_in_turn_stay_within_the_memory():
    """With some allowance for what is kept of every object: tokens, samples and logits."""
    network, views, sampler = make_network(), make_views(8, events=True), SamplerConfig(steps=1)
    peaks = {
        at_once: peak_memory(
            lambda n=at_once: run(network, views, range(8), memory=n * network.memory_per_object, sampler=sampler)
        )
        for at_once in (1, 2, 8)
    }
    for at_once, peak in peaks.items():
        assert peak < (at_once + 1) * network.memory_per_object
    assert peaks[8] > 3 * peaks[1]


def test_the_seed_decides(network):
    views = make_views(OBJECTS)
    first = run(network, views, [5, 6, 7])
    assert_same(run(network, views, [5, 6, 7]), first)
    assert differ(run(network, views, [8, 9, 10]), first)


def test_the_sampler_of_the_call_overrides_the_configuration(network):
    views = make_views(OBJECTS)
    assert_same(run(network, views, sampler=TINY.flow.sampler), run(network, views))
    assert differ(run(network, views, sampler=SamplerConfig(steps=2, shortcut=True)), run(network, views))


@pytest.mark.parametrize("tokens", ["", "gated", "attn", "cattn"])
def test_closed_gates_equal_the_network_without_events_bit_for_bit(tokens):
    network = make_network(tokens)
    assert_same(run(network, make_views(OBJECTS, events=True)), run(network, make_views(OBJECTS)))


def test_without_events_the_event_branch_does_not_run(network):
    def fail(*_):
        raise AssertionError("the event encoder ran")

    network.condition.event_encoder.register_forward_pre_hook(fail)
    run(network, make_views(OBJECTS))


def test_open_gates_and_events_matter(network):
    views = make_views(OBJECTS, events=True)
    closed = run(network, views)
    open_gates(network)
    opened = run(network, views)
    assert differ(opened, closed)
    for name in ("event_image", "rgb_event_image"):
        assert differ(run(network, {**views, name: 1 - views[name]}), opened), name


def devices(module: torch.nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_stages_come_to_the_device_for_their_turn_and_leave_no_trace(network):
    """The meta device stands in for a GPU: what was sent there and back would have lost its numbers."""
    stages = {"condition": network.condition, "flow": network.flow.blocks[0], "decoder": network.decoder}
    turns = []

    def note(name):
        turns.append((name, {other for other, stage in stages.items() if devices(stage) == {"meta"}}))

    for name, stage in stages.items():
        stage.register_forward_pre_hook(lambda *_, name=name: note(name))
    before = {name: (tensor, tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    geometry = run(network, make_views(OBJECTS, events=True), device="meta", sampler=SamplerConfig(steps=1))
    assert turns == [(name, {name}) for name in stages]
    assert geometry.logits.is_meta and geometry.logits.shape == (OBJECTS, *[TINY.flow.resolution] * 3)
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])


@pytest.mark.parametrize(
    ("asked", "home", "expected"),
    [
        (None, "cuda:1", "cuda:1"),
        ("cuda", "cuda:1", "cuda:1"),
        ("cuda:0", "cuda:1", "cuda:0"),
        ("cuda", "cpu", "cuda"),
        ("cpu", "cuda:1", "cpu"),
        ("cpu", "cpu", "cpu"),
    ],
)
def test_a_device_without_a_number_is_where_the_weights_are(asked, home, expected):
    assert resolved(asked, torch.device(home)) == torch.device(expected)


def test_weights_are_put_back_after_an_error(network):
    views = make_views(OBJECTS)
    expected = run(network, views)
    network.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(network, views, device="meta")
    network.decoder._forward_pre_hooks.clear()
    assert_same(run(network, views), expected)


def test_an_encoder_that_is_shared_is_placed_and_put_back_too(network):
    network.condition.fuser.share_encoder()
    views = make_views(OBJECTS)
    expected = run(network, views)
    run(network, views, device="meta")
    assert network.condition.fuser.shares_encoder
    assert_same(run(network, views), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_near(network, dtype, tolerance):
    exact = run(network, make_views(OBJECTS))
    assert_close(numbers(run(network.to(dtype), make_views(OBJECTS))), numbers(exact), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_keep_their_precision_in_half_precision(network, dtype):
    """What the embedder projects in float32 must come to it in float32."""
    network.to(dtype)
    seen = []
    network.condition.register_forward_pre_hook(lambda _, args: seen.append(args[0]["pointmap"]))
    views = make_views(OBJECTS)
    run(network, views)
    assert torch.equal(seen[0].nan_to_num(-1), views["pointmap"].nan_to_num(-1))
