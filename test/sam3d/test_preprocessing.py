"""The released preprocessing beyond the reference values: batches, borders, and what it refuses."""

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.preprocessing import crop_box, object_inputs, scene_moments


def box_mask(shape, left, top, right, bottom):
    """255 in the box, whose last column and row are ``right`` and ``bottom``."""
    mask = torch.zeros(shape, dtype=torch.uint8)
    mask[top : bottom + 1, left : right + 1] = 255
    return mask


def scene(shape=(60, 80), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    points = torch.randn(3, *shape, generator=generator)
    points[:, torch.rand(shape, generator=generator) < 0.2] = torch.nan
    return image, points


def test_objects_do_not_depend_on_their_batch():
    image, points = scene()
    events, _ = scene(seed=1)
    masks = torch.stack([box_mask((60, 80), *box) for box in ((5, 5, 30, 20), (40, 2, 60, 50), (70, 50, 79, 59))])
    other = points + 1
    together = object_inputs(image, masks, [points, other, points], events, size=28)
    assert {name: tuple(view.shape) for name, view in together.views.items()} == {
        "image": (3, 3, 28, 28),
        "rgb_image": (1, 3, 28, 28),
        "event_image": (3, 3, 28, 28),
        "rgb_event_image": (1, 3, 28, 28),
        "mask": (3, 1, 28, 28),
        "rgb_image_mask": (3, 1, 28, 28),
        "pointmap": (3, 3, 28, 28),
        "rgb_pointmap": (3, 3, 28, 28),
    }
    assert all(view.dtype == torch.float32 for view in together.views.values())
    for i, pointmap in enumerate((points, other, points)):
        alone = object_inputs(image, masks[i : i + 1], [pointmap], events, size=28)
        for name, view in together.views.items():
            torch.testing.assert_close(
                view[i if len(view) > 1 else 0], alone.views[name][0], rtol=0, atol=0, equal_nan=True
            )
        assert torch.equal(together.pointmap_scale[i], alone.pointmap_scale[0])
        assert torch.equal(together.pointmap_shift[i], alone.pointmap_shift[0])


def test_what_is_not_given_is_not_there():
    events, _ = scene()
    inputs = object_inputs(None, box_mask((60, 80), 5, 5, 30, 20)[None], event_image=events, size=14)
    assert inputs.views.keys() == {"event_image", "rgb_event_image", "mask", "rgb_image_mask"}
    assert inputs.pointmap_scale is None and inputs.pointmap_shift is None


def test_the_crop_is_1_2_times_the_object():
    assert crop_box(box_mask((60, 80), 20, 20, 40, 30)) == (18, 13, 42, 37)
    assert crop_box(box_mask((60, 80), 0, 0, 79, 3)) == (-7, -45, 86, 48)  # centre 39.5, 1.5; half 47
    soft = torch.zeros(9, 9, dtype=torch.uint8)
    soft[2, 2] = soft[6, 6] = 1  # whatever is not zero belongs to the object
    assert crop_box(soft) == (2, 2, 6, 6)


def test_a_window_from_minus_one_half_is_a_pixel_narrower_and_filled_up():
    image, points = scene((40, 40))
    mask = box_mask((40, 40), 0, 15, 9, 25)  # centre 4.5, 20; half 6: x from -1.5, cut to -1
    assert crop_box(mask) == (-1, 14, 10, 26)
    inputs = object_inputs(image, mask[None], [torch.ones_like(points) * torch.arange(40)], size=12)
    cropped = inputs.views["pointmap"][0]
    assert (cropped[:, :, 0] == 0).all(), "beside the image: 0"
    assert cropped[:, :, 1:11].isfinite().all()
    assert cropped[:, :, 11].isnan().all(), "beside the window: unknown"
    assert (inputs.views["image"][0, :, :, 0] == 0).all() and (inputs.views["image"][0, :, :, 11] == 0).all()
    torch.testing.assert_close(inputs.views["image"][0, :, :, 1:11], image[14:26, :10].permute(2, 0, 1) / 255)


def test_the_full_frame_is_padded_to_a_square_with_zeros():
    image, points = scene((20, 31))
    inputs = object_inputs(image, box_mask((20, 31), 3, 3, 9, 9)[None], [points], size=31)
    full = inputs.views["rgb_image"][0]
    assert (full[:, :5] == 0).all() and (full[:, 25:] == 0).all()  # 11 rows are missing: 5 above, 6 below
    torch.testing.assert_close(full[:, 5:25], image.permute(2, 0, 1) / 255)
    pointmap = inputs.views["rgb_pointmap"][0]
    assert (pointmap[:, :5] == 0).all() and (pointmap[:, 25:] == 0).all()
    assert torch.equal(pointmap[:, 5:25].isnan(), points.isnan())


def test_normalisation_is_undone_by_scale_and_shift():
    image, points = scene((30, 30))
    inputs = object_inputs(image, box_mask((30, 30), 3, 3, 19, 19)[None], [points], size=30)
    restored = (
        inputs.views["rgb_pointmap"][0] * inputs.pointmap_scale.mT[..., None] + inputs.pointmap_shift.mT[..., None]
    )
    torch.testing.assert_close(restored, points, equal_nan=True)


def test_medians_take_the_lower_middle_and_count_only_what_is_known():
    points = torch.full((3, 1, 6), torch.nan)
    points[:, 0, :4] = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [5, 5, 5, 9]])
    scale, shift = scene_moments(points, torch.tensor([[1, 1, 0.6, 0.6, 0.6, 0.5]]))
    assert shift.tolist() == [2, 0, 5]
    assert scale.tolist() == [1, 1, 1]  # of 1, 0, 1 and 4
    assert scene_moments(points, torch.tensor([[0.5, 1, 0, 0, 0, 0]]))[1].tolist() == [2, 0, 5]  # 0.5 is outside
    scale, shift = scene_moments(points, torch.tensor([[0, 0, 0, 0, 1.0, 1.0]]))
    assert scale.tolist() == [1, 1, 1] and shift.tolist() == [0, 0, 0]


