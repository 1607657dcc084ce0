"""Import of the official weights: a folder in the official layout at tiny width becomes a model file with the same
results bit for bit, and broken folders give one error that names everything wrong."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import TINY, make_views, randomise

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import CheckpointError, ConfigurationError
from event_sam3d_ros.sam3d.checkpoint import file_sha256, load_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig, to_dict
from event_sam3d_ros.sam3d.flow import seeded_generators
from event_sam3d_ros.sam3d.import_released import NO_FUSION, import_released
from event_sam3d_ros.sam3d.network import FlowNetwork

ROOT = Path(__file__).parents[2]
EMBEDDER, BACKBONE = "_base_models.condition_embedder.", "_base_models.generator.reverse_fn.backbone."
PLAIN = replace(TINY, fusion=NO_FUSION)


def write_official(folder: Path, network: FlowNetwork, shared: bool = True) -> None:
    """The network's tensors in the official files, float32 and float16 as released."""
    folder.mkdir(parents=True)
    fuser = network.condition.fuser.state_dict()
    if shared:
        for name in fuser:
            if name.startswith("module_list.1."):
                fuser[name] = fuser[name.replace("module_list.1.", "module_list.0.")].clone()
    generator = {EMBEDDER + name: tensor for name, tensor in fuser.items()}
    generator |= {BACKBONE + name: tensor for name, tensor in network.flow.state_dict().items()}
    network.decoder.half().float()  # what the file can hold
    decoder = {name: tensor.half() for name, tensor in network.decoder.state_dict().items()}
    generator |= {f"_base_models.decoder.{name}": tensor.float() for name, tensor in decoder.items()}
    torch.save({"state_dict": generator, "epoch": 3}, folder / "ss_generator.ckpt")
    torch.save(decoder, folder / "ss_decoder.ckpt")
    torch.save({"weight": torch.zeros(1)}, folder / "slat_generator.ckpt")
    network.condition.fuser.load_state_dict(fuser)


def change(path: Path, edit) -> None:
    """Writes an official file anew with what ``edit`` makes of its tensors."""
    content = torch.load(path, weights_only=True)
    edit(content.get("state_dict", content))
    torch.save(content, path)


@pytest.fixture
def official(tmp_path):
    """-> the official folder, and the network whose weights it holds."""
    torch.manual_seed(0)
    network = randomise(FlowNetwork(PLAIN))
    write_official(tmp_path / "hf", network)
    return tmp_path / "hf", network


def outputs(network: FlowNetwork, inputs: dict[str, torch.Tensor]):
    with torch.no_grad():
        result = network(inputs, seeded_generators([3] * len(inputs["mask"])))
    return [result.logits, *result.pose.values()]


@pytest.mark.parametrize("shared", [True, False])
def test_imported_weights_give_the_same_numbers(tmp_path, shared):
    network = randomise(FlowNetwork(PLAIN))
    write_official(tmp_path / "hf", network, shared)
    imported = import_released(tmp_path / "hf", tmp_path / "m.safetensors", TINY)
    assert imported.encoders_shared == shared
    assert imported.dtype is torch.float32
    assert imported.not_used == ["slat_generator.ckpt"]
    assert imported.left_out == len(network.decoder.state_dict())
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.config == PLAIN
    assert loaded.condition.fuser.shares_encoder == shared
    assert imported.values == sum(
        x.numel() for x in {id(x): x for x in loaded.state_dict(keep_vars=True).values()}.values()
    )
    inputs = make_views(2)
    for ours, theirs in zip(outputs(loaded, inputs), outputs(network, inputs), strict=True):
        assert ours.isfinite().all() and ours.std() > 0
        assert torch.equal(ours, theirs)


def test_the_file_says_what_it_is(official, tmp_path):
    folder, _ = official
    import_released(folder, tmp_path / "m.safetensors", TINY)
    _, info = load_checkpoint(tmp_path / "m.safetensors")
    assert info["name"] == "sam3d" and info["licence"] == "SAM License"
    for name in ("ss_generator.ckpt", "ss_decoder.ckpt"):
        assert f"{name} sha256 {file_sha256(folder / name)}" in info["sources"]


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_stored_type(official, tmp_path, name):
    folder, network = official
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    import_released(folder, tmp_path / "m.safetensors", TINY, dtype)
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    expected = network.state_dict()
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, expected[key].to(dtype)), key


def test_closed_gates_of_a_new_event_branch_change_nothing(official, tmp_path):
    folder, network = official
    import_released(folder, tmp_path / "m.safetensors", TINY, events=True)
    loaded, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.config == TINY
    encoder, copied = loaded.condition.fuser.image_encoder, loaded.condition.event_encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), copied.parameters(), strict=True))
    assert not {x.data_ptr() for x in encoder.parameters()} & {x.data_ptr() for x in copied.parameters()}
    inputs = make_views(2)
    events = {"event_image": torch.rand(2, 3, 28, 28), "rgb_event_image": torch.rand(1, 3, 28, 28)}
    plain = outputs(network, inputs)
    assert all(map(torch.equal, outputs(loaded, {**inputs, **events}), plain))
    with torch.no_grad():
        for gate in loaded.condition.fusion.gates().values():
            gate.fill_(0.5)
    assert not torch.equal(outputs(loaded, {**inputs, **events})[0], plain[0])


