"""What `model-info` says is what the networks are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import TINY

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig, SamplerConfig, to_dict
from event_sam3d_ros.sam3d.flops import count_flops
from event_sam3d_ros.sam3d.flow import seeded_generators
from event_sam3d_ros.sam3d.import_released import NO_FUSION
from event_sam3d_ros.sam3d.memory import peak_memory
from event_sam3d_ros.sam3d.model_info import ModelInfo, describe, example_views, find_model
from event_sam3d_ros.sam3d.network import FlowNetwork, build, build_empty

MODELS = Path(__file__).parents[2] / "config" / "models"


def config_of(name: str) -> ModelConfig:
    return ModelConfig.from_yaml(MODELS / f"{name}.yaml")


@pytest.fixture(scope="module")
def full() -> ModelInfo:
    return describe(config_of("full"))


@pytest.fixture(scope="module")
def tiny() -> ModelInfo:
    return describe(TINY)


def stage(info: ModelInfo, name: str):
    return next(stage for stage in info.stages if stage.name == name)


def test_full_has_the_released_tensors(full):
    """Counts of the released checkpoints (facebookresearch/sam-3d-objects); the flow's positions are a buffer."""
    assert (stage(full, "condition").tensors, stage(full, "condition").parameters) == (722, 634_485_760)
    assert (stage(full, "flow").tensors, stage(full, "flow").parameters) == (945, 959_962_133)
    values = 964_156_437
    assert stage(full, "flow").weight_bytes == {"fp32": 4 * values, "bf16": 2 * values, "fp16": 2 * values}
    assert (stage(full, "decoder").tensors, stage(full, "decoder").parameters) == (74, 73_671_201)
    assert full.condition_tokens == 7528
    assert full.parameters - full.parameters_with_one_encoder == 304_372_736


def test_full_takes_the_known_arithmetic(full):
    """By hand for the released sizes: one evaluation 9.09 TFLOP, of which keys and values 1.52; decoder 0.81."""
    sampling = full.sampling
    assert (sampling.steps, sampling.guided_steps, sampling.evaluations) == (25, 19, 44)
    assert sampling.keys_and_values_flops == pytest.approx(1_515_586_584_576, rel=1e-3)
    assert sampling.keys_and_values_flops + sampling.evaluation_flops == pytest.approx(9_090_077_609_984, rel=1e-3)
    assert sampling.flops_without_savings == pytest.approx(400e12, rel=0.01)
    assert sampling.flops == stage(full, "flow").flops <= 272e12
    assert stage(full, "decoder").flops == pytest.approx(813_107_773_440, rel=1e-3)
    # four encoder passes of 1.017 TFLOP and the projections; of the pointmaps, all but one query per window is saved
    assert 4 * 1.017e12 + 0.118e12 < stage(full, "condition").flops < 4 * 1.017e12 + 0.118e12 + 2 * 0.288e12


def test_full_without_events_has_the_released_tensors_only():
    network = build_empty(dataclasses.replace(config_of("full"), fusion=NO_FUSION))
    assert len(network.state_dict()) == 722 + 945 + 74


def test_without_events_the_other_stages_are_the_same(tiny):
    plain = describe(dataclasses.replace(TINY, fusion=NO_FUSION))
    assert [stage.name for stage in plain.stages] == ["condition", "flow", "decoder"]
    assert plain.stages == [stage for stage in tiny.stages if stage.name != "events"]


@pytest.mark.parametrize(("name", "millions"), [("small", (50, 100)), ("base", (300, 440))])
def test_sizes_for_robots(name, millions):
    config = config_of(name)
    with torch.device("meta"):
        network = build(config)
    assert millions[0] < sum(p.numel() for p in network.parameters()) / 1e6 < millions[1]
    assert network.condition.fusion.stage_names == tuple(f"block.{i}" for i in config.fusion.blocks)


@pytest.mark.parametrize("name", ["small", "base", "full"])
@pytest.mark.parametrize("objects", [1, 3])
def test_no_stage_takes_more_than_the_memory_per_object(name, objects):
    """That is what batches are cut by."""
    with torch.device("meta"):
        network = build(config_of(name)).eval().bfloat16()
    assert isinstance(network, FlowNetwork)
    views = example_views(network.config, objects, True, "meta")
    sampler = SamplerConfig(steps=1)
    peak = peak_memory(lambda: network(views, seeded_generators(range(objects)), sampler=sampler))
    tokens = objects * network.condition.fuser.tokens * network.config.flow.transformer.condition_width * 2
    assert 0.5 * objects * network.memory_per_object < peak < objects * network.memory_per_object + tokens


def test_sums(tiny):
    with torch.device("meta"):
        network = build(TINY).eval()
    assert tiny.parameters == sum(p.numel() for p in network.parameters())
    assert tiny.tensors == len(network.state_dict())
    assert tiny.parameters == sum(stage.parameters for stage in tiny.stages)
    assert tiny.tensors == sum(stage.tensors for stage in tiny.stages)
    values = sum(tensor.numel() for tensor in network.state_dict().values())
    sizes = {"fp32": 4, "bf16": 2, "fp16": 2}
    assert {name: memory.weights for name, memory in tiny.memory.items()} == {p: n * values for p, n in sizes.items()}
    views = example_views(TINY, 1, True, "meta")
    assert tiny.flops == count_flops(lambda: network(views, seeded_generators([0])))


