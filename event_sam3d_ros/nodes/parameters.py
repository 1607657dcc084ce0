"""The nodes' parameters and topics, each in one table: declaration, checks and documentation come from here.

``python -m event_sam3d_ros.nodes.parameters`` prints both tables as markdown for docs/parameters.md. Nothing here needs
ROS.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.codecs import ARRAY_TYPES, PACKET_TYPES

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default gives the type; a float takes whole numbers too.

    minimum, maximum  inclusive bounds of a number
    choices           allowed strings
    dynamic           may change while the node is configured; others only while it is unconfigured
    """

    name: str
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    @property
    def type_name(self) -> str:
        """bool, int, double or string, as ROS calls them."""
        return {bool: "bool", int: "int", float: "double", str: "string"}[type(self.default)]

    def check(self, value: Any) -> Value:
        """The value in this parameter's type; raises ConfigurationError ``bad_parameter`` saying what is allowed."""
        if type(self.default) is float and type(value) is int:
            value = float(value)
        in_range = True
        if type(value) is not type(self.default):
            in_range = False
        elif self.choices:
            in_range = value in self.choices
        elif isinstance(value, int | float):
            in_range = math.isfinite(value) and self._low() <= value <= self._high()
        if not in_range:
            raise ConfigurationError(
                f"parameter {self.name} can't be {value!r}: it takes {self.allowed()}", reason="bad_parameter"
            )
        return value

    def _low(self) -> float:
        return -math.inf if self.minimum is None else self.minimum

    def _high(self) -> float:
        return math.inf if self.maximum is None else self.maximum

    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = f"a value of type {self.type_name}"
        if self.minimum is not None and self.maximum is not None:
            return f"{words} from {_number(self.minimum)} to {_number(self.maximum)}"
        return words if self.minimum is None else f"{words} of at least {_number(self.minimum)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Topic:
    """One topic of a node, for the documentation."""

    direction: str
    name: str
    type: str
    qos: str
    description: str


class ParameterTable:
    """The parameters of one node by name."""

    def __init__(self, *parameters: Parameter) -> None:
        self.by_name = {parameter.name: parameter for parameter in parameters}

    def check(self, values: Mapping[str, Any]) -> dict[str, Value]:
        """Checked values; raises ConfigurationError for the first unknown name or value that is not allowed."""
        return {name: self.get(name).check(value) for name, value in values.items()}

    def get(self, name: str) -> Parameter:
        """The parameter of that name; raises ConfigurationError ``unknown_parameter`` with the nearest known name."""
        if name not in self.by_name:
            near = difflib.get_close_matches(name, self.by_name, n=1)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(sorted(self.by_name)) + "."
            raise ConfigurationError(f"there is no parameter {name}: {hint}", reason="unknown_parameter")
        return self.by_name[name]


_SHARED = (
    Parameter("autostart", True, "Configure and activate by itself at start; otherwise wait for lifecycle commands."),
    Parameter(
        "qos_reliability",
        "auto",
        "Reliability of image, mask, depth and calibration subscriptions. auto: reliable if all publishers are.",
        choices=("auto", "reliable", "best_effort"),
    ),
    Parameter("qos_depth", 5, "Queue of those subscriptions, in messages.", 1, 1000),
    Parameter(
        "watchdog_s", 5.0, "Silence on a needed topic after which diagnostics say why.", 0.5, 3600.0, dynamic=True
    ),
)

