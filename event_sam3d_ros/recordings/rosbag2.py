"""rosbag2 recordings (mcap and sqlite3) read without ROS.

Event messages are taken apart from their raw bytes, so a bag may hold types whose definitions are not at hand; standard
messages go through the type store of `rosbags`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from event_sam3d_ros.errors import EventSam3dError, RecordingError, RecordingWarning
from event_sam3d_ros.recordings.bag_messages import (
    COMPRESSED_IMAGE_TYPE,
    EVENT_TYPES,
    IMAGE_TYPE,
    IMU_TYPE,
    POSE_TYPE,
    RawMessage,
    decode_calibration,
    decode_frame,
    decode_imu,
    decode_pose,
    where,
)
from event_sam3d_ros.recordings.bag_reader import BagReader
from event_sam3d_ros.recordings.event_topic import EventTopic, geometry
from event_sam3d_ros.recordings.losses import Losses, counted
from event_sam3d_ros.recordings.samples import Role, Sample, Topics


class Rosbag2Recording:
    """A rosbag2 folder, or one .mcap or .db3 file. Messages are read one at a time, as often as wanted.

    ``types``: topic -> message type; ``counts``: topic -> number of messages; ``start_ns``, ``end_ns``: first and last
    receive time; ``topics``: which topic carries what; ``progress``: share of the messages that the latest reading has
    passed; ``losses``: what it has left out.
    """

    geometry_inferred = False
    _KIND = "a rosbag2"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = 0.0
        self.losses = Losses()
        self._warned: set[str] = set()
        with _translated(path, self._KIND), self._reader() as reader:
            self.types: dict[str, str] = {c.topic: c.msgtype for c in reader.connections}
            self.counts: dict[str, int] = {c.topic: c.msgcount for c in reader.connections}
            self._message_count = reader.message_count
            # A bag without messages begins at the end of all time.
            self.start_ns = reader.start_time if self._message_count else 0
            self.end_ns = reader.end_time - 1 if self._message_count else 0
        self.topics = self._find_topics()

    def _reader(self) -> Any:
        return BagReader(self.path)

    def _cdr(self, raw: bytes, kind: str) -> bytes:
        """The bytes of a message as ROS 2 has them on the wire."""
        return bytes(raw)

    @cached_property
    def _geometry(self) -> tuple[str, int, int]:
        """Encoding, width and height of the first event message that can be understood."""
        losses, self.losses = self.losses, Losses()
        try:
            for message in self._messages():
                if message.topic == self.topics.events and message.type in EVENT_TYPES:
                    try:
                        return geometry(message)
                    except EventSam3dError as error:
                        self._leave_out("corrupt_packets", message, error)
            self.losses.check()
            return "", 0, 0
        finally:
            self.losses = losses  # what this look at the begin left out counts when it is read

    @property
    def encoding(self) -> str:
        """Encoding of the event packets, or the package of the event message; empty without events."""
        return self._geometry[0]

    @property
    def width(self) -> int:
        """Columns of the event sensor, 0 without events."""
        return self._geometry[1]

    @property
    def height(self) -> int:
        """Rows of the event sensor, 0 without events."""
        return self._geometry[2]

    @property
    def image_count(self) -> int:
        """Number of RGB frames."""
        return self.counts.get(self.topics.image, 0)

    def raw_messages(self) -> Iterator[RawMessage]:
        """All messages by receive time, as they are. What is damaged is left out, and said at the end."""
        self.losses = Losses()
        yield from self._messages()
        self._say_losses()

    def _messages(self) -> Iterator[RawMessage]:
        count = 0
        with _translated(self.path, self._KIND), self._reader() as reader:
            damage: list[Exception] = []
            try:
                for connection, receive_ns, raw in reader.messages():
                    count += 1
                    self.progress = count / max(1, self._message_count)
                    message = RawMessage(connection.topic, connection.msgtype, receive_ns, b"")
                    try:
                        message = replace(message, cdr=self._cdr(raw, message.type))
                    except RecordingError as error:
                        kind = "corrupt_packets" if message.type in EVENT_TYPES else "corrupt_messages"
                        self._leave_out(kind, message, error)
                        continue
                    yield message
            except Exception as error:  # whatever a reader says where nothing behind can be read either
                damage.append(error)
            damage = [*reader.damage, *damage]
            announced = counted(self._message_count, "message{s}")
            if damage and count == 0:
                raise RecordingError(
                    f"{self.path} can't be read as {self._KIND}: none of its {announced} is whole ({_told(damage[0])})",
                    reason="broken_recording",
                ) from damage[0]
            if reader.salvaged:
                self._warn(f"{self.path} {reader.salvaged}; what is whole was read")
            missing = 0 if reader.salvaged and not damage else self._message_count - count
            if missing or damage:
                reason = f" ({_told(damage[0])})" if damage else ""
                problem = f"{self.path} announces {announced}, but {count} can be read{reason}"
                self.losses.leave_out(
                    "missing_messages", RecordingError(problem, reason="broken_recording"), max(missing, 0)
                )

    def _leave_out(self, name: str, message: RawMessage, error: EventSam3dError) -> None:
        """Count a message that can't be used; its error names the bag, the topic and the time."""
        place = where(message)
        sentence = str(error) if place in str(error) else f"{place}: {error}"
        named = sentence if str(self.path) in sentence else f"{self.path}: {sentence}"
        self.losses.leave_out(name, RecordingError(named, reason=error.reason))

    def _say_losses(self) -> None:
        for sentence in self.losses.sentences():
            self._warn(sentence)

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(RecordingWarning(sentence), stacklevel=3)

    def frame_stamps(self) -> list[int]:
        """Stamps of all RGB frames in ns, in their order; those whose header can't be read are left out."""
        stamps = []
        for message in self.raw_messages():
            if message.topic == self.topics.image and len(message.cdr) >= 12:
                # behind four bytes of encapsulation, of which the second tells the byte order
                seconds, nanoseconds = struct.unpack_from("<iI" if message.cdr[1] & 1 else ">iI", message.cdr, 4)
                stamps.append(seconds * 1_000_000_000 + nanoseconds)
        return stamps

    def samples(self) -> Iterator[Sample]:
        """The samples of the known topics by receive time.

        Messages that can't be understood are left out, and said at the end; RecordingError where none can.
        """
        self.losses = Losses()
        roles: dict[str, Role] = {self.topics.image: "image", self.topics.mask: "mask", self.topics.depth: "depth"}
        events = {
            topic: EventTopic(self._leave_out, self.losses) for topic in (self.topics.events, self.topics.triggers)
        }
        decoders: dict[str, Callable[[RawMessage], Sample]] = {
            **{topic: partial(decode_frame, role=role) for topic, role in roles.items()},
            self.topics.camera_info: decode_calibration,
            self.topics.imu: decode_imu,
            self.topics.pose: decode_pose,
        }
        for message in self._messages():
            if message.topic in events:
                yield from events[message.topic](message)
            elif message.topic in decoders:
                try:
                    sample = decoders[message.topic](message)
                except EventSam3dError as error:
                    self._leave_out("corrupt_messages", message, error)
                else:
                    yield sample
        for topic in events.values():
            yield from topic.rest()
        self.losses.check()
        self._say_losses()
        for name, topic in events.items():
            for sentence in topic.said():
                self._warn(f"{self.path}: {name} {sentence}")

    def _find_topics(self) -> Topics:
        """Default names where the bag has them; else the first topic of the right type, and for images of a usual
        name, for bags have images of many sorts."""
        default = Topics()

        def named(name: str, *kinds: str) -> str:
            others = (t for t, kind in self.types.items() if kind in kinds and t not in vars(default).values())
            return name if name in self.types else next(others, name)

        images = [name for name in (default.image, f"{default.image}/compressed") if name in self.types]
        image = next(iter(images or filter(self._is_picture, self.types)), default.image)
        beside = image.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
        return Topics(
            events=named(default.events, *EVENT_TYPES),
            image=image,
            camera_info=default.camera_info if default.camera_info in self.types else beside,
            imu=named(default.imu, IMU_TYPE),
            pose=named(default.pose, POSE_TYPE),
        )

    def _is_picture(self, topic: str) -> bool:
        """Whether a topic is a camera's picture by its type and its name (image, image_raw, image_color, ...)."""
        name = topic.removesuffix("/compressed").rpartition("/")[2]
        of_type = self.types[topic] in (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
        return of_type and name.startswith("image") and "depth" not in topic


class _translated:
    """Turns whatever a damaged bag makes the reader raise into one RecordingError that names the bag."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EventSam3dError):
            raise RecordingError(
                f"{self._path} can't be read as {self._kind} ({_told(error)})", reason="broken_recording"
            ) from error


def _told(error: Exception) -> str:
    """What a reader says about a damaged bag, in one line."""
    said = " ".join(str(error).split())  # YAML errors have many lines
    if "malformed" in said:  # sqlite3
        said += ': sqlite3 OLD.db3 ".recover" | sqlite3 NEW.db3 may bring back a part of it'
    return f"{type(error).__name__}: {said}" if said else "a record is not where the index has it"
