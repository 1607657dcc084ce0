"""Event pixels against what their model says."""

from dataclasses import replace

import numpy as np
import pytest

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.synthetic.event_simulator import LOG_OFFSET, EventCameraParameters, EventSimulator, log_intensity

QUIET = EventCameraParameters(0.2, 0.25, threshold_sigma=0.0, refractory_us=0, leak_rate_hz=0, shot_noise_rate_hz=0)
H, W = 6, 8


def _simulator(parameters=QUIET, seed=0):
    return EventSimulator(H, W, parameters, np.random.default_rng(seed))


@pytest.mark.parametrize(("change", "threshold", "polarity"), [(1.0, 0.2, 1), (-1.0, 0.25, 0)])
def test_a_ramp_gives_evenly_spaced_events_of_one_polarity(change, threshold, polarity):
    simulator = _simulator()
    assert len(simulator.step(np.zeros((H, W)), 0)) == 0
    events = simulator.step(np.full((H, W), change), 10_000)
    assert np.all(events.p == polarity)
    assert np.all(np.diff(events.t) >= 0) and events.t[0] >= 0 and events.t[-1] < 10_000
    counts = np.zeros((H, W), int)
    np.add.at(counts, (events.y, events.x), 1)
    # A pixel starts anywhere between its two thresholds.
    assert counts.min() >= int((1 - (0.45 - threshold)) / threshold)
    assert counts.max() <= int(1 / threshold) + 1
    times = events.t[(events.x == 3) & (events.y == 2)]
    np.testing.assert_allclose(np.diff(times), threshold * 10_000, atol=1.01)


def test_the_step_size_does_not_change_the_events():
    values = np.linspace(0, 1.3, 14)
    coarse, fine = _simulator(), _simulator()
    a = coarse.run(np.stack([np.full((H, W), values[0]), np.full((H, W), values[-1])]), np.array([0, 13_000]))
    b = fine.run(np.stack([np.full((H, W), v) for v in values]), np.arange(14) * 1000)
    assert len(a) == len(b)
    pixel_order = [np.lexsort((e.t, e.y, e.x)) for e in (a, b)]
    np.testing.assert_allclose(a.t[pixel_order[0]], b.t[pixel_order[1]], atol=3)


def test_events_add_up_to_the_change_of_log_intensity():
    rng = np.random.default_rng(3)
    images = np.cumsum(rng.normal(0, 0.15, (40, H, W)), axis=0)
    events = _simulator().run(images, np.arange(40) * 500)
    total = np.zeros((H, W))
    np.add.at(total, (events.y, events.x), np.where(events.p == 1, 0.2, -0.25))
    assert np.abs(total - (images[-1] - images[0])).max() < 0.46  # one threshold of each polarity


def test_refractory_period():
    parameters = EventCameraParameters(0.2, 0.2, 0.0, refractory_us=1500, leak_rate_hz=0, shot_noise_rate_hz=0)
    simulator = _simulator(parameters)
    events = simulator.run(np.stack([np.full((H, W), v) for v in (0.0, 2.0, 4.0)]), np.array([0, 2000, 4000]))
    for x in range(W):
        assert np.all(np.diff(events.t[(events.x == x) & (events.y == 0)]) >= 1499)


def test_a_still_scene_has_only_noise_and_leak():
    still = np.zeros((2, H, W))
    assert len(_simulator().run(still, np.array([0, 1_000_000]))) == 0
    noise = EventCameraParameters(leak_rate_hz=0, shot_noise_rate_hz=5.0)
    events = EventSimulator(100, 100, noise, np.random.default_rng(0)).run(
        np.zeros((2, 100, 100)), np.array([0, 200_000])
    )
    assert len(events) == pytest.approx(10_000, rel=0.05)
    assert events.p.mean() == pytest.approx(0.5, abs=0.03)
    leak = EventCameraParameters(leak_rate_hz=10.0, shot_noise_rate_hz=0)
    events = _simulator(leak).run(np.zeros((11, H, W)), np.arange(11) * 100_000)
    assert np.all(events.p == 1)
    assert len(events) == pytest.approx(10 * H * W, rel=0.1)


def test_thresholds_differ_between_pixels():
    parameters = EventCameraParameters(0.2, 0.2, 0.03, 0, 0, 0)
    events = _simulator(parameters).run(np.stack([np.zeros((H, W)), np.full((H, W), 8.0)]), np.array([0, 1000]))
    counts = np.zeros((H, W), int)
    np.add.at(counts, (events.y, events.x), 1)
    assert counts.std() > 2


