"""Tracks: ids that stay with their objects, whatever the masks call them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_sam3d_ros.demo.truth import read_truth
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.recordings.files import Frame, open_recording
from event_sam3d_ros.tracking import MAX_MISSING, Tracker

STEP_NS = 33_000_000
FOCAL, WIDTH, HEIGHT = 200.0, 320, 240
UNMOVED = np.array([0.0, 0.0, 0.0, 1.0])


def thing(label, position, size=0.1, metric=True):
    """A cube in front of the camera."""
    cloud = np.zeros((0, 3), np.float32)
    return Reconstruction(
        id=label,
        score=0.5,
        metric=metric,
        occupancy=np.zeros((2, 2, 2), bool),
        points=cloud,
        colors=cloud.astype(np.uint8),
        position=np.array(position, float),
        quaternion=UNMOVED,
        size=np.full(3, size),
    )


def mask_of(things):
    """Their squares in the image; the nearest covers the others."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint16)
    for item in sorted(things, key=lambda item: -item.position[2]):
        x, y = FOCAL * item.position[:2] / item.position[2] + (WIDTH / 2, HEIGHT / 2)
        half = FOCAL * item.size[0] / item.position[2] / 2
        top, bottom, left, right = (max(0, round(v)) for v in (y - half, y + half, x - half, x + half))
        mask[top:bottom, left:right] = item.id
    return mask


def update(tracker, number, things, pose=None):
    return tracker.update(number * STEP_NS, things, mask_of(things), pose)


def ids_by_label(frame):
    return dict(zip(frame.labels, (item.id for item in frame.reconstructions), strict=True))


@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize("speed", [0.01, 0.04])
def test_two_objects_that_cross_keep_their_ids(metric, speed):
    tracker = Tracker()
    steps = round(0.4 / speed)
    for number in range(steps):
        x = number * speed - 0.2
        frame = update(
            tracker, number, [thing(1, (x, -0.03, 1.0), 0.1, metric), thing(2, (-x, 0.03, 1.3), 0.1, metric)]
        )
        assert ids_by_label(frame) == {1: 1, 2: 2}, number
    assert tracker.alive == (1, 2)


def test_speed_decides_where_overlap_would_choose_the_other():
    tracker = Tracker()
    for number, x in enumerate((-0.45, -0.27, -0.09, 0.09, 0.27)):
        # From the third frame to the fourth each object comes to lie where the other one was.
        frame = update(tracker, number, [thing(3, (x, 0, 1.0), 0.15), thing(4, (-x, 0, 1.0), 0.15)])
        assert ids_by_label(frame) == {3: 3, 4: 4}


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.integers(2, 5))
def test_labels_that_change_at_every_frame_change_no_id(random, metric, count):
    tracker, start = Tracker(), [(0.3 * i - 0.6, 0.2 * (i % 2), 1.0 + 0.1 * i) for i in range(count)]
    ways = [(random.uniform(-0.01, 0.01), random.uniform(-0.01, 0.01), random.uniform(-0.005, 0.005)) for _ in start]
    first = {}
    for number in range(10):
        labels = random.sample(range(1, 40), count)
        places = [np.add(a, np.multiply(number, b)) for a, b in zip(start, ways, strict=True)]
        things = [thing(label, place, 0.1, metric) for label, place in zip(labels, places, strict=True)]
        random.shuffle(things)
        ids = ids_by_label(update(tracker, number, things))
        by_object = {i: ids[label] for i, label in enumerate(labels)}
        first = first or by_object
        assert by_object == first
    assert tracker.alive == tuple(sorted(first.values()))


def test_one_that_comes_back_in_time_is_the_same_and_later_a_new_one():
    tracker = Tracker(patience_s=1.0)
    assert update(tracker, 0, [thing(1, (0, 0, 1)), thing(2, (0.4, 0, 1))]).born == (1, 2)
    for number in range(1, 25):
        assert update(tracker, number, [thing(2, (0.4, 0, 1))]).died == ()
    assert ids_by_label(update(tracker, 25, [thing(1, (0.02, 0, 1)), thing(2, (0.4, 0, 1))])) == {1: 1, 2: 2}
    deaths = {}
    for number in range(26, 70):
        frame = update(tracker, number, [thing(2, (0.4, 0, 1))])
        deaths |= dict.fromkeys(frame.died, number)
    assert deaths == {1: 25 + 31}  # the first frame that is more than a second after the last sight
    frame = update(tracker, 70, [thing(1, (0.02, 0, 1)), thing(2, (0.4, 0, 1))])
    assert (ids_by_label(frame), frame.born) == ({1: 3, 2: 2}, (3,))


def test_a_slow_model_keeps_its_tracks_and_still_ends_them():
    tracker = Tracker(patience_s=1.0)
    for number in range(3):
        frame = update(tracker, number * 100, [thing(1, (0, 0, 1)), thing(2, (0.4, 0, 1))])
        assert ids_by_label(frame) == {1: 1, 2: 2}  # more than three seconds apart
    died = [update(tracker, number * 100, [thing(2, (0.4, 0, 1))]).died for number in range(3, 8)]
    assert died == [(), (), (), (1,), ()]


def test_frames_without_objects_count():
    tracker = Tracker(patience_s=1.0)
    update(tracker, 0, [thing(1, (0, 0, 1))])
    assert [update(tracker, number, []).died for number in (10, 20, 30, 40)] == [(), (), (), (1,)]
    assert tracker.alive == ()


