"""event-sam3d doctor at a live topic, as a process: what it says, and its exit code."""

import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy

from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events

WIDTH, HEIGHT = 64, 48
TOPIC = "/doctors/events"
EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


def doctor(topic, seconds=1.5):
    command = [sys.executable, "-m", "event_sam3d_ros.cli", "doctor", topic, "--seconds", str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)


@pytest.fixture
def camera(peer):
    """Publishes packets of 10 ms from a thread; ``lossy`` skips every tenth number."""
    publisher = peer.node.create_publisher(EventPacket, TOPIC, EVENT_QOS)
    stop, options = threading.Event(), {"lossy": False, "events": 200}

    def run():
        generator, encoder = np.random.default_rng(0), make_encoder("evt3", WIDTH, HEIGHT)
        start_ns, before_us, number = time.time_ns(), 0, 0
        while not stop.wait(0.01):
            now_us = (time.time_ns() - start_ns) // 1000
            count = options["events"]
            times = np.sort(generator.integers(before_us, now_us, count))
            before_us = now_us
            x, y = generator.integers(0, (WIDTH, HEIGHT), (count, 2)).astype(np.uint16).T
            events = Events(times, x, y, generator.integers(0, 2, count).astype(np.uint8))
            number += 2 if options["lossy"] and number % 10 == 0 else 1
            payload = encoder.encode(events)[0]
            publisher.publish(
                encode_event_packet_cdr(
                    stamp_ns=start_ns + now_us * 1000,
                    frame_id="events",
                    width=WIDTH,
                    height=HEIGHT,
                    seq=number,
                    time_base=0,
                    encoding="evt3",
                    payload=payload,
                )
            )

    thread = threading.Thread(target=run)
    thread.start()
    yield options
    stop.set()
    thread.join()
    peer.node.destroy_publisher(publisher)


def test_a_healthy_camera(camera):
    done = doctor(TOPIC)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        f"{TOPIC} (event_camera_msgs/msg/EventPacket)\n  published by peer (best_effort, volatile)"
    )
    assert re.search(r"64x48, evt3", done.stdout) and done.stdout.endswith("  healthy\n")
    assert int(re.search(r"(\d+) packets in", done.stdout)[1]) > 30


def test_lost_packets_and_a_subscriber_that_hears_nothing(camera, peer):
    camera["lossy"] = True
    deaf = peer.node.create_subscription(EventPacket, TOPIC, lambda _: None, 10)
    try:
        done = doctor(TOPIC)
    finally:
        peer.node.destroy_subscription(deaf)
    assert done.returncode == 1
    assert "WRONG sequence_gap: " in done.stdout
    assert "WRONG qos_mismatch: peer gets nothing from peer: it asks for reliable" in done.stdout


def test_a_silent_camera(camera):
    camera["events"] = 0
    done = doctor(TOPIC)
    assert done.returncode == 1
    assert "WRONG silent_camera: " in done.stdout


def test_nobody_there(camera):
    done = doctor("/other/events")
    assert done.returncode == 1
    assert f"nobody publishes on /other/events, and there is no such file; events are on {TOPIC}" in done.stdout


def test_what_nodes_say_of_themselves(start):
    node = start("event_image_node", "-p", "watchdog_s:=0.5")
    done = doctor("/diagnostics", seconds=4.0)
    assert node.stop() == 0
    assert "event_image_node: pipeline\n" in done.stdout and "    state: active\n" in done.stdout
    assert re.search(r"WRONG warning: event_image_node: pipeline: no message on .*event_camera/events", done.stdout)
    assert done.returncode == 1


def test_a_topic_that_carries_something_else(peer):
    done = doctor("/diagnostics_of_nobody")
    assert done.returncode == 1 and "no_publisher" in done.stdout
    from std_msgs.msg import String

    publisher = peer.node.create_publisher(String, "/words", 10)
    try:
        done = doctor("/words")
    finally:
        peer.node.destroy_publisher(publisher)
    assert done.returncode == 1
    assert "WRONG not_events: the topic is of type std_msgs/msg/String" in done.stdout