def test_same_seed_same_events():
    images = np.random.default_rng(1).normal(size=(5, H, W))
    first, again = (_simulator(EventCameraParameters(), 7).run(images, np.arange(5) * 1000) for _ in range(2))
    np.testing.assert_array_equal(first.t, again.t)
    np.testing.assert_array_equal(first.x, again.x)


def test_log_intensity_of_grey():
    assert log_intensity(np.full((1, 1, 3), 0.5, np.float32))[0, 0] == pytest.approx(np.log(0.5 + LOG_OFFSET), abs=1e-5)


def test_wrong_images_and_times_are_refused():
    simulator = _simulator()
    simulator.step(np.zeros((H, W)), 100)
    with pytest.raises(InputError) as error:
        simulator.step(np.zeros((H, W)), 100)
    assert error.value.reason == "backward_time"
    with pytest.raises(InputError) as error:
        simulator.step(np.zeros((H, W + 1)), 200)
    assert error.value.reason == "size_mismatch"


SLOW = EventCameraParameters(0.05, 0.05, 0.0, refractory_us=0, leak_rate_hz=0, shot_noise_rate_hz=0, cutoff_hz=50.0)


def _answer(events):
    """Mean over the pixels of what events add up to."""
    return np.where(events.p == 1, 0.05, -0.05).sum() / (H * W)


def _time_constant_us(intensity, cutoff_hz):
    """Of v2e's photoreceptor: 20/275 of the bandwidth in the dark, all of it in full light."""
    return 1e6 / (2 * np.pi * cutoff_hz * (20 + 255 * intensity) / 275)


@pytest.mark.parametrize("step_us", [250, 1000])
def test_a_step_of_light_is_answered_exponentially(step_us):
    simulator = _simulator(SLOW)
    dark, light = (np.full((H, W), np.log(value + LOG_OFFSET)) for value in (0.4, 0.5))
    simulator.run(np.stack([dark, light]), np.array([0, 1]))
    times = np.arange(1, 40) * step_us + 1
    events = simulator.run(np.stack([light] * len(times)), times)
    height = float(light[0, 0] - dark[0, 0])
    for after_us in (2000, 5000):
        expected = height * (1 - np.exp(-after_us / _time_constant_us(0.5, 50.0)))
        assert _answer(events[events.t <= after_us]) == pytest.approx(expected, abs=0.02)


def test_a_ramp_is_answered_later_by_the_time_constant():
    times = np.arange(0, 60_001, 500)
    ramp = np.log(0.004 + LOG_OFFSET) + 1e-5 * times
    images = np.broadcast_to(ramp[:, None, None], (len(times), H, W)).astype(np.float32)
    prompt = _simulator(replace(SLOW, cutoff_hz=0.0)).run(images, times)
    late = _simulator(replace(SLOW, cutoff_hz=300.0)).run(images, times)
    tau = _time_constant_us(np.exp(ramp[-1]) - LOG_OFFSET, 300.0)
    assert len(prompt) - len(late) == pytest.approx(1e-5 * tau * H * W / 0.05, rel=0.15)


def test_no_bandwidth_limit_is_the_limit_of_large_ones():
    images = np.cumsum(np.random.default_rng(3).normal(0, 0.15, (20, H, W)), axis=0) - 2
    prompt = _simulator(QUIET).run(images, np.arange(20) * 500)
    wide = _simulator(replace(QUIET, cutoff_hz=1e6)).run(images, np.arange(20) * 500)
    assert abs(len(wide) - len(prompt)) <= 0.02 * len(prompt)


def test_hot_pixels_fire_without_cause():
    parameters = replace(QUIET, hot_pixel_share=0.05, hot_pixel_rate_hz=200.0)
    events = EventSimulator(40, 50, parameters, np.random.default_rng(1)).run(
        np.zeros((11, 40, 50)), np.arange(11) * 50_000
    )
    pixels, counts = np.unique(events.y.astype(int) * 50 + events.x, return_counts=True)
    assert len(pixels) == pytest.approx(100, abs=30)
    assert counts.mean() == pytest.approx(100, rel=0.1)  # 0.5 s of 200 Hz
    assert np.all(events.p == 1) and np.all(np.diff(events.t) >= 0)
