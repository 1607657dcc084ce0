"""Replay is the live path without ROS: it survives what the nodes survive, and keeps what they keep."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from recordings_made import COUNT, HEIGHT, MS, PERIOD, START, WIDTH, K, in_order, make_samples

from event_sam3d_ros.evaluation.replay import DEPTH_TOLERANCE_NS, ReplayedFrame, replay_frames
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.windows import WindowSettings
from event_sam3d_ros.recordings.bag_messages import POINTS_TYPE, decode_frame
from event_sam3d_ros.recordings.bag_outputs import MESSAGES, header, output_typestore
from event_sam3d_ros.recordings.files import (
    Calibration,
    Frame,
    Rosbag2Recording,
    Sample,
    Topics,
    open_rosbag2,
    write_rosbag2,
)


def played(
    path: Path, samples: list[Sample], patch: Callable[[int, Any], Iterator[Any]] | None = None
) -> tuple[list[ReplayedFrame], Counter[str]]:
    """Frames and counted reports of a bag with these samples; ``patch`` may change its raw messages."""
    write_rosbag2(path, in_order(samples))
    recording = open_rosbag2(path)
    if patch is not None:

        class Patched(Rosbag2Recording):
            def raw_messages(self) -> Iterator[Any]:
                for number, message in enumerate(super().raw_messages()):
                    yield from patch(number, message)

        recording = Patched(path)
    reports: Counter[str] = Counter()
    frames = list(replay_frames(recording, 10, lambda reason, sentence: reports.update([reason])))
    return frames, reports


def test_a_sound_recording_gives_all_frames_without_a_report(tmp_path: Path) -> None:
    frames, reports = played(tmp_path / "bag", make_samples())
    assert [frame.stamp_ns for frame in frames] == [START + number * PERIOD for number in range(COUNT)]
    assert all(frame.observation is not None and frame.observation.event_image is not None for frame in frames)
    assert not reports


def test_depth_that_comes_later_than_the_mask_is_used(tmp_path: Path) -> None:
    samples = [
        replace(sample, receive_ns=sample.receive_ns + 60 * MS)
        if isinstance(sample, Frame) and sample.role == "depth"
        else sample
        for sample in make_samples()
    ]
    frames, _ = played(tmp_path / "bag", samples)
    for number, frame in enumerate(frames):
        assert frame.observation is not None and frame.observation.depth is not None
        np.testing.assert_allclose(frame.observation.depth, 0.5 + number / 1000, atol=1e-6)


def cut_event_packet(number: int, message: Any) -> Iterator[Any]:
    yield replace(message, cdr=message.cdr[:40]) if number == 5 and message.topic == Topics.events else message


def test_a_packet_that_is_cut_off_is_counted(tmp_path: Path) -> None:
    frames, reports = played(tmp_path / "bag", make_samples(), cut_event_packet)
    assert len(frames) == COUNT
    assert reports == {"truncated_message": 1}  # it came, so nothing is lost


def test_time_may_start_over(tmp_path: Path) -> None:
    write_rosbag2(tmp_path / "again", in_order(make_samples(START - 3600_000 * MS)))
    again = list(open_rosbag2(tmp_path / "again").raw_messages())

    def earlier_at_the_end(number: int, message: Any) -> Iterator[Any]:
        yield message
        if number == len(again) - 1:
            yield from (replace(one, receive_ns=one.receive_ns + 3601_000 * MS) for one in again)

    frames, reports = played(tmp_path / "bag", make_samples(), earlier_at_the_end)
    assert len(frames) == 2 * COUNT
    assert all(frame.observation is not None for frame in frames)
    assert reports["backward_time"] == 2  # of the events and of the pairing: two nodes live


def test_a_mask_of_another_size_costs_its_frame_alone(tmp_path: Path) -> None:
    samples = make_samples()
    place = next(i for i, s in enumerate(samples) if isinstance(s, Frame) and s.role == "mask")
    mask = samples[place]
    assert isinstance(mask, Frame)
    samples[place] = replace(mask, data=np.ones((HEIGHT, WIDTH + 2), np.uint8))
    frames, reports = played(tmp_path / "bag", samples)
    assert [frame.observation is None for frame in frames] == [True] + [False] * (COUNT - 1)
    assert reports == {"size_mismatch": 1}


def test_sixteen_bit_frames_keep_their_upper_bits(tmp_path: Path) -> None:
    """Frames are written in 8 bits only, so the mono16 ones come on the topic of the masks."""
    samples = [
        replace(sample, role="mask", data=np.full((HEIGHT, WIDTH), 0x1234, np.uint16))
        if isinstance(sample, Frame) and sample.role == "image"
        else sample
        for sample in make_samples()
        if not (isinstance(sample, Frame) and sample.role == "mask")
    ]
    write_rosbag2(tmp_path / "bag", in_order(samples))
    recording = open_rosbag2(tmp_path / "bag")
    recording.topics = Topics(image=Topics.mask, mask="/none")
    frames = list(replay_frames(recording, 10, lambda reason, sentence: None))
    assert len(frames) == COUNT and (frames[0].image == 0x12).all()


def test_binning_and_region_of_interest_count(tmp_path: Path) -> None:
    samples = [
        replace(sample, width=4 * WIDTH, height=4 * HEIGHT, binning=(2, 2), roi=(10, 6, 2 * WIDTH, 2 * HEIGHT))
        if isinstance(sample, Calibration)
        else sample
        for sample in make_samples()
    ]
    frames, reports = played(tmp_path / "bag", samples)
    assert not reports
    observation = frames[0].observation
    assert observation is not None
    assert observation.K[0].tolist() == [15.0, 0.0, (12 - 10 + 0.5) / 2 - 0.5]


def test_the_limits_are_the_nodes_defaults() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
    from event_sam3d_ros.nodes.parameters import EVENT_IMAGE_NODE, RECONSTRUCTION_NODE

    events = {name: parameter.default for name, parameter in EVENT_IMAGE_NODE.by_name.items()}
    buffer = {name: p.default for name, p in inspect.signature(EventBuffer).parameters.items()}
    assert buffer == {
        "max_duration_us": events["buffer_ms"] * 1000,
        "max_events": events["buffer_max_events"],
        "max_bytes": events["buffer_max_mb"] * 1_000_000,
    }
    settings = WindowSettings()
    assert settings.length_ns == events["window_ms"] * MS
    assert settings.max_wait_s == events["max_wait_ms"] / 1e3
    assert settings.exposure_offset_ns == events["exposure_offset_ms"] * MS
    assert (settings.mode, settings.frame_clock) == (events["window_mode"], events["frame_clock"])
    assert (settings.alignment, settings.events) == (events["window_alignment"], events["window_events"])
    assert settings.exposure_ns == events["exposure_ms"] * MS
    assert DEPTH_TOLERANCE_NS == RECONSTRUCTION_NODE.by_name["depth_tolerance_ms"].default * MS


def test_any_recording_gives_what_its_bag_gives(tmp_path: Path) -> None:
    class Folder:
        path, start_ns, end_ns, image_count = tmp_path, START, START, COUNT

        def samples(self) -> Iterator[Sample]:
            yield from in_order(make_samples())

    expected, _ = played(tmp_path / "bag", make_samples())
    for frame, other in zip(replay_frames(Folder(), 10), expected, strict=True):
        assert frame.observation is not None and other.observation is not None
        assert (frame.stamp_ns, frame.event_count) == (other.stamp_ns, other.event_count)
        np.testing.assert_array_equal(frame.event_image, other.event_image)
        np.testing.assert_array_equal(frame.observation.depth, other.observation.depth)


@pytest.mark.parametrize("frame_id, is_used", [("o", True), ("elsewhere", False)])
def test_depth_may_be_a_point_cloud_in_the_camera_s_frame(tmp_path: Path, frame_id: str, is_used: bool) -> None:
    rays = np.stack([*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), np.ones((HEIGHT, WIDTH))], axis=-1)
    points = (rays.reshape(-1, 3) @ np.linalg.inv(K).T * 0.7).astype(np.float32)

    def as_points(number: int, message: Any) -> Iterator[Any]:
        if message.topic == Topics.depth:
            stamp = decode_frame(message, "depth").stamp_ns
            cloud = MESSAGES.points_message(points, np.zeros((len(points), 3), np.uint8), header(stamp, frame_id))
            cdr = bytes(output_typestore().serialize_cdr(cloud, POINTS_TYPE))
            message = replace(message, type=POINTS_TYPE, cdr=cdr)
        yield message

    frames, reports = played(tmp_path / "bag", make_samples(), as_points)
    for frame in frames:
        assert frame.observation is not None
        depth = frame.observation.depth
        assert (depth is not None) == is_used
        if depth is not None:
            np.testing.assert_allclose(depth, 0.7, atol=1e-5)
    assert reports == ({} if is_used else {"frame_mismatch": COUNT})
