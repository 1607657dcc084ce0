"""ROS 1 bags read without ROS: every message is given as ROS 2 would have it, so that all else is as for a rosbag2."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.codecs import encode_dvs_event_array_cdr, encode_event_packet_cdr
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.bag_messages import DVS_TYPES, EVENT_PACKET_TYPES, STANDARD_TYPES, typestore
from event_sam3d_ros.recordings.rosbag1_reader import SoundRosbag1Reader
from event_sam3d_ros.recordings.rosbag2 import Rosbag2Recording

MAGIC = b"#ROSBAG V2.0"
# One event of dvs_msgs on ROS 1's wire, which has no padding.
_DVS_ROW = np.dtype([("x", "<u2"), ("y", "<u2"), ("sec", "<u4"), ("nsec", "<u4"), ("p", "u1")])


class Rosbag1Recording(Rosbag2Recording):
    """A ROS 1 bag. Sequence numbers of headers are lost, for ROS 2 has none."""

    _KIND = "a ROS 1 bag"

    def _reader(self) -> Any:
        return SoundRosbag1Reader(self.path)

    def _cdr(self, raw: bytes, kind: str) -> bytes:
        try:
            if kind in EVENT_PACKET_TYPES:
                return _event_packet(raw)
            if kind in DVS_TYPES:
                return _dvs_events(raw)
            # What nothing here reads may well be of a type that ROS 2 defines otherwise.
            return bytes(typestore().ros1_to_cdr(raw, kind)) if kind in STANDARD_TYPES else b""
        except Exception as error:  # whatever struct, numpy, utf-8 or rosbags say
            raise RecordingError(f"a {kind} can't be decoded ({error})", reason="bad_message") from error


def _header(raw: bytes) -> tuple[int, str, int]:
    """Stamp, frame and the position behind a Header."""
    _, seconds, nanoseconds, length = struct.unpack_from("<IIII", raw)
    return seconds * 1_000_000_000 + nanoseconds, raw[16 : 16 + length].decode(), 16 + length


def _event_packet(raw: bytes) -> bytes:
    stamp_ns, frame_id, at = _header(raw)
    height, width, seq, time_base, length = struct.unpack_from("<IIQQI", raw, at)
    at += 28
    encoding = raw[at : at + length].decode()
    at += length
    is_bigendian, size = struct.unpack_from("<?I", raw, at)
    payload = raw[at + 5 : at + 5 + size]
    if len(payload) != size:
        raise ValueError(f"{size} bytes of events announced, {len(payload)} there")
    return encode_event_packet_cdr(
        stamp_ns=stamp_ns,
        frame_id=frame_id,
        width=width,
        height=height,
        seq=seq,
        time_base=time_base,
        encoding=encoding,
        payload=payload,
        is_bigendian=is_bigendian,
    )


def _dvs_events(raw: bytes) -> bytes:
    stamp_ns, frame_id, at = _header(raw)
    height, width, count = struct.unpack_from("<III", raw, at)
    rows = np.frombuffer(raw, _DVS_ROW, count, at + 12)
    t = rows["sec"].astype(np.int64) * 1_000_000 + rows["nsec"] // 1000
    events = Events(t, rows["x"].copy(), rows["y"].copy(), (rows["p"] != 0).astype(np.uint8))
    return encode_dvs_event_array_cdr(stamp_ns, frame_id, width, height, events)
