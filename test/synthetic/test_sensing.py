"""Exposure, degraded masks and depth noise."""

import numpy as np
import pytest

from event_sam3d_ros.synthetic.sensing import degrade_mask, exposure_weights, noisy_depth


def test_exposure_of_something_linear_is_its_middle():
    times = np.linspace(-25_000, 25_000, 12)
    weights = exposure_weights(times, -15_000, 15_000)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights @ (3 + times) == pytest.approx(3, abs=30)
    assert weights[0] == 0 and weights[-1] == 0
    off_centre = exposure_weights(times, -5_000, 15_000)
    assert off_centre @ times == pytest.approx(5_000, abs=30)


def _bar(width=40, smear=10):
    """Coverage of a square that moves by `smear` columns during the exposure."""
    alpha = np.zeros((64, 96), np.float32)
    for shift in range(smear):
        alpha[16:48, 20 + shift : 20 + shift + width] += 1 / smear
    return alpha


def test_degraded_masks_vary_in_width_and_place():
    masks = [degrade_mask(_bar(), np.random.default_rng(seed)) for seed in range(60)]
    widths = np.array([mask.any(axis=0).sum() for mask in masks])
    left = np.array([np.flatnonzero(mask.any(axis=0))[0] for mask in masks])
    assert widths.min() < 36 and widths.max() > 46
    assert np.ptp(left) > 5


def test_degraded_mask_does_not_leak_the_sharp_one():
    sharp = np.zeros((64, 96), bool)
    sharp[16:48, 25:65] = True
    ious = []
    for seed in range(60):
        mask = degrade_mask(_bar(), np.random.default_rng(seed))
        ious.append((mask & sharp).sum() / (mask | sharp).sum())
    assert np.mean(ious) < 0.9 and np.mean(np.array(ious) > 0.97) < 0.05


@pytest.mark.parametrize("size", [1, 2, 3])
def test_degraded_mask_is_never_empty(size):
    alpha = np.zeros((20, 20), np.float32)
    alpha[10 : 10 + size, 10 : 10 + size] = 0.15
    assert all(degrade_mask(alpha, np.random.default_rng(seed)).any() for seed in range(100))


def test_degraded_mask_of_nothing_is_refused():
    from event_sam3d_ros.errors import InputError

    with pytest.raises(InputError) as error:
        degrade_mask(np.zeros((8, 8), np.float32), np.random.default_rng(0))
    assert error.value.reason == "empty_mask"


def test_depth_noise_and_holes():
    truth = np.full((120, 160), 2.0, np.float32)
    truth[40:80, 60:100] = 1.0
    truth[:, :20] = np.inf
    spread, holes = [], []
    for seed in range(20):
        depth = noisy_depth(truth, np.random.default_rng(seed))
        assert depth.dtype == np.float32 and np.all(depth[:, :20] == 0)
        inner = depth[50:70, 70:90]
        spread.append(np.std(inner[inner > 0]))
        assert np.median(inner[inner > 0]) == pytest.approx(1.0, abs=0.003)
        holes.append((depth[:, 22:] == 0).mean())
    assert 0.004 < np.min(spread) and np.max(spread) < 0.012
    assert 0.005 < np.mean(holes) < 0.25
