"""A long run: does the event front end keep its speed and its memory?

    python scripts/soak_events.py                     # 12 billion events through the node's core, as fast as it goes
    python scripts/soak_events.py --events 100000000  # shorter
    python scripts/soak_events.py --live 60           # then so many seconds at --rate over DDS into event_image_node

The core part decodes EVT3 packets of 1280x720, keeps as many as the default buffer holds, follows the clock and makes
an event image for each of 30 frames per second of the stream. Its packets are the same simulated events again and
again, whose times (the high parts in their words, and the stamps) are moved on; making them is not counted.
The live part starts the installed node as a process, publishes the same packets as fast as --rate says, and reads the
node's diagnostics and its memory, after ten seconds in which buffer and queues fill.

Prints a line every few seconds and the result as JSON. Exit code 1 if resident memory grew by 5 % or more between the
first tenth of the run and its end, or the buffer held more than its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.warmup import warm_up
from event_sam3d_ros.events.windows import EventWindows, WindowSettings

WIDTH, HEIGHT = 1280, 720
START_NS = 1_700_000_000_000_000_000
ROUND_US = 1 << 17  # a whole number of TIME_HIGH units, so that a round is moved by changing those words alone
PACKET_US = 1 << 12
FRAME_US = 33_333
_TIME_HIGH = 0x8
_REPORT_S = 5.0
_FILL_S = 10.0


class Camera:
    """Packets without end: the events of one round, again and again, at ever later times."""

    def __init__(self, rate: float, start_ns: int) -> None:
        self._start_ns = start_ns
        generator = np.random.default_rng(0)
        encoder = make_encoder("evt3", WIDTH, HEIGHT)
        self._words: list[tuple[np.ndarray, np.ndarray, int]] = []
        for begin in range(0, ROUND_US, PACKET_US):
            count = int(rate * PACKET_US / 1e6) // 8
            # Edges: rows of eight neighbours at one time, which EVT3 packs into vectors.
            t = np.repeat(np.sort(generator.integers(begin, begin + PACKET_US, count)), 8)
            x = np.repeat(generator.integers(0, WIDTH - 8, count), 8) + np.tile(np.arange(8), count)
            y, p = np.repeat(generator.integers(0, HEIGHT, count), 8), np.repeat(generator.integers(0, 2, count), 8)
            events = Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8))
            words = np.frombuffer(encoder.encode(events)[0], np.uint16).copy()
            self._words.append((words, np.flatnonzero(words >> 12 == _TIME_HIGH), len(events)))
        self._number = self._round = 0

    @property
    def now_us(self) -> int:
        """Sensor time at the end of the newest packet."""
        return self._number * PACKET_US

    def packet(self) -> tuple[bytes, int, int]:
        """The next message, its number of events, and sensor time at its end in us."""
        place = self._number % len(self._words)
        words, high, count = self._words[place]
        begin_us = self._number * PACKET_US
        if place == 0 and self._number:
            self._round += 1
        moved = words.copy()
        moved[high] = _TIME_HIGH << 12 | (words[high] + self._round * (ROUND_US >> 12) % 0x1000) & 0xFFF
        cdr = encode_event_packet_cdr(
            stamp_ns=self._start_ns + begin_us * 1000,
            frame_id="soak",
            width=WIDTH,
            height=HEIGHT,
            seq=self._number,
            time_base=0,
            encoding="evt3",
            payload=moved.view(np.uint8),
        )
        self._number += 1
        return cdr, count, begin_us + PACKET_US


def resident_bytes(process: int | str = "self") -> int:
    """Memory that a process has now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def growth(samples: list[tuple[float, int]]) -> float:
    """How much larger the end's memory is than the largest within the first tenth; samples of (progress, bytes)."""
    begin = max(size for progress, size in samples if progress <= max(0.1, samples[0][0]))
    return samples[-1][1] / begin - 1


def soak_core(total: int, rate: float) -> dict[str, Any]:
    """``total`` events through EventWindows, as fast as it goes."""
    warm_up()
    reports: Counter[str] = Counter()
    buffer = EventBuffer()
    windows = EventWindows(
        "event_camera_msgs/msg/EventPacket", WindowSettings(), buffer, lambda reason, _: reports.update([reason])
    )
    camera = Camera(rate, START_NS)
    done = images = fullest = 0
    busy_s, next_frame_us, reported = 0.0, 100_000, time.monotonic()
    samples: list[tuple[float, int]] = []
    while done < total:
        cdr, count, end_us = camera.packet()
        start = time.thread_time()
        windows.add_packet(cdr)
        while next_frame_us <= end_us:
            windows.add_frame(START_NS + next_frame_us * 1000, "camera", end_us / 1e6)
            next_frame_us += FRAME_US
        images += len(windows.ready(end_us / 1e6))
        busy_s += time.thread_time() - start
        done += count
        fullest = max(fullest, len(buffer))
        if time.monotonic() - reported > _REPORT_S or done >= total:
            reported = time.monotonic()
            # The buffer has to be full before its memory can be compared.
            if done > 2 * buffer.capacity or done >= total:
                samples.append((done / total, resident_bytes()))
            print(f"{done / 1e9:.3f} billion events, {resident_bytes() / 1e6:.0f} MB", flush=True)
    return {
        "events": done,
        "images": images,
        "million_per_s": round(done / busy_s / 1e6, 1),
        "resident_mb": round(samples[-1][1] / 1e6, 1),
        "growth": round(growth(samples), 4),
        "buffer_capacity": buffer.capacity,
        "buffer_fullest": fullest,
        "drift_ppm": windows.stream.clock.drift_ppm,
        "reports": dict(reports),
    }


