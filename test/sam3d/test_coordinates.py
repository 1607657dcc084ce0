"""Voxel lists: pruning and downsampling, object by object."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.sam3d.coordinates import downsample, occupied_voxels, prune_interior


def random_voxels(seed, objects=3, resolution=10):
    """Blobs with holes and an empty object among them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(objects, 1, 4, 4, 4, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, (resolution,) * 3, mode="trilinear") + 0.3
    logits[1] = -1
    return logits, occupied_voxels(logits)


def test_occupied_voxels_are_listed_in_order():
    logits = torch.full((2, 1, 4, 4, 4), -1.0)
    logits[1, 0, 3, 0, 2] = logits[1, 0, 0, 3, 3] = logits[0, 0, 1, 1, 1] = 1e-6
    logits[0, 0, 0, 0, 0] = 0.0  # not occupied
    coords = occupied_voxels(logits)
    assert coords.tolist() == [[0, 1, 1, 1], [1, 0, 3, 3], [1, 3, 0, 2]]
    assert coords.dtype == torch.int32


@given(st.integers(0, 1000))
def test_what_is_pruned_has_all_its_neighbours(seed):
    _, coords = random_voxels(seed)
    kept = prune_interior(coords)
    present, left = {tuple(c) for c in coords.tolist()}, {tuple(c) for c in kept.tolist()}
    steps = (-1, 0, 1)
    for i, x, y, z in present:
        around = {(i, x + dx, y + dy, z + dz) for dx in steps for dy in steps for dz in steps}
        assert ((i, x, y, z) in left) == (not around <= present)


def test_a_solid_cube_keeps_its_shell():
    coords = occupied_voxels(torch.ones(1, 1, 5, 5, 5))
    assert len(prune_interior(coords)) == 5**3 - 3**3
    assert len(prune_interior(coords[:0])) == 0


@given(st.integers(0, 1000))
def test_an_object_does_not_depend_on_its_batch(seed):
    logits, coords = random_voxels(seed)
    pruned = prune_interior(coords)
    shrunk, factors = downsample(coords, 3, limit=100)
    for i in range(3):
        one = occupied_voxels(logits[i : i + 1])
        alone, factor = downsample(one, 1, limit=100)
        assert torch.equal(pruned[pruned[:, 0] == i][:, 1:], prune_interior(one)[:, 1:])
        assert torch.equal(shrunk[shrunk[:, 0] == i][:, 1:], alone[:, 1:])
        assert factors[i] == factor


def test_downsampling_halves_about_the_middle():
    coords = occupied_voxels(torch.ones(1, 1, 8, 8, 8))
    shrunk, factors = downsample(coords, 1, limit=511)
    assert factors.tolist() == [2]
    assert shrunk.tolist() == [[0, x, y, z] for x in range(2, 6) for y in range(2, 6) for z in range(2, 6)]
    same, factors = downsample(coords, 1, limit=512)
    assert factors.tolist() == [1] and torch.equal(same, coords)


def test_too_many_voxels_even_so_leave_a_repeatable_choice():
    coords = occupied_voxels(torch.ones(2, 1, 8, 8, 8))
    first, factors = downsample(coords, 2, limit=20, seed=3)
    again, _ = downsample(coords, 2, limit=20, seed=3)
    other, _ = downsample(coords, 2, limit=20, seed=4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert factors.tolist() == [2, 2] and (first[:, 0] == 0).sum() == 20 and (first[:, 0] == 1).sum() == 20
    assert len(torch.unique(first, dim=0)) == 40


def test_a_flat_object_is_halved_too():
    logits = torch.full((1, 1, 8, 8, 8), -1.0)
    logits[0, 0, :, 3, :] = 1
    shrunk, factors = downsample(occupied_voxels(logits), 1, limit=60)
    assert factors.tolist() == [2] and len(shrunk) == 16 and len(shrunk[:, 2].unique()) == 1
