"""A bag in, objects out: all nodes as processes, their answers against the offline replay of the same bag."""

import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_sam3d_ros.evaluation.replay import replay_frames
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import stamp_to_ns, xyz_from_message
from event_sam3d_ros.reconstructor import Reconstructor
from event_sam3d_ros.recordings.files import open_recording

BAG = Path(__file__).parents[2] / "data" / "demo_bag"
COMPARED = 5
PIPELINE = ("event_image_node", "reconstruction_node")


@pytest.fixture(scope="module")
def processes(peer, start):
    # No limit on the age and much time to pair: what is compared here is what comes out, not how fast.
    options = ("-p", "max_age_ms:=0.0", "-p", "pair_timeout_ms:=10000.0", "-p", "qos_depth:=100", "-p", "threads:=1")
    started = [start(PIPELINE[0], "-p", "use_sim_time:=true", "-p", "max_wait_ms:=10000.0", "-p", "buffer_ms:=11000.0")]
    started += [start(PIPELINE[1], "-p", "use_sim_time:=true", *options)]
    for name in PIPELINE:
        peer.wait_active(name)
    return started


def test_a_bag_gives_what_the_offline_replay_gives(peer, start, processes):
    answers = peer.collect(ReconstructedObjectArray, "/reconstruction_node/objects")
    player = start("bag_player_node", "-p", f"bag:={BAG}", "-p", "rate:=0.5", "-p", "loop:=true")
    peer.wait_for(lambda: len([a for a in answers if a.event_count]) >= COMPARED, 120)
    player.stop()
    found = {stamp_to_ns(answer.header.stamp): answer for answer in answers if answer.event_count}
    reconstructor = Reconstructor.from_pretrained("nano", device="cpu")
    compared = 0
    for frame in replay_frames(open_recording(BAG), reconstructor.info["min_events"]):
        if frame.stamp_ns not in found:
            continue
        answer = found[frame.stamp_ns]
        assert answer.event_count == frame.event_count
        expected = reconstructor(frame.observation)
        assert [one.id for one in answer.objects] == [one.id for one in expected]
        for one, known in zip(answer.objects, expected, strict=True):
            assert one.metric == known.metric
            assert one.score == pytest.approx(known.score, abs=1e-5)
            position, size = one.pose.position, one.size
            assert np.allclose((position.x, position.y, position.z), known.position, atol=1e-5)
            assert np.allclose((size.x, size.y, size.z), known.size, atol=1e-5)
            assert np.allclose(xyz_from_message(one.points), known.points, atol=1e-5)
        compared += 1
        if compared == COMPARED:
            break
    assert compared == COMPARED


def test_all_of_it_ends_when_asked(processes):
    assert [process.stop(signal.SIGINT) for process in processes] == [0, 0]
