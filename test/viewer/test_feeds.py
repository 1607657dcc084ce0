"""What is told of a recording that is read while it is watched, how its reading ends, and that no point is lost."""

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from recordings_made import COUNT, MS, PERIOD, START, in_order, make_samples

from event_sam3d_ros.reconstruction import OCCUPANCY_RESOLUTION, Reconstruction
from event_sam3d_ros.recordings.files import EventChunk, write_rosbag2
from event_sam3d_ros.recordings.losses import Losses
from event_sam3d_ros.recordings.samples import Frame
from event_sam3d_ros.viewer import feeds, frames, scene
from event_sam3d_ros.viewer.exports import objects_as_ply
from event_sam3d_ros.viewer.sources import SourceOptions, open_frames

HOUR_MS = 3_600_000
STAMPS = [START + number * PERIOD for number in range(COUNT)]


def read_to_its_end(path, options=None):
    """The frames of a recording, and the status behind the last."""
    source = open_frames(path, options or SourceOptions())
    deadline = time.monotonic() + 60
    while not source.complete():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first, behind = source.span()
    shown = [source.frame(number) for number in range(first, behind)]
    source.close()
    return shown, source.status()


def earlier(sample):
    """Events an hour earlier; other samples as they are."""
    if not isinstance(sample, EventChunk):
        return sample
    events = replace(sample.events, t=sample.events.t - HOUR_MS * 1000)
    return replace(sample, stamp_ns=sample.stamp_ns - HOUR_MS * MS, events=events)


def is_mask(sample):
    return isinstance(sample, Frame) and sample.role == "mask"


def test_clocks_that_disagree_are_told(tmp_path):
    write_rosbag2(tmp_path / "bag", in_order([earlier(sample) for sample in make_samples()]))
    shown, status = read_to_its_end(tmp_path / "bag")
    assert [one.stamp_ns for one in shown] == STAMPS
    assert "the clocks disagree" in status and "no frame has its events" in status


def test_frames_that_are_left_out_are_counted(tmp_path):
    masks = [sample for sample in make_samples() if is_mask(sample)]
    empty = replace(masks[3], data=np.zeros_like(masks[3].data))
    others = [sample for sample in make_samples() if not is_mask(sample)]
    write_rosbag2(tmp_path / "bag", in_order([*others, masks[0], masks[2], empty, *masks[4:]]))
    shown, status = read_to_its_end(tmp_path / "bag")
    assert [one.stamp_ns for one in shown] == [STAMPS[0], *STAMPS[2:]]
    assert "left out: 1 missing_mask" in status and "also counted: 1 empty_mask" in status


@pytest.mark.parametrize("shift_s", [-3600, 3600])
def test_truth_of_another_time_is_told_and_the_frames_are_shown(tmp_path, shift_s):
    write_rosbag2(tmp_path / "bag", in_order(make_samples()))
    truth = tmp_path / "poses.txt"
    truth.write_text("\n".join(f"{START / 1e9 + shift_s + n} 0 0 0 0 0 0 1" for n in (0.0, 0.1)))
    shown, status = read_to_its_end(tmp_path / "bag", SourceOptions(ground_truth=truth))
    assert [one.stamp_ns for one in shown] == STAMPS
    assert status.startswith(f"{truth} does not overlap the recording in time") and status.count("overlap") == 1


class Endless:
    """A recording whose samples come again and again, later and later, until it is released."""

    encoding, image_count, progress = "made up", 0, 0.0

    def __init__(self, samples):
        self.path, self.losses = Path("endless"), Losses()
        self._samples, self.released, self.is_read = in_order(samples), threading.Event(), threading.Event()

    def samples(self):
        shift_ns = 0
        while not self.released.is_set():
            for one in self._samples:
                moved = replace(one, stamp_ns=one.stamp_ns + shift_ns, receive_ns=one.receive_ns + shift_ns)
                if isinstance(one, EventChunk):
                    moved = replace(moved, events=replace(one.events, t=one.events.t + shift_ns // 1000))
                yield moved
            shift_ns += 1000 * MS
            self.is_read.set()


ENDLESS = {
    "events alone": [sample for sample in make_samples() if isinstance(sample, EventChunk)],
    "frames that are all left out": [sample for sample in make_samples() if not is_mask(sample)],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_recording_that_yields_nothing_can_be_closed(monkeypatch, tmp_path, kind):
    endless = Endless(ENDLESS[kind])
    monkeypatch.setattr(feeds, "open_input", lambda *_: (endless, {}))
    source = open_frames(tmp_path, SourceOptions())
    assert_it_closes(source, endless)


def assert_it_closes(source, endless):
    """Without anybody releasing the recording."""
    closing = threading.Thread(target=source.close, daemon=True)
    try:
        assert endless.is_read.wait(60) and not source.complete()
        closing.start()
        closing.join(30)
        assert not closing.is_alive() and source.complete() and source.span() == (0, 0)
    finally:
        endless.released.set()


def many_points():
    """An object with more points than are drawn."""
    points = np.random.default_rng(0).normal(size=(2 * scene.OBJECT_POINTS + 1, 3)).astype(np.float32)
    return Reconstruction(
        id=1,
        score=0.5,
        metric=True,
        occupancy=np.ones((OCCUPANCY_RESOLUTION,) * 3, bool),
        points=points,
        colors=np.zeros(points.shape, np.uint8),
        position=np.array([1.0, 2, 3]),
        quaternion=np.array([0, 0, np.sqrt(0.5), np.sqrt(0.5)]),
        size=np.ones(3),
    )


def test_all_points_are_exported_and_an_even_choice_of_them_is_drawn(tmp_path):
    import open3d

    found = many_points()
    item = feeds.shown(found)
    path = tmp_path / "objects.ply"
    path.write_bytes(objects_as_ply([item]))
    points = np.asarray(open3d.io.read_point_cloud(str(path)).points)
    np.testing.assert_allclose(points, found.points, atol=1e-5)
    drawn, colors = scene.drawn(item)
    assert len(drawn) == len(colors) == scene.OBJECT_POINTS
    np.testing.assert_array_equal(drawn[[0, -1]], item.points[[0, -1]])
    assert frames.ViewFrame(0, objects=(item,)).bytes == item.points.nbytes + item.colors.nbytes  # so the store knows
