"""Event packets: the door to all encodings.

| encoding         | bytes per event | time_base                      | state between packets | triggers |
| ---------------- | --------------- | ------------------------------ | --------------------- | -------- |
| `evt2`           | 4 to 8          | not used                       | yes                   | yes      |
| `evt21`          | 0.25 to 16      | not used                       | yes                   | yes      |
| `evt3`           | 0.6 to 9        | not used                       | yes                   | yes      |
| `mono`           | 8               | ns, added to each event's time | no                    | no       |
| `trigger`        | 8 per trigger   | ns, added to each edge's time  | no                    | only     |
| `libcaer`        | 8               | ns, added to each event's time | no                    | no       |
| `libcaer_cmp`    | 0.6 to 6        | ns, added to each event's time | yes                   | no       |

Layouts are described where they are decoded; sources: event_camera_codecs, event_camera_msgs and Prophesee's
documentation.
"""

from __future__ import annotations

from event_sam3d_ros.errors import DecodeError, excerpt
from event_sam3d_ros.events.codec_base import Decoder, Encoder
from event_sam3d_ros.events.codec_evt2 import Evt2Decoder, Evt2Encoder, Evt21Decoder, Evt21Encoder
from event_sam3d_ros.events.codec_evt3 import Evt3Decoder, Evt3Encoder
from event_sam3d_ros.events.codec_libcaer_cmp import LibcaerCmpDecoder, LibcaerCmpEncoder
from event_sam3d_ros.events.codec_words64 import (
    LibcaerDecoder,
    LibcaerEncoder,
    MonoDecoder,
    MonoEncoder,
    TriggerDecoder,
    TriggerEncoder,
)
from event_sam3d_ros.events.message_cdr import (
    ARRAY_TYPES,
    PACKET_TYPES,
    EventPacketView,
    decode_dvs_event_array_cdr,
    encode_dvs_event_array_cdr,
    encode_event_packet_cdr,
    parse_event_packet_cdr,
    parse_header_cdr,
)

__all__ = [
    "ARRAY_TYPES",
    "ENCODINGS",
    "PACKET_TYPES",
    "Decoder",
    "Encoder",
    "EventPacketView",
    "Evt21Decoder",
    "Evt21Encoder",
    "decode_dvs_event_array_cdr",
    "encode_dvs_event_array_cdr",
    "encode_event_packet_cdr",
    "make_decoder",
    "make_encoder",
    "parse_event_packet_cdr",
    "parse_header_cdr",
]

_CODECS: dict[str, tuple[type[Decoder], type[Encoder]]] = {
    "evt2": (Evt2Decoder, Evt2Encoder),
    "evt21": (Evt21Decoder, Evt21Encoder),
    "evt3": (Evt3Decoder, Evt3Encoder),
    "mono": (MonoDecoder, MonoEncoder),
    "trigger": (TriggerDecoder, TriggerEncoder),
    "libcaer": (LibcaerDecoder, LibcaerEncoder),
    "libcaer_cmp": (LibcaerCmpDecoder, LibcaerCmpEncoder),
}
ENCODINGS = tuple(_CODECS)


def make_decoder(encoding: str, width: int, height: int, is_bigendian: bool = False) -> Decoder:
    """Decoder of one stream; arguments are the fields of its EventPackets.

    Raises DecodeError for an encoding that is not in ENCODINGS (``unknown_encoding``), InputError for a sensor without
    pixels (``bad_geometry``).
    """
    return _codec(encoding)[0](width, height, is_bigendian)


def make_encoder(encoding: str, width: int, height: int) -> Encoder:
    """Encoder of one stream; raises as `make_decoder` does, and where the sensor is too large for the encoding."""
    return _codec(encoding)[1](width, height)


def _codec(encoding: str) -> tuple[type[Decoder], type[Encoder]]:
    if encoding not in _CODECS:
        raise DecodeError(
            f"event encoding '{excerpt(encoding)}' is not known: use one of {', '.join(ENCODINGS)}",
            reason="unknown_encoding",
        )
    return _CODECS[encoding]
