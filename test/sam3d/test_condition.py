"""The condition tokens of the flow head: sharing, batches, dropped inputs, and events that change nothing when off."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import TINY, make_views, randomise

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.condition import TokenConditionStage
from event_sam3d_ros.sam3d.config import FusionConfig, ModelConfig
from event_sam3d_ros.sam3d.embedder_fuser import POINTMAPS, EmbedderFuser
from event_sam3d_ros.sam3d.event_fusion import TokenAttention, gated
from event_sam3d_ros.sam3d.layers import Block
from event_sam3d_ros.sam3d.network import Network

ENCODER, POINTMAP = TINY.encoder, TINY.flow.pointmap
FUSIONS = {
    "blocks": FusionConfig(stems=(), blocks=(0, 2)),
    "gated": FusionConfig(stems=(), blocks=(), tokens="gated"),
    "attn": FusionConfig(stems=(), blocks=(), tokens="attn"),
    "cattn": FusionConfig(stems=(), blocks=(), tokens="cattn"),
    "both": FusionConfig(stems=(), blocks=(1,), tokens="cattn"),
}


def make_inputs(objects: int = 2, events: bool = False) -> dict[str, torch.Tensor]:
    return make_views(objects, events, frames=objects)


def make_stage(fusion: FusionConfig | None = None) -> TokenConditionStage:
    torch.manual_seed(0)
    return randomise(TokenConditionStage(ENCODER, POINTMAP, fusion), 0.05)


@pytest.fixture(params=FUSIONS)
def stage(request) -> TokenConditionStage:
    return make_stage(FUSIONS[request.param])


def count_calls(module: torch.nn.Module) -> list[int]:
    """Rows of each call of ``module`` from now on."""
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def tensors(fuser: EmbedderFuser, shared: bool) -> dict[str, torch.Tensor]:
    """A state dict whose mask encoder equals its image encoder or doesn't."""
    state = copy.deepcopy(fuser.state_dict())
    for key in state:
        if shared and key.startswith("module_list.1."):
            state[key] = state[key.replace("list.1", "list.0")].clone()
    return state


