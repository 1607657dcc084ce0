"""Recordings written as rosbag2 folders (mcap or sqlite3) without ROS."""

from __future__ import annotations

import shutil
import struct
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.typesys.store import Typestore

from event_sam3d_ros.errors import RecordingError, RecordingWarning
from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.bag_messages import (
    CAMERA_INFO_TYPE,
    EVENT_PACKET_TYPES,
    EVENT_TYPES,
    IMAGE_TYPE,
    IMU_TYPE,
    POSE_TYPE,
    RawMessage,
    encode_calibration,
    encode_frame,
    encode_imu,
    encode_pose,
    imu_stamp_ns,
    typestore,
)
from event_sam3d_ros.recordings.samples import Calibration, EventChunk, Frame, ImuChunk, Sample, Topics, TriggerChunk

_EVENT_DEPTH, _IMAGE_DEPTH = 1000, 5
_EVT3_WRAP_US, _EVT3_PIXELS = 1 << 24, 2048
_SECOND_US = 1_000_000

Message = tuple[str, str, int, bytes | memoryview]


def write_rosbag2(
    path: Path,
    samples: Iterable[Sample | RawMessage],
    *,
    storage: Literal["mcap", "sqlite3"] = "mcap",
) -> int:
    """Writes ``samples`` (by ascending receive time) as a new rosbag2 folder and returns the number of messages.
    Messages of other topics may be among them as they are.

    Events become EventPackets of encoding evt3, or of libcaer where evt3 can't tell their times or pixels; mcap chunks
    are compressed by zstd. A folder that exists is refused (RecordingError); on any error nothing is left behind.
    """
    writer = open_writer(path, storage)
    try:
        with writer:
            encode = SampleEncoder()
            connections: dict[str, Any] = {}
            count = 0
            for sample in samples:
                for topic, kind, receive_ns, cdr in encode(sample):
                    if topic not in connections:
                        connections[topic] = add_topic(writer, topic, kind, typestore())
                    writer.write(connections[topic], receive_ns, cdr)
                    count += 1
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return count


def open_writer(path: Path, storage: Literal["mcap", "sqlite3"] = "mcap") -> Writer:
    """A rosbag2 to write, a context manager. RecordingError for a folder that exists."""
    if path.exists():
        raise RecordingError(f"{path} exists already: remove it or choose another name", reason="output_exists")
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = _Writer(path, version=9, storage_plugin=plugin)
    if plugin == StoragePlugin.MCAP:
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    return writer


def add_topic(writer: Writer, topic: str, kind: str, store: Typestore) -> Any:
    """A connection of a writer, with the QoS that the topics of its type have live."""
    is_events = kind in EVENT_TYPES
    qos = _qos(QosReliability.BEST_EFFORT, _EVENT_DEPTH) if is_events else _qos(QosReliability.RELIABLE, _IMAGE_DEPTH)
    return writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=[qos])


class _McapWriter(McapWriter):
    """Gives each chunk the checksum that rosbags leaves out, so that damage shows."""

    def close_chunk(self) -> None:
        begin, checksum = self.bio.tell(), crc32(self.chunk.bio.getbuffer())
        super().close_chunk()
        end = self.bio.tell()
        # Behind the record's kind and size, the chunk's first and last time, and its uncompressed size.
        self.bio.seek(begin + 9 + 24)
        self.bio.write(struct.pack("<I", checksum))
        self.bio.seek(end)


class _Writer(Writer):
    STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.MCAP: _McapWriter}


