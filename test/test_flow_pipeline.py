"""The flow head from an observation to objects: where a known solid comes to lie, and a tiny network end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.flow_pipeline import expected_iou, reconstruct
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.sam3d.config import (
    EncoderConfig,
    FlowConfig,
    FlowHeadConfig,
    FusionConfig,
    ModelConfig,
    PointmapConfig,
    SamplerConfig,
    StructureConfig,
)
from event_sam3d_ros.sam3d.layout import ObjectPose
from event_sam3d_ros.sam3d.network import FlowNetwork

HEIGHT, WIDTH = 60, 80
K = np.array([[70.0, 0, 39.5], [0, 70.0, 29.5], [0, 0, 1]])
TINY = ModelConfig(
    name="tiny",
    head="flow",
    encoder=EncoderConfig(28, 14, 3, 32, 2, 2, registers=2, stem=(), mask_token=True),
    fusion=FusionConfig(stems=(), blocks=(1,), heads=2),
    flow=FlowConfig(
        PointmapConfig(32, 8, 16, 2),
        FlowHeadConfig(32, 32, 2, 2, 2.0, 4, 4),
        StructureConfig((16, 8, 4), 1, 1),
        SamplerConfig(steps=3),
    ),
)


def observation() -> Observation:
    """Two objects, of which the right one has depth."""
    rng = np.random.default_rng(0)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 8:30], mask[25:50, 45:70] = 1, 2
    depth = np.where(mask == 2, 1.5 + 0.1 * rng.random(mask.shape), 0).astype(np.float32)
    image, events = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    return Observation(image, mask, events, K, depth)


@pytest.fixture(scope="module")
def network() -> FlowNetwork:
    torch.manual_seed(0)
    network = FlowNetwork(TINY)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "adaLN" in name or "conv2" in name or name.endswith(("gate", "gate_mlp")):
                parameter.normal_(std=0.2)  # what starts at zero would hide what it does
    return network


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    logits = np.full((64, 64, 64), -4.0, np.float32)
    logits[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 4.0
    return logits


def test_a_known_box_lies_where_its_pose_says() -> None:
    rotation = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix()
    pose = ObjectPose(rotation, np.array([0.1, -0.2, 1.4]), 0.32)
    found = reconstruct(observation(), 2, box((8, 16, 24), (40, 32, 56)), pose, metric=True)
    assert found is not None and found.metric and found.id == 2
    np.testing.assert_allclose(found.size, np.array([32, 16, 32]) / 64 * 0.32, atol=1e-6)
    center = (np.array([24, 24, 40]) / 64 - 0.5) * 0.32
    np.testing.assert_allclose(found.position, rotation @ center + pose.position, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_quat(found.quaternion).as_matrix(), rotation, atol=1e-9)
    local = (found.points - found.position) @ rotation
    np.testing.assert_allclose(np.abs(local).max(0), found.size / 2, atol=1e-6)
    # Its cube has the longest edge: the box fills x and z, and a half of y, in the middle; edges are rounded.
    assert found.occupancy[1:63, 17:47, 1:63].all() and not found.occupancy[:, :15].any()
    assert found.occupancy.sum() == pytest.approx(64 * 32 * 64, rel=0.01)
    assert reconstruct(observation(), 2, np.full((64, 64, 64), -1.0, np.float32), pose, True) is None


def test_points_have_the_colour_of_the_pixel_before_them() -> None:
    seen = observation()
    found = reconstruct(
        seen, 2, box((30, 30, 30), (34, 34, 34)), ObjectPose(np.eye(3), np.array([0, 0, 1.0]), 0.1), True
    )
    assert found is not None and seen.image is not None
    u, v = np.rint(found.points[:, :2] / found.points[:, 2:] * 70 + (39.5, 29.5)).astype(int).T
    np.testing.assert_array_equal(found.colors, seen.image[v, u])
    behind = ObjectPose(np.eye(3), np.array([0, 0, -1.0]), 0.1)
    found = reconstruct(seen, 2, box((30, 30, 30), (34, 34, 34)), behind, True)
    assert found is not None and (found.colors == 128).all()


def test_the_expected_iou_is_high_for_what_is_certain() -> None:
    certain = expected_iou(box((8, 8, 8), (32, 32, 32)))
    assert 0.0 < expected_iou(box((8, 8, 8), (32, 32, 32)) / 4) < certain < 1.0
    assert expected_iou(box((8, 8, 8), (32, 32, 32)) * 10) > 0.999


def test_objects_with_and_without_depth(network: FlowNetwork) -> None:
    found = Reconstructor(network, {}, "cpu")(observation())
    assert [(one.id, one.metric) for one in found] == [(1, False), (2, True)]
    for one in found:
        assert (
            one.points.dtype == np.float32 and one.colors.dtype == np.uint8 and len(one.points) == len(one.colors) > 0
        )
        assert one.occupancy.shape == (64, 64, 64) and one.occupancy.any() and 0 < one.score < 1


def test_the_same_seed_gives_the_same_and_another_another(network: FlowNetwork) -> None:
    first, again, other = (Reconstructor(network, {}, "cpu", seed=seed)(observation()) for seed in (3, 3, 4))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.points, two.points)
        assert one.points.shape != three.points.shape or not np.allclose(one.points, three.points)


def test_an_object_does_not_depend_on_the_others(network: FlowNetwork) -> None:
    seen = observation()
    together = Reconstructor(network, {}, "cpu")(seen)[1]
    for memory_gb, mask in ((0.0, np.where(seen.mask == 2, seen.mask, 0)), (1e-6, seen.mask)):
        alone = Reconstructor(network, {}, "cpu", memory_gb=memory_gb)(replace(seen, mask=mask))[-1]
        np.testing.assert_allclose(alone.position, together.position, atol=1e-5)
        np.testing.assert_allclose(alone.size, together.size, atol=1e-4)


def test_modes_differ_and_none_is_needed(network: FlowNetwork) -> None:
    seen = observation()
    reconstruct_all = Reconstructor(network, {}, "cpu")
    fused, rgb, events = (
        reconstruct_all(one)[1].position for one in (seen, replace(seen, event_image=None), replace(seen, image=None))
    )
    assert not np.allclose(fused, rgb) and not np.allclose(fused, events) and not np.allclose(rgb, events)


class FlatWorld:
    """A monocular model: everything is 2 m away."""

    metric = True

    def __call__(self, image: np.ndarray, K: np.ndarray) -> np.ndarray:
        ys, xs = np.indices(image.shape[:2])
        rays = np.stack([xs, ys, np.ones_like(xs)], -1) @ np.linalg.inv(K).T
        return 2.0 * rays


def test_a_monocular_model_stands_in_for_depth(network: FlowNetwork) -> None:
    seen = replace(observation(), depth=None)
    assert [one.metric for one in Reconstructor(network, {}, "cpu")(seen)] == [False, False]
    assert [one.metric for one in Reconstructor(network, {}, "cpu", monocular=FlatWorld())(seen)] == [True, True]


def test_no_object_of_a_usable_size(network: FlowNetwork) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3, 4] = 1
    with pytest.raises(InputError, match="under 3 pixels"):
        Reconstructor(network, {}, "cpu")(replace(observation(), mask=mask))


def test_warm_up_and_precisions(network: FlowNetwork) -> None:
    weights = network.state_dict()
    for precision in ("bf16", "fp32"):
        Reconstructor(network, {}, "cpu", precision).warm_up()
    network.load_state_dict(weights)
