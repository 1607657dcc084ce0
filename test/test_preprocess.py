"""Observations and crops: what is refused, and where the pixels go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.preprocess import Crop, Observation, crop_resize, network_input, object_crops
from event_sam3d_ros.sam3d.config import ModelConfig

K = np.array([[300.0, 0, 40], [0, 300, 30], [0, 0, 1]])


def observation(**changes) -> Observation:
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:60] = 1
    rgb = np.full((60, 80, 3), 90, np.uint8)
    return Observation(**{"image": rgb, "mask": mask, "event_image": rgb, "K": K, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": np.zeros((60, 80), np.uint8)}, "empty_mask"),
        ({"mask": np.ones((60, 80), np.float32)}, "bad_dtype"),
        ({"mask": np.ones((60, 80, 1), np.uint8)}, "bad_dtype"),
        ({"image": np.zeros((60, 81, 3), np.uint8)}, "size_mismatch"),
        ({"image": np.zeros((60, 80), np.uint8)}, "bad_dtype"),
        ({"image": np.zeros((60, 80, 3), np.float32)}, "bad_dtype"),
        ({"event_image": np.zeros((61, 80, 3), np.uint8)}, "size_mismatch"),
        ({"depth": np.zeros((60, 80), np.float64)}, "bad_dtype"),
        ({"depth": np.zeros((30, 40), np.float32)}, "size_mismatch"),
        ({"image": None, "event_image": None}, "no_input"),
        ({"K": np.zeros((3, 3))}, "bad_intrinsics"),
        ({"K": np.full((3, 3), np.nan)}, "bad_intrinsics"),
        ({"K": np.eye(4)}, "bad_intrinsics"),
        ({"K": np.diag([50.0, 50, 0])}, "bad_intrinsics"),
        ({"K": np.diag([50.0, 50, 2])}, "bad_intrinsics"),
        ({"K": np.array([[50.0, 0, 40], [0, 50, 30], [0, 0.1, 1]])}, "bad_intrinsics"),
        ({"K": np.array([[50.0, 0, 40], [1, 50, 30], [0, 0, 1]])}, "bad_intrinsics"),
    ],
)
def test_an_unusable_observation_is_refused_with_its_reason(changes, reason):
    with pytest.raises(InputError) as error:
        observation(**changes).validate()
    assert error.value.reason == reason


def test_a_good_observation_passes():
    observation().validate()
    observation(image=None).validate()
    observation(event_image=None, depth=np.ones((60, 80), np.float32)).validate()


def test_one_square_crop_per_label_around_its_box():
    mask = np.zeros((60, 80), np.uint16)
    mask[10:21, 5:36] = 700
    mask[40:50, 60:64] = 2
    mask[58, 70:80] = 9  # one pixel high: left out
    crops = object_crops(mask, 2.0)
    assert [c.label for c in crops] == [2, 700]
    assert crops[1] == Crop(700, 20 - 30, 15 - 30, 60)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 2.0))
@settings(max_examples=30)
def test_a_crop_holds_its_object(seed, factor):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 80), np.uint8)
    y, x = rng.integers(0, 40), rng.integers(0, 50)
    mask[y : y + rng.integers(3, 20), x : x + rng.integers(3, 30)] = 1
    (crop,) = object_crops(mask, factor)
    ys, xs = np.nonzero(mask)
    margin = 1  # whole-pixel rounding of centre and side, as SAM 3D rounds
    assert crop.x0 - margin <= xs.min() and xs.max() <= crop.x0 + crop.side + margin
    assert crop.y0 - margin <= ys.min() and ys.max() <= crop.y0 + crop.side + margin


def test_cropping_at_full_size_copies_pixels_and_fills_with_zero():
    image = np.random.default_rng(0).integers(1, 255, (60, 80, 3), dtype=np.uint8)
    tensor = crop_resize(image, Crop(1, -3, 50, 16), 16).numpy()
    np.testing.assert_array_equal(tensor[:, :10, 3:], image[50:60, 0:13].transpose(2, 0, 1))
    assert not tensor[:, 10:].any() and not tensor[:, :, :3].any()


def test_a_crop_beside_the_frame_is_empty():
    assert not crop_resize(np.ones((20, 20), np.uint8), Crop(1, 40, 40, 8), 8).any()


def test_the_network_input_masks_each_object_for_itself():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:30], mask[10:30, 30:50] = 1, 2
    obs = observation(mask=mask)
    inputs = network_input(obs, object_crops(mask, 1.4), ModelConfig())
    assert inputs.image.shape == inputs.event_image.shape == (2, 3, 64, 64)
    assert inputs.mask.shape == (2, 1, 64, 64)
    assert inputs.image.max() <= 1
    # both objects are equal squares: each alone in its mask
    assert abs(float(inputs.mask[0].mean() - inputs.mask[1].mean())) < 0.02
