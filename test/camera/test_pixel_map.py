"""Maps between two cameras against scenes whose answers are known: planes, a sphere before a wall, real lenses."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from scenes import DAVIS, FISHEYE, Scene, inside, pair, pairs_of, pinhole, views

from event_sam3d_ros.camera import lens, pixel_map
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.pixel_map import PixelMapper
from event_sam3d_ros.camera.warmup import warm_up
from event_sam3d_ros.errors import CalibrationError, InputError
from event_sam3d_ros.events.events import Events

SPHERE = ((0.05, 0.0, 1.0), 0.25)


def check_against(truth, cameras, found, slack):
    """Every pair is right within ``slack`` pixels from one side at least, and no pixel that has a partner is left out.

    A pair is made because the partner is the nearest pixel, that is within half a pixel, seen from either camera.
    """
    events, rgb = pairs_of(found)
    from_events = np.abs(truth["events"][2][events[:, 1], events[:, 0]] - rgb).max(-1)
    from_rgb = np.abs(truth["rgb"][2][rgb[:, 1], rgb[:, 0]] - events).max(-1)
    wrong = ~(np.fmin(from_events, from_rgb) <= 0.5 + slack)
    for name, paired, other in (("events", events, "rgb"), ("rgb", rgb, "events")):
        expected = inside(truth[name][2], getattr(cameras, other), margin=1.0)
        has_partner = np.zeros(expected.shape, bool)
        has_partner[paired[:, 1], paired[:, 0]] = True
        missing = expected & ~has_partner
        yield name, wrong.mean() if len(wrong) else 0.0, missing.sum() / max(1, expected.sum())


@given(
    turn=st.tuples(*[st.floats(-0.15, 0.15)] * 2, st.floats(-3, 3)),
    shift=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
    tilt=st.tuples(*[st.floats(-0.5, 0.5)] * 2),
    distance=st.floats(1.0, 10.0),
    focal=st.floats(0.4, 2.5),
    of=st.sampled_from(["rgb", "events"]),
)
@settings(max_examples=40)
def test_a_plane_is_mapped_as_geometry_says_for_any_pose_of_the_cameras(turn, shift, tilt, distance, focal, of):
    cameras = pair(pinhole(64, 48, 60.0), pinhole(80, 60, 75.0 * focal), turn, shift)
    truth = views(Scene((*tilt, 1), distance), cameras)
    found = PixelMapper(cameras).by_depth(truth[of][0], of)
    for name, wrong, missing in check_against(truth, cameras, found, slack=0.3):
        assert wrong == 0 and missing == 0, name


@pytest.mark.parametrize("of", ["rgb", "events"])
@pytest.mark.parametrize("shift", [(0.15, 0.0, 0.0), (-0.1, 0.08, 0.05)])
def test_a_sphere_hides_what_is_behind_it(of, shift):
    cameras = pair(pinhole(160, 120, 150.0), pinhole(240, 180, 220.0), (0.02, -0.03, 0.1), shift)
    truth = views(Scene(sphere=SPHERE), cameras)
    found = PixelMapper(cameras).by_depth(truth[of][0], of)
    for _, wrong, missing in check_against(truth, cameras, found, slack=0.3):
        assert wrong < 0.03 and missing < 0.02  # along the sphere's outline half a pixel may fall to either side
    events, rgb = pairs_of(found)
    mixed = truth["events"][1][events[:, 1], events[:, 0]] != truth["rgb"][1][rgb[:, 1], rgb[:, 0]]
    assert mixed.mean() < 0.03
    hidden = np.isnan(truth["events"][2]).all(-1)  # wall that the sphere hides from the RGB camera alone
    has_partner = np.zeros(hidden.shape, bool)
    has_partner[events[:, 1], events[:, 0]] = True
    assert hidden.sum() > 300
    assert has_partner[hidden].mean() < 0.1


def test_depth_of_either_camera_gives_the_same_map():
    cameras = pair(pinhole(160, 120, 150.0), pinhole(200, 150, 190.0), (0.02, -0.03, 0.1), (0.1, 0.02, -0.03))
    truth = views(Scene((0.2, -0.1, 1), 2.0, SPHERE), cameras)
    mapper = PixelMapper(cameras)
    maps = [mapper.by_depth(truth[of][0], of) for of in ("rgb", "events")]
    sets = [set(map(tuple, np.concatenate(pairs_of(found), -1).tolist())) for found in maps]
    assert len(sets[0] & sets[1]) > 0.95 * len(sets[0] | sets[1])


@pytest.mark.parametrize("of", ["rgb", "events"])
def test_real_lenses_of_both_cameras_are_taken_into_account(of):
    pose = (0.02, 0.05, -0.03), (0.06, -0.02, 0.01)
    cameras = pair(CameraModel(*DAVIS), CameraModel(*FISHEYE), *pose)
    truth = views(Scene((0.1, 0.2, 1), 1.5), cameras)
    found = PixelMapper(cameras).by_depth(truth[of][0], of)
    for name, wrong, missing in check_against(truth, cameras, found, slack=0.3):
        assert wrong == 0 and missing == 0, name
    bare = pair(CameraModel(DAVIS[0], (), 240, 180), CameraModel(FISHEYE[0], (), 320, 240), *pose)
    without = PixelMapper(bare).by_depth(truth[of][0], of)
    assert next(check_against(truth, cameras, without, slack=0.3))[1] > 0.5  # so the lenses do count here


def test_a_far_scene_is_mapped_by_the_rotation_alone():
    cameras = pair(CameraModel(*DAVIS), pinhole(400, 300, 350.0), (0.03, -0.04, 0.2), (0.1, 0.05, 0.0))
    far = views(Scene(distance=500.0), cameras)
    for name, wrong, missing in check_against(far, cameras, PixelMapper(cameras).by_homography(), slack=0.2):
        assert wrong == 0 and missing == 0, name


def test_a_given_homography_holds_for_rectified_pixels_whatever_its_scale():
    events, rgb = CameraModel(*DAVIS), pinhole(400, 300, 350.0)
    cameras = pair(events, rgb, (0.03, -0.04, 0.2), (0.1, 0.05, 0.0))
    # The homography of a plane n.p = d: K_rgb (R + t n^T / d) K_events^-1.
    normal, distance = np.array((0.1, -0.2, 1.0)), 1.2
    plane = cameras.rotation + np.outer(cameras.translation, normal) / distance
    matrix = rgb.K @ plane @ np.linalg.inv(events.K)
    truth = views(Scene(normal, distance), cameras)
    maps = [PixelMapper(pair(events, rgb, homography=scale * matrix)).by_homography() for scale in (1, -250)]
    for name, wrong, missing in check_against(truth, cameras, maps[0], slack=0.01):
        assert wrong == 0 and missing == 0, name
    assert np.array_equal(maps[0].targets, maps[1].targets) and np.array_equal(maps[0].offsets, maps[1].offsets)


def test_cameras_that_are_the_same_map_every_pixel_to_itself():
    camera = CameraModel(*DAVIS)
    for found in (
        PixelMapper(pair(camera, camera)).by_homography(),
        PixelMapper(pair(camera, camera)).by_depth(np.full((180, 240), 3.0)),
    ):
        assert np.array_equal(found.targets, np.arange(240 * 180))


def events_at(columns, rows):
    n = len(columns)
    return Events(
        np.arange(n, dtype=np.int64), np.array(columns, np.uint16), np.array(rows, np.uint16), np.ones(n, np.uint8)
    )


def test_holes_in_depth_stay_holes_and_are_counted():
    camera = pinhole(40, 30, 40.0)
    depth = np.full((30, 40), 2.0)
    depth[10:20, 10:20] = np.nan
    depth[0, 0], depth[0, 1], depth[0, 2] = 0.0, -1.0, np.inf
    events = events_at([0, 1, 2, 3, 15, 20, 45], [0, 0, 0, 0, 15, 15, 3])
    found = PixelMapper(pair(camera, camera)).by_depth(depth).map(events)
    assert (found.unknown_depth, found.outside) == (4, 1)
    assert found.events.t.tolist() == [3, 5]
    assert list(zip(found.events.x.tolist(), found.events.y.tolist(), strict=True)) == [(3, 0), (20, 15)]


def test_the_fallback_depth_fills_holes_and_nothing_else():
    cameras = pair(pinhole(160, 120, 150.0), pinhole(200, 150, 190.0), (0.02, -0.03, 0.1), (0.1, 0.02, -0.03))
    truth = views(Scene(), cameras)
    measured = truth["rgb"][0].copy()
    measured[40:90, 60:140] = 0
    mapper = PixelMapper(cameras)
    holes, filled = mapper.by_depth(measured), mapper.by_depth(measured, fallback_m=2.0)
    sets = [set(map(tuple, np.concatenate(pairs_of(found), -1).tolist())) for found in (holes, filled)]
    assert sets[0] < sets[1]
    for row, column in [(pair_[3], pair_[2]) for pair_ in sets[1] - sets[0]]:
        assert measured[row, column] == 0
    for _, wrong, missing in check_against(truth, cameras, filled, slack=0.3):
        assert wrong == 0 and missing < 0.02
    assert filled.known.all()


def test_one_event_covers_all_finer_pixels_and_all_finer_events_meet_in_one_pixel():
    coarse, fine = pinhole(20, 10, 20.0), pinhole(60, 30, 60.0)
    up = PixelMapper(pair(coarse, fine)).by_homography().map(events_at([5], [4]))
    assert set(zip(up.events.x.tolist(), up.events.y.tolist(), strict=True)) == {
        (x, y) for x in (15, 16, 17) for y in (12, 13, 14)
    }
    columns, rows = np.meshgrid((15, 16, 17), (12, 13, 14))
    down = PixelMapper(pair(fine, coarse)).by_homography().map(events_at(columns.ravel(), rows.ravel()))
    assert (down.events.x == 5).all() and (down.events.y == 4).all() and len(down.events) == 9


def test_what_the_rgb_camera_does_not_see_is_counted_as_outside():
    found = PixelMapper(pair(pinhole(60, 40, 30.0), pinhole(20, 20, 30.0))).by_homography().map(
        events_at([30, 0, 59], [20, 0, 39])
    )  # fmt: skip
    assert (len(found.events), found.unknown_depth, found.outside) == (1, 0, 2)


def test_depth_of_another_size_and_depth_without_extrinsics_are_refused_in_words():
    camera = pinhole(40, 30, 40.0)
    with pytest.raises(InputError, match="rgb camera is 30x40.*40x30") as error:
        PixelMapper(pair(camera, camera)).by_depth(np.ones((40, 30)))
    assert error.value.reason == "size_mismatch"
    with pytest.raises(CalibrationError, match="one distance only") as error:
        PixelMapper(pair(camera, camera, homography=np.eye(3))).by_depth(np.ones((30, 40)))
    assert error.value.reason == "no_extrinsics"


def test_the_warm_up_compiles_every_kernel_once_for_all_inputs():
    def compiled():
        called = (pixel_map._positions, pixel_map._z_buffer, pixel_map._pairs, pixel_map._sorted_by_event_pixel)
        return [len(kernel.signatures) for kernel in (*called, pixel_map._map_events, lens.project_rays)]

    warm_up()
    cameras = pair(CameraModel(*DAVIS), CameraModel(*FISHEYE), (0.02, 0.05, -0.03), (0.06, -0.02, 0.01))
    mapper, truth = PixelMapper(cameras), views(Scene(), cameras)
    for found in (mapper.by_depth(truth["rgb"][0]), mapper.by_depth(truth["events"][0], "events", 1.0)):
        found.map(events_at([1, 2], [3, 4]))
    mapper.by_homography()
    assert compiled() == [1] * 6
