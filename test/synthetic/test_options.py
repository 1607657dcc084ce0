"""Other worlds: motions, occluders, meshes; and that the default stays what it was."""

import numpy as np
import pytest

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.config import from_dict, to_dict
from event_sam3d_ros.synthetic.motion import shake_through_case, walked_pixels
from event_sam3d_ros.synthetic.occluder import flyer_in_case
from event_sam3d_ros.synthetic.options import DEFAULT_WORLD, WorldOptions
from event_sam3d_ros.synthetic.scene import Poses, random_placement
from event_sam3d_ros.synthetic.shapes import random_shape
from event_sam3d_ros.synthetic.world import STAMP_US, TIERS, case_of, make_case, sequence

SMALL = {"width": 112, "height": 112, "pixels_per_sub_frame": 2.0}
NAMES = ("sharp", "blurry", "event_image", "mask", "degraded_mask", "depth", "rotation", "position")


def _equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in NAMES)


def test_the_default_world_needs_no_options_and_its_shape_makes_the_same_case():
    plain = make_case(31, 2, "medium", **SMALL)
    assert _equal(plain, make_case(31, 2, "medium", **SMALL, options=WorldOptions()))
    assert _equal(plain, case_of(random_shape(31), 2, "medium", **SMALL))


@pytest.mark.parametrize("options", [WorldOptions(motion="mixed", occluded=0.7), WorldOptions(hot_pixels=0.01)])
def test_a_seed_is_a_case_of_other_worlds_too(options):
    first, again = (make_case(32, 5, "hard", **SMALL, options=options) for _ in range(2))
    assert _equal(first, again)
    assert not _equal(first, make_case(32, 5, "hard", **SMALL))


@pytest.mark.parametrize("motion", ["circle", "camera"])
def test_motions_keep_to_their_tier(motion):
    for seed, tier in enumerate(TIERS):
        case = make_case(910 + seed, seed, tier, **SMALL, options=WorldOptions(motion=motion))
        low, high = TIERS[tier]
        assert 0.93 * low <= case.motion_share <= 1.07 * high
        still = make_case(910 + seed, seed, tier, **SMALL)
        np.testing.assert_array_equal(case.rotation, still.rotation)  # the stamp is the same moment of all motions
        np.testing.assert_allclose(case.position, still.position)


def test_a_circle_closes_and_stays_in_view():
    frames = list(sequence(7, 4, 3.0, 96, 96, speed=0.25, pixels_per_sub_frame=30.0, options=WorldOptions("circle")))
    positions = np.array([frame.position for frame in frames])
    centre = positions.mean(axis=0)
    for frame in frames:
        assert frame.mask.any()
    # All on one circle: one plane, one radius about a centre, which the mean of the positions is near.
    _, spread, axes = np.linalg.svd(positions - centre)
    assert spread[2] < 1e-6 * spread[0]
    flat = (positions - centre) @ axes[:2].T
    solution = np.linalg.lstsq(np.c_[2 * flat, np.ones(len(flat))], (flat**2).sum(1), rcond=None)[0]
    radii = np.linalg.norm(flat - solution[:2], axis=1)
    assert np.ptp(radii) < 1e-6


def test_with_a_moving_camera_events_come_from_everywhere():
    def share_off_the_object(motion):
        shares = []
        for seed in range(6):
            case = make_case(930 + seed, seed, "hard", **SMALL, options=WorldOptions(motion=motion))
            v, u = np.nonzero(case.mask)
            x, y = case.events.x.astype(int), case.events.y.astype(int)
            near = (x > u.min() - 20) & (x < u.max() + 20) & (y > v.min() - 20) & (y < v.max() + 20)
            shares.append(1 - near.mean())
        return np.mean(shares)

    assert share_off_the_object("camera") > 2 * share_off_the_object("swing")


def test_a_moving_camera_keeps_the_object_rigid_in_the_world():
    start = random_placement(random_shape(7), np.random.default_rng(0), 112, 112, 0.1, 0.1)
    path = shake_through_case(np.random.default_rng(1), start, 0.2)
    poses = path.poses(start, np.linspace(-25_000, 25_000, 9))
    np.testing.assert_allclose(np.linalg.det(poses.rotation), 1)
    np.testing.assert_allclose(poses.position[4], start.position)
    np.testing.assert_allclose(poses.background_shift[4], 0, atol=1e-9)
    # Both go the same way in the picture; the background, which is farther, not faster than the turn alone moves it.
    moved = np.diff(start.scene.project(poses.position)[[0, 8]], axis=0)[0]
    background = np.diff(poses.background_shift[[0, 8]], axis=0)[0]
    assert moved @ background > 0 and np.linalg.norm(background) < 1.1 * np.linalg.norm(moved)
    assert walked_pixels(start, path, 0.0) == pytest.approx(0.2 * start.side, rel=1e-3)