def test_a_new_event_branch_is_always_the_same(official, tmp_path):
    folder, _ = official
    state = torch.random.get_rng_state()
    for name in "ab":
        import_released(folder, tmp_path / name, TINY, events=True)
    first, second = (load_checkpoint(tmp_path / name)[0].state_dict() for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_events_need_a_configuration_that_says_where(official, tmp_path):
    with pytest.raises(ConfigurationError, match="fusion"):
        import_released(official[0], tmp_path / "m.safetensors", PLAIN, events=True)


@pytest.mark.parametrize("place", ["checkpoints/hf", "checkpoints", "hf", "."])
def test_folders_that_hold_the_files(official, tmp_path, place):
    root = tmp_path / "root"
    shutil.copytree(official[0], root / place)
    import_released(root, tmp_path / "m.safetensors", TINY)
    assert load_checkpoint(tmp_path / "m.safetensors")[0].config == PLAIN


def test_safetensors_of_the_same_names(official, tmp_path):
    folder, network = official
    generator = torch.load(folder / "ss_generator.ckpt", weights_only=True)["state_dict"]
    save_file(generator, str(folder / "ss_generator.safetensors"))
    (folder / "ss_generator.ckpt").unlink()
    import_released(folder, tmp_path / "m.safetensors", TINY)
    loaded = load_checkpoint(tmp_path / "m.safetensors")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_all_that_does_not_fit_is_in_one_error(official, tmp_path):
    folder, _ = official

    def damage(state):
        del state[EMBEDDER + "idx_emb"]
        state["surplus"] = torch.zeros(1)
        state[BACKBONE + "t_embedder.mlp.0.bias"] = torch.zeros(7)
        state[BACKBONE + "t_embedder.mlp.2.bias"] = torch.zeros(48, dtype=torch.int64)

    def poison(state):
        state["out_layer.2.bias"] = torch.full((1,), float("nan"))

    change(folder / "ss_generator.ckpt", damage)
    change(folder / "ss_decoder.ckpt", poison)
    with pytest.raises(CheckpointError) as error:
        import_released(folder, tmp_path / "m.safetensors", TINY)
    assert error.value.reason == "wrong_checkpoint"
    for part in (
        f"ss_generator.ckpt: missing: {EMBEDDER}idx_emb",
        "extra: surplus",
        "mlp.0.bias is (7,), expected (48,)",
        "mlp.2.bias is int64",
        "ss_decoder.ckpt: NaN or inf: out_layer.2.bias",
    ):
        assert part in str(error.value)
    assert not list(tmp_path.glob("m.*"))


def test_another_depth_is_named(official, tmp_path):
    deeper = replace(TINY.flow, transformer=replace(TINY.flow.transformer, depth=3))
    with pytest.raises(CheckpointError, match=r"missing: \S+blocks\.2\.\S+, .* and \d+ more"):
        import_released(official[0], tmp_path / "m.safetensors", replace(TINY, flow=deeper))


def test_numbers_beyond_float16_are_refused(official, tmp_path):
    folder, _ = official
    change(folder / "ss_generator.ckpt", lambda state: state[EMBEDDER + "idx_emb"].fill_(1e6))
    with pytest.raises(CheckpointError, match="idx_emb is too large for float16"):
        import_released(folder, tmp_path / "m.safetensors", TINY, torch.float16)
    assert not list(tmp_path.glob("m.*"))


class Program:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_a_program_is_not_run(official, tmp_path, monkeypatch, legacy):
    folder, _ = official
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"x": Program()}}
    torch.save(content, folder / "ss_generator.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as error:
        import_released(folder, tmp_path / "m.safetensors", TINY)
    assert error.value.reason == ("corrupt_checkpoint" if legacy else "unsafe_checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["ss_generator.ckpt", "ss_decoder.ckpt"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_truncated_pickles(official, tmp_path, name, keep):
    path = official[0] / name
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=name) as error:
        import_released(official[0], tmp_path / "m.safetensors", TINY)
    assert error.value.reason == "corrupt_checkpoint"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "corrupt_checkpoint"),
        (b"<html>you need to log in</html>", "corrupt_checkpoint"),
    ],
)
def test_files_that_a_failed_download_leaves(official, tmp_path, content, reason):
    (official[0] / "ss_decoder.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="ss_decoder.ckpt") as error:
        import_released(official[0], tmp_path / "m.safetensors", TINY)
    assert error.value.reason == reason


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"state_dict": 3}, {3: torch.zeros(1)}, torch.zeros(1)])
def test_pickles_without_tensors_by_name(official, tmp_path, content):
    torch.save(content, official[0] / "ss_decoder.ckpt")
    with pytest.raises(CheckpointError, match="no state dict"):
        import_released(official[0], tmp_path / "m.safetensors", TINY)


