"""simulator_node: the synthetic world as live topics, for trying the pipeline without a camera.

What is published is what the drivers of an event camera, a camera, a segmenter and a depth camera would send at this
moment by the node's clock, and the truth: the sharp frames and the object's pose. The scene never ends. Where rendering
can't keep up the scene stands still until the next picture is there, for all sensors alike, and a warning says so.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from event_camera_msgs.msg import EventPacket
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from event_sam3d_ros.errors import EventSam3dError
from event_sam3d_ros.nodes.parameters import SIMULATOR_NODE
from event_sam3d_ros.nodes.pipeline_node import PipelineNode, run_node
from event_sam3d_ros.recordings.rosbag2_writer import SampleEncoder
from event_sam3d_ros.recordings.samples import Topics
from event_sam3d_ros.simulation import SHARP_TOPIC, TF_TOPIC, samples_of
from event_sam3d_ros.synthetic import world
from event_sam3d_ros.synthetic.options import WorldOptions

_REASONS = (
    "rendering_too_slow",
    "no_clock",
    "behind_camera",
    "empty_mask",
    "bad_mesh",
    "missing_file",
    "no_input",
    "not_watertight",
    "too_thin",
    "internal_error",
    "unknown_parameter",
    "bad_parameter",
)
_EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
_FRAMES_AHEAD = 4
_LEAD_NS = 100_000_000  # from the first frame's being ready to its begin
_WAIT_S = 0.05
_PERIOD_US = round(1e6 / world.FRAME_RATE_HZ)
_RENDER_TIMES_KEPT = 60


class SimulatorNode(PipelineNode):
    """One thread renders frames ahead, another sends their messages when they are due."""

    def __init__(self) -> None:
        super().__init__("simulator_node", SIMULATOR_NODE, _REASONS)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ready: queue.Queue[world.Frame | None] = queue.Queue(_FRAMES_AHEAD)
        self._render_ms: deque[float] = deque(maxlen=_RENDER_TIMES_KEPT)

    def configure(self) -> None:
        """The world and the publishers."""
        up = self.value("mesh_up")
        self._options = WorldOptions(
            motion=self.value("motion"),
            occluded=float(self.value("occluder")),
            meshes=self.value("mesh"),
            mesh_up="" if up == "auto" else up,
            cutoff_hz=self.value("cutoff_hz"),
        )
        self._object = self.value("seed") if self.value("object") < 0 else self.value("object")
        self._options.shape(self._object)  # an object that can't be made is a matter of this transition
        topics = Topics()
        kinds = {
            topics.image: Image,
            topics.camera_info: CameraInfo,
            topics.mask: Image,
            topics.depth: Image,
            SHARP_TOPIC: Image,
        }
        self._publisher_of: dict[str, Publisher] = {
            name: self.add_output(kind, name.removeprefix("/"), 5) for name, kind in kinds.items()
        }
        self._publisher_of[topics.events] = self.add_output(EventPacket, topics.events.removeprefix("/"), _EVENT_QOS)
        self._publisher_of[TF_TOPIC] = self.add_output(TFMessage, TF_TOPIC, 100)

    def activate(self) -> None:
        """Start the scene from its begin."""
        self._stop.clear()
        self._ready = queue.Queue(_FRAMES_AHEAD)
        self._threads = [threading.Thread(target=run) for run in (self._render, self._send)]
        for thread in self._threads:
            thread.start()

    def deactivate(self) -> None:
        """End the scene."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _render(self) -> None:
        """Frames into the queue as long as there is room; None where no more will come."""
        try:
            frames = world.sequence(
                self._object,
                self.value("seed"),
                np.inf,
                self.value("width"),
                self.value("height"),
                self.value("speed"),
                self.value("pixels_per_sub_frame"),
                self._options,
            )
            begin = time.monotonic()
            for frame in frames:
                self._render_ms.append(1e3 * (time.monotonic() - begin))
                if not self._hand_over(frame):
                    return
                begin = time.monotonic()
        except EventSam3dError as error:
            self.health.report(error.reason, f"{error}: the scene has ended")
        except Exception as error:  # whatever it was, the node lives on
            self.health.unexpected("rendering", error)
        self._hand_over(None)

    def _hand_over(self, frame: world.Frame | None) -> bool:
        """Whether the frame got into the queue before the end."""
        while not self._stop.is_set():
            try:
                self._ready.put(frame, timeout=_WAIT_S)
                return True
            except queue.Full:
                continue
        return False

    def _rendered(self) -> world.Frame | None:
        """The next frame; None at the end."""
        while not self._stop.is_set():
            try:
                return self._ready.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
        return None

    def _send(self) -> None:
        try:
            first = self._rendered()
            if first is None or not self._wait_until(1):  # with use_sim_time there is no time at first
                return
            offset_ns = self._now_ns() + _LEAD_NS - (first.stamp_us - _PERIOD_US // 2) * 1000
            encode = SampleEncoder()
            for sample in samples_of(self._in_time(first, offset_ns), offset_ns, with_truth_topics=True):
                if not self._wait_until(sample.receive_ns):
                    return
                for topic, _, _, cdr in encode(sample):
                    self._publisher_of[topic].publish(bytes(cdr))
                    self.health.tick(topic.removeprefix("/"))
        except Exception as error:  # whatever it was, the node lives on
            self.health.unexpected("sending", error)

    def _in_time(self, first: world.Frame, offset_ns: int) -> Iterator[world.Frame]:
        """The frames; where the next one will not be ready at the end of one, it is put off, with all behind it and the
        sensor's clock: so stamps stay true and no picture is sent later than its stamp says."""
        delay_us = 0
        for number in itertools.count():
            frame = self._rendered() if number else first
            if frame is None:
                return
            begin_us = frame.stamp_us - _PERIOD_US // 2 + delay_us
            next_ready_us = (self._now_ns() - offset_ns) // 1000 + round(self._render_ms[-1] * 1e3)
            late_us = next_ready_us - begin_us - _PERIOD_US
            if number and self._ready.empty() and late_us > 0:
                delay_us += late_us
                self.health.report(
                    "rendering_too_slow",
                    f"a frame of {_PERIOD_US / 1e3:.0f} ms takes {self._render_ms[-1]:.0f} ms to render: the scene "
                    f"stands still for {late_us / 1e3:.0f} ms. Smaller width and height, less speed or a larger "
                    "pixels_per_sub_frame make it faster",
                )
            events = replace(frame.events, t=frame.events.t + delay_us)
            yield replace(frame, stamp_us=frame.stamp_us + delay_us, events=events)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _wait_until(self, time_ns: int) -> bool:
        """Sleep until the node's clock says so; False if the scene was ended meanwhile."""
        while not self._stop.is_set():
            now_ns = self._now_ns()
            if now_ns >= time_ns:
                return True
            if not now_ns:
                self.health.report("no_clock", "use_sim_time is set, but nothing has come on /clock: the scene waits")
            self._stop.wait(min((time_ns - now_ns) / 1e9, _WAIT_S))
        return False

    def diagnostic_values(self) -> dict[str, str]:
        """How long rendering takes."""
        times = list(self._render_ms)
        return {"render_ms/median": f"{np.median(times):.0f}"} if times else {}


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run_node(SimulatorNode, args)
