"""The geometry flow and the samplers against the reference values."""

from __future__ import annotations

import json

import pytest
import torch

from event_sam3d_ros.sam3d.config import FlowHeadConfig, SamplerConfig
from event_sam3d_ros.sam3d.flow import sample, schedule
from event_sam3d_ros.sam3d.geometry_flow import GeometryFlow

PREFIX = "_base_models.generator.reverse_fn.backbone."


def flow_of(case) -> GeometryFlow:
    config = case["meta"]["config"]
    flow = GeometryFlow(
        FlowHeadConfig(
            width=config["C"],
            condition_width=config["cond_channels"],
            depth=config["blocks"],
            heads=config["heads"],
            resolution=config["res"],
        )
    )
    flow.load_state_dict(case["state_dict"], strict=True)
    return flow.eval()


def sampler_of(spec) -> SamplerConfig:
    return SamplerConfig(
        steps=spec["steps"],
        rescale=float(spec["rescale"]),
        strength=float(spec["strength"]),
        interval=tuple(spec.get("interval", SamplerConfig().interval)),
        shortcut=not spec.get("no_shortcut", True),
    )


def assert_latents_match(result, reference, assert_matches, what):
    assert result.keys() == reference.keys()
    for name, value in reference.items():
        assert_matches(result[name], value, f"{what}: {name}")


@torch.no_grad()
def test_geometry_flow(case, assert_matches):
    flow, inputs, outputs = flow_of(case), case["inputs"], case["outputs"]
    blocks = {}
    for i, block in enumerate(flow.blocks):
        block.register_forward_hook(lambda _, given, result, i=i: blocks.update({f"block{i}": result}))
        if i == 0:
            block.register_forward_pre_hook(lambda _, given: blocks.update(tokens_in=given[0]))
    latents, time, step_size = inputs["latents"], inputs["t"], inputs["d"]

    condition = flow.condition(inputs["cond"])
    velocity, _ = flow(latents, time, step_size, condition)

    assert_latents_match(velocity, outputs["velocity"], assert_matches, "velocity")
    assert_latents_match(blocks.pop("tokens_in"), outputs["tokens_in"], assert_matches, "tokens_in")
    assert blocks.keys() == outputs["blocks"].keys()
    for name, streams in outputs["blocks"].items():
        assert_latents_match(blocks[name], streams, assert_matches, name)
    assert_matches(flow.t_embedder(time), outputs["t_emb"], "t_emb")
    assert_matches(flow.d_embedder(step_size), outputs["d_emb"], "d_emb")

    conditional, unconditional = flow(latents, time, step_size, condition, guided=True)
    assert_latents_match(conditional, outputs["velocity"], assert_matches, "velocity of the pair")
    assert_latents_match(unconditional, outputs["velocity_uncond"], assert_matches, "velocity_uncond")


def test_sampler(case, assert_matches):
    condition = case["inputs"]["cond"].mean()
    for name, spec in json.loads(case["meta"]["specs"]).items():
        structured = spec["kind"] == "slat"
        noise, reference = case["inputs"][name], case["outputs"][name]
        calls = []

        def velocity(latents, time, step_size, guided, calls=calls, structured=structured):
            def field(x, unconditional):
                calls.append([time.item(), -1.0 if structured else step_size.item(), float(unconditional)])
                step = 0 if structured else 0.2 * step_size / 1000
                pull = 0 if unconditional else 0.5 * condition
                return {
                    k: -0.7 * v + 0.3 * torch.sin(time / 1000) + step - pull + 0.1 * v.roll(1, -1) for k, v in x.items()
                }

            return field(latents, False), field(latents, True) if guided else None

        config = sampler_of(spec)
        dtype = torch.float32 if structured else torch.float64
        result = sample(velocity, {"slat": noise} if structured else noise, config, dtype)
        final = {"slat": reference["final"]} if structured else reference["final"]

        assert_matches(schedule(config.steps, config.rescale, dtype), reference["t_seq"].to(dtype), f"{name}: times")
        assert len(calls) == reference["n_evals"]
        assert_matches(torch.tensor(calls), torch.tensor(reference["calls"]), f"{name}: calls")
        assert_latents_match(result, final, assert_matches, name)


def test_sampled_geometry(case, assert_matches):
    """The network sampled from the ``noise`` in ``inputs``, conditioned on ``cond``, to the ``final`` latents."""
    meta = case["meta"]
    spec = {**meta, **meta["config"], **json.loads(meta.get("spec", "{}"))}
    if not {"steps", "rescale", "strength"} <= spec.keys() or not {"cond", "noise"} <= case["inputs"].keys():
        pytest.fail(f"{case['name']} does not say how it was sampled: steps, rescale, strength, cond and noise")
    flow = flow_of(case)
    context = flow.condition(case["inputs"]["cond"])
    result = sample(lambda *state: flow(*state[:3], context, state[3]), case["inputs"]["noise"], sampler_of(spec))
    assert_latents_match(result, case["outputs"]["final"], assert_matches, "final")


def test_tensors_at_released_size(manifest):
    with torch.device("meta"):
        flow = GeometryFlow(FlowHeadConfig())
    expected = {k.removeprefix(PREFIX): shape for k, (shape, _) in manifest("ss_generator").items()}
    assert {k: tuple(x.shape) for k, x in flow.state_dict().items()} == expected
    assert sum(p.numel() for p in flow.parameters()) == 959_962_133
