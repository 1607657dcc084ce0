"""Cases and recordings: their parts agree with each other and with the truth."""

from dataclasses import fields, replace

import numpy as np
import pytest

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.evaluation.baselines import BASELINE_OBJECT_SEEDS
from event_sam3d_ros.synthetic import world
from event_sam3d_ros.synthetic.appearance import encode_gamma
from event_sam3d_ros.synthetic.event_simulator import EventSimulator
from event_sam3d_ros.synthetic.motion import random_glide
from event_sam3d_ros.synthetic.scene import crop_side, random_placement
from event_sam3d_ros.synthetic.shapes import random_shape
from event_sam3d_ros.synthetic.world import (
    FIRST_TRAINING_OBJECT_SEED,
    HELD_OUT_OBJECT_SEEDS,
    STAMP_US,
    TIERS,
    make_case,
    sequence,
)
from training.datasets import DataConfig

SMALL = {"width": 112, "height": 112}


@pytest.fixture(scope="module")
def cases():
    return {tier: [make_case(900 + i, i, tier, **SMALL) for i in range(6)] for tier in TIERS}


def _iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def _object_points(case):
    """Object points in grid units of the noisy depth on the mask's inside, away from its edge."""
    inner = case.mask.astype(bool)
    for axis in (0, 1):
        for step in (-2, 2):
            inner &= np.roll(case.mask, step, axis).astype(bool)
    v, u = np.nonzero(inner & (case.depth > 0))
    z = case.depth[v, u].astype(float)
    rays = np.linalg.inv(case.K) @ np.stack([u, v, np.ones(len(u))])
    return (((rays * z).T - case.position) @ case.rotation / case.scale), z


def test_motion_is_in_its_tier(cases):
    for tier, (low, high) in TIERS.items():
        for case in cases[tier]:
            assert 0.93 * low <= case.motion_share <= 1.07 * high


def test_shapes_types_and_window(cases):
    case = cases["hard"][0]
    assert case.sharp.shape == case.blurry.shape == case.event_image.shape == (112, 112, 3)
    assert case.sharp.dtype == case.blurry.dtype == case.event_image.dtype == np.uint8
    assert case.depth.dtype == np.float32 and case.depth.shape == (112, 112)
    for mask in (case.mask, case.degraded_mask):
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    t = case.events.t
    assert np.all(np.diff(t) >= 0)
    assert case.stamp_us - 25_000 <= t[0] < case.stamp_us - 24_000
    assert case.stamp_us + 24_000 < t[-1] < case.stamp_us + 25_000
    assert len(t) > 3000


def test_back_projected_depth_lies_on_the_surface(cases):
    for case in cases["hard"] + cases["still"]:
        points, z = _object_points(case)
        assert len(points) > 50
        # 1 % of the distance is the largest noise; the surface is met up to that.
        assert np.median(np.abs(case.shape.distance(points))) * case.scale < 0.012 * np.median(z)


def test_mask_is_the_projection_of_the_solid(cases):
    for case in cases["medium"]:
        inside = (np.argwhere(case.shape.occupancy) + 0.5) / 32 - 1
        p = inside * case.scale @ case.rotation.T + case.position
        u, v = np.rint(p[:, :2] / p[:, 2:] * case.K[[0, 1], [0, 1]] + case.K[:2, 2]).astype(int).T
        in_view = (u >= 0) & (u < 112) & (v >= 0) & (v < 112)
        projected = np.zeros((112, 112), bool)
        projected[v[in_view], u[in_view]] = True
        assert _iou(projected, case.mask) > 0.9


def test_object_is_upright_before_the_camera(cases):
    for case in [case for tier in cases.values() for case in tier]:
        np.testing.assert_allclose(case.rotation @ case.rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(case.rotation) == pytest.approx(1)
        towards_camera = -case.position / np.linalg.norm(case.position)
        elevation = np.rad2deg(np.arcsin(case.rotation[:, 2] @ towards_camera))
        assert -10.1 < elevation < 70.1
        assert case.rotation[1, 2] < 0.3  # up in the object is up in the picture, or towards the camera


def test_small_sensor_is_a_window_of_the_large_one(cases):
    for case in cases["easy"]:
        assert 0.9 * 346 <= case.K[0, 0] <= 1.6 * 346
        assert 0.35 * 112 < crop_side(case.mask) < 0.85 * 112


def test_still_frames_are_not_blurred_and_have_few_events(cases):
    for case in cases["still"]:
        assert np.abs(case.sharp.astype(int) - case.blurry).mean() < 6  # image noise
        assert case.motion_share == 0 and len(case.events) < 0.08 * 112 * 112


def test_blur_and_degraded_masks_grow_with_the_tier(cases):
    def mean_blur(tier):
        return np.mean([np.abs(c.sharp.astype(float) - c.blurry)[c.mask > 0].mean() for c in cases[tier]])

    def mean_iou(tier):
        return np.mean([_iou(c.mask, c.degraded_mask) for c in cases[tier]])

    assert mean_blur("still") < mean_blur("easy") < mean_blur("hard")
    assert mean_iou("hard") < mean_iou("still")
    assert all(c.degraded_mask.any() for tier in cases.values() for c in tier)


def test_tiers_share_everything_but_the_speed(cases):
    for easy, hard in zip(cases["easy"], cases["hard"], strict=True):
        np.testing.assert_array_equal(easy.size, hard.size)
        assert easy.scale == hard.scale
        assert len(easy.events) < len(hard.events)


def test_a_seed_is_a_case():
    first, again, other = (make_case(77, seed, "hard", **SMALL) for seed in (3, 3, 4))
    for name in ("sharp", "blurry", "event_image", "mask", "degraded_mask", "depth", "rotation", "position"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.events.t, again.events.t)
    assert not np.array_equal(first.sharp, other.sharp)
    np.testing.assert_array_equal(first.size, other.size)


def test_events_tell_the_difference_between_frames():
    # Between two stamps of a recording, events times thresholds are the change of log intensity of the sharp frames.
    frames = list(sequence(3, 1, 0.2, 128, 128))
    linear = [(f.sharp / 255.0) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722]) for f in frames[2:4]]
    change = np.log(linear[1] + 0.02) - np.log(linear[0] + 0.02)
    total = np.zeros((128, 128))
    for f in frames[2:4]:
        e = f.events[(f.events.t >= frames[2].stamp_us) & (f.events.t < frames[3].stamp_us)]
        np.add.at(total, (e.y, e.x), np.where(e.p == 1, 1.0, -1.0))
    moved = np.abs(change) > 0.3
    assert moved.sum() > 100
    assert np.corrcoef(change[moved], total[moved])[0, 1] > 0.93
    assert (np.sign(change[moved]) == np.sign(total[moved])).mean() > 0.9


