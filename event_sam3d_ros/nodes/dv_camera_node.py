"""dv_camera_node: an iniVation camera, an AEDAT4 file or a dv network stream as ROS topics.

All stamps are the camera's own time (dv-processing sets it to the host's when it opens a camera), those of packets,
images and IMU alike: an EventPacket's is the time of its first event.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from event_camera_msgs.msg import EventPacket
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, Imu
from std_msgs.msg import Header

from event_sam3d_ros.camera.calibration import load_camera_info
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.codecs import encode_event_packet_cdr
from event_sam3d_ros.nodes.conversions import image_message, ns_to_stamp
from event_sam3d_ros.nodes.parameters import DV_CAMERA_NODE
from event_sam3d_ros.nodes.pipeline_node import PipelineNode, run_node

_REASONS = (
    "missing_package",
    "no_camera",
    "no_recording",
    "bad_recording",
    "no_connection",
    "no_events",
    "stream_ended",
    "end_of_recording",
    "source_failed",
    "source_hangs",
    "unsorted_events",
    "out_of_range_events",
    "bad_events",
    "bad_window",
    "no_calibration",
    "not_calibrated",
    "bad_calibration",
    "internal_error",
    "unknown_parameter",
    "bad_parameter",
)
# After these there is nothing to try again.
_FINAL = ("missing_package", "no_recording", "bad_recording", "end_of_recording", "no_events")
_RETRY_S = 2.0
_WATCH_S = 0.5
# The reader says several times a second that it is alive; to import its libraries and to open a source takes longer.
_HANGS_AFTER_S = 10.0
_OPENS_WITHIN_S = 60.0
_CAMERA_INFO_NS = 100_000_000
_EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


class DvCameraNode(PipelineNode):
    """Publishes what its reader process (dv_reader.py) hands over, and starts it anew where that can help."""

    def __init__(self) -> None:
        super().__init__("dv_camera_node", DV_CAMERA_NODE, _REASONS)
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._camera: CameraModel | None = None
        self._stop = threading.Event()
        self._source = "closed"
        self._heard_s, self._is_open = 0.0, False
        self._seq = 0

    # Lifecycle

    def configure(self) -> None:
        """Calibration and publishers."""
        if self.value("source") == "file" and not self.value("file"):
            raise ConfigurationError("parameter file is empty: give the path of an AEDAT4 file", reason="bad_parameter")
        if self.value("source") == "network" and not self._ports():
            raise ConfigurationError(
                "events_port, frames_port and imu_port are all 0: give one at least", reason="bad_parameter"
            )
        path = self.value("camera_info_file")
        self._camera = load_camera_info(path) if path else None
        self._events = self.add_output(EventPacket, "event_camera/events", _EVENT_QOS)
        self._images = self.add_output(Image, "event_camera/image_raw", 5)
        self._infos = self.add_output(CameraInfo, "event_camera/camera_info", 5)
        self._imu = self.add_output(Imu, "event_camera/imu", 100)

    def activate(self) -> None:
        """Start to read."""
        self._stop.clear()
        self._watch_timer = self.add_timer(_WATCH_S, self._watch)
        self._thread = threading.Thread(target=self._run, name="reader")
        self._thread.start()

    def deactivate(self) -> None:
        """End the reader."""
        if self._thread is None:
            return
        self._stop.set()
        self._end_process()
        self._thread.join()
        self._thread = None
        self.destroy_timer(self._watch_timer)
        self._source = "closed"

    def _ports(self) -> list[int]:
        ports = (self.value(f"{name}_port") for name in ("events", "frames", "imu"))
        return [port for port in ports if port]

    def _command(self) -> list[str]:
        names = ("source", "camera", "file", "rate", "loop", "restamp", "address")
        settings = {name: self.value(name) for name in names} | {"ports": self._ports()}
        return [sys.executable, "-m", "event_sam3d_ros.nodes.dv_reader", json.dumps(settings)]

    # The reader process

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                again = self._read_once()
            except Exception as error:  # whatever it was, the node lives on
                self.health.unexpected("reader", error)
                again = True
            finally:
                self._end_process()
            if not again:
                return
            self._stop.wait(_RETRY_S)

    def _read_once(self) -> bool:
        """Publish all that one reader process gives; whether it makes sense to start another."""
        self._heard_s, self._is_open = time.monotonic(), False
        process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the node
        )
        self._process = process
        assert process.stdout is not None
        if self._stop.is_set():
            return False
        # A process that ends in the middle of a record leaves a line, or a payload, that is not whole.
        while (line := process.stdout.readline()).endswith(b"\n"):
            record = json.loads(line)
            payload = process.stdout.read(record["size"])
            self._heard_s = time.monotonic()
            if record["kind"] == "end":
                self._source = record["sentence"]
                self.health.report(record["reason"], record["sentence"])
                return record["reason"] not in _FINAL
            if len(payload) == record["size"]:
                self._handle(record, payload)
        if not self._stop.is_set() and not self._hangs():
            self._source = "the process that reads the source ended without a word"
            self.health.report("source_failed", f"{self._source} (exit code {process.wait()}): it is started again")
        # A file that stopped a reader would stop the next one at the same place.
        return self.value("source") != "file"

    def _hangs(self) -> bool:
        limit_s = _HANGS_AFTER_S if self._is_open else _OPENS_WITHIN_S
        return time.monotonic() - self._heard_s > limit_s

    def _watch(self) -> None:
        """End a reader that has not been heard of for too long."""
        if self._process is None or not self._hangs():
            return
        what = "dv-processing hangs: a damaged file, a camera that was unplugged or a sender that is no dv"
        self._source = what
        self.health.report("source_hangs", f"{what}; its process was ended")
        self._end_process()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    # Records to messages

    def _handle(self, record: dict[str, Any], payload: bytes) -> None:
        kind = record["kind"]
        if kind == "source":
            self._opened(record)
        elif kind == "events":
            self._publish_events(record, payload)
        elif kind == "frame":
            self._publish_frame(record, payload)
        elif kind == "imu":
            self._publish_imu(payload)
        elif kind == "problem":
            self.health.report(record["reason"], record["sentence"])

    def _opened(self, record: dict[str, Any]) -> None:
        self._is_open = True
        self._size, self._has_frames = (record["width"], record["height"]), record["frames"]
        self._source = f"{record['name']} {record['width']}x{record['height']}"
        self.get_logger().info(f"reading {self._source}")
        self._info_ns = 0
        self._calibrated = self._camera
        if self._camera is not None and (self._camera.width, self._camera.height) != self._size:
            self.health.report(
                "bad_calibration",
                f"camera_info_file is for {self._camera.width}x{self._camera.height} pixels, the source has "
                f"{record['width']}x{record['height']}: CameraInfo says that it is not calibrated",
            )
            self._calibrated = None

    def _header(self, stamp_ns: int) -> Header:
        return Header(stamp=ns_to_stamp(stamp_ns), frame_id=self.value("frame_id"))

    def _publish_events(self, record: dict[str, Any], payload: bytes) -> None:
        width, height = self._size
        stamp_ns = record["t_us"] * 1000
        message = encode_event_packet_cdr(
            stamp_ns=stamp_ns,
            frame_id=self.value("frame_id"),
            width=width,
            height=height,
            seq=self._seq,
            time_base=record["time_base"],
            encoding="libcaer",
            payload=payload,
        )
        self._events.publish(message)
        self._seq += 1
        self.health.tick("events")
        if not self._has_frames and not 0 <= stamp_ns - self._info_ns < _CAMERA_INFO_NS:
            self._publish_info(stamp_ns)

    def _publish_frame(self, record: dict[str, Any], payload: bytes) -> None:
        stamp_ns = record["t_us"] * 1000
        shape = record["height"], record["width"], record["channels"]
        pixels = np.frombuffer(payload, np.uint8).reshape(shape)
        if record["channels"] == 1:
            message = image_message(pixels[..., 0], "mono8", self._header(stamp_ns))
        else:
            message = image_message(pixels, "bgr8", self._header(stamp_ns))
        self._images.publish(message)
        self._publish_info(stamp_ns)
        self.health.tick("frames")

    def _publish_info(self, stamp_ns: int) -> None:
        width, height = self._size
        info = CameraInfo(header=self._header(stamp_ns), width=width, height=height)
        if self._calibrated is not None:
            K = self._calibrated.K
            info.distortion_model = self._calibrated.model
            info.k, info.d = K.ravel(), self._calibrated.D.tolist()
            info.r, info.p = np.eye(3).ravel(), np.hstack([K, np.zeros((3, 1))]).ravel()
        self._infos.publish(info)
        self._info_ns = stamp_ns

    def _publish_imu(self, payload: bytes) -> None:
        for row in np.frombuffer(payload).reshape(-1, 7):
            header = Header(stamp=ns_to_stamp(int(row[0]) * 1000), frame_id=f"{self.value('frame_id')}_imu")
            message = Imu(header=header)
            message.orientation_covariance[0] = -1.0  # sensor_msgs/Imu: there is no orientation
            acceleration, rotation = message.linear_acceleration, message.angular_velocity
            acceleration.x, acceleration.y, acceleration.z = row[1:4].tolist()
            rotation.x, rotation.y, rotation.z = row[4:7].tolist()
            self._imu.publish(message)
        self.health.tick("imu_batches")

    def diagnostic_values(self) -> dict[str, str]:
        """What is being read, or why nothing is."""
        return {"source": self._source}


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run_node(DvCameraNode, args)