class SampleEncoder:
    """Samples -> messages (topic, type, receive time, CDR); it numbers the EventPackets.

    Event packets hold no times below 0: where a recording begins there, its sensor times are moved by whole seconds,
    a second more than needed. A warning says so.
    """

    def __init__(self) -> None:
        self._topics = Topics()
        self._encoder: Any = None
        self._encoding = "evt3"
        self._last_us = self._shift_us = 0
        self._sequence = {"events": 0, "triggers": 0}

    def __call__(self, sample: Sample | RawMessage) -> list[Message]:
        if isinstance(sample, RawMessage):
            return [(sample.topic, sample.type, sample.receive_ns, sample.cdr)]
        if isinstance(sample, ImuChunk):
            return [self._imu(sample, i) for i in range(len(sample.t))]
        if isinstance(sample, EventChunk):
            return [(self._topics.events, EVENT_PACKET_TYPES[0], sample.receive_ns, self._events(sample))]
        if isinstance(sample, TriggerChunk):
            return [(self._topics.triggers, EVENT_PACKET_TYPES[0], sample.receive_ns, self._triggers(sample))]
        if isinstance(sample, Frame):
            topic: str = getattr(self._topics, sample.role)
            return [(topic, IMAGE_TYPE, sample.receive_ns, encode_frame(sample))]
        if isinstance(sample, Calibration):
            return [(self._topics.camera_info, CAMERA_INFO_TYPE, sample.receive_ns, encode_calibration(sample))]
        return [(self._topics.pose, POSE_TYPE, sample.receive_ns, encode_pose(sample))]

    def _imu(self, chunk: ImuChunk, i: int) -> Message:
        receive_ns = chunk.receive_ns + imu_stamp_ns(chunk, i) - imu_stamp_ns(chunk, len(chunk.t) - 1)
        return self._topics.imu, IMU_TYPE, receive_ns, encode_imu(chunk, i)

    def _shifted(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorted sensor times as packets hold them."""
        first_us = int(t[0])
        if first_us < 0 and self._shift_us == 0:
            self._shift_us = (-first_us // _SECOND_US + 2) * _SECOND_US
            sentence = (
                f"event times begin at {first_us} us, and event packets hold none below 0: all of them are "
                f"{self._shift_us // _SECOND_US} s later than in the input; stamps are not"
            )
            warnings.warn(RecordingWarning(sentence), stacklevel=2)
        if first_us + self._shift_us < 0:
            raise RecordingError(
                f"event times go back to {first_us} us, which event packets can't hold: convert to an HDF5, or cut the "
                "recording there before",
                reason="bad_event",
            )
        return t + self._shift_us

    def _events(self, chunk: EventChunk) -> bytes:
        if self._shift_us or chunk.events.t[0] < 0:
            chunk = replace(chunk, events=replace(chunk.events, t=self._shifted(chunk.events.t)))
        first_us, last_us = int(chunk.events.t[0]), int(chunk.events.t[-1])
        # evt3 begins with 24 bits of time, goes only forward from there, and has 11 bits for a coordinate.
        fits = self._last_us <= first_us and max(chunk.width, chunk.height) <= _EVT3_PIXELS
        if self._encoding == "evt3" and not (fits and (self._encoder or first_us < _EVT3_WRAP_US)):
            self._encoding, self._encoder = "libcaer", None
        if self._encoder is None:
            self._encoder = make_encoder(self._encoding, chunk.width, chunk.height)
        self._last_us = last_us
        payload, time_base = self._encoder.encode(chunk.events)
        return self._packet("events", chunk, (chunk.width, chunk.height), self._encoding, payload, time_base)

    def _triggers(self, chunk: TriggerChunk) -> bytes:
        triggers = replace(chunk.triggers, t=self._shifted(chunk.triggers.t))
        payload, time_base = make_encoder("trigger", 1, 1).encode(Events.empty(), triggers)
        return self._packet("triggers", chunk, (1, 1), "trigger", payload, time_base)

    def _packet(
        self,
        kind: Literal["events", "triggers"],
        chunk: EventChunk | TriggerChunk,
        size: tuple[int, int],
        encoding: str,
        payload: bytes,
        time_base: int,
    ) -> bytes:
        self._sequence[kind] += 1
        return encode_event_packet_cdr(
            stamp_ns=chunk.stamp_ns,
            frame_id=chunk.frame_id,
            width=size[0],
            height=size[1],
            seq=self._sequence[kind] - 1,
            time_base=time_base,
            encoding=encoding,
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