@torch.inference_mode()
def test_first_of_a_block_equals_the_whole_blocks_first_token():
    torch.manual_seed(0)
    block, x = randomise(Block(32, 4, 2.0), 0.05), torch.randn(5, 9, 32)
    torch.testing.assert_close(block.first(x), block(x)[:, :1], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_zero_gates_equal_the_plain_network_bit_for_bit(stage):
    inputs = make_inputs(events=True)
    plain = stage.fuser({name: x for name, x in inputs.items() if "event" not in name})
    assert torch.equal(stage(inputs), plain)


@torch.inference_mode()
def test_each_gate_alone_changes_the_tokens_of_images_only(stage):
    inputs = make_inputs(events=True)
    plain = stage(inputs)
    images = 2 * (1 + ENCODER.grid**2)
    assert stage.fusion.gates()
    for name, gate in stage.fusion.gates().items():
        gate.fill_(0.5)
        fused = stage(inputs)
        gate.zero_()
        assert not torch.equal(fused[:, :images], plain[:, :images]), name
        assert torch.equal(fused[:, images:], plain[:, images:]), name


@torch.inference_mode()
def test_with_open_gates_the_events_matter(stage):
    inputs = make_inputs(events=True)
    for gate in stage.fusion.gates().values():
        gate.fill_(0.5)
    fused = stage(inputs)
    for name in ("event_image", "rgb_event_image"):
        assert not torch.equal(stage({**inputs, name: 1 - inputs[name]}), fused), name


@torch.inference_mode()
@pytest.mark.parametrize("cross", [False, True])
def test_a_wide_open_gate_gives_the_transformers_own_image_tokens(cross):
    torch.manual_seed(0)
    fusion, x, events = TokenAttention(32, 4, cross), torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    for name, parameter in fusion.named_parameters():
        if any(
            part in ("proj", "fc2") for part in name.split(".")
        ):  # the ends of all branches: the blocks then change nothing
            parameter.zero_()
    fusion.gate.fill_(20.0)
    torch.testing.assert_close(fusion(x, events), x, atol=1e-6, rtol=0)


def test_every_gate_moves_with_the_first_optimiser_step(stage):
    gates = stage.fusion.gates()
    optimizer = torch.optim.SGD(gates.values(), lr=1.0)
    stage(make_inputs(events=True)).square().mean().backward()
    optimizer.step()
    assert all(gate.any() for gate in gates.values())


def overflow(stage: TokenConditionStage) -> None:
    """Has every branch of the fusion give inf in float16, but for some channels that stay finite."""
    with torch.no_grad():
        for name, parameter in stage.fusion.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight", "mix.1.weight", "project.weight")):
                parameter[1:] = 6e4 * parameter[1:].sign()


@torch.inference_mode()
def test_closed_gates_hold_where_the_branch_overflows(stage):
    inputs = make_inputs(events=True)
    stage.half()
    overflow(stage)
    plain = stage.fuser({name: x for name, x in inputs.items() if "event" not in name})
    assert plain.isfinite().all()
    assert torch.equal(stage(inputs), plain)
    for gate in stage.fusion.gates().values():
        gate.fill_(0.5)
    assert not stage(inputs).isfinite().all()  # an open gate hides nothing


@pytest.mark.parametrize("numbers", ["all", "some"])
def test_a_closed_gate_learns_from_the_branchs_finite_numbers(numbers):
    gate, branch = torch.zeros((), requires_grad=True), torch.tensor([1.0, torch.inf, -2.0, torch.nan])
    branch = (branch if numbers == "some" else branch.nan_to_num(0, 3)).requires_grad_()
    gated(gate, branch).sum().backward()
    assert gate.grad == (-1 if numbers == "some" else 2)
    assert not branch.grad.any()


def test_without_events_the_event_branch_does_not_run(stage):
    rows = count_calls(stage.event_encoder.blocks[0])
    stage(make_inputs())
    assert not rows


@torch.inference_mode()
def test_event_images_go_through_one_batch(stage):
    rows = count_calls(stage.event_encoder.blocks[0])
    stage(make_inputs(events=True))
    assert rows == [4]


@torch.inference_mode()
def test_events_alone_take_the_images_places(stage):
    inputs = make_inputs(events=True)
    stage.event_encoder.load_state_dict(stage.fuser.image_encoder.state_dict())
    as_images = {**inputs, "image": inputs["event_image"], "rgb_image": inputs["rgb_event_image"]}
    expected = stage.fuser({name: x for name, x in as_images.items() if "event" not in name})
    alone = stage({name: x for name, x in inputs.items() if name not in ("image", "rgb_image")})
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_objects_do_not_depend_on_their_batch(stage):
    for gate in stage.fusion.gates().values():
        gate.fill_(0.5)
    inputs = make_inputs(3, events=True)
    together = stage(inputs)
    for i in range(3):
        alone = stage({name: x[i : i + 1] for name, x in inputs.items()})
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_frame_that_objects_share_is_embedded_once(stage):
    for gate in stage.fusion.gates().values():
        gate.fill_(0.5)
    inputs = make_inputs(3, events=True)
    shared = {name: x[:1] if name in ("rgb_image", "rgb_event_image") else x for name, x in inputs.items()}
    repeated = {name: x.expand(3, -1, -1, -1) for name, x in shared.items()}
    rows = count_calls(stage.fuser.image_encoder.blocks[0])
    torch.testing.assert_close(stage(shared), stage(repeated), atol=1e-5, rtol=0)
    assert rows == [4, 6]


@torch.inference_mode()
def test_equal_encoders_are_recognised_on_load_and_run_as_one_batch():
    stage, inputs = make_stage(), make_inputs()
    state = {f"fuser.{key}": x for key, x in tensors(stage.fuser, shared=True).items()}
    separate = make_stage()
    for i in (0, 1):  # the same weights without the sharing
        encoder = separate.fuser.module_list[i]["backbone"]
        encoder.load_state_dict(stage.fuser.image_encoder.state_dict())
    stage.load_state_dict(state)
    assert stage.fuser.shares_encoder
    assert not separate.fuser.shares_encoder
    once = sum(p.numel() for p in stage.fuser.image_encoder.parameters())
    assert sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in stage.parameters()) == once
    rows = count_calls(stage.fuser.image_encoder.blocks[0])
    torch.testing.assert_close(stage(inputs), separate(inputs), atol=1e-5, rtol=0)
    assert rows == [8]
    assert stage.state_dict().keys() == state.keys()


def test_different_encoders_loaded_over_shared_ones_are_kept_apart():
    fuser = make_stage().fuser
    different = tensors(fuser, shared=False)
    fuser.load_state_dict(tensors(fuser, shared=True))
    fuser.load_state_dict(different)
    assert not fuser.shares_encoder
    loaded = fuser.state_dict()
    assert all(torch.equal(loaded[key], x) for key, x in different.items())


