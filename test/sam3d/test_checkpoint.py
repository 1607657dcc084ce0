"""Model files: exact round trip, and one clear error for every kind of wrong file."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY

from event_sam3d_ros.errors import CheckpointError
from event_sam3d_ros.sam3d import checkpoint
from event_sam3d_ros.sam3d.checkpoint import MASK_ENCODER, load_checkpoint, save_checkpoint, write_state
from event_sam3d_ros.sam3d.config import ModelConfig, to_dict
from event_sam3d_ros.sam3d.network import Network, build

INFO = {"tag": "test", "version": "1", "licence": "Apache-2.0"}
FLOW = replace(TINY, fusion=replace(TINY.fusion, tokens="cattn"))
WEIGHTS = Path(__file__).parents[2] / "weights" / "event-sam3d-nano.safetensors"
CONFIGS = {"direct": ModelConfig(), "flow": FLOW}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def path(config, tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.safetensors", build(config), INFO, torch.float32)
    return tmp_path / "m.safetensors"


def _metadata(path):
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return file.metadata()


def test_round_trip(path, config):
    torch.manual_seed(0)
    expected = build(config).state_dict()
    network, info = load_checkpoint(path)
    assert not network.training
    assert network.config == config
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert info.items() >= INFO.items()
    assert len(info["sha256"]) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(config, tmp_path, dtype):
    """The small model computes in float32; flow networks stay in the type that their file has."""
    network = build(config)
    save_checkpoint(tmp_path / "m.safetensors", network, INFO, dtype)
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    for name, tensor in loaded.state_dict().items():
        stored = network.state_dict()[name].to(dtype)
        assert tensor.dtype is (dtype if config.head == "flow" else torch.float32)
        assert torch.equal(tensor, stored.to(tensor.dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_are_converted_one_by_one_as_they_are_read(config, tmp_path, monkeypatch, dtype, stored):
    """Both types of all of them at once would take half as much memory again or more, for good in part."""
    network, sources = build(config), []
    save_checkpoint(tmp_path / "m.safetensors", network, INFO, stored)

    def converted(name, tensor, to):
        assert not any(source() is not None for source in sources)
        sources.append(weakref.ref(tensor))
        return original(name, tensor, to)

    original = checkpoint.converted
    monkeypatch.setattr(checkpoint, "converted", converted)
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors", dtype)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype is (dtype if config.head == "flow" else torch.float32)
        assert torch.equal(tensor, network.state_dict()[name].to(stored).to(tensor.dtype)), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert bool(sources) == (stored is not (dtype if config.head == "flow" else torch.float32))


def test_numbers_that_a_type_has_no_room_for_are_named(tmp_path):
    network = build(FLOW)
    with torch.no_grad():
        network.decoder.out_layer[2].bias.fill_(1e6)
    save_checkpoint(tmp_path / "m.safetensors", network, INFO, torch.bfloat16)
    load_checkpoint(tmp_path / "m.safetensors", torch.bfloat16)
    with pytest.raises(CheckpointError, match="decoder.out_layer.2.bias of .* is too large for float16") as error:
        load_checkpoint(tmp_path / "m.safetensors", torch.float16)
    assert error.value.reason == "wrong_checkpoint"


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    values = torch.arange(6.0)
    state = {"a": values, "b": values, "part": values[2:], "turned": values.view(2, 3)}
    write_state(tmp_path / "m.safetensors", state, ModelConfig(), INFO)
    stored = load_file(str(tmp_path / "m.safetensors"))
    assert stored.keys() == state.keys() and all(torch.equal(x, stored[name]) for name, x in state.items())


def test_shipped_weights_load():
    network, info = load_checkpoint(WEIGHTS)
    assert isinstance(network, Network)
    assert info["tag"] and {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_equal_encoders_are_stored_once(tmp_path):
    network = build(FLOW)
    fuser = network.condition.fuser
    twice = {n: x.clone() for n, x in fuser.state_dict().items() if n.startswith("module_list.0.")}
    fuser.load_state_dict(fuser.state_dict() | twice | {n.replace("list.0", "list.1"): x for n, x in twice.items()})
    assert fuser.shares_encoder
    save_checkpoint(tmp_path / "m.safetensors", network, INFO, torch.float32)
    stored = load_file(str(tmp_path / "m.safetensors"))
    assert not [name for name in stored if name.startswith(MASK_ENCODER)]
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.condition.fuser.shares_encoder
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in build(FLOW).parameters())
    assert all(torch.equal(loaded.state_dict()[name], x) for name, x in network.state_dict().items())
    save_checkpoint(tmp_path / "again.safetensors", loaded, INFO, torch.float32)
    assert load_file(str(tmp_path / "again.safetensors")).keys() == stored.keys()


def test_different_encoders_are_both_stored(tmp_path):
    network = build(FLOW)
    save_checkpoint(tmp_path / "m.safetensors", network, INFO, torch.float32)
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert not loaded.condition.fuser.shares_encoder


def test_weights_begin_where_torch_lets_tensors_begin(path):
    """Kernels of the CPU add in another order elsewhere: results would depend on the header's length."""
    network, _ = load_checkpoint(path)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in network.parameters())


