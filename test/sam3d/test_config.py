"""Configurations: the YAML is the default, and mistakes in it are named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.config import (
    DirectHeadConfig,
    EncoderConfig,
    FusionConfig,
    ModelConfig,
    from_dict,
    to_dict,
)
from event_sam3d_ros.sam3d.network import build

NANO = Path(__file__).parents[2] / "config" / "models" / "nano.yaml"


def test_the_shipped_file_is_the_default():
    assert ModelConfig.from_yaml(NANO) == ModelConfig()


def test_a_configuration_survives_the_round_trip():
    assert from_dict(ModelConfig, to_dict(ModelConfig()), "here") == ModelConfig()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"encoder": {"depth": "four"}}, "depth"),
        ({"encoder": {"stem": [32, 6.5]}}, "stem"),
        ({"encoder": {"image_size": 65}}, "image_size"),
        ({"encoder": {"heads": 5}}, "heads"),
        ({"encoder": 3}, "encoder"),
        ({"head": "guess"}, "head"),
        ({"fusion": {"blocks": [9]}}, "fusion"),
        ({"preprocess": {"crop_factor": 0.5}}, "crop_factor"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(tmp_path, change, named):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(NANO.read_text()), **change}))
    with pytest.raises(ConfigurationError, match=named) as error:
        ModelConfig.from_yaml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=str(path)):
        ModelConfig.from_yaml(path)


def settings(path: str, value: object) -> dict:
    """The nested setting ``path`` alone."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(base: dict, change: dict) -> dict:
    return {
        key: merged(base[key], change[key])
        if isinstance(base.get(key), dict) and key in change
        else change.get(key, base.get(key))
        for key in {*base, *change}
    }


@pytest.mark.parametrize("head", ["direct", "flow"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("encoder." + name, 0) for name in ("heads", "patch_size", "image_size", "width", "depth")),
        ("encoder.image_size", -28),
        ("encoder.input_size", -14),
        ("encoder.registers", -1),
        ("encoder.in_channels", 2),
        ("encoder.mlp_ratio", float("nan")),
        ("encoder.mlp_ratio", float("inf")),
        ("encoder.mlp_ratio", 0.001),
        ("fusion.heads", 0),
        ("fusion.heads", 3),
        ("direct.channels", []),
        ("direct.channels", [128, 3]),
        ("direct.channels", [36]),
        ("direct.resolution", 0),
        ("direct.depth_range", 0.0),
        *(("flow.pointmap." + name, 0) for name in ("patch_size", "input_size", "width")),
        ("flow.pointmap.heads", -2),
        *(("flow.transformer." + name, 0) for name in ("heads", "width", "depth", "resolution", "channels")),
        ("flow.transformer.mlp_ratio", float("nan")),
        ("flow.structure.channels", []),
        ("flow.structure.channels", [16, 0]),
        ("flow.structure.blocks", -1),
        ("flow.structure.middle_blocks", -1),
        ("flow.sampler.interval", [-5, 5000]),
        ("flow.sampler.interval", [0, 1001]),
        ("preprocess.prior_size_m", -1.0),
        ("preprocess.prior_size_m", 0.0),
        ("preprocess.min_events", -1),
        ("preprocess.window_ms", float("nan")),
        ("preprocess.crop_factor", float("inf")),
    ],
)
def test_settings_that_no_network_can_have_are_named(head, setting, value):
    base = to_dict(ModelConfig() if head == "direct" else TINY)
    with pytest.raises(ConfigurationError, match=setting.split(".")[-1]):
        from_dict(ModelConfig, merged(base, settings(setting, value)), "here")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("encoder.in_channels", 3),
        ("encoder.input_size", 32),
        ("encoder.stem", [32, 36]),
        ("direct.channels", [64, 64, 64, 64]),
    ],
)
def test_what_the_direct_head_cannot_work_with_is_named(setting, value):
    with pytest.raises(ConfigurationError, match=setting.split(".")[-1]):
        from_dict(ModelConfig, merged(to_dict(ModelConfig()), settings(setting, value)), "here")


@pytest.mark.parametrize("tokens", ["attn", "cattn"])
def test_heads_divide_the_width_of_the_tokens_that_are_fused(tokens):
    """Those of a flow model are as wide as its widest embedder."""
    flow = replace(
        TINY.flow,
        pointmap=replace(TINY.flow.pointmap, width=36),
        transformer=replace(TINY.flow.transformer, condition_width=36),
    )
    fusion = FusionConfig(stems=(), blocks=(), heads=8, tokens=tokens)
    with pytest.raises(ConfigurationError, match="fusion.heads"):
        replace(TINY, flow=flow, fusion=fusion)
    replace(TINY, flow=flow, fusion=replace(fusion, heads=6))
    replace(TINY, flow=flow, fusion=FusionConfig(stems=(), blocks=(0,), heads=8, tokens="gated"))


@given(
    encoder=st.fixed_dictionaries({name: st.integers(-1, 8) for name in ("depth", "heads", "registers", "width")}),
    stem=st.lists(st.integers(0, 40), max_size=2),
    channels=st.lists(st.integers(0, 40), max_size=3),
    heads=st.integers(-1, 4),
    tokens=st.sampled_from(["", "gated", "attn", "cattn"]),
)
def test_what_is_accepted_runs(encoder, stem, channels, heads, tokens):
    patch = 2 ** (len(stem) + 1) if stem else 2
    try:
        config = ModelConfig(
            encoder=EncoderConfig(4 * patch, patch, stem=tuple(stem), **encoder),
            fusion=FusionConfig(tuple(range(len(stem))), (0,), heads, tokens),
            direct=DirectHeadConfig(4, channels=tuple(channels)),
        )
    except ConfigurationError:
        return
    network, size = build(config).eval(), config.encoder.image_size
    image, mask = torch.rand(1, 3, size, size), torch.ones(1, 1, size, size)
    assert network(image, image, mask).logits.isfinite().all()
