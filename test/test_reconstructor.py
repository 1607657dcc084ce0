"""From the network's grid to points, box and pose: checked with a network that knows the truth."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from event_sam3d_ros.errors import CheckpointError, ConfigurationError, InputError
from event_sam3d_ros.preprocess import Observation, object_crops
from event_sam3d_ros.reconstruction import largest_component, surface_points
from event_sam3d_ros.reconstructor import Reconstructor, find_weights
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.geometry_direct import Geometry
from event_sam3d_ros.sam3d.layout import grid_centers, object_rotation
from event_sam3d_ros.sam3d.network import Network

K = np.array([[320.0, 0, 172], [0, 318.0, 131], [0, 0, 1]])
CONFIG = ModelConfig()


class KnownBox(nn.Module):
    """Answers with the exact grid of a box: centre and half extents in metres, camera frame."""

    def __init__(self, mask, center, rotation, half, solid=True):
        super().__init__()
        self.config = CONFIG
        (crop,) = object_crops(mask, CONFIG.preprocess.crop_factor)
        frame = crop.frame(K, CONFIG.direct.depth_range)
        axis = grid_centers(64)
        w, v, u = np.meshgrid(axis, axis, axis, indexing="ij")
        points = frame.to_camera(np.stack([u, v, w], -1), center @ frame.rotation[:, 2])
        distance = (np.abs((points - center) @ rotation) - half).max(-1)
        self.logits = torch.from_numpy((-distance if solid else -1 - 0 * distance).astype(np.float32))[None] * 100
        self.up = torch.from_numpy((frame.rotation.T @ rotation[:, 2]).astype(np.float32))[None]

    def forward(self, image, event_image, mask):
        n = len(mask)
        return Geometry(self.logits.expand(n, -1, -1, -1), self.up.expand(n, -1), torch.zeros(n))


@pytest.fixture
def scene():
    """A box of 12 x 8 x 10 cm seen from 25 degrees above, off the image centre, with its exact mask and depth."""
    center, half = np.array([0.11, -0.05, 0.8]), np.array([0.06, 0.04, 0.05])
    up = Rotation.from_euler("x", -25, degrees=True).apply([0, -1.0, 0])
    rotation = object_rotation(up, center)
    ys, xs = np.mgrid[0:260, 0:346]
    rays = np.stack([xs, ys, np.ones_like(xs)], -1) @ np.linalg.inv(K).T
    origin, direction = -center @ rotation, rays @ rotation
    with np.errstate(divide="ignore"):
        a, b = (-half - origin) / direction, (half - origin) / direction
    near, far = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
    mask = (near < far).astype(np.uint8)
    depth = np.where(mask > 0, near, 3.0).astype(np.float32)
    return center, rotation, half, mask, depth


def observe(mask, depth=None, **changes):
    image = np.full((*mask.shape, 3), (200, 40, 10), np.uint8)
    return Observation(**{"image": image, "mask": mask, "event_image": None, "K": K, "depth": depth, **changes})


def test_a_known_box_comes_back_with_its_pose_and_size(scene):
    center, rotation, half, mask, depth = scene
    (result,) = Reconstructor(KnownBox(mask, center, rotation, half), {}, "cpu")(observe(mask, depth))
    assert result.metric
    np.testing.assert_allclose(result.position, center, atol=0.003)
    np.testing.assert_allclose(result.size, 2 * half, atol=0.005)
    found = Rotation.from_quat(result.quaternion).as_matrix()
    np.testing.assert_allclose(found[:, 2], rotation[:, 2], atol=1e-6)
    local = np.abs((result.points - center) @ rotation) - half
    assert np.abs(local.max(-1)).max() < 0.004  # every point lies on the box's surface
    assert result.points.dtype == np.float32 and result.colors.shape == result.points.shape
    assert (result.colors == (200, 40, 10)).all()
    assert result.occupancy.shape == (64, 64, 64) and result.occupancy.dtype == bool
    expected = half.prod() / half.max() ** 3
    assert result.occupancy.mean() == pytest.approx(expected, rel=0.12)
    extents = [np.ptp(np.nonzero(result.occupancy)[axis]) + 1 for axis in range(3)]
    np.testing.assert_allclose(extents, 64 * half / half.max(), atol=5)


def test_without_depth_the_scale_is_the_prior_and_the_ratio_holds(scene):
    center, rotation, half, mask, _ = scene
    (result,) = Reconstructor(KnownBox(mask, center, rotation, half), {}, "cpu")(observe(mask))
    assert not result.metric
    assert result.size.max() == pytest.approx(CONFIG.preprocess.prior_size_m)
    np.testing.assert_allclose(result.size / result.position[2], 2 * half / center[2], rtol=0.06)


@pytest.mark.parametrize("hole", [0.0, np.nan])
def test_holes_and_background_in_the_depth_do_not_disturb_the_scale(scene, hole):
    center, rotation, half, mask, depth = scene
    rng = np.random.default_rng(0)
    depth = np.where(rng.random(depth.shape) < 0.3, np.float32(hole), depth).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = 3.0
    (result,) = Reconstructor(KnownBox(mask, center, rotation, half), {}, "cpu")(observe(mask, depth))
    np.testing.assert_allclose(result.position, center, rtol=0.02)


def test_depth_without_a_single_return_counts_as_none(scene):
    center, rotation, half, mask, depth = scene
    (result,) = Reconstructor(KnownBox(mask, center, rotation, half), {}, "cpu")(observe(mask, 0 * depth))
    assert not result.metric


def test_nothing_solid_is_an_error_with_a_reason(scene):
    center, rotation, half, mask, _ = scene
    with pytest.raises(InputError) as error:
        Reconstructor(KnownBox(mask, center, rotation, half, solid=False), {}, "cpu")(observe(mask))
    assert error.value.reason == "nothing_solid"


def test_too_small_objects_are_left_out_and_alone_an_error(scene):
    center, rotation, half, mask, _ = scene
    reconstructor = Reconstructor(KnownBox(mask, center, rotation, half), {}, "cpu")
    speck = np.zeros_like(mask)
    speck[3, 3] = 5
    assert [r.id for r in reconstructor(observe(np.maximum(mask, speck)))] == [1]
    with pytest.raises(InputError) as error:
        reconstructor(observe(speck))
    assert error.value.reason == "object_too_small"


def test_the_real_network_is_deterministic_and_needs_no_rgb():
    torch.manual_seed(0)
    network = Network(CONFIG)
    nn.init.constant_(network.geometry.columns.bias, 0.5)
    reconstructor = Reconstructor(network, {"tag": "t"}, "cpu")
    mask = np.zeros((260, 346), np.uint8)
    mask[40:120, 50:140] = 3
    events = np.random.default_rng(0).integers(0, 255, (260, 346, 3), dtype=np.uint8)
    first, second = (reconstructor(observe(mask, image=None, event_image=events))[0] for _ in range(2))
    assert first.id == 3 and 0 < first.score < 1
    np.testing.assert_array_equal(first.points, second.points)
    assert (first.colors == 128).all()


def test_largest_component_drops_specks():
    logits = np.full((16, 16, 16), -1.0, np.float32)
    logits[2:8, 2:8, 2:8] = 2
    logits[12, 12, 12] = 9
    kept = largest_component(logits)
    assert kept[4, 4, 4] == 2 and kept[12, 12, 12] < 0
    assert largest_component(np.full((4, 4, 4), -1, np.float32)) is None


def test_surface_points_of_a_ball_lie_on_it():
    axis = grid_centers(32)
    w, v, u = np.meshgrid(axis, axis, axis, indexing="ij")
    points = surface_points((0.6 - np.sqrt(u**2 + v**2 + w**2)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.6, atol=2e-3)


def test_unknown_models_devices_and_precisions_are_refused(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model 'no-such-model': give .* a name \(nano\)"):
        find_weights("no-such-model")
    for path in ("/nowhere.safetensors", "there/is/none", "none.safetensors"):
        with pytest.raises(CheckpointError, match=f"there is no model file '{path}': give the path"):
            find_weights(path)
    (tmp_path / "event-sam3d-mine.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENT_SAM3D_WEIGHTS", raising=False)
    with pytest.raises(CheckpointError):  # a name is not looked for where one happens to stand
        find_weights("mine")
    monkeypatch.setenv("EVENT_SAM3D_WEIGHTS", str(tmp_path))
    assert find_weights("mine") == tmp_path / "event-sam3d-mine.safetensors"
    for device in ("tpu9", "mps", "cuda:99", "cuda:", "meta"):
        with pytest.raises(ConfigurationError, match=device):
            Reconstructor(Network(CONFIG), {}, device)
    with pytest.raises(ConfigurationError, match="fp8"):
        Reconstructor(Network(CONFIG), {}, "cpu", "fp8")
