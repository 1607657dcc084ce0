"""A recording through the same core as the nodes, frame by frame, without ROS: what every frame should have given.

Events go through `EventWindows`, messages of one stamp through `StampPairing`, and both together through
`build_observation`, as in the nodes. Nothing is dropped here for want of time, however slow the model. Messages that
can't be used are skipped and reported as the nodes do.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import EventSam3dError, InputError
from event_sam3d_ros.evaluation.poses import CameraPose, PoseTrack
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.windows import EventWindow, EventWindows, WindowSettings
from event_sam3d_ros.observations import FrameArrays, build_observation
from event_sam3d_ros.pairing import Frame as FramePieces
from event_sam3d_ros.pairing import StampPairing
from event_sam3d_ros.pixels import depth_from_pixels, rgb_from_pixels
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.recordings.bag_messages import (
    EVENT_PACKET_TYPES,
    POINTS_TYPE,
    Points,
    RawMessage,
    decode_calibration,
    decode_frame,
    decode_points,
    decode_pose,
)
from event_sam3d_ros.recordings.files import Calibration, Frame, Recording, Rosbag2Recording, Topics
from event_sam3d_ros.recordings.rosbag2_writer import SampleEncoder
from event_sam3d_ros.recordings.samples import Role
from event_sam3d_ros.sam3d.config import PreprocessConfig

Report: TypeAlias = Callable[[str, str], None]

# Masks come from a network that may be slow: the demo waits as long.
PAIR_TIMEOUT_S = 1.0
DEPTH_TOLERANCE_NS = 20_000_000
_IN_WORDS = {"mask": "masks", "events": "event packets", "depth": "depth", "pose": "camera poses"}
_POSES_KEPT = 4000  # camera poses: several seconds of a motion capture system


@dataclass
class ReplayedFrame:
    """One RGB frame with what belongs to it. ``observation`` is None where mask or calibration are missing or do not
    fit the frame, and ``reason`` says which; ``window``: the events' window, with its image; ``camera_pose``: of the
    recording itself."""

    stamp_ns: int
    image: NDArray[np.uint8]
    event_image: NDArray[np.uint8] | None
    event_count: int
    mask: NDArray[np.generic] | None
    observation: Observation | None
    frame_id: str = ""
    window: EventWindow | None = None
    camera_pose: CameraPose | None = None
    reason: str = ""


@dataclass
class Seen:
    """What has come of one kind: number, and stamps of the first and the last, ns."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    @property
    def span(self) -> str:
        """In words."""
        return f"from {self.first_ns / 1e9:.3f} s to {self.last_ns / 1e9:.3f} s"

    def add(self, stamp_ns: int) -> None:
        """One more."""
        self.first_ns = self.first_ns if self.count else stamp_ns
        self.last_ns = stamp_ns
        self.count += 1


def disagreeing_clocks(path: Path, seen: Mapping[str, Seen]) -> dict[str, str]:
    """Of the kinds whose stamps lie at another time than those of the frames, by kind a sentence that says so."""
    image, told = seen["image"], {}
    for kind in ("mask", "events", "depth", "pose"):
        other = seen[kind]
        if not image.count or not other.count:
            continue
        gap_ns = max(other.first_ns - image.last_ns, image.first_ns - other.last_ns)
        if gap_ns > DEPTH_TOLERANCE_NS:
            told[kind] = (
                f"{path}: the clocks disagree. Frames are stamped {image.span}, {_IN_WORDS[kind]} {other.span}: no "
                f"frame has its {kind}. Set both drivers to one clock, or correct the stamps"
            )
    return told


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
    return Replay(recording, min_events, report or _log).frames()


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