def soak_live(seconds: float, rate: float) -> dict[str, Any]:
    """The node as a process, packets over DDS for ``seconds``."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from event_camera_msgs.msg import EventPacket
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    from event_sam3d_ros.demo.processes import free_domain_id

    os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())
    # As the launch files do: with its default segment of shared memory Fast DDS loses packets of this size.
    profile = Path(__file__).parents[1] / "config" / "fastdds_profile.xml"
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
    process = start_node("event_image_node", "-p", "window_mode:=continuous", "-p", "window_ms:=33.333")
    rclpy.init()
    try:
        peer = rclpy.create_node("soak")
        values: dict[str, str] = {}

        def take(message: Any) -> None:
            for status in message.status:
                if status.name.startswith("event_image_node"):
                    values.update({item.key: item.value for item in status.values})

        peer.create_subscription(DiagnosticArray, "/diagnostics", take, 10)
        qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
        publisher = peer.create_publisher(EventPacket, "/event_camera/events", qos)
        wait(lambda: values.get("state") == "active" and publisher.get_subscription_count() > 0, peer, 60)
        samples: list[tuple[float, int]] = []
        camera = Camera(rate, time.time_ns())
        publish(publisher, peer, camera, _FILL_S, lambda share: None)
        used_s = processor_seconds(process.pid)
        sent, behind_s = publish(
            publisher, peer, camera, seconds, lambda share: samples.append((share, resident_bytes(process.pid)))
        )
        used_s = processor_seconds(process.pid) - used_s
        wait(lambda: False, peer, 2.0)
        return {
            "seconds": seconds,
            "node_cores": round(used_s / seconds, 3),
            "packets_sent": sent,
            "publisher_behind_s": round(behind_s, 2),
            "resident_mb": round(samples[-1][1] / 1e6, 1),
            "growth": round(growth(samples), 4),
            "diagnostics": {key: value for key, value in sorted(values.items()) if value not in ("0", "0.0")},
        }
    finally:
        rclpy.shutdown()
        process.send_signal(signal.SIGINT)
        process.wait(20)


def start_node(name: str, *arguments: str) -> Any:
    """The installed executable as a process."""
    import subprocess

    prefixes = map(Path, os.environ["AMENT_PREFIX_PATH"].split(os.pathsep))
    program = next(
        prefix / "lib/event_sam3d_ros" / name for prefix in prefixes if (prefix / "lib/event_sam3d_ros").exists()
    )
    return subprocess.Popen([program, "--ros-args", *arguments], stdin=subprocess.DEVNULL)


def publish(
    publisher: Any, peer: Any, camera: Camera, seconds: float, watch: Callable[[float], None]
) -> tuple[int, float]:
    """Send packets when their time has come; how many, and how far behind the last was."""
    import rclpy

    start, sent, watched, begin_us = time.monotonic(), 0, 0.0, camera.now_us
    while True:
        cdr, _, end_us = camera.packet()
        due = start + (end_us - begin_us) / 1e6
        if due > start + seconds:
            return sent, max(0.0, time.monotonic() - due)
        while time.monotonic() < due:
            rclpy.spin_once(peer, timeout_sec=max(0.0, min(0.001, due - time.monotonic())))
        publisher.publish(cdr)
        sent += 1
        if time.monotonic() - watched > 1.0:
            watched = time.monotonic()
            watch((watched - start) / seconds)


def wait(condition: Callable[[], bool], peer: Any, seconds: float) -> None:
    """Spin until a condition holds, at most so long."""
    import rclpy

    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        rclpy.spin_once(peer, timeout_sec=0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description="Long run of the event front end.")
    parser.add_argument("--events", type=float, default=12e9, help="events through the core (%(default)g); 0 for none")
    parser.add_argument("--live", type=float, default=0.0, help="seconds over DDS into the node (%(default)g)")
    parser.add_argument("--rate", type=float, default=20e6, help="events per second of the stream (%(default)g)")
    options = parser.parse_args()
    results = {}
    if options.events:
        results["core"] = soak_core(int(options.events), options.rate)
    if options.live:
        results["live"] = soak_live(options.live, options.rate)
    print(json.dumps(results, indent=1))
    too_large = any(result["growth"] >= 0.05 for result in results.values())
    over = "core" in results and results["core"]["buffer_fullest"] > results["core"]["buffer_capacity"]
    return int(too_large or over)


if __name__ == "__main__":
    sys.exit(main())
