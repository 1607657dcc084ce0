"""Model files: exact round trip, and one clear error for every kind of wrong file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from event_sam3d_ros.errors import CheckpointError
from event_sam3d_ros.sam3d.checkpoint import load_checkpoint, save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network

INFO = {"tag": "test", "version": "1", "licence": "Apache-2.0"}


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.safetensors", Network(ModelConfig()), INFO, torch.float32)
    return tmp_path / "m.safetensors"


def _metadata(path):
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return file.metadata()


def test_round_trip(path):
    torch.manual_seed(0)
    expected = Network(ModelConfig()).state_dict()
    network, info = load_checkpoint(path)
    assert not network.training
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())
    assert info.items() >= INFO.items()
    assert len(info["sha256"]) == 64


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no model file"):
        load_checkpoint(tmp_path / "none.safetensors")


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


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan"])
def test_wrong_tensors_are_named(path, damage):
    state, metadata = load_file(str(path)), _metadata(path)
    name = "condition.rgb_encoder.cls_token"
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        name = "surplus"
        state[name] = torch.zeros(1)
    elif damage == "shape":
        state[name] = torch.zeros(1, 1, 7)
    else:
        state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match=name) as error:
        load_checkpoint(path)
    assert error.value.reason == "wrong_checkpoint"


def test_a_broken_configuration_in_the_header(path):
    state, metadata = load_file(str(path)), _metadata(path)
    save_file(state, str(path), metadata={**metadata, "config": '{"name": 3}'})
    with pytest.raises(CheckpointError, match="name"):
        load_checkpoint(path)
