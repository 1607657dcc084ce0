"""Flow matching and the geometry flow: schedules, guidance, noise, and the savings that must not change a number."""

from dataclasses import replace

import pytest
import torch
from tiny import assert_close, randomise

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.config import FlowHeadConfig, SamplerConfig, from_dict
from event_sam3d_ros.sam3d.flops import count_flops
from event_sam3d_ros.sam3d.flow import draw_noise, interpolate, sample, schedule, seeded_generators
from event_sam3d_ros.sam3d.geometry_flow import POSE_CHANNELS, SHAPE, GeometryFlow
from event_sam3d_ros.sam3d.memory import peak_memory

SMALL = FlowHeadConfig(width=48, condition_width=40, depth=3, heads=4, resolution=3, channels=8)
BATCH_TOLERANCE = 1e-5  # of the sample after 44 evaluations; measured are 5e-7


def random_flow(config: FlowHeadConfig = SMALL) -> GeometryFlow:
    torch.manual_seed(0)
    return randomise(GeometryFlow(config))


def condition_tokens(objects: int, config: FlowHeadConfig = SMALL, seed: int = 1) -> torch.Tensor:
    return torch.randn(objects, 17, config.condition_width, generator=torch.Generator().manual_seed(seed))


def plain_velocity(flow: GeometryFlow, tokens: torch.Tensor):
    """The flow without savings: keys and values made in every evaluation, zeros attended to, one branch at a time."""

    def velocity(latents, time, step_size, guided):
        conditional, _ = flow(latents, time, step_size, flow.condition(tokens))
        if not guided:
            return conditional, None
        return conditional, flow(latents, time, step_size, flow.condition(0 * tokens))[0]

    return velocity


@pytest.mark.parametrize("steps", [1, 2, 4, 25])
@pytest.mark.parametrize("rescale", [0.5, 1.0, 3.0])
def test_schedule_runs_from_0_to_1(steps, rescale):
    times = schedule(steps, rescale)
    assert times.shape == (steps + 1,)
    assert times[0] == 0 and times[-1] == 1
    assert (times.diff() > 0).all()


def test_rescaled_schedule_starts_with_small_steps():
    assert (schedule(25, 3.0).diff().diff() > 0).all()
    torch.testing.assert_close(schedule(4, 3.0), torch.tensor([0, 0.1, 0.25, 0.5, 1], dtype=torch.float64))
    torch.testing.assert_close(schedule(4, 1.0), torch.linspace(0, 1, 5, dtype=torch.float64))


def test_noise_of_an_object_is_what_its_seed_gives_alone():
    shapes = {"b": (5, 8), "a": (1, 6), "c": (1, 1)}
    noise = draw_noise(shapes, seeded_generators([3, 7]))
    torch.manual_seed(7)
    for name in ("a", "b", "c"):
        assert torch.equal(noise[name][1], torch.randn(1, *shapes[name])[0])
    assert not torch.equal(noise["b"][0], noise["b"][1])


def test_noise_of_a_later_stage_goes_on_in_the_same_stream():
    shapes, generators = {"a": (4, 8)}, seeded_generators([5])
    first, second = draw_noise(shapes, generators), draw_noise(shapes, generators)
    torch.manual_seed(5)
    assert torch.equal(first["a"], torch.randn(1, 4, 8))
    assert torch.equal(second["a"], torch.randn(1, 4, 8))


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_the_true_velocity_leads_to_the_data(steps):
    noise, data = {"x": torch.randn(2, 3, 4)}, {"x": torch.randn(2, 3, 4)}
    _, target = interpolate(noise, data, torch.tensor([0.2, 0.7]))
    result = sample(lambda *_: (target, None), noise, SamplerConfig(steps=steps, strength=0))
    torch.testing.assert_close(result["x"], data["x"], rtol=0, atol=1e-5)


def test_interpolation_is_noise_at_0_and_data_at_1():
    noise, data = {"x": torch.randn(2, 3, 4)}, {"x": torch.randn(2, 3, 4)}
    state, _ = interpolate(noise, data, torch.tensor([0.0, 1.0]))
    assert torch.equal(state["x"][0], noise["x"][0])
    assert torch.equal(state["x"][1], data["x"][1])