def test_a_point_that_is_not_finite_is_unknown():
    image, points = scene((30, 30))
    points[:, 10, 10], points[2, 11, 11] = torch.inf, -torch.inf
    inputs = object_inputs(image, box_mask((30, 30), 3, 3, 19, 19)[None], [points], size=30)
    full = inputs.views["rgb_pointmap"][0]
    assert full[:, 10, 10].isnan().all() and full[:, 11, 11].isnan().all()
    assert not full.isinf().any() and inputs.pointmap_scale.isfinite().all()


def test_a_pointmap_of_another_size_lies_over_the_image():
    image, _ = scene((40, 60))
    coarse = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij"))
    coarse = torch.cat([coarse.flip(0) * 2, torch.ones(1, 20, 30)])  # x, y of the image's pixels
    coarse[:, 0] = torch.nan
    mask = box_mask((40, 60), 20, 10, 40, 30)
    inputs = object_inputs(image, mask[None], [coarse], size=24)
    x, y, _ = inputs.views["pointmap"][0] * inputs.pointmap_scale[0, 0] + inputs.pointmap_shift[0, :, None, None]
    # the crop begins at 18, 8; pixel centres of both grids lie half a pixel off each other
    torch.testing.assert_close(x[0], 18 + torch.arange(24.0) - 0.5)
    torch.testing.assert_close(y[:, 0], 8 + torch.arange(24.0) - 0.5)
    assert inputs.views["rgb_pointmap"][0, 0, 4].isnan().all(), "what was unknown stays so"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(20, 20, dtype=torch.uint8), "empty_mask"),
        (box_mask((20, 20), 5, 5, 6, 15), "object_too_small"),
        (box_mask((20, 20), 5, 5, 15, 6), "object_too_small"),
    ],
)
def test_masks_without_an_object_are_refused(mask, reason):
    image, _ = scene((20, 20))
    with pytest.raises(InputError) as error:
        object_inputs(image, mask[None])
    assert error.value.reason == reason


def test_every_byte_is_what_numpy_makes_of_it():
    image = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(-1, -1, 3)
    inputs = object_inputs(image, box_mask((16, 16), 3, 3, 9, 9)[None], size=16)
    expected = (np.arange(256) / 255).astype(np.float32).reshape(16, 16)
    np.testing.assert_array_equal(inputs.views["rgb_image"][0, 0].numpy(), expected)