def test_blurry_frame_is_the_mean_of_the_light():
    case = make_case(78, 1, "hard", **SMALL)
    sharp, blurry = ((image / 255.0) ** 2.2 for image in (case.sharp, case.blurry))
    # Motion moves light about but makes none; small changes come from shading and from what is uncovered.
    assert blurry.mean() == pytest.approx(sharp.mean(), rel=0.05)


@pytest.mark.parametrize("seed", [3, 8])
def test_blur_is_the_integral_of_the_light_over_the_exposure(seed):
    rng = np.random.default_rng(seed)
    start = random_placement(random_shape(seed), rng, 112, 112, reach=0.2, background_margin=0.4)
    start = replace(start, scene=replace(start.scene, image_noise=0.0))
    play = world._Play(start, random_glide(rng, start.side, 0.2), None)
    begin, end = STAMP_US - 25_000, STAMP_US + 25_000
    times = play.sub_frame_times(begin, STAMP_US, end, step=1.0, least=11)
    simulator = EventSimulator(112, 112, start.scene.event_camera, rng)
    frame = play.frame(times, STAMP_US, simulator, False, rng)
    moments = np.linspace(-15_000, 15_000, 241)  # far more than the frame was made of
    linear = start.scene.images(play.path.poses(start, moments)).rgb
    integral = (linear[1:] + linear[:-1]).mean(axis=0) / 2
    error = np.abs(frame.blurry.astype(float) - encode_gamma(integral))
    assert error.mean() < 0.4 and np.quantile(error, 0.999) < 6  # of 255
    sharp = np.abs(frame.sharp.astype(float) - encode_gamma(integral))
    assert sharp[frame.mask > 0].mean() > 5 * error[frame.mask > 0].mean()


def test_recording_is_gapless_and_keeps_the_object_in_view():
    frames = list(sequence(5, 2, 0.5, 160, 128))
    assert len(frames) == 15
    stamps = np.array([f.stamp_us for f in frames])
    assert np.all(np.abs(np.diff(stamps) - 1e6 / 30) < 2)
    for before, after in zip(frames, frames[1:], strict=False):
        assert before.events.t[-1] < after.events.t[0]
        assert after.events.t[0] - before.events.t[-1] < 2000
        assert np.linalg.norm(after.position - before.position) < 0.2 * before.position[2]
    for frame in frames:
        assert not frame.mask[[0, -1]].any() and not frame.mask[:, [0, -1]].any()
        assert frame.motion_share < 0.35
        np.testing.assert_allclose(frame.size, frames[0].size)
    assert max(f.motion_share for f in frames) > 0.1


def test_recording_is_repeatable():
    first, again = (list(sequence(6, 1, 0.1, 128, 128)) for _ in range(2))
    assert len(fields(first[0])) == 15
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.blurry, b.blurry)
        np.testing.assert_array_equal(a.events.t, b.events.t)
        np.testing.assert_array_equal(a.depth, b.depth)


def test_training_never_sees_held_out_objects():
    for seed in (*HELD_OUT_OBJECT_SEEDS, -1, FIRST_TRAINING_OBJECT_SEED - 1):
        with pytest.raises(ConfigurationError, match=f"first_seed is {seed}: give 1000000 or more"):
            DataConfig(first_seed=seed)
    assert min(DataConfig().first_seed, BASELINE_OBJECT_SEEDS[0]) > max(HELD_OUT_OBJECT_SEEDS)


@pytest.mark.parametrize("tier", ["fast", -0.1, 0.9])
def test_unknown_tier_is_refused(tier):
    with pytest.raises(InputError) as error:
        make_case(1, 1, tier, **SMALL)
    assert error.value.reason == "bad_tier"