def test_occluders_hide_as_much_as_they_should():
    hidden = []
    for seed in range(12):
        case = make_case(920 + seed, seed, "medium", **SMALL, options=WorldOptions(occluded=1.0))
        whole = make_case(920 + seed, seed, "medium", **SMALL).mask
        assert not np.any((case.mask > 0) & (whole == 0))
        hidden.append(1 - case.mask.sum() / whole.sum())
    hidden = np.array(hidden)
    covered = hidden > 0
    assert 5 <= covered.sum() <= 11  # a third lies behind
    assert np.all((hidden[covered] > 0.09) & (hidden[covered] < 0.91))


def test_an_occluder_before_the_object_is_nearer_and_not_part_of_the_mask():
    for seed in range(20):
        start = random_placement(random_shape(8), np.random.default_rng(seed), 112, 112, 0.1, 0.0)
        flyer = flyer_in_case(random_shape(9), np.random.default_rng(seed), start, 0.1)
        if flyer is None:
            continue
        poses = Poses(start.rotation[None], start.position[None], np.zeros((1, 2)))
        seen = flyer.seen(start, poses, np.zeros(1))
        covered = (seen.whole[0] > 0.95) & (seen.alpha[0] < 0.05)
        assert covered.any() == flyer.in_front
        assert np.all(seen.others[0][covered] < seen.depth[0][covered])
        assert np.isfinite(seen.others).any() or not flyer.in_front


def test_recordings_with_an_occluder_go_on_where_it_hides_the_object():
    options = WorldOptions(occluded=1.0)
    frames = list(sequence(11, 2, 0.4, 96, 96, pixels_per_sub_frame=8.0, options=options))
    alone = list(sequence(11, 2, 0.4, 96, 96, pixels_per_sub_frame=8.0))
    assert any(a.mask.sum() < b.mask.sum() for a, b in zip(frames, alone, strict=True))
    for a, b in zip(frames, alone, strict=True):
        np.testing.assert_array_equal(a.position, b.position)
        assert a.stamp_us == b.stamp_us


def test_an_endless_recording_begins_as_one_with_an_end():
    endless = sequence(6, 1, np.inf, 96, 96, pixels_per_sub_frame=8.0)
    for frame in sequence(6, 1, 0.1, 96, 96, pixels_per_sub_frame=8.0):
        np.testing.assert_array_equal(frame.blurry, next(endless).blurry)
    assert next(endless).stamp_us == STAMP_US + 100_000


def test_meshes_take_the_place_of_a_share_of_the_objects(tmp_path):
    open3d = pytest.importorskip("open3d")
    for name in ("a.ply", "b.stl"):
        box = open3d.geometry.TriangleMesh.create_box(0.1, 0.2, 0.3)
        box.compute_vertex_normals()
        open3d.io.write_triangle_mesh(str(tmp_path / name), box)
    options = WorldOptions(meshes=str(tmp_path), mesh_share=0.5)
    shapes = [options.shape(seed) for seed in range(8)]
    boxes = [shape for shape in shapes if np.allclose(shape.extent, [0.6, 1.2, 1.8], atol=0.05)]
    assert 1 <= len(boxes) <= 7
    case = case_of(boxes[0], 1, "easy", **SMALL)
    assert case.mask.any()
    np.testing.assert_allclose(case.size / case.size[2], [1 / 3, 2 / 3, 1], atol=0.03)
    with pytest.raises(InputError):
        WorldOptions(meshes=str(tmp_path / "nothing")).shape(0)


def test_options_come_from_settings():
    found = from_dict(WorldOptions, {"motion": "mixed", "occluded": 0.3, "cutoff_hz": 100}, "data: world")
    assert found == WorldOptions(motion="mixed", occluded=0.3, cutoff_hz=100.0)
    assert from_dict(WorldOptions, to_dict(found), "") == found
    assert WorldOptions() == DEFAULT_WORLD


@pytest.mark.parametrize(
    "wrong", [{"motion": "fly"}, {"occluded": 1.5}, {"mesh_share": -0.1}, {"mesh_up": "x"}, {"cutoff_hz": -1.0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigurationError) as error:
        WorldOptions(**wrong)
    assert error.value.reason == "bad_world"