def test_saving_over_a_file_is_whole_or_not_at_all(path, config, tmp_path):
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(tmp_path / "none" / "m.safetensors", build(config), INFO)
    assert error.value.reason == "checkpoint_not_written"
    with pytest.raises(TypeError):
        save_checkpoint(path, build(config), {"tag": 3})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no model file") as error:
        load_checkpoint(tmp_path / "none.safetensors")
    assert error.value.reason == "no_checkpoint"


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert error.value.reason == "corrupt_checkpoint"


def test_foreign_file(tmp_path):
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "f.safetensors"))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "f.safetensors")
    assert error.value.reason == "foreign_checkpoint"


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "type", "nan"])
def test_wrong_tensors_are_named(path, config, damage):
    state, metadata = load_file(str(path)), _metadata(path)
    name = f"condition.{'rgb_encoder' if config.head == 'direct' else 'event_encoder'}.cls_token"
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        name = "surplus"
        state[name] = torch.zeros(1)
    elif damage == "shape":
        state[name] = torch.zeros(1, 1, 7)
    elif damage == "type":
        state[name] = state[name].int()
    else:
        state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match=name) as error:
        load_checkpoint(path)
    assert error.value.reason == "wrong_checkpoint"


def test_a_shared_encoder_that_lacks_a_tensor(tmp_path):
    """Left out is the whole mask encoder or nothing of it, and only where an image encoder stands for it."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, build(FLOW), INFO)
    state, metadata = load_file(str(path)), _metadata(path)
    save_file({n: x for n, x in state.items() if n != MASK_ENCODER + "backbone.norm.bias"}, str(path), metadata)
    with pytest.raises(CheckpointError, match=f"missing: {MASK_ENCODER}backbone.norm.bias$"):
        load_checkpoint(path)
    save_file({n: x for n, x in state.items() if not n.startswith("condition.fuser.module_")}, str(path), metadata)
    with pytest.raises(CheckpointError, match=r"missing: condition.fuser.module_list.0.backbone.* more$"):
        load_checkpoint(path)


def test_flow_tensors_of_several_types_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, build(FLOW), INFO)
    state, metadata = load_file(str(path)), _metadata(path)
    state["decoder.out_layer.2.bias"] = state["decoder.out_layer.2.bias"].float()
    save_file(state, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match="several types: float16, float32"):
        load_checkpoint(path)


def test_weights_of_another_head(path, config):
    state, metadata = load_file(str(path)), _metadata(path)
    other = CONFIGS["flow" if config.head == "direct" else "direct"]
    save_file(state, str(path), metadata={**metadata, "config": json.dumps(to_dict(other))})
    with pytest.raises(CheckpointError, match="missing: .*; extra: ") as error:
        load_checkpoint(path)
    assert error.value.reason == "wrong_checkpoint"


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ('{"name": 3}', "name"),
        ("{", "configuration"),
        ("[]", "mapping"),
        ('{"encoder": {"patch_size": 0}}', "configuration"),
        ('{"direct": {"channels": []}}', "configuration"),
        ('{"head": "flow", "encoder": {"in_channels": 3, "depth": -1}}', "configuration"),
    ],
)
def test_a_broken_configuration_in_the_header(path, broken, match):
    state, metadata = load_file(str(path)), _metadata(path)
    save_file(state, str(path), metadata={**metadata, "config": broken})
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(path)
    assert error.value.reason == "foreign_checkpoint"