def test_memory(tiny):
    for name, memory in tiny.memory.items():
        assert memory.total == memory.weights + memory.object
        weights = {stage.name: stage.weight_bytes[name] for stage in tiny.stages}
        assert memory.offload == memory.object + max(
            weights["condition"] + weights["events"], weights["flow"], weights["decoder"]
        )


def test_a_direct_head_in_numbers():
    info = describe(config_of("nano"))
    with torch.device("meta"):
        network = build(info_config := config_of("nano")).eval()
    size = info_config.encoder.image_size
    image, mask = (torch.empty(1, channels, size, size, device="meta") for channels in (3, 1))
    assert info.flops == count_flops(lambda: network(image, image, mask)) > 0
    assert info.parameters == info.parameters_with_one_encoder == sum(p.numel() for p in network.parameters())
    assert info.condition_tokens is None and info.sampling is None
    assert [stage.name for stage in info.stages] == ["condition", "events", "geometry"]
    assert all(s.working_bytes["fp32"] > 0 for s in info.stages)


def test_a_direct_head_has_its_weights_in_float32_and_no_offload():
    """Other precisions are autocast's, which leaves the weights as they are."""
    info = describe(config_of("nano"))
    assert info.memory.keys() == {"fp32"} and info.memory["fp32"].offload is None
    assert all(stage.weight_bytes.keys() == stage.working_bytes.keys() == {"fp32"} for stage in info.stages)
    said = "\n".join(info.lines())
    assert "16 bits" not in said and "one stage at a time" not in said and "autocast" in said


def test_working_memory_shrinks_with_the_type(tiny):
    assert all(0 < s.working_bytes["fp16"] < s.working_bytes["fp32"] for s in tiny.stages)
    assert all(s.working_bytes["fp16"] == s.working_bytes["bf16"] for s in tiny.stages)


def test_a_file_says_whether_the_encoders_are_one(tmp_path, tiny):
    network = build(TINY)
    assert isinstance(network, FlowNetwork)
    save_checkpoint(tmp_path / "two.safetensors", network, {})
    network.condition.fuser.share_encoder()
    save_checkpoint(tmp_path / "one.safetensors", network, {})
    assert find_model(tmp_path / "two.safetensors", MODELS) == (TINY, False)
    one = describe(*find_model(tmp_path / "one.safetensors", MODELS))
    assert one.parameters == one.parameters_with_one_encoder == tiny.parameters_with_one_encoder
    assert one.tensors < tiny.tensors
    assert stage(one, "condition").weight_bytes["fp32"] < stage(tiny, "condition").weight_bytes["fp32"]
    assert one.flops == tiny.flops


def test_json_has_stable_keys(capsys, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(to_dict(TINY)))  # JSON is YAML
    assert main(["model-info", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    precisions = {"fp32", "bf16", "fp16"}
    assert set(said) == {
        *("name", "head", "parameters", "parameters_with_one_encoder", "tensors", "flops", "condition_tokens"),
        *("stages", "sampling", "memory"),
    }
    assert [stage["name"] for stage in said["stages"]] == ["condition", "events", "flow", "decoder"]
    for one in said["stages"]:
        assert set(one) == {"name", "parameters", "tensors", "weight_bytes", "working_bytes", "flops"}
        assert set(one["weight_bytes"]) == set(one["working_bytes"]) == precisions
    assert set(said["sampling"]) == {
        *("steps", "guided_steps", "evaluations", "keys_and_values_flops", "evaluation_flops", "guided_step_flops"),
        *("flops", "flops_without_savings"),
    }
    assert set(said["memory"]) == precisions
    assert all(set(memory) == {"weights", "object", "total", "offload"} for memory in said["memory"].values())


def test_the_table_has_every_stage(capsys):
    assert main(["model-info", "nano"]) == 0
    said = capsys.readouterr().out
    assert "nano: direct head, 2.88 M parameters, 239 tensors" in said
    assert all(f"\n{name}" in said for name in ("condition", "events", "geometry", "memory in fp32"))


def test_an_unknown_model_is_named_beside_the_known_ones(capsys):
    assert main(["model-info", "huge"]) == 2
    said = capsys.readouterr().err
    assert "'huge'" in said and all(name in said for name in ("nano", "small", "base", "full"))


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=str(path)) as damaged:
        find_model(path, MODELS)
    assert damaged.value.reason == "corrupt_checkpoint"
    with pytest.raises(CheckpointError, match="no model file at") as error:
        find_model(tmp_path / "missing.safetensors", MODELS)
    assert error.value.reason == "no_checkpoint"
    with pytest.raises(ConfigurationError) as unknown:
        find_model(tmp_path / "missing.yaml", MODELS)
    assert unknown.value.reason == "unknown_model"


def test_a_configuration_that_no_memory_holds_is_refused():
    wide = dataclasses.replace(TINY.encoder, width=2**40, heads=2)
    transformer = dataclasses.replace(TINY.flow.transformer, condition_width=2**40)
    with pytest.raises(ConfigurationError, match="no network can be built of the configuration 'tiny'"):
        describe(dataclasses.replace(TINY, encoder=wide, flow=dataclasses.replace(TINY.flow, transformer=transformer)))
