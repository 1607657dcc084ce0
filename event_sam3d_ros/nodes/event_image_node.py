"""event_image_node: event packets and frame stamps in, one Tencode image per frame out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from event_sam3d_ros.camera.alignment import Alignment, AlignmentSettings
from event_sam3d_ros.camera.calibration import load_calibration, load_rectification
from event_sam3d_ros.camera.lens import rectified_pixels
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.warmup import warm_up as warm_up_camera
from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.filters import FilterSettings
from event_sam3d_ros.events.warmup import warm_up
from event_sam3d_ros.events.windows import EventWindow, EventWindows, WindowSettings
from event_sam3d_ros.msg import EventWindow as EventWindowMessage
from event_sam3d_ros.nodes.conversions import (
    depth_from_message,
    header_stamp_of_cdr,
    image_message,
    ns_to_stamp,
    stamp_to_ns,
)
from event_sam3d_ros.nodes.message_classes import message_class
from event_sam3d_ros.nodes.parameters import EVENT_IMAGE_NODE
from event_sam3d_ros.nodes.pipeline_node import NO_CLOCK, PipelineNode, run_node

_REASONS = (
    "truncated_message",
    "corrupt_message",
    "truncated_packet",
    "corrupt_packet",
    "unknown_encoding",
    "stream_changed",
    "backward_time",
    "time_jump",
    "stream_restarted",
    "clock_step",
    "sequence_gap",
    "late_packet",
    "duplicate_packet",
    "libcaer_cmp_stale_y",
    "libcaer_cmp_time_fold",
    "no_events_yet",
    "incomplete_window",
    "too_many_frames",
    "zero_stamp",
    "no_clock",
    "bad_geometry",
    "internal_error",
    "unknown_parameter",
    "bad_parameter",
    "bad_message",
    "missing_message_package",
    "bad_window",
    "bad_buffer",
    "bad_filter",
    "out_of_range_events",
    "no_calibration",
    "not_calibrated",
    "bad_calibration",
    "no_extrinsics",
    "no_camera_info",
    "no_transform",
    "bad_transform",
    "size_mismatch",
    "missing_depth",
    "bad_encoding",
    "bad_image",
)
# Every one of these begins with a Header, all that is needed of it. camera_info comes with every frame like the image,
# but is a thousand times smaller.
_FRAME_SOURCES = {
    "camera_info": ("camera/camera_info", CameraInfo),
    "image": ("camera/image_raw", Image),
    "compressed_image": ("camera/image_raw/compressed", CompressedImage),
}
_POLL_S = 0.05


class EventImageNode(PipelineNode):
    """Decodes events straight from the messages' bytes and publishes a Tencode image for each RGB frame."""

    def __init__(self) -> None:
        super().__init__("event_image_node", EVENT_IMAGE_NODE, _REASONS)
        self._windows: EventWindows | None = None
        self._alignment: Alignment | None = None
        self._filters = FilterSettings()

    def check_together(self, value: Callable[[str], Any]) -> None:
        """The buffer has to hold a window until the last of its events may come; a grid needs frames."""
        if value("alignment") != "none" and value("window_mode") != "frame":
            raise ConfigurationError(
                f"alignment is {value('alignment')}, but window_mode {value('window_mode')} knows no RGB frames: use "
                "window_mode frame or alignment none",
                reason="bad_parameter",
            )
        if value("alignment") != "none" and value("rectification_file"):
            raise ConfigurationError(
                f"alignment {value('alignment')} takes lens distortion into account: leave rectification_file empty",
                reason="bad_parameter",
            )
        replace(_filters(value), roi=None).make(1, 1)  # where it lies shows when the sensor's size is known
        by_exposure = value("window_alignment") == "exposure"
        if by_exposure and value("exposure_ms") == 0:
            raise ConfigurationError(
                "window_alignment is exposure, but exposure_ms is 0: say how long it is, or choose centre or end",
                reason="bad_parameter",
            )
        length = "exposure_ms" if by_exposure and value("window_mode") == "frame" else "window_ms"
        needed_ms = value(length) + value("max_wait_ms")
        if value("buffer_ms") < needed_ms:
            raise ConfigurationError(
                f"buffer_ms is {value('buffer_ms'):g}, less than {length} + max_wait_ms = {needed_ms:g}: the start of "
                "a window would be dropped before its end has come; raise buffer_ms or lower the others",
                reason="bad_parameter",
            )
        if value("window_mode") == "count" and value("window_events") > self._buffer(value).capacity:
            raise ConfigurationError(
                f"window_events is {value('window_events')}, more than buffer_max_events and buffer_max_mb let the "
                "buffer hold: raise them or lower window_events",
                reason="bad_parameter",
            )

    def configure(self) -> None:
        """Kernels, calibration and publishers."""
        warm_up()
        self._alignment = self._make_alignment()
        path = self.value("rectification_file")
        self._filters = _filters(self.value, rectified_pixels(*load_rectification(path)) if path else None)
        self._event_class = message_class(self.value("event_type"))
        self._image_publisher = self.add_output(Image, "~/event_image", 5)
        self._window_publisher = self.add_output(EventWindowMessage, "~/event_window", 5)

    def activate(self) -> None:
        """Subscribe to events and frames."""
        buffer = self._buffer(self.value)
        self._windows = EventWindows(
            self.value("event_type"), self._settings(), buffer, self.health.report, self._alignment, self._filters
        )
        self._counted = time.monotonic(), 0
        self.add_input(
            "events",
            self._event_class,
            "event_camera/events",
            self._on_events,
            reliability="best_effort",
            depth=1000,
            raw=True,
            drain=True,
        )
        if self.value("window_mode") == "frame":
            topic, frame_class = _FRAME_SOURCES[self.value("frame_source")]
            self.add_input("frames", frame_class, topic, self._on_frame, raw=True)
        if self._alignment is not None:
            self._subscribe_for(self._alignment)
        self._poll_timer = self.add_timer(_POLL_S, self._publish_ready)

    def _make_alignment(self) -> Alignment | None:
        """Raises CalibrationError for a file that can't be used."""
        if self.value("alignment") == "none":
            return None
        warm_up_camera()
        settings = AlignmentSettings(
            mode=self.value("alignment"),
            depth_of=self.value("depth_of"),
            depth_tolerance_ns=round(self.value("depth_tolerance_ms") * 1e6),
            fallback_depth_m=self.value("fallback_depth_m"),
        )
        path, names = self.value("calibration_file"), ("calibration_event_camera", "calibration_rgb_camera")
        return Alignment(settings, load_calibration(path, *map(self.value, names)) if path else None)

    def _subscribe_for(self, alignment: Alignment) -> None:
        """The topics that tell how the cameras stand to each other, and depth."""

        def on_event_camera(info: CameraInfo) -> None:
            alignment.set_camera("events", info.header.frame_id, CameraModel.from_camera_info(info))

        def on_rgb_camera(info: CameraInfo) -> None:
            camera = CameraModel.from_camera_info(info, already_rectified=self.value("rectified"))
            alignment.set_camera("rgb", info.header.frame_id, camera)

        def on_transforms(message: TFMessage) -> None:
            for one in message.transforms:
                shift, turn = one.transform.translation, one.transform.rotation
                quaternion = turn.x, turn.y, turn.z, turn.w
                alignment.add_transform(
                    one.header.frame_id, one.child_frame_id, (shift.x, shift.y, shift.z), quaternion
                )

        def on_depth(message: Image) -> None:
            alignment.add_depth(stamp_to_ns(message.header.stamp), depth_from_message(message))

        if not self.value("calibration_file"):
            self.add_input("event_camera_info", CameraInfo, "event_camera/camera_info", on_event_camera)
            self.add_input("rgb_camera_info", CameraInfo, "camera/camera_info", on_rgb_camera)
            latched = {"reliability": "reliable", "depth": 100, "latched": True, "needed": False}
            self.add_input("transforms", TFMessage, "/tf_static", on_transforms, **latched)
        if self.value("alignment") == "depth":
            topic = "camera/depth" if self.value("depth_of") == "rgb" else "event_camera/depth"
            self.add_input("depth", Image, topic, on_depth)

    def deactivate(self) -> None:
        """Stop and forget the events."""
        if self._windows is not None:
            self.destroy_timer(self._poll_timer)
            self._windows = None

    def parameters_changed(self) -> None:
        """Windows may change while running."""
        if self._windows is not None:
            self._windows.settings = self._settings()

    def _buffer(self, value: Callable[[str], Any]) -> EventBuffer:
        limit_us, limit_bytes = int(value("buffer_ms") * 1000), int(value("buffer_max_mb") * 1e6)
        return EventBuffer(limit_us, value("buffer_max_events"), limit_bytes)

    def _settings(self) -> WindowSettings:
        return WindowSettings(
            mode=self.value("window_mode"),
            length_ns=round(self.value("window_ms") * 1e6),
            events=self.value("window_events"),
            alignment=self.value("window_alignment"),
            frame_clock=self.value("frame_clock"),
            exposure_ns=round(self.value("exposure_ms") * 1e6),
            exposure_offset_ns=round(self.value("exposure_offset_ms") * 1e6),
            max_wait_s=self.value("max_wait_ms") / 1e3,
            representation=self.value("representation"),
        )

    def _on_events(self, cdr: bytes) -> None:
        assert self._windows is not None
        self._windows.add_packet(cdr)
        self._publish_ready()

    def _on_frame(self, cdr: bytes) -> None:
        assert self._windows is not None
        self._windows.add_frame(*header_stamp_of_cdr(cdr), time.monotonic())
        self._publish_ready()

    def _publish_ready(self) -> None:
        assert self._windows is not None
        for window in self._windows.ready(time.monotonic()):
            self._publish(window)

    def _publish(self, window: EventWindow) -> None:
        header = Header(stamp=ns_to_stamp(window.stamp_ns), frame_id=window.frame_id)
        message = EventWindowMessage(header=header, event_count=window.event_count)
        message.window_start, message.window_end = ns_to_stamp(window.start_ns), ns_to_stamp(window.end_ns)
        self._window_publisher.publish(message)
        self._image_publisher.publish(image_message(window.image, "rgb8", header))
        self.health.tick("event_image")
        age_ms = self.age_ms(window.ros_ns)
        if age_ms is None:
            self.health.report("no_clock", NO_CLOCK)
        else:
            self.health.latency(age_ms)

    def diagnostic_values(self) -> dict[str, str]:
        """Rate of events since the last call; the stream's buffer, clock and counters."""
        if self._windows is None:
            return {}
        stream = self._windows.stream
        (before_s, before), self._counted = self._counted, (time.monotonic(), stream.events)
        rate = (stream.events - before) / max(self._counted[0] - before_s, 1e-3)
        counters = self._alignment.counters if self._alignment else {}
        return (
            {"events/per_second": f"{rate:.0f}"}
            | stream.values
            | {f"alignment/{name}": str(count) for name, count in counters.items()}
        )


def _filters(value: Callable[[str], Any], rectified: NDArray[np.floating] | None = None) -> FilterSettings:
    """Raises ConfigurationError for half a region of interest."""
    x, y, width, height = (value(f"roi_{name}") for name in ("x", "y", "width", "height"))
    if (width == 0) != (height == 0):
        raise ConfigurationError(
            f"the region of interest is {width}x{height} pixels: give both roi_width and roi_height, or neither",
            reason="bad_parameter",
        )
    return FilterSettings(
        roi=(x, y, width, height) if width else None,
        polarity=value("polarity"),
        hot_pixels=value("hot_pixels"),
        background_ms=value("background_ms"),
        rectified=rectified,
        max_event_rate=value("max_event_rate"),
    )


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run_node(EventImageNode, args)
