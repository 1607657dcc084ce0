"""Event messages straight from and to their serialised bytes (XCDR1, little endian, as ROS 2 puts them on the wire and
into bags), without message classes and without an object per event.

Layouts: event_camera_msgs/msg/EventPacket (also under its old name event_array_msgs/msg/EventArray) and
dvs_msgs/msg/EventArray (the same fields: prophesee_event_msgs, dv_ros2_msgs).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numba import njit

from event_sam3d_ros.errors import DecodeError, InputError
from event_sam3d_ros.events.codec_base import Buffer, as_bytes, uint32_at
from event_sam3d_ros.events.events import Events

# What event messages are called. Those of either kind are field for field the same under all of its names.
PACKET_TYPES = ("event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray")  # parse_event_packet_cdr
ARRAY_TYPES = (  # decode_dvs_event_array_cdr
    "dvs_msgs/msg/EventArray",
    "prophesee_event_msgs/msg/EventArray",
    "dv_ros2_msgs/msg/EventArray",
)

_ENCAPSULATION = b"\x00\x01\x00\x00"  # CDR, little endian, no options
# Compiled once, for a packet a millisecond is not far from what Python can do.
_UINT32, _TWO_UINT32, _TIME = map(struct.Struct, ("<I", "<II", "<iI"))
# Of an EventPacket: stamp and length of the frame's name; size, number, time base and length of the encoding's name.
_PACKET_START = struct.Struct("<iII")
_PACKET_NUMBERS = (struct.Struct("<IIQQI"), struct.Struct("<II4xQQI"))  # 64-bit numbers are aligned to 8
# One dvs_msgs/Event in an array; the array's first row begins two bytes before the array.
_DVS_ROW = np.dtype(
    {
        "names": ["x", "y", "sec", "nanosec", "polarity"],
        "formats": ["<u2", "<u2", "<u4", "<u4", "u1"],
        "offsets": [0, 2, 6, 10, 14],
        "itemsize": 16,
    }
)


class EventPacketView(NamedTuple):
    """An EventPacket; ``payload`` is a view into the message's bytes, ``time_base`` in nanoseconds."""

    stamp_ns: int
    frame_id: str
    width: int
    height: int
    seq: int
    time_base: int
    encoding: str
    is_bigendian: bool
    payload: memoryview


def _body(cdr: Buffer) -> memoryview:
    """A serialised message behind its encapsulation header."""
    whole = memoryview(cdr) if isinstance(cdr, bytes) else as_bytes(cdr, 1).data
    # Humble and later write zero options; other writers use them for padding, which does not matter here.
    if whole[:2] != _ENCAPSULATION[:2] or len(whole) < 4:
        raise DecodeError(
            f"message starts with {bytes(whole[:4]).hex() or 'nothing'}, not with a little-endian CDR header",
            reason="corrupt_message",
        )
    return whole[4:]


