"""rosbag2 recordings (mcap and sqlite3) read and written without ROS.

Event messages are taken apart from their raw bytes, so a bag may hold types whose definitions are not at hand; standard
messages go through the type store of `rosbags`.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from event_sam3d_ros.errors import EventSam3dError, RecordingError
from event_sam3d_ros.events.codecs import (
    Decoder,
    decode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    make_decoder,
    make_encoder,
    parse_event_packet_cdr,
)
from event_sam3d_ros.recordings.bag_messages import (
    CAMERA_INFO_TYPE,
    DVS_TYPE,
    EVENT_PACKET_TYPES,
    EVENT_TYPES,
    IMAGE_TYPE,
    RawMessage,
    decode_calibration,
    decode_frame,
    encode_calibration,
    encode_frame,
    typestore,
    unsupported_type,
)
from event_sam3d_ros.recordings.samples import EventChunk, Frame, Role, Sample, Topics

_EVENT_DEPTH, _IMAGE_DEPTH = 1000, 5


class Rosbag2Recording:
    """A rosbag2 folder, or one .mcap or .db3 file. Messages are read one at a time, as often as wanted.

    ``types``: topic -> message type; ``counts``: topic -> number of messages; ``start_ns``, ``end_ns``: first and last
    receive time; ``topics``: which topic carries what.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _translated(path), Reader(path) as reader:
            self.types: dict[str, str] = {c.topic: c.msgtype for c in reader.connections}
            self.counts: dict[str, int] = {c.topic: c.msgcount for c in reader.connections}
            self.start_ns, self.end_ns = reader.start_time, reader.end_time - 1
            self._message_count = reader.message_count
        self.topics = self._find_topics()

    @property
    def image_count(self) -> int:
        """Number of RGB frames."""
        return self.counts.get(self.topics.image, 0)

    def raw_messages(self) -> Iterator[RawMessage]:
        """All messages by receive time, as they are. RecordingError if the bag is damaged or ends too early."""
        count = 0
        with _translated(self.path), Reader(self.path) as reader:
            for connection, receive_ns, cdr in reader.messages():
                yield RawMessage(connection.topic, connection.msgtype, receive_ns, bytes(cdr))
                count += 1
        if count != self._message_count:
            raise RecordingError(
                f"{self.path} announces {self._message_count} messages, but {count} can be read: it is damaged",
                reason="broken_recording",
            )

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
        decode_events = _EventTopic()
        roles: dict[str, Role] = {self.topics.image: "image", self.topics.mask: "mask", self.topics.depth: "depth"}
        for message in self.raw_messages():
            if message.topic == self.topics.events:
                chunk = decode_events(message)
                if chunk is not None:
                    yield chunk
            elif message.topic in roles:
                yield decode_frame(message, roles[message.topic])
            elif message.topic == self.topics.camera_info:
                yield decode_calibration(message)

    def _find_topics(self) -> Topics:
        """Default names; events by their type and images also compressed, where the default name is not in the bag."""
        default = Topics()
        events, image = default.events, default.image
        if events not in self.types:
            events = next((name for name, kind in self.types.items() if kind in EVENT_TYPES), events)
        if image not in self.types and f"{image}/compressed" in self.types:
            image = f"{image}/compressed"
        return Topics(events=events, image=image)


def write_rosbag2(
    path: Path,
    samples: Iterable[Sample],
    *,
    storage: Literal["mcap", "sqlite3"] = "mcap",
) -> int:
    """Writes ``samples`` (by ascending receive time) as a new rosbag2 folder and returns the number of messages.

    Events become EventPackets of encoding evt3, mcap chunks are compressed by zstd. A folder that exists is refused
    (RecordingError); on any error nothing is left behind.
    """
    if path.exists():
        raise RecordingError(f"{path} exists already: remove it or choose another name", reason="output_exists")
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if plugin == StoragePlugin.MCAP:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    try:
        with writer:
            encode = SampleEncoder()
            connections: dict[str, Any] = {}
            count = 0
            for sample in samples:
                topic, kind, cdr = encode(sample)
                if topic not in connections:
                    qos = _qos(QosReliability.BEST_EFFORT, _EVENT_DEPTH) if kind in EVENT_TYPES else None
                    connections[topic] = writer.add_connection(
                        topic,
                        kind,
                        typestore=typestore(),
                        offered_qos_profiles=[qos or _qos(QosReliability.RELIABLE, _IMAGE_DEPTH)],
                    )
                writer.write(connections[topic], sample.receive_ns, cdr)
                count += 1
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return count


class _EventTopic:
    """Decodes the messages of one event topic; the decoder keeps its state from packet to packet."""

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._key: tuple[str, int, int] | None = None

    def __call__(self, message: RawMessage) -> EventChunk | None:
        """None for a message without events."""
        if message.type == DVS_TYPE:
            _, width, height, events = decode_dvs_event_array_cdr(message.cdr)
            if not len(events):
                return None
            # These events carry ROS time, whatever the header's stamp is: their packet counts as stamped by the first.
            return EventChunk(int(events.t[0]) * 1000, message.receive_ns, "", width, height, events)
        if message.type not in EVENT_PACKET_TYPES:
            raise unsupported_type(message, f"one of {', '.join(EVENT_TYPES)}")
        packet = parse_event_packet_cdr(message.cdr)
        key = (packet.encoding, packet.width, packet.height)
        if key != self._key or self._decoder is None:
            self._decoder, self._key = make_decoder(*key), key
        events = self._decoder.decode(packet.payload, packet.time_base)
        if not len(events):
            return None
        return EventChunk(packet.stamp_ns, message.receive_ns, packet.frame_id, packet.width, packet.height, events)


class SampleEncoder:
    """Samples -> (topic, type, CDR), events as EventPackets of encoding evt3, which it numbers."""

    def __init__(self) -> None:
        self._topics = Topics()
        self._encoder: Any = None
        self._sequence = 0

    def __call__(self, sample: Sample) -> tuple[str, str, bytes | memoryview]:
        if isinstance(sample, EventChunk):
            return self._topics.events, EVENT_PACKET_TYPES[0], self._events(sample)
        if isinstance(sample, Frame):
            return getattr(self._topics, sample.role), IMAGE_TYPE, encode_frame(sample)
        return self._topics.camera_info, CAMERA_INFO_TYPE, encode_calibration(sample)

    def _events(self, chunk: EventChunk) -> bytes:
        if self._encoder is None:
            self._encoder = make_encoder("evt3", chunk.width, chunk.height)
        payload, time_base = self._encoder.encode(chunk.events)
        self._sequence += 1
        return encode_event_packet_cdr(
            stamp_ns=chunk.stamp_ns,
            frame_id=chunk.frame_id,
            width=chunk.width,
            height=chunk.height,
            seq=self._sequence - 1,
            time_base=time_base,
            encoding="evt3",
            payload=payload,
        )


def _qos(reliability: QosReliability, depth: int) -> Qos:
    forever = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        reliability,
        QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


class _translated:
    """Turns whatever a damaged bag makes the reader raise into one RecordingError that names the bag."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EventSam3dError):
            reason = " ".join(str(error).split())  # YAML errors have many lines
            raise RecordingError(
                f"{self._path} can't be read as a rosbag2 ({type(error).__name__}: {reason})", reason="broken_recording"
            ) from error