def calls_of(config: SamplerConfig) -> list[tuple[float, float, bool]]:
    calls = []

    def velocity(latents, time, step_size, guided):
        calls.append((time.item(), step_size.item(), guided))
        return latents, latents if guided else None

    sample(velocity, {"x": torch.ones(1, 1, 1)}, config)
    return calls


def test_released_settings_guide_19_of_25_steps():
    calls = calls_of(SamplerConfig())
    assert [guided for *_, guided in calls] == [True] * 19 + [False] * 6
    assert {step_size for _, step_size, _ in calls} == {0.0}


def test_guidance_holds_at_both_ends_of_its_interval():
    calls = calls_of(SamplerConfig(steps=10, rescale=1.0, interval=(200, 500)))
    assert [round(time) for time, _, guided in calls if guided] == [200, 300, 400, 500]


def test_no_strength_means_no_unconditional_branch():
    assert not any(guided for *_, guided in calls_of(SamplerConfig(strength=0)))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_shortcut_tells_the_step_size_and_never_guides(steps):
    calls = calls_of(SamplerConfig(steps=steps, shortcut=True))
    assert [call[1:] for call in calls] == [(1000 / steps, False)] * steps


def test_guidance_extrapolates_from_the_unconditional_velocity():
    velocity = {"x": torch.full((1, 1, 1), 3.0)}, {"x": torch.full((1, 1, 1), 1.0)}
    result = sample(lambda *_: velocity, {"x": torch.zeros(1, 1, 1)}, SamplerConfig(steps=1, strength=2.0))
    assert result["x"].item() == 3 + 2 * (3 - 1)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"rescale": 0.0}, {"strength": -1.0}, {"strength": float("nan")}, {"interval": [500, 0]}]
)
def test_bad_sampler_settings_name_themselves(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        from_dict(SamplerConfig, bad, "test")


def test_nothing_to_sample_is_refused():
    with pytest.raises(InputError) as error:
        sample(lambda *_: ({}, None), {"x": torch.zeros(0, 1, 1)}, SamplerConfig())
    assert error.value.reason == "no_objects"


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig(steps=4, shortcut=True)])
def test_savings_change_no_number(config):
    flow, tokens = random_flow(), condition_tokens(2)
    noise = draw_noise(flow.latent_shapes, seeded_generators([4, 5]))
    plain = sample(plain_velocity(flow, tokens), noise, config)
    ours = flow.sample(tokens, seeded_generators([4, 5]), config)
    assert_close(ours, plain, BATCH_TOLERANCE)
    assert {name: tuple(x.shape[1:]) for name, x in ours.items()} == flow.latent_shapes


def test_guided_pair_equals_both_branches_alone():
    flow, tokens = random_flow(), condition_tokens(2)
    latents = draw_noise(flow.latent_shapes, seeded_generators([4, 5]))
    time, step_size = torch.tensor([120.0, 730.0]), torch.tensor([0.0, 250.0])
    with torch.no_grad():
        pair = flow(latents, time, step_size, flow.condition(tokens), guided=True)
        alone = plain_velocity(flow, tokens)(latents, time, step_size, True)
    for together, single in zip(pair, alone, strict=True):
        assert_close(together, single, 1e-5)


def test_a_sample_does_not_depend_on_its_batch():
    flow, tokens = random_flow(), condition_tokens(3)
    together = flow.sample(tokens, seeded_generators([1, 2, 3]), SamplerConfig())
    for i in range(3):
        alone = flow.sample(tokens[i : i + 1], seeded_generators([i + 1]), SamplerConfig())
        assert_close(alone, {name: x[i : i + 1] for name, x in together.items()}, BATCH_TOLERANCE)


def test_the_seed_decides_the_sample():
    flow, tokens, config = random_flow(), condition_tokens(1), SamplerConfig(steps=5)
    first, again, other = (flow.sample(tokens, seeded_generators([seed]), config) for seed in (8, 8, 9))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.allclose(first[name], other[name]) for name in first)


