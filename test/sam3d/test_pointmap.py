"""Pointmaps from depth, from a user's model, and from nothing."""

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.sam3d.layout import turn
from event_sam3d_ros.sam3d.pointmap import (
    object_pointmaps,
    pointmap_from_depth,
    pointmap_from_model,
    pointmap_from_points,
    prior_pointmap,
)

K = np.array([[200.0, 0, 31.5], [0, 210.0, 23.5], [0, 0, 1]])
SHAPE = (48, 64)


def optical(pointmap):
    """(3, H, W) in the pointmap frame -> (H, W, 3) in the optical frame."""
    return turn(pointmap.points.permute(1, 2, 0).double().numpy())


def object_mask(left=20, top=10, width=16, height=8):
    mask = np.zeros(SHAPE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def test_points_of_a_depth_image_project_to_their_pixels():
    depth = np.random.default_rng(0).uniform(0.3, 4, SHAPE).astype(np.float32)
    pointmap = pointmap_from_depth(depth, K)
    assert pointmap.metric and not pointmap.prior and pointmap.points.dtype == torch.float32
    pixels = optical(pointmap) @ K.T
    ys, xs = np.indices(SHAPE)
    np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], xs, atol=1e-4)
    np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], ys, atol=1e-4)
    np.testing.assert_allclose(pixels[..., 2], depth, rtol=1e-6)
    # right of the centre is negative x in the pointmap frame, and above is positive y
    assert pointmap.points[0, 0, -1] < 0 < pointmap.points[1, 0, -1]


@pytest.mark.parametrize("unknown", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_unknown_depth_is_nan_on_all_axes(unknown):
    depth = np.full(SHAPE, 2, np.float32)
    depth[3, 5] = unknown
    points = pointmap_from_depth(depth, K).points
    assert points[:, 3, 5].isnan().all() and points.isnan().sum() == 3


def test_a_point_that_is_partly_unknown_is_unknown():
    points = np.ones((2, 2, 3))
    points[0, 1, 2], points[1, 0, 0] = np.inf, np.nan
    result = pointmap_from_points(points, metric=False).points
    assert result.isnan().all(0).tolist() == [[False, True], [True, False]]
    assert result[:, 0, 0].tolist() == [-1, -1, 1]


class Wall:
    """A monocular model that always sees a wall, at half the image's size."""

    metric = True

    def __call__(self, image, K):
        height, width = image.shape[0] // 2, image.shape[1] // 2
        return np.broadcast_to([0.5, 0.25, 3.0], (height, width, 3))


def test_a_users_model():
    pointmap = pointmap_from_model(Wall(), np.zeros((*SHAPE, 3), np.uint8), K)
    assert pointmap.metric and pointmap.points.shape == (3, 24, 32)
    assert pointmap.points[:, 0, 0].tolist() == [-0.5, -0.25, 3.0]


def test_what_is_no_pointmap_is_refused():
    with pytest.raises(InputError, match="shape") as error:
        pointmap_from_points(np.zeros((4, 4)), metric=True)
    assert error.value.reason == "bad_pointmap"
    with pytest.raises(InputError, match="one image") as error:
        pointmap_from_depth(np.zeros((*SHAPE, 1), np.float32), K)
    assert error.value.reason == "bad_depth"


def test_the_prior_makes_the_object_as_large_as_it_says():
    mask = object_mask()
    pointmap = prior_pointmap(mask, K, size_m=0.2)
    assert pointmap.prior and not pointmap.metric
    points = optical(pointmap)
    assert np.ptp(points[..., 2]) < 1e-6
    edge = points[10, 35, 0] - points[10, 20, 0]  # the outer pixels' centres, a pixel less than the mask's width
    assert edge * 16 / 15 == pytest.approx(0.2, rel=1e-5)
    further = prior_pointmap(object_mask(width=8, height=4), K, size_m=0.2)
    assert optical(further)[0, 0, 2] == pytest.approx(2 * points[0, 0, 2], rel=1e-5)


def test_an_object_without_depth_gets_the_prior_and_others_keep_theirs():
    seen, hidden = object_mask(), object_mask(left=40)
    depth = np.full(SHAPE, 2, np.float32)
    depth[hidden > 0] = 0
    scene = pointmap_from_depth(depth, K)
    first, second = object_pointmaps(scene, [seen, hidden], K, 0.2)
    assert first is scene and second.prior
    depth[10, 40:49] = 2  # 9 points are too few, 10 are enough
    assert object_pointmaps(pointmap_from_depth(depth, K), [hidden], K, 0.2)[0].prior
    depth[10, 49] = 2
    assert object_pointmaps(pointmap_from_depth(depth, K), [hidden], K, 0.2)[0].metric
    assert [p.prior for p in object_pointmaps(None, [seen, hidden], K, 0.2)] == [True, True]


def test_points_that_are_all_one_count_as_none():
    one = pointmap_from_points(np.ones((*SHAPE, 3)), metric=True)
    assert object_pointmaps(one, [object_mask()], K, 0.2)[0].prior


def test_a_pointmap_of_another_size_is_looked_up_where_the_mask_is():
    mask = np.zeros(SHAPE, np.uint8)
    mask[24:, 32:] = 1
    points = np.full((24, 32, 3), np.nan)
    points[12:, 16:] = np.random.default_rng(0).normal(size=(12, 16, 3))
    scene = pointmap_from_points(points, metric=False)
    assert object_pointmaps(scene, [mask, 1 - mask], K, 0.2)[0] is scene
    assert object_pointmaps(scene, [np.rot90(mask, 2)], K, 0.2)[0].prior
