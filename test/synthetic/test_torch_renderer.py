"""The renderer in torch gives the pictures of the compiled one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.synthetic import torch_renderer
from event_sam3d_ros.synthetic.options import WorldOptions
from event_sam3d_ros.synthetic.renderer import render
from event_sam3d_ros.synthetic.scene import random_placement
from event_sam3d_ros.synthetic.shapes import random_shape
from event_sam3d_ros.synthetic.torch_renderer import ShapeBatch, render_batch, render_on
from event_sam3d_ros.synthetic.world import make_case

WIDTH, HEIGHT = 96, 80
SEEDS = range(600, 610)


@pytest.fixture(scope="module")
def placements():
    """Ten scenes of ten shapes, all materials among them."""
    placements = [
        random_placement(random_shape(seed), np.random.default_rng(seed), WIDTH, HEIGHT, 0.1, 0.0) for seed in SEEDS
    ]
    materials = [placement.scene.shape.material for placement in placements]
    assert {(len(m.phases), m.multiply) for m in materials} >= {(0, False), (3, True)}
    return placements


def _torch(placements, which=None):
    scenes = [placement.scene for placement in placements]
    which = range(len(scenes)) if which is None else which
    return render_batch(
        ShapeBatch([scene.shape for scene in scenes]),
        torch.tensor(list(which)),
        *(torch.as_tensor(np.stack([getattr(p, name) for p in placements])) for name in ("rotation", "position")),
        torch.tensor([scene.scale for scene in scenes]),
        torch.as_tensor(np.stack([scene.K for scene in scenes])),
        [scene.light for scene in scenes],
        torch.from_numpy(np.concatenate([scene.background_pictures(np.zeros((1, 2))) for scene in scenes])),
    )


def test_pictures_agree_with_the_compiled_renderer(placements):
    batch = _torch(placements)
    for n, placement in enumerate(placements):
        scene = placement.scene
        one = render(
            scene.shape,
            placement.rotation[None],
            placement.position[None],
            scene.scale,
            scene.K,
            WIDTH,
            HEIGHT,
            scene.light,
            scene.background_pictures(np.zeros((1, 2))),
        )
        rgb, alpha, depth = (value[n].numpy() for value in (batch.rgb, batch.alpha, batch.depth))
        mask, other = one.alpha[0] > 0.5, alpha > 0.5
        assert mask.sum() > 300
        assert (mask & other).sum() / (mask | other).sum() > 0.995
        # A ray that grazes an edge may stop a step earlier or later: nearly all pixels agree closely, not all.
        assert np.quantile(np.abs(alpha - one.alpha[0]), 0.999) < 0.02
        both = mask & other
        error = np.abs(depth[both] - one.depth[0][both])
        assert np.quantile(error, 0.99) < 0.002 * placement.position[2]
        assert np.quantile(np.abs(rgb - one.rgb[0]).max(axis=-1), 0.995) < 0.01
        assert np.all(np.isinf(depth[alpha == 0]))


def test_a_case_rendered_by_torch_is_the_same_case():
    """On the CPU, with an occluder and a moving background; on a GPU the same code runs."""
    world = WorldOptions(motion="camera", occluded=1.0)
    plain, other = (make_case(1_000_003, 1, "easy", 80, 80, 8.0, options) for options in (world, _on_torch(world)))
    assert not np.array_equal(plain.depth, other.depth)  # another renderer it was
    assert (plain.mask & other.mask).sum() / (plain.mask | other.mask).sum() > 0.995
    for name in ("sharp", "blurry"):
        error = np.abs(getattr(plain, name).astype(int) - getattr(other, name)).max(axis=-1)
        assert np.quantile(error, 0.99) <= 3  # of 255
    assert len(other.events) == pytest.approx(len(plain.events), rel=0.02)
    np.testing.assert_array_equal(plain.position, other.position)


def _on_torch(world):
    return replace(world, render_device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        make_case(1_000_003, 1, "easy", 64, 64, options=WorldOptions(render_device="cuda"))


def test_many_pictures_are_rendered_in_parts(placements, monkeypatch):
    scene = placements[0].scene
    poses = (np.stack([p.rotation for p in placements[:3]]), np.stack([p.position for p in placements[:3]]))
    rest = (scene.scale, scene.K, WIDTH, HEIGHT, scene.light, scene.background_pictures(np.zeros((1, 2))))
    whole = render_on("cpu", scene.shape, *poses, *rest)
    monkeypatch.setattr(torch_renderer, "_AT_ONCE", 2 * WIDTH * HEIGHT)
    parts = render_on("cpu", scene.shape, *poses, *rest)
    assert parts.rgb.shape == (3, HEIGHT, WIDTH, 3) and parts.alpha.dtype == np.float32
    np.testing.assert_allclose(parts.rgb, whole.rgb, atol=1e-5)


def test_one_shape_may_stand_in_several_pictures(placements):
    same = [placements[0]] * 3
    batch = _torch(same, which=[0, 0, 0])
    alone = _torch(same[:1])
    for n in range(3):
        torch.testing.assert_close(batch.rgb[n], alone.rgb[0])


def test_an_object_behind_the_camera_is_refused(placements):
    near = replace(placements[0], position=np.array([0.0, 0.0, 0.01]))
    with pytest.raises(InputError) as error:
        _torch([near])
    assert error.value.reason == "behind_camera"