@torch.no_grad()
def test_shape_ignores_pose_but_pose_sees_shape():
    flow, zero = random_flow(), torch.zeros(1)
    condition = flow.condition(condition_tokens(1))
    latents = draw_noise(flow.latent_shapes, seeded_generators([0]))
    velocity, _ = flow(latents, zero, zero, condition)
    for name in POSE_CHANNELS:
        changed, _ = flow({**latents, name: latents[name] + 1}, zero, zero, condition)
        assert torch.equal(changed[SHAPE], velocity[SHAPE])
        assert all(not torch.equal(changed[other], velocity[other]) for other in POSE_CHANNELS)
    changed, _ = flow({**latents, SHAPE: latents[SHAPE] + 1}, zero, zero, condition)
    assert all(not torch.equal(changed[name], velocity[name]) for name in velocity)


@torch.no_grad()
def test_time_step_size_and_condition_matter():
    flow, zero, tokens = random_flow(), torch.zeros(1), condition_tokens(1)
    latents = draw_noise(flow.latent_shapes, seeded_generators([0]))
    velocity, _ = flow(latents, zero, zero, flow.condition(tokens))
    for changed in (
        flow(latents, zero + 500, zero, flow.condition(tokens)),
        flow(latents, zero, zero + 250, flow.condition(tokens)),
        flow(latents, zero, zero, flow.condition(tokens + 1)),
    ):
        assert all(not torch.allclose(changed[0][name], velocity[name]) for name in velocity)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("part", ["all", "blocks"])
@torch.no_grad()
def test_half_precision_stays_near(dtype, tolerance, part):
    flow, tokens = random_flow(), condition_tokens(2)
    latents = draw_noise(flow.latent_shapes, seeded_generators([0, 1]))
    time, step_size = torch.tensor([300.0]), torch.zeros(1)
    exact = flow(latents, time, step_size, flow.condition(tokens), guided=True)
    (flow if part == "all" else flow.blocks).to(dtype)
    rough = flow(latents, time, step_size, flow.condition(tokens), guided=True)
    for result, expected in zip(rough, exact, strict=True):
        assert all(x.dtype == torch.float32 for x in result.values())
        assert_close(result, expected, tolerance)


def test_condition_that_does_not_fit_is_refused():
    flow = random_flow()
    for tokens in (torch.zeros(1, 5, 39), torch.zeros(5, 40), torch.zeros(1, 0, 40)):
        with pytest.raises(InputError) as error:
            flow.condition(tokens)
        assert error.value.reason == "wrong_condition"


def test_a_seed_is_needed_for_every_object():
    with pytest.raises(InputError) as error:
        random_flow().sample(condition_tokens(2), seeded_generators([1]), SamplerConfig())
    assert error.value.reason == "wrong_seeds"


def test_a_sample_that_is_not_finite_is_refused():
    with pytest.raises(InputError) as error:
        random_flow().sample(condition_tokens(1) * float("nan"), seeded_generators([1]), SamplerConfig(steps=1))
    assert error.value.reason == "geometry_not_finite"


def test_width_without_whole_heads_is_refused():
    with pytest.raises(ConfigurationError, match="multiple of heads"):
        FlowHeadConfig(width=50, heads=4)


def test_the_pose_loss_leaves_the_shape_stream_alone():
    flow = random_flow()
    latents = draw_noise(flow.latent_shapes, seeded_generators([0]))
    velocity, _ = flow(latents, torch.zeros(1), torch.zeros(1), flow.condition(condition_tokens(1)))
    sum(velocity[name].sum() for name in POSE_CHANNELS).backward()
    qkv = flow.blocks[0].self_attn.to_qkv
    assert qkv[SHAPE].weight.grad is None or not qkv[SHAPE].weight.grad.any()
    assert qkv["6drotation_normalized"].weight.grad.any()


def test_a_new_flow_starts_with_closed_gates():
    torch.manual_seed(0)
    flow = GeometryFlow(SMALL)
    assert not any(block.adaLN_modulation[1].weight.any() for block in flow.blocks)
    assert not flow.d_embedder(torch.tensor([0.0, 250.0])).any()


