"""The live half of the alignment: what it waits for, what it says is missing, and that it follows its inputs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
from scenes import Scene, pair, pinhole, views

from event_sam3d_ros.camera.alignment import Alignment, AlignmentSettings
from event_sam3d_ros.camera.pixel_map import PixelMapper
from event_sam3d_ros.camera.transforms import StaticTransforms
from event_sam3d_ros.errors import CalibrationError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.events.windows import EventWindows, WindowSettings

EVENT_CAMERA, RGB_CAMERA = pinhole(64, 48, 60.0), pinhole(80, 60, 75.0)
TURN, SHIFT = Rotation.from_rotvec((0.02, -0.03, 0.1)), (0.1, 0.02, -0.03)
CAMERAS = pair(EVENT_CAMERA, RGB_CAMERA, TURN.as_rotvec(), SHIFT)
MS = 1_000_000


def all_events():
    rows, columns = np.mgrid[:48, :64].astype(np.uint16)
    return Events(np.zeros(48 * 64, np.int64), columns.ravel(), rows.ravel(), np.ones(48 * 64, np.uint8))


def from_topics(settings, turn=TURN):
    alignment = Alignment(settings)
    alignment.set_camera("events", "event_optical", EVENT_CAMERA)
    alignment.set_camera("rgb", "rgb_optical", RGB_CAMERA)
    # Through a frame between them, one edge in either direction.
    alignment.add_transform("rgb_optical", "base", (0, 0, 0), (0, 0, 0, 1))
    inverse = turn.inv()
    alignment.add_transform("event_optical", "base", -inverse.apply(SHIFT), inverse.as_quat())
    return alignment


def same(mapped, expected):
    return all(np.array_equal(getattr(mapped.events, name), getattr(expected.events, name)) for name in "txyp")


@pytest.mark.parametrize("make", [from_topics, lambda settings: Alignment(settings, CAMERAS)])
def test_a_file_and_topics_lead_to_the_same_events(make):
    alignment = make(AlignmentSettings("homography"))
    assert alignment.is_ready(5)
    mapped, width, height = alignment.place(all_events(), 5, 64, 48)
    assert (width, height) == (80, 60)
    expected = PixelMapper(CAMERAS).by_homography().map(all_events())
    assert same(mapped, expected) and len(mapped.events) > 1000
    assert alignment.counters["mapped"] == 64 * 48 - expected.outside
    assert alignment.counters["outside"] == expected.outside > 0


def test_depth_of_the_nearest_stamp_is_used_and_waited_for():
    near, far = (views(Scene(distance=distance), CAMERAS)["rgb"][0] for distance in (1.0, 4.0))
    alignment = from_topics(AlignmentSettings("depth", depth_tolerance_ns=50 * MS))
    with pytest.raises(InputError, match="no depth within 50 ms of a frame .none has come") as error:
        alignment.place(all_events(), 1000 * MS, 64, 48)
    assert error.value.reason == "missing_depth"
    alignment.add_depth(960 * MS, near)
    assert not alignment.is_ready(1000 * MS)  # a better one may come
    mapper = PixelMapper(CAMERAS)
    assert same(alignment.place(all_events(), 1000 * MS, 64, 48)[0], mapper.by_depth(near).map(all_events()))
    alignment.add_depth(1010 * MS, far)
    assert alignment.is_ready(1000 * MS)
    assert same(alignment.place(all_events(), 1000 * MS, 64, 48)[0], mapper.by_depth(far).map(all_events()))
    assert same(alignment.place(all_events(), 970 * MS, 64, 48)[0], mapper.by_depth(near).map(all_events()))
    with pytest.raises(InputError, match="the nearest is 90 ms away"):
        alignment.place(all_events(), 1100 * MS, 64, 48)
    alignment.add_depth(10 * MS, near)  # a bag that begins again: depth of its end is forgotten
    assert not alignment.is_ready(1000 * MS)


def test_depth_of_the_event_camera_and_a_fallback_go_through():
    depth = views(Scene(), CAMERAS)["events"][0]
    depth[:20] = 0
    alignment = from_topics(AlignmentSettings("depth", depth_of="events", fallback_depth_m=2.0))
    alignment.add_depth(7, depth)
    expected = PixelMapper(CAMERAS).by_depth(depth, "events", 2.0).map(all_events())
    assert same(alignment.place(all_events(), 7, 64, 48)[0], expected) and expected.unknown_depth == 0


def test_a_camera_or_transform_that_changes_changes_the_map():
    alignment = from_topics(AlignmentSettings("homography"))
    before = alignment.place(all_events(), 1, 64, 48)[0]
    alignment.set_camera("rgb", "rgb_optical", pinhole(80, 60, 75.0))  # the same again
    assert same(alignment.place(all_events(), 1, 64, 48)[0], before)
    alignment.set_camera("rgb", "rgb_optical", pinhole(80, 60, 70.0))
    after = alignment.place(all_events(), 1, 64, 48)[0]
    assert not same(after, before)
    alignment.add_transform("rgb_optical", "base", (0, 0, 0), Rotation.from_rotvec((0, 0.1, 0)).as_quat())
    assert not same(alignment.place(all_events(), 1, 64, 48)[0], after)


def test_what_is_missing_is_said_in_words():
    alignment = Alignment(AlignmentSettings("homography"))
    with pytest.raises(CalibrationError, match="no CameraInfo of the event camera and of the RGB camera") as error:
        alignment.place(all_events(), 1, 64, 48)
    assert error.value.reason == "no_camera_info"
    alignment.set_camera("events", "event_optical", EVENT_CAMERA)
    alignment.set_camera("rgb", "rgb_optical", RGB_CAMERA)
    alignment.add_transform("base", "rgb_optical", (0, 0, 0), (0, 0, 0, 1))
    sentence = "does not connect .*'rgb_optical' with .*'event_optical' .it knows base, rgb_optical"
    with pytest.raises(CalibrationError, match=sentence) as error:
        alignment.place(all_events(), 1, 64, 48)
    assert error.value.reason == "no_transform"
    alignment.add_transform("base", "event_optical", (0, 0, 0), (0, 0, 0, 1))
    with pytest.raises(CalibrationError, match="events come from 640x480 pixels, .* is for 64x48") as error:
        alignment.place(all_events(), 1, 640, 480)
    assert error.value.reason == "size_mismatch"
    with pytest.raises(CalibrationError, match="transform from a to b is none") as error:
        alignment.add_transform("b", "a", (0, 0, float("nan")), (0, 0, 0, 1))
    assert error.value.reason == "bad_transform"
    assert not any(alignment.counters.values())


ROTATIONS = st.tuples(*[st.floats(-3, 3)] * 3).map(Rotation.from_rotvec)


@given(st.lists(st.tuples(ROTATIONS, st.tuples(*[st.floats(-2, 2)] * 3), st.booleans()), min_size=1, max_size=6))
def test_transforms_are_composed_along_any_tree(steps):
    tree, expected = StaticTransforms(), np.eye(4)
    for number, (turn, shift, forward) in enumerate(steps):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn.as_matrix(), shift
        if forward:
            tree.add(f"f{number}", f"f{number + 1}", shift, turn.as_quat())
            expected = expected @ matrix
        else:
            tree.add(f"f{number + 1}", f"f{number}", shift, turn.as_quat())
            expected = expected @ np.linalg.inv(matrix)
    assert np.allclose(tree.between("f0", f"f{len(steps)}"), expected, atol=1e-9)
    assert np.allclose(tree.between(f"f{len(steps)}", "f0"), np.linalg.inv(expected), atol=1e-9)
    assert np.array_equal(tree.between("f0", "f0"), np.eye(4))


class Windows:
    """EventWindows on the grid of an alignment, fed with packets of 10 ms."""

    def __init__(self, alignment):
        self.reports = []
        kind = "event_camera_msgs/msg/EventPacket"
        report = lambda reason, sentence: self.reports.append((reason, sentence))  # noqa: E731
        self.windows = EventWindows(kind, WindowSettings(max_wait_s=0.1), EventBuffer(), report, alignment)
        self.encoder = make_encoder("mono", 64, 48)
        self.generator = np.random.default_rng(0)
        self.all = []

    def feed(self, until_us):
        for begin in range(sum(map(len, self.all)) * 100, until_us, 10_000):
            x, y = self.generator.integers(0, (64, 48), (100, 2)).astype(np.uint16).T
            t = np.arange(begin, begin + 10_000, 100)
            self.all.append(Events(t, x, y, np.ones(100, np.uint8)))
            payload, time_base = self.encoder.encode(self.all[-1])
            fields = {"stamp_ns": MS + begin * 1000, "frame_id": "e", "seq": len(self.all) - 1, "encoding": "mono"}
            size = {"width": 64, "height": 48, "time_base": time_base, "payload": payload}
            self.windows.add_packet(encode_event_packet_cdr(**fields, **size))


def test_a_frame_waits_for_its_depth_but_not_for_ever():
    depth = views(Scene(), CAMERAS)["rgb"][0]
    alignment = Alignment(AlignmentSettings("depth"), CAMERAS)
    made = Windows(alignment)
    made.windows.add_frame(101 * MS, "rgb", now_s=0.0)
    made.feed(200_000)
    assert made.windows.ready(0.05) == []  # events are there, depth is not
    alignment.add_depth(110 * MS, depth)
    (window,) = made.windows.ready(0.06)
    events = concatenate(made.all)
    mapped = PixelMapper(CAMERAS).by_depth(depth).map(events[(events.t >= 75_000) & (events.t < 125_000)])
    assert np.array_equal(window.image, tencode(mapped.events, 75_000, 125_000, 80, 60))
    assert window.event_count == 500 - mapped.dropped and made.reports == []

    made.windows.add_frame(201 * MS, "rgb", now_s=1.0)
    made.feed(300_000)
    assert made.windows.ready(1.05) == [] == made.windows.ready(1.2)
    assert [reason for reason, _ in made.reports] == ["missing_depth"]
    alignment.add_depth(301 * MS, depth)
    made.windows.add_frame(301 * MS, "rgb", now_s=2.0)
    made.feed(400_000)
    assert len(made.windows.ready(2.0)) == 1  # the next frame has its image again
