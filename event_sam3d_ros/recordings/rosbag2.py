"""rosbag2 recordings (mcap and sqlite3) read without ROS.

Event messages are taken apart from their raw bytes, so a bag may hold types whose definitions are not at hand; standard
messages go through the type store of `rosbags`.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from event_sam3d_ros.errors import EventSam3dError, RecordingError, RecordingWarning
from event_sam3d_ros.events.codecs import (
    Decoder,
    decode_dvs_event_array_cdr,
    make_decoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.bag_messages import (
    COMPRESSED_IMAGE_TYPE,
    DVS_TYPES,
    EVENT_PACKET_TYPES,
    EVENT_TYPES,
    IMAGE_TYPE,
    IMU_TYPE,
    POSE_TYPE,
    RawMessage,
    decode_calibration,
    decode_frame,
    decode_imu,
    decode_pose,
    unsupported_type,
    where,
)
from event_sam3d_ros.recordings.bag_reader import BagReader
from event_sam3d_ros.recordings.samples import (
    EventChunk,
    Role,
    Sample,
    Topics,
    TriggerChunk,
)

_T = TypeVar("_T")


class Rosbag2Recording:
    """A rosbag2 folder, or one .mcap or .db3 file. Messages are read one at a time, as often as wanted.

    ``types``: topic -> message type; ``counts``: topic -> number of messages; ``start_ns``, ``end_ns``: first and last
    receive time; ``topics``: which topic carries what; ``progress``: share of the messages that the latest reading has
    passed.
    """

    geometry_inferred = False
    _KIND = "a rosbag2"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = 0.0
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
        """Encoding, width and height of the first event message."""
        for message in self.raw_messages():
            if message.topic == self.topics.events and message.type in EVENT_TYPES:
                return self._understood(_geometry, message)
        return "", 0, 0

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
        """All messages by receive time, as they are. RecordingError if the bag is damaged or ends too early."""
        count = 0
        with _translated(self.path, self._KIND), self._reader() as reader:
            for connection, receive_ns, raw in reader.messages():
                cdr = self._cdr(raw, connection.msgtype)
                yield RawMessage(connection.topic, connection.msgtype, receive_ns, cdr)
                count += 1
                self.progress = count / max(1, self._message_count)
            if self._is_cut(reader):
                warnings.warn(RecordingWarning(f"{self.path} is cut; what is whole was read"), stacklevel=2)
            elif count != self._message_count:
                raise RecordingError(
                    f"{self.path} announces {self._message_count} messages, but {count} can be read: it is damaged",
                    reason="broken_recording",
                )

    def _is_cut(self, reader: Any) -> bool:
        return bool(reader.is_cut)

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
        """The samples of the known topics by receive time; a message that cannot be understood is an error."""
        roles: dict[str, Role] = {self.topics.image: "image", self.topics.mask: "mask", self.topics.depth: "depth"}
        events = {topic: _EventTopic() for topic in (self.topics.events, self.topics.triggers)}
        decoders: dict[str, Callable[[RawMessage], list[Sample]]] = {
            **events,
            self.topics.camera_info: lambda message: [decode_calibration(message)],
            self.topics.imu: lambda message: [decode_imu(message)],
            self.topics.pose: lambda message: [decode_pose(message)],
        }
        for message in self.raw_messages():
            if message.topic in roles:
                yield decode_frame(message, roles[message.topic])
            elif message.topic in decoders:
                yield from self._understood(decoders[message.topic], message)
        for name, topic in events.items():
            for sentence in topic.said():
                warnings.warn(RecordingWarning(f"{self.path}: {name} {sentence}"), stacklevel=2)

    def _understood(self, decode: Callable[[RawMessage], _T], message: RawMessage) -> _T:
        """What ``decode`` makes of a message; its error names the bag, the topic and the time."""
        try:
            return decode(message)
        except RecordingError:
            raise
        except EventSam3dError as error:
            raise RecordingError(f"{self.path}: {where(message)}: {error}", reason=error.reason) from error

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


def _geometry(message: RawMessage) -> tuple[str, int, int]:
    """Encoding, or package of the message, width and height of an event message."""
    if message.type in DVS_TYPES:
        _, width, height, _ = decode_dvs_event_array_cdr(message.cdr)
        return message.type.split("/")[0], width, height
    packet = parse_event_packet_cdr(message.cdr)
    return packet.encoding, packet.width, packet.height


class _EventTopic:
    """Decodes the messages of one event topic; the decoder keeps its state from packet to packet.

    After a gap in the packets' numbers it is synchronised anew, and where the numbers begin again it starts afresh.
    ``lost``, ``starts``: how many packets the gaps lack, and how often the numbers began again.
    """

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._key: tuple[str, int, int, bool] | None = None
        self._seq: int | None = None
        self.lost = self.starts = 0

    def said(self) -> Iterator[str]:
        """What there is to say about the messages so far, a part of a sentence each."""
        if self.lost:
            yield f"lacks {self.lost} event packets (gaps of seq): decoding was synchronised anew behind them"
        if self.starts:
            yield f"has numbers of packets (seq) that begin again, {self.starts} times: so does the sensor's clock"
        yield from self._decoder.warnings.values() if self._decoder else ()

    def __call__(self, message: RawMessage) -> list[Sample]:
        """Events, sorted by time, and triggers of a message, where it has any."""
        receive_ns = message.receive_ns
        if message.type in DVS_TYPES:
            _, width, height, events = decode_dvs_event_array_cdr(message.cdr)
            # These events carry ROS time, whatever the header's stamp is: their packet counts as stamped by the first.
            events = _sorted(events)
            stamp_ns = int(events.t[0]) * 1000 if len(events) else 0
            return [EventChunk(stamp_ns, receive_ns, "", width, height, events)] if len(events) else []
        if message.type not in EVENT_PACKET_TYPES:
            raise unsupported_type(message, f"one of {', '.join(EVENT_TYPES)}")
        packet = parse_event_packet_cdr(message.cdr)
        key = (packet.encoding, packet.width, packet.height, packet.is_bigendian)
        lost = 0 if self._seq is None else packet.seq - self._seq - 1
        if key != self._key or self._decoder is None or lost < -1:
            self.starts += lost < -1
            self._decoder, self._key = make_decoder(*key), key
        elif lost > 0:
            self.lost += lost
            self._decoder.resynchronise()
        self._seq = packet.seq
        events = _sorted(self._decoder.decode(packet.payload, packet.time_base))
        triggers = self._decoder.triggers
        samples: list[Sample] = []
        if len(events):
            size = packet.width, packet.height
            samples.append(EventChunk(packet.stamp_ns, receive_ns, packet.frame_id, *size, events))
        if len(triggers):
            samples.append(TriggerChunk(packet.stamp_ns, receive_ns, packet.frame_id, triggers))
        return samples


def _sorted(events: Events) -> Events:
    """In a packet, times may step back a little (EVT3's bit noise, libcaer_cmp's folds)."""
    return events[np.argsort(events.t, kind="stable")] if np.any(events.t[1:] < events.t[:-1]) else events


class _translated:
    """Turns whatever a damaged bag makes the reader raise into one RecordingError that names the bag."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EventSam3dError):
            reason = " ".join(str(error).split())  # YAML errors have many lines
            raise RecordingError(
                f"{self._path} can't be read as {self._kind} ({type(error).__name__}: {reason})",
                reason="broken_recording",
            ) from error
