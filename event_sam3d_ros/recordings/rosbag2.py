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

import numpy as np

from event_sam3d_ros.errors import DecodeError, EventSam3dError, RecordingError, RecordingWarning
from event_sam3d_ros.events.codecs import (
    Decoder,
    EventPacketView,
    decode_dvs_event_array_cdr,
    make_decoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.stream import MAX_LOST, check_geometry
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
from event_sam3d_ros.recordings.losses import Losses
from event_sam3d_ros.recordings.samples import EventChunk, Role, Sample, Topics, TriggerChunk


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
                        return _geometry(message)
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
            if damage and count == 0:
                raise damage[0]
            if reader.is_cut:
                self._warn(f"{self.path} is cut; what is whole was read")
            missing = 0 if reader.is_cut and not damage else self._message_count - count
            if missing or damage:
                reason = f" ({type(damage[0]).__name__}: {' '.join(str(damage[0]).split())})" if damage else ""
                problem = f"{self.path} announces {self._message_count} messages, but {count} can be read{reason}"
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
            topic: _EventTopic(self._leave_out, self.losses) for topic in (self.topics.events, self.topics.triggers)
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


def _geometry(message: RawMessage) -> tuple[str, int, int]:
    """Encoding, or package of the message, width and height of an event message."""
    if message.type in DVS_TYPES:
        _, width, height, _ = decode_dvs_event_array_cdr(message.cdr)
        return message.type.split("/")[0], width, height
    packet = _packet(message)
    return packet.encoding, packet.width, packet.height


def _packet(message: RawMessage) -> EventPacketView:
    if message.type not in EVENT_PACKET_TYPES:
        raise unsupported_type(message, f"one of {', '.join(EVENT_TYPES)}")
    packet = parse_event_packet_cdr(message.cdr)
    check_geometry(packet.width, packet.height)
    return packet


_Key = tuple[str, int, int, bool]


class _EventTopic:
    """Decodes the messages of one event topic; the decoder keeps its state from packet to packet.

    After a gap in the packets' numbers, or a packet that makes no sense, it is synchronised anew. A packet of another
    size or encoding, or with a number far from the one before, is kept until the next one: where that goes on from it a
    new stream has begun, else it was damaged.
    """

    def __init__(self, leave_out: Callable[[str, RawMessage, EventSam3dError], None], losses: Losses) -> None:
        self._leave_out, self._losses = leave_out, losses
        self._decoder: Decoder | None = None
        self._key: _Key | None = None
        self._seq = 0
        self._held: tuple[RawMessage, EventPacketView] | None = None
        self._warnings: dict[str, str] = {}
        self._lost = self._starts = self._unread = self._unknown = 0

    def said(self) -> Iterator[str]:
        """What there is to say about the messages so far, a part of a sentence each."""
        if self._lost:
            yield f"lacks {self._lost} event packets (gaps of seq): decoding was synchronised anew behind them"
        if self._starts:
            yield f"has numbers of packets (seq) that begin again, {self._starts} times: so does the sensor's clock"
        if self._unknown:
            yield f"has {self._unknown} words of no type that its encoding defines: they were left out"
        yield from self._warnings.values()

    def __call__(self, message: RawMessage) -> list[Sample]:
        """Events, sorted by time, and triggers of a message, where it has any."""
        try:
            if message.type in DVS_TYPES:
                return self._of_array(message)
            packet = _packet(message)
        except EventSam3dError as error:
            self._leave_out("corrupt_packets", message, error)
            self._unread += 1
            return []
        if self._key is None or (_key(packet) == self._key and _follows(packet.seq, self._seq)):
            self._drop_held()
            return self._take(message, packet)
        held, self._held = self._held, None
        if held is not None and _key(held[1]) == _key(packet) and _follows(packet.seq, held[1].seq):
            return [*self._begin(*held), *self._take(message, packet)]
        self._held = held
        self._drop_held()
        self._held = message, packet
        return []

    def rest(self) -> list[Sample]:
        """What the last packet gives where it began a new stream."""
        held, self._held = self._held, None
        return self._begin(*held) if held is not None else []

    def _drop_held(self) -> None:
        if self._held is not None:
            message, packet = self._held
            problem = (
                f"an event packet, number {packet.seq}, {packet.width}x{packet.height} {packet.encoding}, among others"
            )
            self._leave_out("corrupt_packets", message, DecodeError(problem, reason="stream_changed"))
            self._held = None
            self._unread += 1

    def _begin(self, message: RawMessage, packet: EventPacketView) -> list[Sample]:
        """A new stream."""
        self._starts += not _follows(packet.seq, self._seq)
        self._key = None
        return self._take(message, packet)

    def _of_array(self, message: RawMessage) -> list[Sample]:
        _, width, height, events = decode_dvs_event_array_cdr(message.cdr)
        if not len(events):
            return []
        self._losses.has_events = True
        # These events carry ROS time, whatever the header's stamp is: their packet counts as stamped by the first.
        events = _sorted(events)
        return [EventChunk(int(events.t[0]) * 1000, message.receive_ns, "", width, height, events)]

    def _take(self, message: RawMessage, packet: EventPacketView) -> list[Sample]:
        lost = 0
        try:
            if self._key is None or self._decoder is None:
                self._decoder, self._key = make_decoder(*_key(packet)), _key(packet)
            else:
                lost = max(0, packet.seq - self._seq - 1 - self._unread)
                if packet.seq - self._seq > 1:
                    self._decoder.resynchronise()
            self._seq, self._unread = packet.seq, 0
            self._lost, self._losses.counts["lost_packets"] = (
                self._lost + lost,
                self._losses.counts["lost_packets"] + lost,
            )
            return self._decoded(message, packet, self._decoder)
        except EventSam3dError as error:
            self._leave_out("corrupt_packets", message, error)
            if self._decoder is not None:
                self._decoder.resynchronise()
            return []

    def _decoded(self, message: RawMessage, packet: EventPacketView, decoder: Decoder) -> list[Sample]:
        before = decoder.counters.copy()
        events = _sorted(decoder.decode(packet.payload, packet.time_base))
        triggers = decoder.triggers
        for name in ("unknown_words", "out_of_range_events"):
            self._losses.counts[name] += decoder.counters.get(name, 0) - before.get(name, 0)
        self._unknown += decoder.counters.get("unknown_words", 0) - before.get("unknown_words", 0)
        self._warnings |= decoder.warnings
        samples: list[Sample] = []
        if len(events):
            size = packet.width, packet.height
            samples.append(EventChunk(packet.stamp_ns, message.receive_ns, packet.frame_id, *size, events))
        if len(triggers):
            samples.append(TriggerChunk(packet.stamp_ns, message.receive_ns, packet.frame_id, triggers))
        self._losses.has_events |= bool(samples)
        return samples


def _key(packet: EventPacketView) -> _Key:
    return packet.encoding, packet.width, packet.height, packet.is_bigendian


def _follows(seq: int, before: int) -> bool:
    """Whether a packet's number goes on from the one before; drivers that do not count give the same one always."""
    return 0 <= seq - before <= MAX_LOST


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
