"""reconstruction_node: frame, event image, mask and depth of one moment in, objects with shape and pose out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import CalibrationError, EventSam3dError, InputError, excerpt
from event_sam3d_ros.msg import EventWindow, ReconstructedObjectArray
from event_sam3d_ros.nodes import conversions, debug_image, outputs
from event_sam3d_ros.nodes.parameters import RECONSTRUCTION_NODE
from event_sam3d_ros.nodes.pipeline_node import NO_CLOCK, PipelineNode, run_node
from event_sam3d_ros.nodes.worker import LatestWinsWorker
from event_sam3d_ros.observations import FrameArrays, build_observation
from event_sam3d_ros.pairing import Frame, StampPairing
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.tracking import TrackedFrame, Tracker

_REASONS = (
    "missing_image",
    "missing_mask",
    "missing_event_image",
    "missing_depth",
    "empty_mask",
    "object_too_small",
    "object_left_out",
    "frame_mismatch",
    "nothing_solid",
    "few_events",
    "size_mismatch",
    "no_camera_info",
    "not_calibrated",
    "bad_calibration",
    "bad_encoding",
    "bad_image",
    "zero_stamp",
    "no_frame_id",
    "no_clock",
    "window_mismatch",
    "dropped_latest_wins",
    "stale",
    "out_of_memory",
    "inference_error",
    "internal_error",
    "backward_time",
    "corrupt_checkpoint",
    "unknown_parameter",
    "bad_parameter",
    "late_image",
    "late_mask",
    "late_event_image",
    "late_event_window",
    "no_input",
    "bad_dtype",
    "bad_intrinsics",
    "bad_points",
    "bad_message",
    "bad_device",
    "bad_precision",
    "no_checkpoint",
    "foreign_checkpoint",
    "wrong_checkpoint",
    "no_event_branch",
    "geometry_not_finite",
)
_EXPIRE_PERIOD_S = 0.05
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_EVENT_SOURCES = ("event_image", "event_window")
# By input_mode: groups of sources that a frame needs, and groups that it waits for but can do without.
_SOURCES: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, ...]]]] = {
    "fused": ([("image",), ("mask",)], [_EVENT_SOURCES]),
    "rgb": ([("image",), ("mask",)], []),
    "events": ([_EVENT_SOURCES, ("mask",)], []),
}


@dataclass(frozen=True)
class _Task:
    """One frame with all that the worker needs."""

    frame: Frame
    camera: CameraModel | None


class ReconstructionNode(PipelineNode):
    """Pairs the inputs by stamp, reconstructs the newest complete frame in a thread of its own, publishes the result.

    ``load_reconstructor`` takes model, device, precision, seed, memory_gb, offload, steps and shortcut.
    """

    def __init__(self, load_reconstructor: Callable[..., Any] = Reconstructor.from_pretrained) -> None:
        self._load_reconstructor = load_reconstructor
        self._reconstructor: Any = None
        self._worker: LatestWinsWorker[_Task] | None = None
        self._camera: CameraModel | None = None
        self._calibration: tuple | None = None
        self._tracker: Tracker | None = None
        self._tracks_born = self._tracks_ended = 0
        super().__init__("reconstruction_node", RECONSTRUCTION_NODE, _REASONS)

    # Lifecycle

    def configure(self) -> None:
        """Model and publishers."""
        if self.value("threads"):
            torch.set_num_threads(self.value("threads"))
        self._reconstructor = self._load_reconstructor(
            *(self.value(name) for name in ("model", "device", "precision", "seed", "memory_gb", "offload")),
            self.value("steps") or None,
            self.value("shortcut") or None,
        )
        self._reconstructor.warm_up()
        self._objects = self.add_output(ReconstructedObjectArray, "~/objects", 5)
        self._points = self.add_output(PointCloud2, "~/points", 5)
        self._markers = self.add_output(MarkerArray, "~/markers", 5)
        self._transforms = self.add_output(TFMessage, "/tf", 100)
        self._debug = self.add_output(Image, "~/debug_image", 1)
        info = self._reconstructor.info
        self._model_name = ".".join(str(info[key]) for key in ("name", "tag") if key in info)
        self.add_output(String, "~/model_info", _LATCHED).publish(String(data=json.dumps(info)))

    def cleanup(self) -> None:
        """Let go of the model and its memory."""
        self._reconstructor = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def activate(self) -> None:
        """Subscribe and start the worker."""
        required, optional = _SOURCES[self.value("input_mode")]
        depth = self._subscribe({source for group in required + optional for source in group})
        self._pairing = StampPairing(
            required,
            optional,
            self.health.report,
            near="depth" if depth else "",
            near_expected=lambda: depth is not None and depth.has_publishers,
        )
        self.parameters_changed()
        self._tracker = Tracker() if self.value("track") else None
        self._worker = LatestWinsWorker(self._process, self._dropped, "reconstruction")
        self._expire_timer = self.add_timer(_EXPIRE_PERIOD_S, self._expire)

    def _subscribe(self, sources: set[str]) -> Any:
        types = {
            "image": (Image, "camera/image_raw"),
            "mask": (Image, "camera/mask"),
            "event_image": (Image, "event_image_node/event_image"),
            "event_window": (EventWindow, "event_image_node/event_window"),
        }
        if self.value("image_type") == "compressed":
            types["image"] = (CompressedImage, "camera/image_raw/compressed")
        self.add_input("camera_info", CameraInfo, "camera/camera_info", self._on_camera_info)
        for source in sources:
            self.add_input(source, *types[source], lambda message, source=source: self._on_message(source, message))
        if self.value("depth_type") == "none":
            return None
        depth_class = Image if self.value("depth_type") == "image" else PointCloud2
        return self.add_input(
            "depth", depth_class, "camera/depth", lambda message: self._on_message("depth", message), needed=False
        )

    def deactivate(self) -> None:
        """Stop the worker and forget what waits."""
        if self._worker is not None:
            self.destroy_timer(self._expire_timer)
            self._worker.stop()
        self._worker = self._camera = self._calibration = None

    def parameters_changed(self) -> None:
        """Pairing may change while running."""
        if self.state != "unconfigured" and hasattr(self, "_pairing"):
            self._pairing.timeout_s = self.value("pair_timeout_ms") / 1e3
            self._pairing.tolerance_ns = round(self.value("depth_tolerance_ms") * 1e6)

    # Inputs

    def _on_camera_info(self, message: CameraInfo) -> None:
        calibration = _calibration(message)
        if calibration != self._calibration:
            self._camera = CameraModel.from_camera_info(message, already_rectified=self.value("rectified"))
            self._calibration = calibration

    def _on_message(self, source: str, message: Any) -> None:
        stamp_ns = conversions.stamp_to_ns(message.header.stamp)
        self._submit(self._pairing.add(source, stamp_ns, message, time.monotonic()))

    def _expire(self) -> None:
        self._submit(self._pairing.expire(time.monotonic()))

    def _submit(self, frames: list[Frame]) -> None:
        assert self._worker is not None
        for frame in frames:
            self._worker.submit(_Task(frame, self._camera))

    def _dropped(self, task: _Task) -> None:
        # Normal where the model is slower than the camera: the rates of image and objects tell as much.
        self.health.count("dropped_latest_wins")

    # Worker thread

    def _process(self, task: _Task) -> None:
        try:
            self._reconstruct(task)
        except EventSam3dError as error:
            self.health.report(error.reason, str(error))
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            torch.cuda.empty_cache()
            text = str(error).splitlines()[0] if str(error) else "out of memory"
            self.health.report("out_of_memory", f"a frame was dropped: {text}")
        except Exception as error:  # one frame must not end the stream: whatever it was, it is named and counted
            self.health.report("inference_error", f"a frame was dropped: {type(error).__name__}: {error}")

    def _reconstruct(self, task: _Task) -> None:
        begin = time.monotonic()
        if task.camera is None:
            raise CalibrationError(
                "a frame came, but no usable CameraInfo: publish it on camera/camera_info", reason="no_camera_info"
            )
        self._check_age(task.frame.stamp_ns)
        observation = self._observation(task)
        try:
            reconstructions = self._reconstructor(observation)
        except InputError:
            self._track(observation, [])  # a frame in which no object was seen
            raise
        self._report_left_out(observation, reconstructions)
        tracked = self._track(observation, reconstructions)
        self._check_age(task.frame.stamp_ns)
        self._publish(task, observation, tracked, (time.monotonic() - begin) * 1e3)

    def _track(self, observation: Observation, reconstructions: list[Reconstruction]) -> TrackedFrame:
        """The reconstructions with the ids of their tracks; without tracking with those of the mask."""
        if self._tracker is None:
            labels = tuple(reconstruction.id for reconstruction in reconstructions)
            return TrackedFrame(reconstructions, labels, (), ())
        tracked = self._tracker.update(observation.stamp_ns, reconstructions, observation.mask)
        self._tracks_born += len(tracked.born)
        self._tracks_ended += len(tracked.died)
        return tracked

    def _report_left_out(self, observation: Observation, reconstructions: list[Reconstruction]) -> None:
        """Count the objects of the mask for which there is no result."""
        found = {reconstruction.id for reconstruction in reconstructions}
        left_out = sorted(set(np.unique(observation.mask).tolist()) - found - {0})
        for _ in left_out:
            self.health.report(
                "object_left_out",
                f"objects {', '.join(map(str, left_out))} of the mask have no result: they are too small in the image, "
                "or the model finds nothing solid there",
            )

    def _check_age(self, stamp_ns: int) -> None:
        age_ms, limit_ms = self.age_ms(stamp_ns), self.value("max_age_ms")
        if limit_ms and age_ms is not None and age_ms > limit_ms:
            raise InputError(
                f"a frame is {age_ms:.0f} ms old, more than max_age_ms ({limit_ms:g}): the model is too slow, or "
                "this is a recording played without its clock (set use_sim_time)",
                reason="stale",
            )

    def _observation(self, task: _Task) -> Observation:
        messages = self._of_one_frame(task.frame.messages)
        arrays: dict[str, Any] = {"mask": conversions.mask_from_message(messages["mask"])}
        if "image" in messages:
            arrays["image"] = conversions.rgb_from_message(messages["image"])
        if "event_image" in messages:
            window = messages["event_window"]
            self._check_window(window)
            arrays["event_image"] = conversions.rgb_from_message(messages["event_image"])
            arrays["event_count"] = window.event_count
        if isinstance(messages.get("depth"), PointCloud2):
            arrays["points"] = conversions.xyz_from_message(messages["depth"])
        elif "depth" in messages:
            arrays["depth"] = conversions.depth_from_message(messages["depth"])
        min_events = self.value("min_events")
        if min_events < 0:
            min_events = self._reconstructor.info["min_events"]
        frame_arrays = FrameArrays(stamp_ns=task.frame.stamp_ns, **arrays)
        return build_observation(frame_arrays, task.camera, min_events, self.health.report)

    def _of_one_frame(self, messages: dict[str, Any]) -> dict[str, Any]:
        """The messages without a point cloud of another coordinate frame; other sources of one are reported only."""
        frame_id = _header(messages).frame_id
        kept = dict(messages)
        for source in ("mask", "depth"):
            other = messages[source].header.frame_id if source in messages else ""
            if not frame_id or not other or other == frame_id:
                continue
            sentence = f"{source} has the frame_id {excerpt(other)}, the image {excerpt(frame_id)}"
            if isinstance(messages[source], PointCloud2):
                self.health.report("frame_mismatch", f"{sentence}: points are not used; transform them before")
                del kept[source]
            else:
                self.health.report("frame_mismatch", f"{sentence}: taken as one pixel grid; set the same in the sender")
        return kept

    def _check_window(self, window: EventWindow) -> None:
        length_ms = (conversions.stamp_to_ns(window.window_end) - conversions.stamp_to_ns(window.window_start)) / 1e6
        if abs(length_ms - self._reconstructor.info["window_ms"]) > 0.5:
            self.health.report(
                "window_mismatch",
                f"event windows are {length_ms:g} ms long, the model was trained with "
                f"{self._reconstructor.info['window_ms']:g} ms: set window_ms of event_image_node",
            )

    def _publish(self, task: _Task, observation: Observation, tracked: TrackedFrame, processing_ms: float) -> None:
        messages, reconstructions = task.frame.messages, tracked.reconstructions
        header = _header(messages)
        message = ReconstructedObjectArray(header=header, processing_ms=processing_ms, model=self._model_name)
        message.objects = [
            outputs.object_message(reconstruction, header, str(label))
            for reconstruction, label in zip(reconstructions, tracked.labels, strict=True)
        ]
        if observation.event_image is not None:
            window = messages["event_window"]
            message.window_start, message.window_end = window.window_start, window.window_end
            message.event_count = window.event_count
        self._objects.publish(message)
        self._points.publish(outputs.merged_points(reconstructions, header))
        if header.frame_id:
            self._transforms.publish(outputs.transforms(reconstructions, header))
        else:
            self.health.report("no_frame_id", "frames have no frame_id, so nothing goes to /tf: set it in the driver")
        self.health.tick("objects")
        age_ms = self.age_ms(task.frame.stamp_ns)
        if age_ms is None:
            self.health.report("no_clock", NO_CLOCK)
        else:
            self.health.latency(age_ms)
        if self._markers.get_subscription_count():
            self._markers.publish(outputs.markers(reconstructions, header))
        if self._debug.get_subscription_count():
            picture = debug_image.draw(observation, reconstructions)
            self._debug.publish(conversions.image_message(picture, "rgb8", header))

    def diagnostic_values(self) -> dict[str, str]:
        """Model, device and its memory, tracks."""
        if self._reconstructor is None:
            return {}
        values = {"model": self._model_name, "device": str(getattr(self._reconstructor, "device", "unknown"))}
        if self._tracker is not None:
            born, ended = self._tracks_born, self._tracks_ended
            values["tracks"] = f"{born - ended} alive, {born} born, {ended} ended"
        device = getattr(self._reconstructor, "device", None)
        if device is not None and device.type == "cuda":
            try:
                free, total = torch.cuda.mem_get_info(device)
            except RuntimeError as error:  # a GPU in trouble is when diagnostics are needed most
                values["gpu_memory_error"] = str(error).splitlines()[0]
            else:
                values["gpu_memory_free_mb"], values["gpu_memory_mb"] = f"{free / 1e6:.0f}", f"{total / 1e6:.0f}"
        return values


def _header(messages: dict[str, Any]) -> Header:
    """Stamp and coordinate frame of the results: the image's, without one the mask's."""
    return messages.get("image", messages["mask"]).header


def _calibration(info: CameraInfo) -> tuple:
    """All that counts of a CameraInfo (its own == takes arrays for equal where only some of their values are)."""
    roi = info.roi
    region = roi.x_offset, roi.y_offset, roi.width, roi.height, info.binning_x, info.binning_y
    return info.width, info.height, info.distortion_model, *info.k, *info.p, *info.d, *region


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run_node(ReconstructionNode, args)
