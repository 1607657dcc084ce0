"""A recording through the same core as the nodes, frame by frame, without ROS: what every frame should have given.

Nothing is dropped here for want of time, however slow the model. Messages that can't be used are skipped and reported
as the nodes do.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.windows import EventWindow, EventWindows, WindowSettings
from event_sam3d_ros.observations import FrameArrays, build_observation
from event_sam3d_ros.pixels import depth_from_pixels, rgb_from_pixels
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.recordings.bag_messages import EVENT_PACKET_TYPES, RawMessage, decode_calibration, decode_frame
from event_sam3d_ros.recordings.files import Calibration, Frame, Recording, Rosbag2Recording, Topics
from event_sam3d_ros.recordings.rosbag2_writer import SampleEncoder
from event_sam3d_ros.recordings.samples import Role
from event_sam3d_ros.sam3d.config import PreprocessConfig

Report: TypeAlias = Callable[[str, str], None]

# Masks come from a network that may be slow: the demo waits as long.
PAIR_TIMEOUT_S = 1.0
DEPTH_TOLERANCE_NS = 20_000_000
_KEPT = 60  # masks and depth images


@dataclass
class ReplayedFrame:
    """One RGB frame with what belongs to it. ``observation`` is None where mask or calibration are missing or do not
    fit the frame."""

    stamp_ns: int
    image: NDArray[np.uint8]
    event_image: NDArray[np.uint8] | None
    event_count: int
    mask: NDArray[np.generic] | None
    observation: Observation | None


@dataclass
class _Pending:
    frame: Frame
    arrived_s: float
    window: EventWindow | None = None


def replay(
    recording: Recording, reconstructor: Reconstructor, report: Report | None = None
) -> Iterator[tuple[int, list[Reconstruction]]]:
    """Yields (stamp_ns, reconstructions) of every frame that can be used, in order."""
    report = report or _log
    for frame in replay_frames(recording, reconstructor.info["min_events"], report):
        if frame.observation is None:
            continue
        try:
            yield frame.stamp_ns, reconstructor(frame.observation)
        except InputError as error:  # an empty mask, say: the nodes count it and go on
            report(error.reason, str(error))


def replay_frames(
    recording: Recording, min_events: int = PreprocessConfig.min_events, report: Report | None = None
) -> Iterator[ReplayedFrame]:
    """Yields every RGB frame with its event image, mask and observation, in order, with bounded memory.

    Frames with fewer than ``min_events`` events in their window are observed without them. ``report(reason, sentence)``
    gets what is skipped or unusual; without it, the log. RecordingError if the recording itself ends too early.
    """
    state = _Replay(recording, min_events, report or _log)
    for message in _messages(recording):
        state.receive(message)
        yield from state.finished(message.receive_ns / 1e9)
    yield from state.finished(math.inf)


def _log(reason: str, sentence: str) -> None:
    logging.getLogger(__name__).warning("%s: %s", reason, sentence)


def _messages(recording: Recording) -> Iterator[RawMessage]:
    """The recording as a publisher would send it."""
    if isinstance(recording, Rosbag2Recording):
        yield from recording.raw_messages()
        return
    encode = SampleEncoder()
    for sample in recording.samples():
        for topic, kind, receive_ns, cdr in encode(sample):
            yield RawMessage(topic, kind, receive_ns, bytes(cdr))


class _Replay:
    """Everything received so far that a frame may still need."""

    def __init__(self, recording: Recording, min_events: int, report: Report) -> None:
        self._report, self._min_events = report, min_events
        bag = recording if isinstance(recording, Rosbag2Recording) else None
        self._topics = bag.topics if bag else Topics()
        types = bag.types if bag else {}
        self._roles: dict[str, Role] = {
            self._topics.image: "image", self._topics.mask: "mask", self._topics.depth: "depth"
        }  # fmt: skip
        event_type = types.get(self._topics.events, EVENT_PACKET_TYPES[0])
        self._settings = WindowSettings()
        self._windows = EventWindows(event_type, self._settings, EventBuffer(), report)
        self._depth_is_expected = self._topics.depth in types
        self._camera: CameraModel | None = None
        self._masks: deque[Frame] = deque(maxlen=_KEPT)
        self._depths: deque[Frame] = deque(maxlen=_KEPT)
        self._pending: deque[_Pending] = deque()

    def receive(self, message: RawMessage) -> None:
        """Takes a message in; one that can't be used is reported."""
        try:
            if message.topic == self._topics.events:
                self._windows.add_packet(message.cdr)
            elif message.topic == self._topics.camera_info:
                self._camera = _camera(decode_calibration(message), self._camera)
            elif message.topic in self._roles:
                self._take_frame(decode_frame(message, self._roles[message.topic]))
        except EventSam3dError as error:
            self._report(error.reason, str(error))

    def _take_frame(self, frame: Frame) -> None:
        if frame.role == "mask":
            self._masks.append(frame)
        elif frame.role == "depth":
            self._depths.append(frame)
        else:
            now_s = frame.receive_ns / 1e9
            self._windows.add_frame(frame.stamp_ns, frame.frame_id, now_s, frame.exposure_ns)
            self._pending.append(_Pending(frame, now_s))

    def finished(self, now_s: float) -> Iterator[ReplayedFrame]:
        """The frames that are complete or have waited long enough, in their order."""
        for window in self._windows.ready(now_s):
            for pending in self._pending:
                if pending.frame.stamp_ns == window.stamp_ns:
                    pending.window = window
        while self._pending and self._is_complete(self._pending[0], now_s):
            frame = self._finish(self._pending.popleft())
            if frame is not None:
                yield frame

    def _is_complete(self, pending: _Pending, now_s: float) -> bool:
        waited_s = now_s - pending.arrived_s
        if waited_s < self._settings.max_wait_s and pending.window is None:
            return False
        if waited_s >= PAIR_TIMEOUT_S:
            return True
        stamp = pending.frame.stamp_ns
        # Once a depth image of this stamp or a later one is here, none that fits better will come.
        has_depth = not self._depth_is_expected or any(depth.stamp_ns >= stamp for depth in self._depths)
        return has_depth and self._mask_of(stamp) is not None

    def _finish(self, pending: _Pending) -> ReplayedFrame | None:
        window = pending.window
        mask = self._mask_of(pending.frame.stamp_ns)
        observation = None
        try:
            image = rgb_from_pixels(pending.frame.data)
        except InputError as error:
            self._report(error.reason, str(error))
            return None
        try:
            if mask is not None and self._camera is not None:
                arrays = self._arrays(pending, image, mask)
                observation = build_observation(arrays, self._camera, self._min_events, self._report)
        except InputError as error:
            self._report(error.reason, str(error))
        return ReplayedFrame(
            stamp_ns=pending.frame.stamp_ns,
            image=image,
            event_image=None if window is None else window.image,
            event_count=0 if window is None else window.event_count,
            mask=None if mask is None else mask.data,
            observation=observation,
        )

    def _arrays(self, pending: _Pending, image: NDArray[np.uint8], mask: Frame) -> FrameArrays:
        stamp, window = pending.frame.stamp_ns, pending.window
        depth = min(self._depths, key=lambda frame: abs(frame.stamp_ns - stamp), default=None)
        if depth is not None and abs(depth.stamp_ns - stamp) > DEPTH_TOLERANCE_NS:
            depth = None
        return FrameArrays(
            stamp_ns=stamp,
            mask=mask.data,
            image=image,
            event_image=None if window is None else window.image,
            event_count=0 if window is None else window.event_count,
            depth=None if depth is None else depth_from_pixels(depth.data),
        )

    def _mask_of(self, stamp_ns: int) -> Frame | None:
        return next((mask for mask in self._masks if mask.stamp_ns == stamp_ns), None)


def _camera(calibration: Calibration, before: CameraModel | None) -> CameraModel:
    """The camera of the images; the one before if nothing has changed, for its tables of pixels."""
    x, y, width, height = calibration.roi
    camera = CameraModel.from_camera_info(
        SimpleNamespace(
            k=calibration.K,
            d=calibration.D,
            width=calibration.width,
            height=calibration.height,
            distortion_model=calibration.model,
            binning_x=calibration.binning[0],
            binning_y=calibration.binning[1],
            roi=SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height),
        )
    )
    same = (
        before is not None
        and np.array_equal(before.K, camera.K)
        and np.array_equal(before.D, camera.D)
        and (before.width, before.height, before.model) == (camera.width, camera.height, camera.model)
    )
    return before if before is not None and same else camera
