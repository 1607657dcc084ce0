"""Event packets: the door to all encodings.

| encoding  | bytes per event | time_base                       | state between packets |
| --------- | --------------- | ------------------------------- | --------------------- |
| `evt3`    | 2.8 to 9        | not used                        | yes                   |
| `mono`    | 8               | ns, added to each event's time  | no                    |
| `libcaer` | 8               | ns, added to each event's time  | no                    |

Layouts are described where they are decoded; sources: event_camera_codecs, event_camera_msgs and Prophesee's
documentation.
"""

from __future__ import annotations

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.codec_base import Decoder, Encoder
from event_sam3d_ros.events.codec_evt3 import Evt3Decoder, Evt3Encoder
from event_sam3d_ros.events.codec_words64 import LibcaerDecoder, LibcaerEncoder, MonoDecoder, MonoEncoder
from event_sam3d_ros.events.message_cdr import (
    EventPacketView,
    decode_dvs_event_array_cdr,
    encode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    parse_event_packet_cdr,
    parse_header_cdr,
)

__all__ = [
    "ENCODINGS",
    "Decoder",
    "Encoder",
    "EventPacketView",
    "decode_dvs_event_array_cdr",
    "encode_dvs_event_array_cdr",
    "encode_event_packet_cdr",
    "make_decoder",
    "make_encoder",
    "parse_event_packet_cdr",
    "parse_header_cdr",
]

_CODECS: dict[str, tuple[type[Decoder], type[Encoder]]] = {
    "evt3": (Evt3Decoder, Evt3Encoder),
    "mono": (MonoDecoder, MonoEncoder),
    "libcaer": (LibcaerDecoder, LibcaerEncoder),
}
ENCODINGS = tuple(_CODECS)


def make_decoder(encoding: str, width: int, height: int, is_bigendian: bool = False) -> Decoder:
    """Decoder of one stream; arguments are the fields of its EventPackets.

    Raises DecodeError for an encoding that is not in ENCODINGS (``unknown_encoding``) and for big-endian payloads
    (``big_endian``), InputError for a sensor without pixels (``bad_geometry``).
    """
    if is_bigendian:
        raise DecodeError("event packet is big-endian: record it on a little-endian machine", reason="big_endian")
    return _codec(encoding)[0](width, height)


def make_encoder(encoding: str, width: int, height: int) -> Encoder:
    """Encoder of one stream; raises as `make_decoder` does."""
    return _codec(encoding)[1](width, height)


def _codec(encoding: str) -> tuple[type[Decoder], type[Encoder]]:
    if encoding not in _CODECS:
        raise DecodeError(
            f"event encoding {encoding!r} is not known: use one of {', '.join(ENCODINGS)}", reason="unknown_encoding"
        )
    return _CODECS[encoding]