def _text(raw: memoryview) -> str:
    """A CDR string without its length; the last byte is zero."""
    try:
        return str(raw[:-1], "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"text in the message is not UTF-8: {bytes(raw[:40])!r}", reason="corrupt_message") from error


def _truncated(body: memoryview) -> DecodeError:
    return DecodeError(
        f"message of {len(body) + 4} bytes is cut off: what its lengths say does not fit into it",
        reason="truncated_message",
    )


class _Reader:
    """Walks along a serialised message; positions count from the end of the encapsulation header."""

    def __init__(self, cdr: Buffer) -> None:
        self.data = _body(cdr)
        self.position = 0

    def skip(self, size: int, alignment: int = 1) -> int:
        """Where the next ``size`` bytes begin."""
        start = -(-self.position // alignment) * alignment
        self.position = start + size
        if self.position > len(self.data):
            raise _truncated(self.data)
        return start

    def take(self, size: int) -> memoryview:
        start = self.skip(size)
        return self.data[start : self.position]

    def numbers(self, layout: struct.Struct, alignment: int) -> tuple[int, ...]:
        return layout.unpack_from(self.data, self.skip(layout.size, alignment))

    def length(self) -> int:
        return self.numbers(_UINT32, 4)[0]

    def header(self) -> tuple[int, str]:
        """Stamp in nanoseconds and frame of a std_msgs/Header."""
        seconds, nanoseconds = self.numbers(_TIME, 4)
        return seconds * 1_000_000_000 + nanoseconds, _text(self.take(self.length()))


def parse_header_cdr(cdr: Buffer) -> tuple[int, str]:
    """Stamp in nanoseconds and frame of a message that begins with a Header; DecodeError ``truncated_message``."""
    return _Reader(cdr).header()


def parse_event_packet_cdr(cdr: Buffer) -> EventPacketView:
    """Fields of a serialised EventPacket. Raises DecodeError (``truncated_message``, ``corrupt_message``)."""
    # Not step by step as the others: this runs a thousand times per second, and takes a fifth of the time so.
    body = _body(cdr)
    try:
        seconds, nanoseconds, length = _PACKET_START.unpack_from(body)
        frame_end = _PACKET_START.size + length
        numbers_at = frame_end + 3 & ~3
        numbers = _PACKET_NUMBERS[numbers_at >> 2 & 1]
        height, width, seq, time_base, length = numbers.unpack_from(body, numbers_at)
        encoding_at = numbers_at + numbers.size
        encoding_end = encoding_at + length
        is_bigendian = body[encoding_end] != 0
        payload_at = (encoding_end + 4 & ~3) + _UINT32.size
        (size,) = _UINT32.unpack_from(body, payload_at - _UINT32.size)
    except (struct.error, IndexError):
        raise _truncated(body) from None
    payload = body[payload_at : payload_at + size]
    if len(payload) < size:
        raise _truncated(body)
    return EventPacketView(
        seconds * 1_000_000_000 + nanoseconds,
        _text(body[_PACKET_START.size : frame_end]),
        width,
        height,
        seq,
        time_base,
        _text(body[encoding_at:encoding_end]),
        is_bigendian,
        payload,
    )


def encode_event_packet_cdr(
    *,
    stamp_ns: int,
    frame_id: str,
    width: int,
    height: int,
    seq: int,
    time_base: int,
    encoding: str,
    payload: Buffer,
    is_bigendian: bool = False,
) -> bytes:
    """Serialised EventPacket; ``time_base`` in nanoseconds."""
    data = as_bytes(payload, 1).data
    body = bytearray(_header(stamp_ns, frame_id))
    _align(body, 4)
    body += struct.pack("<II", height, width)
    _align(body, 8)
    body += struct.pack("<QQ", seq, time_base)
    body += _string(encoding)
    body.append(is_bigendian)
    _align(body, 4)
    body += struct.pack("<I", len(data))
    body += data
    return _ENCAPSULATION + bytes(body)


def decode_dvs_event_array_cdr(cdr: Buffer) -> tuple[int, int, int, Events]:
    """(stamp in ns, width, height, events) of a serialised dvs_msgs/EventArray; event times in us, rounded down.

    Raises DecodeError: ``truncated_message``, ``corrupt_message``, the latter also for an event outside width x height.
    """
    reader = _Reader(cdr)
    stamp_ns, _ = reader.header()
    height, width = reader.numbers(_TWO_UINT32, 4)
    count = reader.length()
    if count == 0:
        return stamp_ns, width, height, Events.empty()
    events = Events(*_read_dvs(as_bytes(reader.take(16 * count - 3), 1)))
    if int(events.x.max()) >= width or int(events.y.max()) >= height:
        raise DecodeError(
            f"event at ({events.x.max()}, {events.y.max()}) in a message of {width}x{height}: check the driver",
            reason="corrupt_message",
        )
    return stamp_ns, width, height, events


def encode_dvs_event_array_cdr(stamp_ns: int, frame_id: str, width: int, height: int, events: Events) -> bytes:
    """Serialised dvs_msgs/EventArray. Raises InputError for times that do not fit 0 <= t < 2**31 s."""
    body = bytearray(_header(stamp_ns, frame_id))
    _align(body, 4)
    body += struct.pack("<III", height, width, len(events))
    if len(events):
        if int(events.t.min()) < 0 or int(events.t.max()) >= 1_000_000 << 31:
            raise InputError("event times do not fit a ROS time: 0 <= t < 2**31 s", reason="bad_events")
        # CDR aligns each field on its own, so x and y of the first event stand two bytes later than in a row of 16.
        records = np.zeros(len(events), _DVS_ROW)
        seconds, microseconds = np.divmod(events.t, 1_000_000)
        records["x"], records["y"], records["polarity"] = events.x, events.y, events.p
        records["sec"], records["nanosec"] = seconds, microseconds * 1000
        body += struct.pack("<HH", events.x[0], events.y[0]) + records.tobytes()[6:-1]
    return _ENCAPSULATION + bytes(body)


def _header(stamp_ns: int, frame_id: str) -> bytes:
    return struct.pack("<iI", *divmod(stamp_ns, 1_000_000_000)) + _string(frame_id)


def _string(text: str) -> bytes:
    """Length and characters; the caller is at a multiple of four."""
    raw = text.encode() + b"\0"
    return struct.pack("<I", len(raw)) + raw


def _align(body: bytearray, alignment: int) -> None:
    body += bytes(-len(body) % alignment)


@njit(cache=True, nogil=True)
def _read_dvs(data):  # type: ignore[no-untyped-def]
    size = (data.size + 3) // 16
    t, x = np.empty(size, np.int64), np.empty(size, np.uint16)
    y, p = np.empty(size, np.uint16), np.empty(size, np.uint8)
    for i in range(size):
        # See _DVS_ROW: rows of 16 bytes, of which the first has x and y two bytes later than the others.
        row = 16 * i - 2
        place = row if i else 0
        x[i] = data[place] | data[place + 1] << 8
        y[i] = data[place + 2] | data[place + 3] << 8
        seconds = uint32_at(data, row + 6)
        if seconds >= 1 << 31:  # int32
            seconds -= 1 << 32
        t[i] = seconds * 1_000_000 + uint32_at(data, row + 10) // 1000
        p[i] = data[row + 14] != 0
    return t, x, y, p