@torch.inference_mode()
def test_dropped_inputs_are_zeros_and_leave_the_rest_alone():
    fuser, inputs = make_stage().fuser, make_inputs()
    count = 1 + ENCODER.grid**2
    whole, dropped = fuser(inputs), fuser(inputs, dropped=["mask"])
    assert not dropped[:, 2 * count : 3 * count].any()
    torch.testing.assert_close(dropped[:, : 2 * count], whole[:, : 2 * count], atol=1e-6, rtol=0)
    torch.testing.assert_close(dropped[:, 3 * count :], whole[:, 3 * count :], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_pointmaps_are_dropped_object_by_object():
    stage, inputs = make_stage(), make_inputs()
    count = len(inputs["mask"])
    kept = torch.arange(count) % 2 == 0
    assert count > 1
    whole, without = stage(inputs), stage(inputs, dropped=POINTMAPS)
    damaged = {name: x.clone() if name in POINTMAPS else x for name, x in inputs.items()}
    for name in POINTMAPS:
        damaged[name][~kept] = torch.inf  # whatever stands there does not matter
    some = stage(damaged, with_points=kept)
    torch.testing.assert_close(some[kept], whole[kept], atol=1e-6, rtol=0)
    torch.testing.assert_close(some[~kept], without[~kept], atol=1e-6, rtol=0)
    assert not torch.allclose(whole[~kept], without[~kept], atol=1e-3)


@torch.inference_mode()
def test_no_pointmaps_are_dropped_pointmaps():
    fuser, inputs = make_stage().fuser, make_inputs()
    without = {name: x for name, x in inputs.items() if name not in POINTMAPS}
    assert torch.equal(fuser(without), fuser(inputs, dropped=POINTMAPS))


@torch.inference_mode()
def test_training_drops_both_pointmaps_of_some_objects():
    fuser, inputs = make_stage().fuser, make_inputs(32)
    whole = fuser(inputs)
    fuser.train().dropout = 0.5
    torch.manual_seed(0)
    tokens = fuser(inputs)
    start = 4 * (1 + ENCODER.grid**2)
    gone = ~tokens[:, start:].any(-1)
    assert torch.equal(gone.any(1), gone.all(1))
    assert 0 < gone.all(1).sum() < 32
    assert torch.equal(tokens[:, :start], whole[:, :start])


def test_unknown_points_do_not_reach_other_tokens():
    fuser, inputs = make_stage().fuser, make_inputs(1)
    inputs["rgb_pointmap"][:] = torch.inf
    inputs["pointmap"][:, 2, 3, 3] = -torch.inf
    assert fuser(inputs).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_close_and_identity_exact(dtype):
    stage = make_stage(FUSIONS["both"])
    inputs = make_inputs(events=True)
    full = stage(inputs)
    half = stage.to(dtype)(inputs)
    assert half.dtype is dtype
    assert torch.equal(half, stage.fuser({name: x for name, x in inputs.items() if "event" not in name}))
    assert (half.float() - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.pop("mask"), "missing_input"),
        (lambda x: x.pop("pointmap"), "missing_input"),
        (lambda x: x.update(depth=x["mask"]), "bad_input"),
        (lambda x: x.update(mask=x["mask"][:2]), "batch_mismatch"),
        (lambda x: x.update(image=x["image"][:, :2]), "wrong_channels"),
        (lambda x: x.pop("event_image"), "missing_input"),
        (lambda x: x.update(event_image=x["event_image"][:2]), "batch_mismatch"),
    ],
)
def test_wrong_inputs_are_refused(change, reason):
    inputs = make_inputs(3, events=True)
    change(inputs)
    with pytest.raises(InputError) as error:
        make_stage(FUSIONS["blocks"])(inputs)
    assert error.value.reason == reason


def test_events_without_an_event_branch_are_refused():
    with pytest.raises(InputError) as error:
        make_stage()(make_inputs(events=True))
    assert error.value.reason == "no_event_branch"


def test_everything_dropped_is_refused():
    with pytest.raises(InputError) as error:
        make_stage()({}, dropped=make_inputs())
    assert error.value.reason == "missing_input"


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["gated", "attn", "cattn"])
def test_token_fusion_serves_the_direct_head_too(kind):
    torch.manual_seed(0)
    network = Network(ModelConfig(fusion=FusionConfig(tokens=kind))).eval()
    image, events, mask = (torch.rand(2, channels, 64, 64) for channels in (3, 3, 1))
    plain = network(image, None, mask)
    assert torch.equal(network(image, events, mask).logits, plain.logits)
    for name, gate in network.condition.fusion.gates().items():
        if name.startswith("tokens."):
            gate.fill_(0.5)
    assert not torch.equal(network(image, events, mask).logits, plain.logits)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ConfigurationError, match="gated"):
        FusionConfig(tokens="concat")
