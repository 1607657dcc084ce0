"""The condition stage against the reference implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from event_sam3d_ros.sam3d.config import EncoderConfig, PointmapConfig
from event_sam3d_ros.sam3d.embedder_fuser import POINTMAPS, EmbedderFuser
from event_sam3d_ros.sam3d.pointmap_embedder import PointmapEmbedder
from event_sam3d_ros.sam3d.vit import VisionTransformer

RELEASED_ENCODER = EncoderConfig(518, 14, 3, 1024, 24, 16, registers=4, stem=(), mask_token=True)


def encoder_config(state: dict[str, torch.Tensor], prefix: str, meta: dict[str, object]) -> EncoderConfig:
    """What the shapes tell; cases that don't say their heads have four."""
    width, channels, patch, _ = state[f"{prefix}patch_embed.proj.weight"].shape
    image_size = patch * round((state[f"{prefix}pos_embed"].shape[1] - 1) ** 0.5)
    return EncoderConfig(
        image_size=image_size,
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=1 + max(int(k.split(".")[1]) for k in (k.removeprefix(prefix) for k in state) if k.startswith("blocks.")),
        heads=int(meta.get("num_heads", 4)),
        mlp_ratio=state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0] / width,
        registers=state[f"{prefix}register_tokens"].shape[1] if f"{prefix}register_tokens" in state else 0,
        stem=(),
        input_size=int(meta.get("input_size", 0)),
        mask_token=f"{prefix}mask_token" in state,
    )


def pointmap_config(state: dict[str, torch.Tensor], prefix: str, meta: dict[str, object]) -> PointmapConfig:
    patch = round((state[f"{prefix}pos_embed_window"].shape[1] - 1) ** 0.5)
    _, width, windows, _ = state[f"{prefix}pos_embed"].shape
    return PointmapConfig(windows * patch, patch, width, heads=int(meta.get("heads", 16)))


@torch.inference_mode()
def test_dino(case, assert_matches):
    meta = case["meta"].get("config", {})
    encoder = VisionTransformer(encoder_config(case["state_dict"], "backbone.", meta)).eval()
    nn.ModuleDict({"backbone": encoder}).load_state_dict(case["state_dict"])
    for name, image in case["inputs"].items():
        features = encoder(image)
        if meta.get("prenorm_features"):
            tokens = nn.functional.layer_norm(features.prenorm, features.prenorm.shape[-1:])
        else:
            tokens = torch.cat([features.tokens[:, :1], features.tokens[:, 1 + encoder.config.registers :]], dim=1)
        assert_matches(tokens, case["outputs"][name], name)
    if "preprocessed" in case["outputs"]:
        assert_matches(encoder.prepare(case["inputs"]["resized"]), case["outputs"]["preprocessed"], "preprocessed")
    if "x_prenorm" in case["outputs"]:
        assert_matches(encoder(case["inputs"]["image"]).prenorm, case["outputs"]["x_prenorm"], "x_prenorm")


@torch.inference_mode()
def test_pointmap_embedder(case, assert_matches):
    embedder = PointmapEmbedder(pointmap_config(case["state_dict"], "", case["meta"].get("config", {}))).eval()
    embedder.load_state_dict(case["state_dict"])
    points = embedder.resize(case["inputs"]["xyz"])
    assert_matches(embedder(case["inputs"]["xyz"]), case["outputs"]["tokens"], "tokens")
    if "resized" in case["outputs"]:
        assert_matches(points, case["outputs"]["resized"], "resized")
    if "per_point" in case["outputs"]:
        assert_matches(embedder.embed_points(points), case["outputs"]["per_point"], "per_point")


@torch.inference_mode()
def test_fuser(case, assert_matches):
    state, meta = case["state_dict"], case["meta"].get("config", {})
    structured = case["name"].startswith("slat")
    fuser = EmbedderFuser(
        encoder_config(state, "module_list.0.backbone.", meta),
        None if structured else pointmap_config(state, "module_list.2.", meta),
        prenorm=structured,
    ).eval()
    fuser.load_state_dict(state)
    for name, tokens in case["outputs"].items():
        dropped = {"tokens": (), "tokens_pointmap_dropped": POINTMAPS}[name]
        assert_matches(fuser(case["inputs"], dropped), tokens, name)


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_released_fuser_has_the_released_tensors(stage, manifest):
    with torch.device("meta"):
        fuser = EmbedderFuser(RELEASED_ENCODER, PointmapConfig() if stage == "ss" else None, prenorm=stage == "slat")
    prefix = "_base_models.condition_embedder."
    ours = {f"{prefix}{key}": (tuple(x.shape), str(x.dtype)[6:]) for key, x in fuser.state_dict().items()}
    assert ours == manifest(f"{stage}_condition_embedder")


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_released_fuser_gives_as_many_tokens_as_released(stage):
    count = {"ss": 4 * 1370 + 2 * 1024, "slat": 4 * 1374}[stage]
    with torch.device("meta"):
        fuser = EmbedderFuser(RELEASED_ENCODER, PointmapConfig() if stage == "ss" else None, prenorm=stage == "slat")
        images = {name: torch.empty(1, 1 if "mask" in name else 3, 518, 518) for name in fuser.names}
        tokens = fuser.eval()(images)
        without_pointmaps = fuser({name: x for name, x in images.items() if name not in POINTMAPS})
    assert tokens.shape == without_pointmaps.shape == (1, count, 1024)
