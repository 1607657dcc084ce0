"""Augmentations: what each one is defined to do, that pictures and targets stay together, that seeds decide."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.preprocess import Crop
from training.augmentations import (
    AugmentationConfig,
    augment,
    drop_events,
    mirrored,
    motion_blur,
    reverse_time,
    swap_polarity,
    vary_crop,
    vary_events,
    wavelet_split,
)

NOTHING = AugmentationConfig(flip=0, gain=0, grey=0, pixel_dropout=0)
T0, T1, WIDTH, HEIGHT = 1000, 3000, 8, 6


@st.composite
def windows(draw):
    """Sorted events of the window [T0, T1) on a small sensor, several of them at the same pixel or time."""
    count = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    t = np.sort(rng.integers(T0, T1, count))
    x, y = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), rng.integers(0, 2, count).astype(np.uint8))


def columns(events):
    return [getattr(events, name).tolist() for name in "txyp"]


def make_batch(count=6, size=16, truth=True):
    rng = np.random.default_rng(0)

    def tensor(*shape):
        return torch.from_numpy(rng.random((count, *shape), dtype=np.float32))

    batch = {name: tensor(3, size, size) for name in ("true_sharp", "degraded_sharp", "degraded_blurry")}
    events = torch.stack([torch.from_numpy(rng.integers(0, 256, (3, size, size))).float() / 255 for _ in range(count)])
    batch |= {"degraded_events": events}
    batch |= {name: tensor(1, size, size) for name in ("true_mask", "degraded_true_mask", "degraded_mask")}
    if truth:
        batch |= {f"{crop}_occupancy": tensor(4, 4, 4) for crop in ("true", "degraded")}
        batch |= {f"{crop}_up": tensor(3) for crop in ("true", "degraded")}
    return batch


# Events


@given(windows())
def test_time_runs_backwards_and_back(events):
    back = reverse_time(events, T0, T1)
    assert columns(reverse_time(back, T0, T1)) == columns(events)
    assert np.all(np.diff(back.t) >= 0) and len(back) == len(events)
    if len(events):
        assert back.t[0] == T0 + T1 - 1 - events.t[-1]
        assert (back.x[0], back.y[0], back.p[0]) == (events.x[-1], events.y[-1], 1 - events.p[-1])


def test_reversing_events_outside_their_window_is_refused():
    one = Events(np.array([T1]), *(np.zeros(1, kind) for kind in (np.uint16, np.uint16, np.uint8)))
    with pytest.raises(InputError, match="outside"):
        reverse_time(one, T0, T1)


@given(windows())
def test_swapped_colours_are_swapped_polarities(events):
    image = torch.from_numpy(tencode(events, T0, T1, WIDTH, HEIGHT)).permute(2, 0, 1)
    swapped = Events(events.t, events.x, events.y, 1 - events.p)
    expected = torch.from_numpy(tencode(swapped, T0, T1, WIDTH, HEIGHT)).permute(2, 0, 1)
    assert torch.equal(swap_polarity(image), expected)
    assert torch.equal(swap_polarity(swap_polarity(image)), image)


@given(windows(), st.floats(0, 1), st.integers(0, 1000))
def test_dropping_leaves_the_share_of_events_in_order(events, share, seed):
    kept = drop_events(events, share, np.random.default_rng(seed))
    assert len(kept) == round(len(events) * (1 - share))
    assert np.all(np.diff(kept.t) >= 0)
    rows = list(zip(*columns(events), strict=True))
    assert all(row in rows for row in zip(*columns(kept), strict=True))
    assert columns(kept) == columns(drop_events(events, share, np.random.default_rng(seed)))


@given(windows())
def test_events_stay_as_they_are_by_default(events):
    assert vary_events(events, (T0, T1), np.random.default_rng(0), AugmentationConfig()) is events


# Crops


def test_crops_stay_as_they_are_by_default_and_move_within_bounds():
    crop = Crop(1, -3, 7, 40)
    assert vary_crop(crop, np.random.default_rng(0), AugmentationConfig()) == crop
    rng, settings = np.random.default_rng(1), AugmentationConfig(crop=0.1)
    varied = [vary_crop(crop, rng, settings) for _ in range(200)]
    centres = np.array([[c.x0 + c.side / 2 - 17, c.y0 + c.side / 2 - 27] for c in varied])
    assert {c.side for c in varied} == set(range(36, 45))
    assert 3 < np.abs(centres).max() <= 0.1 * 40 + 0.5
    assert all(c.label == 1 for c in varied)


# Batches


def test_mirroring_twice_gives_everything_back():
    mirror = torch.tensor([True, False, True, True, False, False])
    for name, value in make_batch().items():
        once = mirrored(name, value, mirror)
        assert torch.equal(mirrored(name, once, mirror), value), name
        assert torch.equal(once[~mirror], value[~mirror]), name
        assert not torch.equal(once[mirror], value[mirror]), name


def test_pictures_masks_and_targets_are_mirrored_together():
    batch = make_batch(20)
    result = augment(batch, np.random.default_rng(3), AugmentationConfig(gain=0, grey=0, pixel_dropout=0))
    flipped = {name: [not torch.equal(result[name][i], batch[name][i]) for i in range(20)] for name in batch}
    assert 3 < sum(flipped["true_mask"]) < 17
    assert all(value == flipped["true_mask"] for value in flipped.values())
    for name, value in batch.items():
        side = value.clone()
        if name.endswith("up"):
            side[:, 0] *= -1
        else:
            side = side.flip(-1)
        assert torch.equal(
            result[name], torch.where(torch.tensor(flipped[name]).reshape(-1, *[1] * (value.ndim - 1)), side, value)
        )


@pytest.mark.parametrize("truth", [True, False])
def test_nothing_on_changes_nothing(truth):
    batch = make_batch(truth=truth)
    result = augment(batch, np.random.default_rng(0), NOTHING)
    assert result.keys() == batch.keys()
    assert all(torch.equal(result[name], batch[name]) for name in batch)


@pytest.mark.parametrize("name", ["flip", "gain", "grey", "pixel_dropout", "polarity", "blur", "wavelet"])
def test_the_seed_decides_and_the_input_stays(name):
    settings = AugmentationConfig(**{"flip": 0, "gain": 0, "grey": 0, "pixel_dropout": 0, name: 0.5})
    batch = make_batch()
    before = {key: value.clone() for key, value in batch.items()}
    first, again, other = (augment(batch, np.random.default_rng(seed), settings) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in batch)
    assert any(not torch.equal(first[key], other[key]) for key in batch)
    assert any(not torch.equal(first[key], batch[key]) for key in batch)
    assert all(torch.equal(before[key], batch[key]) for key in batch)
    changed = {key for key in batch if not torch.equal(first[key], batch[key])}
    allowed = {
        "gain": {"true_sharp", "degraded_sharp", "degraded_blurry"},
        "grey": {"true_sharp", "degraded_sharp", "degraded_blurry"},
        "pixel_dropout": {"degraded_events"},
        "polarity": {"degraded_events"},
        "blur": {"degraded_blurry"},
        "wavelet": {"degraded_blurry", "degraded_events"},
        "flip": set(batch),
    }
    assert changed <= allowed[name]


def test_a_setting_that_is_added_leaves_the_others_their_random_numbers():
    batch = make_batch()
    plain = augment(batch, np.random.default_rng(5))
    more = augment(batch, np.random.default_rng(5), AugmentationConfig(polarity=0.5, blur=0.5))
    assert torch.equal(plain["degraded_sharp"], more["degraded_sharp"])
    assert torch.equal(plain["degraded_mask"], more["degraded_mask"])


def test_pixel_dropout_takes_whole_pixels_up_to_the_share():
    batch = make_batch(40, 32)
    batch["degraded_events"] = torch.full_like(batch["degraded_events"], 0.5)
    result = augment(batch, np.random.default_rng(0), AugmentationConfig(flip=0, pixel_dropout=0.5))
    gone = result["degraded_events"] == 0
    assert torch.equal(gone[:, 0], gone[:, 1]) and torch.equal(gone[:, 0], gone[:, 2])
    shares = gone[:, 0].float().mean((1, 2))
    assert 0.4 < shares.max() < 0.57 and shares.min() < 0.1


# Blur and wavelet


def test_blur_is_the_mean_of_light_along_the_line():
    image = torch.zeros(1, 3, 9, 21)
    image[..., 10] = 1.0
    blurred = motion_blur(image, torch.tensor([[4.0, 0.0]]))
    light = blurred[0, 0, 4] ** 2.2
    assert light.sum() == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(light[8:13], torch.full((5,), 0.2), atol=1e-4)
    assert torch.equal(blurred[0, 0], blurred[0, 0, :1].expand(9, -1))
    down = motion_blur(image.transpose(2, 3), torch.tensor([[0.0, 4.0]]))
    assert torch.allclose(down.transpose(2, 3), blurred, atol=1e-5)


def test_no_path_no_blur_and_an_even_picture_stays():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(motion_blur(image, torch.zeros(2, 2)), image, atol=1e-5)
    even = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(motion_blur(even, torch.tensor([[3.0, -2.0]])), even, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_low_and_high_frequencies_add_up(levels):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    low, high = wavelet_split(image, levels)
    assert torch.allclose(low + high, image, atol=1e-6)
    assert low.std() < image.std()
    low, high = wavelet_split(torch.full((1, 3, 16, 16), 0.25), levels)
    assert torch.allclose(low, torch.full_like(low, 0.25)) and high.abs().max() < 1e-6


def test_the_first_level_is_the_kernel_one_two_one():
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 3] = 16.0
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert torch.equal(wavelet_split(image, 1)[0][0, 0, 2:5, 2:5], expected)


@pytest.mark.parametrize("name,value", [("flip", 1.5), ("blur", -0.1), ("wavelet_levels", 0), ("gain", float("nan"))])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigurationError, match=name):
        AugmentationConfig(**{name: value})