EVENT_IMAGE_NODE = ParameterTable(
    *_SHARED,
    Parameter(
        "event_type",
        "event_camera_msgs/msg/EventPacket",
        "Type of the event messages.",
        choices=(*PACKET_TYPES, *ARRAY_TYPES),
    ),
    Parameter(
        "window_mode",
        "frame",
        "frame: one window around the stamp of each RGB frame. continuous: windows of one length, back to back. count: "
        "windows of `window_events` successive events.",
        choices=("frame", "continuous", "count"),
    ),
    Parameter(
        "frame_source",
        "camera_info",
        "Topic that tells the stamps of the RGB frames: the cheapest that comes with every frame.",
        choices=("camera_info", "image", "compressed_image"),
    ),
    Parameter(
        "frame_clock",
        "host",
        "What stamps the frames. host: the clock that stamps event packets. sensor: the events' own clock, as in "
        "libcaer_driver, whose frames carry sensor time but its event packets host time.",
        choices=("host", "sensor"),
    ),
    Parameter("window_ms", 50.0, "Length of a window. The small model was trained with 50.", 1.0, 1000.0, dynamic=True),
    Parameter("window_events", 50_000, "Events in a window of `window_mode` count.", 1, dynamic=True),
    Parameter(
        "window_alignment",
        "centre",
        "Where the stamp lies: in the centre or at the end of its window. exposure: the window is the frame's "
        "exposure, `exposure_ms` around the stamp.",
        choices=("centre", "end", "exposure"),
        dynamic=True,
    ),
    Parameter(
        "exposure_ms",
        0.0,
        "Exposure of the frames, where it is known; only for `window_alignment` exposure.",
        0.0,
        1000.0,
        dynamic=True,
    ),
    Parameter(
        "exposure_offset_ms",
        0.0,
        "Added to a frame's stamp to get its mid-exposure, for drivers that stamp otherwise.",
        -1000.0,
        1000.0,
        dynamic=True,
    ),
    Parameter(
        "max_wait_ms",
        100.0,
        "How long a frame waits for events beyond the end of its window before it goes on with what is there.",
        0.0,
        10000.0,
        dynamic=True,
    ),
    Parameter(
        "representation",
        "tencode",
        "What an event image shows. tencode: age over the window, black background; the installed model wants it. "
        "reference_white, reference_black: age from the first to the last event, as checkpoints of event_sam3d were "
        "trained with (white but for its RGBE data).",
        choices=("tencode", "reference_white", "reference_black"),
        dynamic=True,
    ),
    Parameter(
        "alignment",
        "none",
        "How events get to the RGB camera's pixels. none: both share one grid already. homography: by rotation alone, "
        "for far scenes, or as calibration_file says. depth: by depth and extrinsics.",
        choices=("none", "homography", "depth"),
    ),
    Parameter(
        "calibration_file",
        "",
        "Both cameras, in our layout or Kalibr's (docs/cameras.md); empty: CameraInfo of both and /tf_static.",
    ),
    Parameter("calibration_event_camera", "cam0", "Name of the event camera in a Kalibr file."),
    Parameter("calibration_rgb_camera", "cam1", "Name of the RGB camera in a Kalibr file."),
    Parameter(
        "rectified", False, "RGB images come rectified (image_rect): CameraInfo's P counts, its D is not applied."
    ),
    Parameter(
        "depth_of", "rgb", "Which camera's grid the depth of `alignment` depth is in.", choices=("rgb", "events")
    ),
    Parameter("depth_tolerance_ms", 50.0, "Largest difference of stamps of a frame and that depth.", 0.0, 10000.0),
    Parameter(
        "fallback_depth_m",
        0.0,
        "Distance at which events are put whose depth is unknown; 0: they are left out and counted.",
        0.0,
        1000.0,
    ),
    Parameter("roi_x", 0, "Left column of the region of interest, a filter of events.", 0, 65535),
    Parameter("roi_y", 0, "Its upper row.", 0, 65535),
    Parameter("roi_width", 0, "Its width in pixels of the sensor; 0, as its height: the whole sensor.", 0, 65535),
    Parameter("roi_height", 0, "Its height.", 0, 65535),
    Parameter("polarity", "both", "Events that are kept: brighter (on), darker (off).", choices=("both", "on", "off")),
    Parameter("hot_pixels", False, "Learn which pixels fire far more often than those around them, and drop them."),
    Parameter(
        "background_ms",
        0.0,
        "Drop events that no neighbouring pixel's event came before by at most this time: noise; 0: keep all.",
        0.0,
        1000.0,
    ),
    Parameter(
        "rectification_file",
        "",
        "Calibration of the event camera, as ROS's camera_calibration writes it, by which events are rectified; empty: "
        "they are not. For frames that come rectified; not with `alignment`, which does it.",
    ),
    Parameter(
        "max_event_rate",
        0.0,
        "Thin events out to this many per second, at random and evenly, where more come; 0: no limit, else at least "
        "1000.",
        0.0,
    ),
    Parameter("buffer_ms", 1000.0, "Events kept, by time.", 10.0, 60000.0),
    Parameter("buffer_max_events", 8_000_000, "Events kept, by number.", 1000),
    Parameter("buffer_max_mb", 128.0, "Events kept, by memory (13 bytes each).", 1.0),
)