def test_sampling_ends_where_training_pointed():
    """Two objects, told apart by their condition alone."""
    torch.manual_seed(0)
    config = FlowHeadConfig(width=48, condition_width=16, depth=2, heads=4, resolution=2, channels=8)
    flow, batch, steps = GeometryFlow(config), 32, 400
    tokens = torch.randn(2, 3, config.condition_width)
    data = {name: torch.randn(2, *shape) for name, shape in flow.latent_shapes.items()}
    optimizer = torch.optim.AdamW(flow.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    generators = seeded_generators(range(batch))
    which = torch.arange(batch) % 2
    for _ in range(steps):
        state, target = interpolate(
            draw_noise(flow.latent_shapes, generators),
            {name: x[which] for name, x in data.items()},
            time := torch.rand(batch),
        )
        kept = (torch.rand(batch, 1, 1) > 0.1).float()
        velocity, _ = flow(state, 1000 * time, torch.zeros(batch), flow.condition(kept * tokens[which]))
        loss = sum((velocity[name] - target[name]).square().mean() for name in target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    for strength in (0.0, 2.0, 7.0):
        result = flow.eval().sample(tokens, seeded_generators([1000, 1001]), SamplerConfig(strength=strength))
        for name, x in result.items():
            error = (x - data[name]).square().mean(dim=(1, 2)).sqrt()
            assert error.max() < 0.25, f"{name} at strength {strength} is off by {error.tolist()}"


def test_operations_at_released_size():
    """25 guided steps on 7528 condition tokens; one evaluation of a kind is counted and taken for all of its kind."""
    with torch.device("meta"):
        flow = GeometryFlow(FlowHeadConfig())
        tokens = torch.empty(1, 7528, 1024)
        noise = draw_noise(flow.latent_shapes, seeded_generators([0]), "meta")

    def flops(velocity) -> int:
        known: dict[bool, int] = {}
        total = 0

        def counted(latents, time, step_size, guided):
            nonlocal total
            if guided not in known:
                known[guided] = count_flops(lambda: velocity(latents, time, step_size, guided))
            total += known[guided]
            return latents, latents if guided else None

        sample(counted, noise, SamplerConfig())
        return total

    with torch.no_grad():
        once, condition = count_flops(lambda: flow.condition(tokens)), flow.condition(tokens)
    assert flops(plain_velocity(flow, tokens)) == pytest.approx(400e12, rel=0.01)
    assert once + flops(lambda *state: flow(*state[:3], condition, state[3])) <= 272e12


def test_the_cpu_is_counted_as_the_meta_device():
    config = SamplerConfig(steps=2)
    flow, tokens = random_flow(), condition_tokens(2)
    on_cpu = count_flops(lambda: flow.sample(tokens, seeded_generators([0, 1]), config))
    flow, tokens = flow.to("meta"), tokens.to("meta")
    assert on_cpu == count_flops(lambda: flow.sample(tokens, seeded_generators([0, 1]), config)) > 0


@pytest.mark.parametrize("objects", [1, 3])
def test_memory_per_object_is_an_upper_bound_and_close(objects):
    config = FlowHeadConfig(width=96, condition_width=96, depth=4, heads=4, resolution=8)
    flow, tokens = random_flow(config), torch.randn(objects, 700, 96)
    peak = peak_memory(lambda: flow.sample(tokens, seeded_generators(range(objects)), SamplerConfig(steps=2)))
    expected = objects * flow.memory_per_object(700)
    assert 0.85 * expected < peak < expected


def test_compiles_as_one_graph():
    flow, tokens, zero = random_flow(replace(SMALL, depth=1)), condition_tokens(2), torch.zeros(1)
    latents = draw_noise(flow.latent_shapes, seeded_generators([1, 2]))
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        condition = flow.condition(tokens)
        for result, expected in zip(
            compiled(latents, zero, zero, condition, True), flow(latents, zero, zero, condition, True), strict=True
        ):
            assert_close(result, expected, 1e-5)