class Replay:
    """One reading of a recording. ``observer``, if given, gets every message as it is read; ``settings``: of
    the windows.

    ``seen``: what has come by ``events``, ``image``, ``mask``, ``depth``, ``camera_info`` and ``pose``.
    """

    def __init__(
        self,
        recording: Recording,
        min_events: int,
        report: Report,
        observer: Callable[[RawMessage], None] | None = None,
        settings: WindowSettings | None = None,
    ) -> None:
        self._recording, self._report, self._min_events = recording, report, min_events
        self._observer = observer
        bag = recording if isinstance(recording, Rosbag2Recording) else None
        topics = bag.topics if bag else Topics()
        types = bag.types if bag else {}
        self._kinds = {
            getattr(topics, kind): kind for kind in ("events", "image", "mask", "depth", "camera_info", "pose")
        }
        self.seen = {kind: Seen() for kind in self._kinds.values()}
        event_type = types.get(topics.events, EVENT_PACKET_TYPES[0])
        self._windows = EventWindows(event_type, settings or WindowSettings(), EventBuffer(), report)
        depth_is_expected = topics.depth in types
        self._pairing = StampPairing(
            [("image",)],
            [("event_image",), ("mask",)],
            report,
            near="depth",
            near_expected=lambda: depth_is_expected or self.seen["depth"].count > 0,
        )
        self._pairing.timeout_s, self._pairing.tolerance_ns = PAIR_TIMEOUT_S, DEPTH_TOLERANCE_NS
        self._camera: CameraModel | None = None
        self._poses: deque[CameraPose] = deque(maxlen=_POSES_KEPT)
        self._now_s = 0.0

    def frames(self) -> Iterator[ReplayedFrame]:
        """Every RGB frame in order. RecordingError if the recording itself ends too early."""
        for message in _messages(self._recording):
            if self._observer is not None:
                self._observer(message)
            self._now_s = message.receive_ns / 1e9
            yield from self._finished(self._receive(message))
            yield from self._finished(self._windows_out())
        self._now_s = math.inf
        yield from self._finished(self._windows_out())

    def _receive(self, message: RawMessage) -> list[FramePieces]:
        """Takes a message in; one that can't be used is reported. Gives frames that are ready by it."""
        kind = self._kinds.get(message.topic)
        try:
            if kind == "events":
                self._windows.add_packet(message.cdr)
                newest = self._windows.stream.newest
                self.seen["events"].add(newest.stamp_ns if newest else message.receive_ns)
            elif kind == "camera_info":
                calibration = decode_calibration(message)
                self.seen[kind].add(calibration.stamp_ns)
                self._camera = _camera(calibration, self._camera)
            elif kind == "pose":
                pose = decode_pose(message)
                self.seen[kind].add(pose.stamp_ns)
                self._poses.append(CameraPose(pose.stamp_ns, pose.position, pose.orientation))
            elif kind == "depth" and message.type == POINTS_TYPE:
                points = decode_points(message)
                self.seen[kind].add(points.stamp_ns)
                return self._pairing.add(kind, points.stamp_ns, points, self._now_s)
            elif kind is not None:
                return self._take_frame(decode_frame(message, cast(Role, kind)))
        except EventSam3dError as error:
            self._report(error.reason, str(error))
        return []

    def _take_frame(self, frame: Frame) -> list[FramePieces]:
        role: Role = frame.role
        self.seen[role].add(frame.stamp_ns)
        if role == "image":
            self._windows.add_frame(frame.stamp_ns, frame.frame_id, self._now_s, frame.exposure_ns)
        return self._pairing.add(role, frame.stamp_ns, frame, self._now_s)

    def _windows_out(self) -> list[FramePieces]:
        """The frames that are ready by windows that are complete or have waited long enough, or by time alone."""
        frames: list[FramePieces] = []
        for window in self._windows.ready(self._now_s):
            frames += self._pairing.add("event_image", window.stamp_ns, window, self._now_s)
        return frames + self._pairing.expire(self._now_s)

    def _finished(self, frames: list[FramePieces]) -> Iterator[ReplayedFrame]:
        for frame in frames:
            try:
                image = rgb_from_pixels(frame.messages["image"].data)
            except InputError as error:
                self._report(error.reason, str(error))
                continue
            yield self._replayed(frame, image)

    def _replayed(self, frame: FramePieces, image: NDArray[np.uint8]) -> ReplayedFrame:
        window: EventWindow | None = frame.messages.get("event_image")
        mask: Frame | None = frame.messages.get("mask")
        observation, reason = None, ""
        try:
            if mask is None:
                reason = "missing_mask"  # the pairing has reported it
            elif self._camera is None:
                raise InputError("a frame came before any usable CameraInfo: it has no result", reason="no_camera_info")
            else:
                observation = build_observation(
                    self._arrays(frame, image), self._camera, self._min_events, self._report
                )
        except InputError as error:
            reason = error.reason
            self._report(error.reason, str(error))
        return ReplayedFrame(
            stamp_ns=frame.stamp_ns,
            image=image,
            event_image=None if window is None else window.image,
            event_count=0 if window is None else window.event_count,
            mask=None if mask is None else mask.data,
            observation=observation,
            frame_id=frame.messages["image"].frame_id,
            window=window,
            camera_pose=PoseTrack(self._poses).at(frame.stamp_ns) if self._poses else None,
            reason=reason,
        )

    def _arrays(self, frame: FramePieces, image: NDArray[np.uint8]) -> FrameArrays:
        pieces: dict[str, Any] = frame.messages
        window, given = pieces.get("event_image"), pieces.get("depth")
        depth = given if isinstance(given, Frame) else None
        points = given if isinstance(given, Points) else None
        frame_id = pieces["image"].frame_id
        if points is not None and frame_id and points.frame_id and points.frame_id != frame_id:
            self._report("frame_mismatch", f"depth has the frame_id {points.frame_id}, the image {frame_id}: not used")
            points = None
        return FrameArrays(
            stamp_ns=frame.stamp_ns,
            mask=pieces["mask"].data,
            image=image,
            event_image=None if window is None else window.image,
            event_count=0 if window is None else window.event_count,
            depth=None if depth is None else depth_from_pixels(depth.data),
            points=None if points is None else points.points,
        )


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