RECONSTRUCTION_NODE = ParameterTable(
    *_SHARED,
    Parameter("model", "nano", "Name of an installed model, or path of a .safetensors file."),
    Parameter("device", "auto", "Where the network runs: cpu, cuda, cuda:1, or auto for CUDA if there is any."),
    Parameter(
        "precision",
        "auto",
        "Number format of the network. auto: on CUDA fp16 for models that sample, bf16 for others; else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    ),
    Parameter("threads", 0, "CPU threads of the network; 0 leaves the choice to PyTorch.", 0, 256),
    Parameter("seed", 0, "Seed of the network's random numbers.", 0, 2**31 - 1),
    Parameter(
        "steps",
        0,
        "Steps of models that sample: fewer are faster and coarser. 0: as the model says, or 4 with `shortcut`.",
        0,
        1000,
    ),
    Parameter(
        "shortcut",
        False,
        "Sample in few steps (1, 2, 4) without guidance, of which the network is told the size. false: as the model "
        "says.",
    ),
    Parameter(
        "memory_gb",
        0.0,
        "Memory that objects may take beside the weights, at least what one takes; more of them are sampled in turn. "
        "0: no limit.",
        0.0,
        1000.0,
    ),
    Parameter("offload", False, "Keep the weights in main memory; each stage comes to the device for its turn."),
    Parameter(
        "input_mode",
        "fused",
        "What the network sees: frame and events, frame alone, events alone.",
        choices=("fused", "rgb", "events"),
    ),
    Parameter(
        "track",
        True,
        "Ids of objects stay the same while masks change their labels (docs/sequences.md); false: ids are the labels.",
    ),
    Parameter("image_type", "raw", "sensor_msgs/Image or CompressedImage.", choices=("raw", "compressed")),
    Parameter(
        "depth_type",
        "image",
        "Depth as sensor_msgs/Image (32FC1 m, 16UC1 mm), as PointCloud2 in the optical frame, or not at all.",
        choices=("image", "points", "none"),
    ),
    Parameter(
        "rectified", False, "The images come rectified (image_rect): CameraInfo's P counts and its D is not applied."
    ),
    Parameter(
        "min_events",
        -1,
        "With fewer events in its window a frame goes without them; -1: as the model says.",
        -1,
        dynamic=True,
    ),
    Parameter(
        "depth_tolerance_ms", 20.0, "Largest difference of stamps of frame and depth.", 0.0, 1000.0, dynamic=True
    ),
    Parameter(
        "pair_timeout_ms",
        300.0,
        "How long a frame waits for its mask, event image and depth before it goes on or is dropped.",
        1.0,
        10000.0,
        dynamic=True,
    ),
    Parameter(
        "max_age_ms",
        1000.0,
        "Results older than this, by the frame's stamp, are not published; 0 publishes all. A model that takes about "
        "as long for a frame (SAM 3D's sizes on most devices) needs more, or 0.",
        0.0,
        dynamic=True,
    ),
)

BAG_PLAYER_NODE = ParameterTable(
    Parameter("bag", "", "rosbag2 folder, or one of its .mcap or .db3 files."),
    Parameter("rate", 1.0, "Speed; 1 is as recorded.", 0.001, 1000.0),
    Parameter("loop", False, "Start again at the end, until interrupted."),
    Parameter(
        "wait_for_subscribers_s", 5.0, "How long to wait until every topic of the bag is listened to.", 0.0, 3600.0
    ),
    Parameter("start_delay_s", 0.0, "Pause after that.", 0.0, 3600.0),
    Parameter("paused", False, "Time stands still, and /clock with it; may be the start.", dynamic=True),
    Parameter("clock_hz", 100.0, "Rate of /clock, by the wall clock.", 1.0, 10000.0),
    Parameter("clock_tail_s", 1.0, "How long /clock goes on after the last message, in the bag's time.", 0.0, 3600.0),
)

DV_CAMERA_NODE = ParameterTable(
    *(parameter for parameter in _SHARED if parameter.name == "autostart"),
    Parameter("source", "camera", "Where the data come from.", choices=("camera", "file", "network")),
    Parameter("camera", "", "source camera: serial number; empty takes the first camera that is found."),
    Parameter("file", "", "source file: path of an AEDAT4 recording."),
    Parameter("rate", 1.0, "source file: speed; 1 is as recorded.", 0.001, 1000.0),
    Parameter("loop", False, "source file: start again at the end."),
    Parameter(
        "restamp",
        True,
        "source file: times are moved so that the recording begins now; otherwise they stay as recorded.",
    ),
    Parameter("address", "127.0.0.1", "source network: IP address of the sender."),
    Parameter("events_port", 7777, "source network: TCP port of the events; 0 for none.", 0, 65535),
    Parameter("frames_port", 0, "source network: TCP port of the frames; 0 for none.", 0, 65535),
    Parameter("imu_port", 0, "source network: TCP port of the IMU; 0 for none.", 0, 65535),
    Parameter("frame_id", "event_camera", "Optical frame of events and images; the IMU's is this with _imu."),
    Parameter("camera_info_file", "", "Calibration as ROS's camera_calibration writes it; empty: not calibrated."),
)

SIMULATOR_NODE = ParameterTable(
    *(parameter for parameter in _SHARED if parameter.name == "autostart"),
    Parameter("seed", 0, "Seed of motion, light, background and noise.", 0, 2**31 - 1),
    Parameter("object", -1, "Which procedural object; -1: that of `seed`.", -1, 2**31 - 1),
    Parameter("mesh", "", "Mesh file (GLB, OBJ, OFF, PLY, STL) in its place, or a folder of them."),
    Parameter(
        "mesh_up", "auto", "Its axis that points up; auto: y in GLB and OBJ, else z.", choices=("auto", "y", "z")
    ),
    Parameter(
        "motion",
        "swing",
        "The object swings about, or goes round on a circle in space, or rests while the camera shakes.",
        choices=("swing", "circle", "camera"),
    ),
    Parameter("speed", 0.2, "Largest motion during the 30 ms exposure, in sides of the object's crop.", 0.001, 1.0),
    Parameter("width", 240, "Pixels.", 32, 2048),
    Parameter("height", 180, "Pixels.", 32, 2048),
    Parameter("occluder", False, "A second object drifts before the first one."),
    Parameter(
        "cutoff_hz",
        0.0,
        "Bandwidth of the event camera's photoreceptors in full light; 0: without bounds.",
        0.0,
        1e6,
    ),
    Parameter(
        "pixels_per_sub_frame",
        2.0,
        "How far surfaces may move between two rendered pictures; larger is faster and coarser.",
        0.25,
        16.0,
    ),
)

_AUTO = "`qos_reliability`, depth `qos_depth`"
_EVENT_IMAGE_TOPICS = (
    Topic("in", "/event_camera/events", "`event_type`", "best effort, depth 1000", "Event packets."),
    Topic("in", "/camera/camera_info", "sensor_msgs/CameraInfo", _AUTO, "Stamps of the RGB frames (`frame_source`)."),
    Topic("in", "/camera/image_raw", "sensor_msgs/Image", _AUTO, "The same, where no calibration comes with frames."),
    Topic("in", "/event_camera/camera_info", "sensor_msgs/CameraInfo", _AUTO, "For `alignment`, without a file."),
    Topic("in", "/tf_static", "tf2_msgs/TFMessage", "reliable, transient local, depth 100", "The same."),
    Topic(
        "in", "/camera/depth", "sensor_msgs/Image", _AUTO, "For `alignment` depth; /event_camera/depth by `depth_of`."
    ),
    Topic(
        "out", "~/event_image", "sensor_msgs/Image", "reliable, depth 5", "`representation`, rgb8, stamp of its frame."
    ),
    Topic("out", "~/event_window", "event_sam3d_ros/EventWindow", "reliable, depth 5", "Bounds and number of events."),
    Topic("out", "/diagnostics", "diagnostic_msgs/DiagnosticArray", "reliable, depth 10", "State, rates, counters."),
)
_RECONSTRUCTION_TOPICS = (
    Topic("in", "/camera/image_raw", "sensor_msgs/Image", _AUTO, "RGB frame (`image_type`: or CompressedImage)."),
    Topic("in", "/camera/camera_info", "sensor_msgs/CameraInfo", _AUTO, "Calibration of frame, mask, depth, events."),
    Topic("in", "/camera/mask", "sensor_msgs/Image", _AUTO, "mono8 or mono16 labels: 0 nothing, k object k."),
    Topic("in", "/camera/depth", "sensor_msgs/Image", _AUTO, "Optional (`depth_type`): without it no metric scale."),
    Topic("in", "/event_image_node/event_image", "sensor_msgs/Image", _AUTO, "Tencode of the frame's window."),
    Topic("in", "/event_image_node/event_window", "event_sam3d_ros/EventWindow", _AUTO, "Its bounds and count."),
    Topic("out", "~/objects", "event_sam3d_ros/ReconstructedObjectArray", "reliable, depth 5", "Shape, pose, size."),
    Topic("out", "~/points", "sensor_msgs/PointCloud2", "reliable, depth 5", "x y z rgb object_id of all objects."),
    Topic("out", "~/markers", "visualization_msgs/MarkerArray", "reliable, depth 5", "Box, axes, label, on demand."),
    Topic("out", "/tf", "tf2_msgs/TFMessage", "reliable, depth 100", "Optical frame to `object_<id>`."),
    Topic("out", "~/debug_image", "sensor_msgs/Image", "reliable, depth 1", "Frame, events, masks, boxes, on demand."),
    Topic("out", "~/model_info", "std_msgs/String", "reliable, transient local, depth 1", "JSON about the model."),
    Topic("out", "/diagnostics", "diagnostic_msgs/DiagnosticArray", "reliable, depth 10", "State, rates, counters."),
)
_BAG_PLAYER_TOPICS = (
    Topic(
        "out", "as in the bag", "as in the bag", "events: best effort, depth 1000; rest: reliable, depth 5", "As is."
    ),
    Topic("out", "/clock", "rosgraph_msgs/Clock", "best effort, depth 10", "The bag's receive times."),
)
_DV_CAMERA_TOPICS = (
    Topic("out", "/event_camera/events", "event_camera_msgs/EventPacket", "best effort, depth 1000", "`libcaer`."),
    Topic("out", "/event_camera/image_raw", "sensor_msgs/Image", "reliable, depth 5", "mono8 or bgr8."),
    Topic(
        "out", "/event_camera/camera_info", "sensor_msgs/CameraInfo", "reliable, depth 5", "With frames, else 10 Hz."
    ),
    Topic("out", "/event_camera/imu", "sensor_msgs/Imu", "reliable, depth 100", "m/s^2, rad/s, no orientation."),
    Topic("out", "/diagnostics", "diagnostic_msgs/DiagnosticArray", "reliable, depth 10", "State, rates, counters."),
)
_SIMULATOR_TOPICS = (
    Topic("out", "/event_camera/events", "event_camera_msgs/EventPacket", "best effort, depth 1000", "`evt3`, 4 ms."),
    Topic("out", "/camera/image_raw", "sensor_msgs/Image", "reliable, depth 5", "rgb8, blurred; stamp: mid-exposure."),
    Topic("out", "/camera/camera_info", "sensor_msgs/CameraInfo", "reliable, depth 5", "With every frame."),
    Topic("out", "/camera/mask", "sensor_msgs/Image", "reliable, depth 5", "mono8, 1 = the object; as found on blur."),
    Topic("out", "/camera/depth", "sensor_msgs/Image", "reliable, depth 5", "16UC1 mm, with noise and holes."),
    Topic("out", "/camera/image_sharp", "sensor_msgs/Image", "reliable, depth 5", "Truth: the frame without blur."),
    Topic("out", "/tf", "tf2_msgs/TFMessage", "reliable, depth 100", "Truth: optical frame to `true_object_1`."),
    Topic("out", "/diagnostics", "diagnostic_msgs/DiagnosticArray", "reliable, depth 10", "State, rates, counters."),
)

NODES = {
    "event_image_node": (_EVENT_IMAGE_TOPICS, EVENT_IMAGE_NODE),
    "reconstruction_node": (_RECONSTRUCTION_TOPICS, RECONSTRUCTION_NODE),
    "dv_camera_node": (_DV_CAMERA_TOPICS, DV_CAMERA_NODE),
    "bag_player_node": (_BAG_PLAYER_TOPICS, BAG_PLAYER_NODE),
    "simulator_node": (_SIMULATOR_TOPICS, SIMULATOR_NODE),
}


def markdown() -> str:
    """Topics and parameters of every node as markdown tables."""
    lines: list[str] = []
    for node, (topics, table) in NODES.items():
        lines += [f"### {node}", "", "| | topic | type | QoS | |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {t.direction} | `{t.name}` | {t.type} | {t.qos} | {t.description} |" for t in topics]
        lines += ["", "| parameter | default | allowed | while running | |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| `{p.name}` | `{str(p.default).lower() if isinstance(p.default, bool) else p.default}` | {p.allowed()} "
            f"| {'yes' if p.dynamic else 'no'} | {p.description} |"
            for p in table.by_name.values()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
