"""An MCAP with a recording's own messages and what models made of them, under the names that the nodes use.

It opens in Foxglove and replays in RViz with the configuration for replay. With several models or modes the first model
in mode fused (or in the first mode) has the nodes' names and /tf, the others the same names behind /MODEL/MODE.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from event_sam3d_ros.errors import RecordingWarning
from event_sam3d_ros.evaluation.replay import ReplayedFrame
from event_sam3d_ros.nodes import debug_image
from event_sam3d_ros.recordings.bag_messages import RawMessage
from event_sam3d_ros.recordings.bag_outputs import (
    MESSAGES,
    OBJECTS_TYPE,
    TYPES,
    WINDOW_TYPE,
    header,
    output_typestore,
    time,
)
from event_sam3d_ros.recordings.rosbag2_writer import add_topic, open_writer
from event_sam3d_ros.tracking import TrackedFrame

_IMAGE, _POINTS = "sensor_msgs/msg/Image", "sensor_msgs/msg/PointCloud2"
_MARKERS, _TRANSFORMS = "visualization_msgs/msg/MarkerArray", "tf2_msgs/msg/TFMessage"
_OURS = ("/event_image_node/", "/reconstruction_node/")  # of an earlier run: replaced


class McapOutputs:
    """Writes the folder, a rosbag2; an earlier one goes. ``models``: names for the messages by the labels of a run."""

    def __init__(self, folder: Path, models: Mapping[str, str], modes: Sequence[str]) -> None:
        self._folder, self._models = folder, models
        self._main = next(iter(models)), "fused" if "fused" in modes else modes[0]
        self._connections: dict[str, Any] = {}
        self._left_out: set[str] = set()
        self._now_ns = 0

    def __enter__(self) -> McapOutputs:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._writer = open_writer(self._folder)
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def input(self, message: RawMessage) -> None:
        """A message of the recording as it is; one whose type is not known here is left out, with a warning."""
        self._now_ns = max(self._now_ns, message.receive_ns)
        if message.type not in output_typestore().types:
            if message.topic not in self._left_out:
                self._left_out.add(message.topic)
                sentence = f"{message.topic} ({message.type}) is not in the MCAP: its definition is not known here"
                warnings.warn(RecordingWarning(sentence), stacklevel=2)
        elif not message.topic.startswith(_OURS):
            self._write_raw(message.topic, message.type, message.cdr)

    def results(
        self, frame: ReplayedFrame, found: Mapping[tuple[str, str], TrackedFrame], processing_ms: float
    ) -> None:
        """What came of one frame."""
        stamp = header(frame.stamp_ns, frame.frame_id)
        if frame.window is not None:
            window = frame.window
            bounds = {"window_start": time(window.start_ns), "window_end": time(window.end_ns)}
            counted = TYPES.EventWindow(header=stamp, event_count=window.event_count, **bounds)
            self._write("/event_image_node/event_window", WINDOW_TYPE, counted)
            image = MESSAGES.image_message(window.image, "rgb8", stamp)
            self._write("/event_image_node/event_image", _IMAGE, image)
        for (model, mode), tracked in found.items():
            if tracked.reconstructions:
                self._write_objects(frame, stamp, (model, mode), tracked, processing_ms)

    def _write_objects(
        self, frame: ReplayedFrame, stamp: Any, setup: tuple[str, str], tracked: TrackedFrame, processing_ms: float
    ) -> None:
        objects, is_main = tracked.reconstructions, setup == self._main
        prefix = (
            "" if is_main else "/" + "/".join(re.sub(r"\W", "_", name) for name in setup)
        ) + "/reconstruction_node"
        message = TYPES.ReconstructedObjectArray(
            header=stamp,
            objects=[
                MESSAGES.object_message(one, stamp, str(label))
                for one, label in zip(objects, tracked.labels, strict=True)
            ],
            processing_ms=processing_ms,
            model=self._models[setup[0]],
        )
        if frame.window is not None and setup[1] != "rgb":
            message.window_start, message.window_end = time(frame.window.start_ns), time(frame.window.end_ns)
            message.event_count = frame.window.event_count
        self._write(f"{prefix}/objects", OBJECTS_TYPE, message)
        self._write(f"{prefix}/points", _POINTS, MESSAGES.merged_points(objects, stamp))
        self._write(f"{prefix}/markers", _MARKERS, MESSAGES.markers(objects, stamp))
        if is_main and frame.frame_id:
            self._write("/tf", _TRANSFORMS, MESSAGES.transforms(objects, stamp))
        if frame.observation is not None:
            picture = debug_image.draw(frame.observation, objects)
            self._write(f"{prefix}/debug_image", _IMAGE, MESSAGES.image_message(picture, "rgb8", stamp))

    def _write(self, topic: str, kind: str, message: Any) -> None:
        self._write_raw(topic, kind, output_typestore().serialize_cdr(message, kind))

    def _write_raw(self, topic: str, kind: str, cdr: bytes | memoryview) -> None:
        if topic not in self._connections:
            self._connections[topic] = add_topic(self._writer, topic, kind, output_typestore())
        self._writer.write(self._connections[topic], self._now_ns, cdr)