@pytest.mark.parametrize("tensor", [torch.zeros(1).to_sparse(), torch.zeros(1, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_numbers_are_named(official, tmp_path, tensor):
    change(official[0] / "ss_decoder.ckpt", lambda state: state.update({"out_layer.2.bias": tensor}))
    with pytest.raises(CheckpointError, match="ss_decoder.ckpt .*out_layer.2.bias") as error:
        import_released(official[0], tmp_path / "m.safetensors", TINY)
    assert error.value.reason == "foreign_checkpoint"
    assert not list(tmp_path.glob("m.*"))


def test_one_tensor_under_two_names_is_imported_as_two(official, tmp_path):
    block = EMBEDDER + "module_list.0.backbone.blocks.0."
    one, other = f"{block}norm1.weight", f"{block}norm2.weight"
    change(official[0] / "ss_generator.ckpt", lambda state: state.update({one: state[other]}))
    import_released(official[0], tmp_path / "m.safetensors", TINY)
    first = load_checkpoint(tmp_path / "m.safetensors")[0].condition.fuser.image_encoder.blocks[0]
    assert torch.equal(first.norm1.weight, first.norm2.weight)
    assert first.norm1.weight.data_ptr() != first.norm2.weight.data_ptr()


def test_a_size_that_no_memory_holds(official, tmp_path):
    wide = replace(TINY.flow, transformer=replace(TINY.flow.transformer, width=2**40))
    with pytest.raises(ConfigurationError, match="no network can be built"):
        import_released(official[0], tmp_path / "m.safetensors", replace(TINY, flow=wide))


def test_missing_files_are_named(official, tmp_path):
    folder, _ = official
    (folder / "ss_decoder.ckpt").unlink()
    with pytest.raises(CheckpointError, match="no ss_decoder.ckpt in"):
        import_released(folder, tmp_path / "m.safetensors", TINY)
    with pytest.raises(CheckpointError, match="no ss_generator.ckpt and no ss_decoder.ckpt"):
        import_released(ROOT, tmp_path / "m.safetensors", TINY)
    with pytest.raises(CheckpointError, match="not a folder"):
        import_released(tmp_path / "none", tmp_path / "m.safetensors", TINY)


def test_nano_is_no_configuration_of_sam3d(official, tmp_path):
    with pytest.raises(ConfigurationError, match="direct"):
        import_released(official[0], tmp_path / "m.safetensors", ModelConfig())


@pytest.fixture
def command(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(to_dict(TINY)))
    return ["import-sam3d", str(official[0]), "--config", "tiny.yaml"]


def test_command(command, capsys):
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "event-sam3d-tiny.safetensors: " in captured.out
    assert "stored once" in captured.out
    assert "not used yet: slat_generator.ckpt" in captured.out
    assert "checking" in captured.err
    assert load_checkpoint("event-sam3d-tiny.safetensors")[0].config == PLAIN

    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force", "--dtype", "bf16", "--events"]) == 0
    network, _ = load_checkpoint("event-sam3d-tiny.safetensors")
    assert network.config == TINY
    assert next(network.parameters()).dtype is torch.bfloat16


def test_the_reconstructor_runs_it(command):
    from event_sam3d_ros.reconstructor import Reconstructor

    assert main([*command[:2], "m.safetensors", *command[2:], "--events"]) == 0
    reconstructor = Reconstructor.from_pretrained("m.safetensors", device="cpu")
    reconstructor.warm_up()
    assert (reconstructor.info["name"], reconstructor.info["licence"]) == ("sam3d", "SAM License")


def test_a_source_is_not_overwritten(official, tmp_path):
    folder, _ = official
    before = (folder / "ss_decoder.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match="choose another name"):
        import_released(folder, folder / "ss_decoder.ckpt", TINY, force=True)
    assert (folder / "ss_decoder.ckpt").read_bytes() == before


def test_the_output_may_lie_beside_the_sources(official):
    folder, _ = official
    for _ in range(2):
        imported = import_released(folder, folder / "m.safetensors", TINY, force=True)
        assert imported.not_used == ["slat_generator.ckpt"]


def test_command_with_a_place_that_is_not_there(command, capsys):
    assert main([*command[:2], "none/m.safetensors", *command[2:]]) == 2
    assert "no folder none" in capsys.readouterr().err


def test_command_with_heads_that_the_width_is_no_multiple_of(command, capsys):
    """It would be written and loaded, and fail at the first image."""
    tiny = to_dict(TINY)
    Path("tiny.yaml").write_text(yaml.safe_dump({**tiny, "fusion": {**tiny["fusion"], "heads": 3}}))
    assert main([*command, "--events"]) == 2
    assert "tiny.yaml" in (said := capsys.readouterr().err) and "fusion.heads" in said
    assert not Path("event-sam3d-tiny.safetensors").exists()


def test_weights_of_another_size_are_refused_by_the_default(command, capsys):
    assert main(command[:2]) == 2
    error = capsys.readouterr().err
    assert "does not fit the configuration 'full'" in error
    assert "wrong shape" in error
