import numpy as np
import pytest

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation.baselines import Baselines, View
from event_sam3d_ros.evaluation.metrics import mask_iou, shape_metrics, silhouette


def view(solid, K) -> View:
    return View(solid, silhouette(solid, K, 346, 260).astype(np.uint8), K)


@pytest.fixture(scope="module")
def fitted(sphere, K) -> Baselines:
    return Baselines.fit([view(sphere, K)])


def test_of_equal_objects_the_mean_is_the_object(fitted, sphere, K):
    assert np.array_equal(fitted.mean_occupancy, sphere.occupancy)
    assert fitted.up == pytest.approx(sphere.rotation[:, 2])


def test_mean_keeps_what_most_training_objects_have(make_solid, cube, K):
    half = make_solid(lambda p: p[:, 2] < 0)
    mean = Baselines.fit([view(half, K), view(half, K), view(cube, K)]).mean_occupancy
    assert np.array_equal(mean, half.occupancy)


def test_mean_shape_fills_the_box_of_the_mask(fitted, make_solid, K):
    aside = make_solid(lambda p: (p**2).sum(1) <= 1, position=(-0.2, 0.1, 0.6), size=(0.1, 0.1, 0.1))
    seen = view(aside, K)
    assert mask_iou(fitted.mean_shape(seen.mask, K), seen.mask, K) > 0.93


def test_a_disc_inflates_to_a_ball(fitted, sphere, K):
    assert fitted.depth_factor == 1.0
    seen = view(sphere, K)
    ball = fitted.inflated(seen.mask, K)
    assert shape_metrics(ball, sphere)["iou"] > 0.9
    assert mask_iou(ball, seen.mask, K) > 0.95


def test_inflation_follows_the_outline(fitted, hammer, K):
    seen = view(hammer, K)
    assert mask_iou(fitted.inflated(seen.mask, K), seen.mask, K) > 0.9


def test_masks_of_few_pixels_inflate(fitted, K):
    for shape in ((1, 1), (1, 9), (3, 2)):
        mask = np.zeros((260, 346), np.uint8)
        mask[100 : 100 + shape[0], 50 : 50 + shape[1]] = 1
        assert mask_iou(fitted.inflated(mask, K), mask, K) > 0.3
        assert fitted.mean_shape(mask, K).side > 0


def test_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "folder" / "baselines.npz")
    loaded = Baselines.load(tmp_path / "folder" / "baselines.npz")
    assert np.array_equal(loaded.mean_occupancy, fitted.mean_occupancy)
    assert np.array_equal(loaded.up, fitted.up)
    assert loaded.depth_factor == fitted.depth_factor


def test_empty_mask_and_no_views_are_refused(fitted, K):
    empty = np.zeros((260, 346), np.uint8)
    for baseline in (fitted.mean_shape, fitted.inflated):
        with pytest.raises(InputError) as refused:
            baseline(empty, K)
        assert refused.value.reason == "empty_mask"
    with pytest.raises(InputError) as refused:
        Baselines.fit([])
    assert refused.value.reason == "no_input"