@pytest.mark.parametrize("believed", [True, False])
def test_far_away_the_label_decides_as_long_as_it_has_never_been_wrong(believed):
    tracker = Tracker()
    update(tracker, 0, [thing(3 if believed else 8, (-0.5, 0, 1))])
    first = update(tracker, 1, [thing(3, (-0.5, 0, 1))]).reconstructions[0].id
    frame = update(tracker, 2, [thing(3, (0.5, 0, 1))])
    assert frame.labels == (3,) and (frame.reconstructions[0].id == first) == believed
    assert frame.born == (() if believed else (3,))


def test_another_label_far_away_is_another_object():
    tracker = Tracker()
    update(tracker, 0, [thing(7, (-0.5, 0, 1))])
    assert update(tracker, 1, [thing(2, (0.5, 0, 1))]).born == (2,)


def test_depth_tells_apart_what_covers_the_same_pixels():
    tracker = Tracker()
    update(tracker, 0, [thing(1, (0, 0, 1.0), 0.1)])
    frame = update(tracker, 1, [thing(1, (0, 0, 4.0), 0.4)])
    # The same square in the image: the mask alone would call it the same.
    assert frame.born == ()
    tracker = Tracker()
    update(tracker, 0, [thing(1, (0, 0, 1.0), 0.1), thing(2, (0.06, 0, 2.0), 0.1)])
    swapped = update(tracker, 1, [thing(2, (0, 0, 1.0), 0.1), thing(1, (0.06, 0, 2.0), 0.1)])
    assert ids_by_label(swapped) == {2: 1, 1: 2}


def test_in_the_world_a_turning_camera_moves_nothing():
    places = np.array([[0.0, 0.0, 2.0], [0.5, 0.0, 2.0]])
    known = Tracker()
    for number, angle in enumerate((0.0, 0.25)):  # by the second frame, each is near where the other one was
        cos, sin = np.cos(angle), np.sin(angle)
        pose = np.array([[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, 0], [0, 0, 0, 1.0]])
        seen = places @ pose[:3, :3]
        frame = update(known, number, [thing(1, seen[0]), thing(2, seen[1])], pose)
        assert ids_by_label(frame) == {1: 1, 2: 2}


def test_a_recording_that_starts_again_gives_the_same_ids_again():
    tracker = Tracker()
    frames = [[thing(5, (0.3 * (number % 2), 0.3 * number, 3.0))] for number in range(4)]
    first = [update(tracker, 100 + 20 * n, things).reconstructions[0].id for n, things in enumerate(frames)]
    again = []
    for n, things in enumerate(frames):
        frame = update(tracker, 20 * n, things)
        again.append(frame.reconstructions[0].id)
        assert n > 0 or set(first) & set(frame.died)
    assert again == first


def test_a_frame_that_comes_late_by_less_than_the_patience_is_taken():
    tracker = Tracker()
    update(tracker, 10, [thing(1, (0, 0, 1))])
    assert ids_by_label(update(tracker, 8, [thing(4, (0, 0, 1))])) == {4: 1}
    assert ids_by_label(update(tracker, 11, [thing(9, (0, 0, 1))])) == {9: 1}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000_000_000),
            st.lists(
                st.tuples(st.floats(-0.5, 0.5), st.floats(-0.4, 0.4), st.floats(0.5, 3), st.booleans()), max_size=4
            ),
        ),
        max_size=8,
    )
)
def test_anything_goes_in_and_ids_stay_unique(frames):
    runs = []
    for _ in range(2):
        tracker, alive, run = Tracker(), set(), []
        for stamp_ns, rows in frames:
            things = [thing(i + 1, row[:3], metric=row[3]) for i, row in enumerate(rows)]
            frame = tracker.update(stamp_ns, things, mask_of(things))
            ids = [item.id for item in frame.reconstructions]
            assert ids == sorted(set(ids)) and sorted(frame.labels) == [item.id for item in things]
            alive = (alive - set(frame.died)) | set(frame.born)
            assert set(ids) <= alive == set(tracker.alive)
            run.append((ids, frame.labels, frame.born, frame.died))
        runs.append(run)
    assert runs[0] == runs[1]


def test_memory_is_bounded():
    tracker = Tracker(patience_s=1e6)
    mask = np.zeros((4, 4), np.uint8)  # none of the objects has a pixel: each is far from all others
    died = []
    for number in range(MAX_MISSING + 6):
        died += tracker.update(number, [thing(number + 1, (100.0 * number, 0, 1))], mask).died
    assert len(tracker.alive) == MAX_MISSING + 1 and died == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def demo():
    """Stamp, true position and mask of every frame of the demo: up to a quarter of the crop per exposure."""
    bag = Path(__file__).parents[1] / "data" / "demo_bag"
    (true,) = read_truth(bag).values()
    masks = {s.stamp_ns: s.data for s in open_recording(bag).samples() if isinstance(s, Frame) and s.role == "mask"}
    return [(stamp, true.poses[stamp].position, mask > 0) for stamp, mask in sorted(masks.items())], true.size.max()


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("metric", [True, False])
def test_the_demos_object_is_one_track_under_any_labels_from_7_5_hz_on(demo, every, metric):
    tracker, random = Tracker(), np.random.default_rng(0)
    frames, size = demo
    ids = set()
    for stamp, position, mask in frames[::every]:
        label = int(random.integers(1, 200))
        frame = tracker.update(stamp, [thing(label, position, size, metric)], mask * np.uint8(label))
        ids |= {item.id for item in frame.reconstructions}
    assert len(ids) == 1


@pytest.mark.parametrize("every", [6, 10, 30])
def test_it_is_one_track_at_any_rate_under_one_label(demo, every):
    tracker = Tracker()
    frames, size = demo
    found = [tracker.update(stamp, [thing(4, at, size)], mask * np.uint8(4)) for stamp, at, mask in frames[::every]]
    assert {item.id for frame in found for item in frame.reconstructions} == {4}
