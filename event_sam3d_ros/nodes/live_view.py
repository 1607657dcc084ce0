"""A running system as frames of the viewer: listens to its topics in a ROS context and a thread of its own."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.exceptions import NameValidationException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.validate_full_topic_name import validate_full_topic_name
from sensor_msgs.msg import CameraInfo, Image

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, excerpt
from event_sam3d_ros.msg import ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import mask_from_message, rgb_from_message, stamp_to_ns
from event_sam3d_ros.nodes.live_objects import object_name, tracks_of, view_object
from event_sam3d_ros.recordings.files import Topics
from event_sam3d_ros.viewer.frames import FrameStore, ViewFrame, ViewObject

TOPICS = {
    "image": Topics.image,
    "mask": Topics.mask,
    "event_image": "/event_image_node/event_image",
    "objects": "/reconstruction_node/objects",
    "camera_info": Topics.camera_info,
}
_NODE = "event_sam3d_viewer"
_PATIENCE_S = 2.0  # without results, frames are shown without; without event images, images alone
_STAMPS_KEPT = 64
_PIECES_MEMORY = 256 << 20  # bytes
_OTHER_CLOCK_MS = 600_000  # as far from now no stamp is of this clock
_LOG_EVERY_S = 5.0
_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)  # which goes with every publisher


class LiveFrames(FrameStore):
    """`Frames` of the newest results, each with image, mask and event image of its stamp. While no results come, event
    images, each with the image of its stamp; while none of those come either, the images alone.

    ``topics``: those of `TOPICS`; ConfigurationError for names that ROS does not allow. What of a message can't be used
    is counted and told in the status.
    """

    def __init__(self, topics: Mapping[str, str] = TOPICS) -> None:
        _check_names(topics)
        super().__init__("live: " + topics["objects"], live=True)
        self._pieces = Pieces()
        self._K: NDArray[np.float64] | None = None
        # When one came last; as if that were now, so that what is on its way is waited for.
        self._latest_s = dict.fromkeys(("event_image", "objects"), time.monotonic())
        self._state, self._refused, self._refusal = "waiting for " + ", ".join(topics.values()), 0, ""
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)  # the command has its own
        self._node = Node(_NODE, context=self._context)
        callbacks: dict[str, tuple[type, Callable[[Any], object]]] = {
            "image": (Image, self._on_image),
            "mask": (Image, partial(self._keep, "mask", mask_from_message)),
            "event_image": (Image, self._on_event_image),
            "objects": (ReconstructedObjectArray, self._on_objects),
            "camera_info": (CameraInfo, self._on_camera_info),
        }
        for kind, (message_type, callback) in callbacks.items():
            received = partial(self._received, topics[kind], callback)
            self._node.create_subscription(message_type, topics[kind], received, _QOS)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._say(self._state)
        self._thread = threading.Thread(target=self._spin, name="viewer topics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Frames`."""
        super().close()
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def _spin(self) -> None:
        ended = "listening ended with an error: see the terminal"
        try:
            self._executor.spin()
            ended = "listening ended"
        except ExternalShutdownException:
            ended = "ROS was shut down"
        finally:
            self.tell(ended, complete=True)

    # What is told

    def _received(self, topic: str, callback: Callable[[Any], object], message: Any) -> None:
        with self._guarded(topic):
            callback(message)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Counts and tells what is raised: one message must not end the view."""
        try:
            yield
        except EventSam3dError as error:
            self._refuse(f"{what}: {error}")
        except Exception as error:  # whatever it was
            self._node.get_logger().error(traceback.format_exc(), throttle_duration_sec=_LOG_EVERY_S)
            self._refuse(f"{what}: {type(error).__name__}: {error}")

    def _refuse(self, why: str) -> None:
        self._refused, self._refusal = self._refused + 1, why
        self._say(self._state)

    def _say(self, state: str) -> None:
        self._state = state
        refused = f"could not be used so far: {self._refused}, the latest {self._refusal}" if self._refused else ""
        self.tell("; ".join(filter(None, (state, refused))))

    # Messages

    def _keep(self, kind: str, convert: Callable[[Image], NDArray[Any]], message: Image) -> int:
        """Its stamp."""
        stamp_ns = stamp_to_ns(message.header.stamp)
        self._pieces.keep(stamp_ns, kind, convert(message))
        return stamp_ns

    def _is_silent(self, kind: str) -> bool:
        return time.monotonic() - self._latest_s[kind] > _PATIENCE_S

    def _on_camera_info(self, message: CameraInfo) -> None:
        if message.k[0] > 0:
            self._K = np.array(message.k, float).reshape(3, 3)

    def _on_image(self, message: Image) -> None:
        stamp_ns = self._keep("image", rgb_from_message, message)
        is_late = "event_image" in self._pieces.of(stamp_ns)
        if self._is_silent("objects") and (is_late or self._is_silent("event_image")):
            self._show_without_results(stamp_ns)

    def _on_event_image(self, message: Image) -> None:
        stamp_ns = self._keep("event_image", rgb_from_message, message)
        self._latest_s["event_image"] = time.monotonic()
        if self._is_silent("objects"):
            self._show_without_results(stamp_ns)

    def _on_objects(self, message: ReconstructedObjectArray) -> None:
        self._latest_s["objects"] = time.monotonic()
        stamp_ns = stamp_to_ns(message.header.stamp)
        milliseconds = {"model": float(message.processing_ms)}
        since_ms = self._since_ms(stamp_ns)
        if since_ms is not None:
            milliseconds["since the stamp"] = since_ms
        objects = tuple(self._view_objects(message))
        tracks = tracks_of(self._pieces.of(stamp_ns).get("mask"), message)
        self._show(stamp_ns, ViewFrame(0, tracks=tracks, objects=objects, milliseconds=milliseconds))
        self._say("")

    def _view_objects(self, message: ReconstructedObjectArray) -> list[ViewObject]:
        """Those that can be shown, each with a name of its own."""
        names: Counter[str] = Counter()
        objects = []
        for item in message.objects:
            name = object_name(item)
            names[name] += 1
            with self._guarded(f"object {name}"):
                objects.append(view_object(item, name if names[name] == 1 else f"{name} ({names[name]})"))
        return objects

    def _since_ms(self, stamp_ns: int) -> float | None:
        """From a stamp until now, by the simulated clock where somebody publishes one. None while it is not heard, and
        for stamps of another clock, as of a sensor that counts from its start."""
        is_simulated = self._node.count_publishers("/clock") > 0
        if self._node.get_parameter("use_sim_time").value != is_simulated:
            self._node.set_parameters([Parameter("use_sim_time", value=is_simulated)])
        now_ns = self._node.get_clock().now().nanoseconds
        since_ms = (now_ns - stamp_ns) / 1e6
        return since_ms if now_ns and abs(since_ms) < _OTHER_CLOCK_MS else None

    # Frames

    def _show_without_results(self, stamp_ns: int) -> None:
        self._show(stamp_ns, ViewFrame(0))
        pieces = self._pieces.of(stamp_ns)
        kinds = " and ".join(f"{kind.replace('_', ' ')}s" for kind in ("image", "event_image") if kind in pieces)
        self._say(f"no results come: {kinds} alone")

    def _show(self, stamp_ns: int, frame: ViewFrame) -> None:
        pieces, tracks = self._pieces.of(stamp_ns), frame.tracks
        rgb, event_image = pieces.get("image"), pieces.get("event_image")
        if rgb is not None and tracks is not None and rgb.shape[:2] != tracks.shape:
            tracks = None
        self.append(replace(frame, stamp_ns=stamp_ns, rgb=rgb, event_image=event_image, tracks=tracks, K=self._K))


class Pieces:
    """Pictures by stamp and kind that wait for the result of their stamp: those of the latest 64 stamps, as long as
    they take no more than ``memory`` bytes, and the latest anyway."""

    def __init__(self, memory: int = _PIECES_MEMORY) -> None:
        self._memory = memory
        self._by_stamp: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()

    def keep(self, stamp_ns: int, kind: str, picture: NDArray[Any]) -> None:
        """One more."""
        self._by_stamp.setdefault(stamp_ns, {})[kind] = picture
        self._by_stamp.move_to_end(stamp_ns)
        while len(self._by_stamp) > 1 and (len(self._by_stamp) > _STAMPS_KEPT or self.bytes > self._memory):
            self._by_stamp.popitem(last=False)

    def of(self, stamp_ns: int) -> Mapping[str, NDArray[Any]]:
        """By kind."""
        return self._by_stamp.get(stamp_ns, {})

    @property
    def bytes(self) -> int:
        """As many as all of them take."""
        return sum(picture.nbytes for pieces in self._by_stamp.values() for picture in pieces.values())


def _check_names(topics: Mapping[str, str]) -> None:
    kinds: dict[str, str] = {}
    for kind, topic in topics.items():
        try:
            full = expand_topic_name(topic, _NODE, "/")
            validate_full_topic_name(full)
        except (ValueError, NameValidationException) as error:
            raise ConfigurationError(
                f"{excerpt(topic)!r} can't be the topic of {kind}: names are like /camera/image_raw, of letters, "
                "digits and _, and no part begins with a digit",
                reason="bad_topic",
            ) from error
        if full in kinds:
            raise ConfigurationError(
                f"{kind} and {kinds[full]} have the same topic {full}: give each its own", reason="bad_topic"
            )
        kinds[full] = kind
