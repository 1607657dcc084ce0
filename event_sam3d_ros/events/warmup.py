"""Compiles all kernels of events/, so that the first packet does not wait: ``python -m event_sam3d_ros.events.warmup``.

Numba keeps the machine code beside the modules or, where that folder is read-only, in the user's cache.
"""

from __future__ import annotations

import numpy as np

from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import SensorClock
from event_sam3d_ros.events.codecs import (
    ENCODINGS,
    decode_dvs_event_array_cdr,
    encode_dvs_event_array_cdr,
    make_decoder,
    make_encoder,
)
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.filters import FilterSettings, Rectification
from event_sam3d_ros.events.representations import (
    histogram,
    tencode,
    tencode_reference,
    time_surface,
    voxel_grid,
)


def warm_up() -> None:
    """Run every kernel once; a second call takes about a millisecond."""
    one = Events(np.zeros(1, np.int64), np.zeros(1, np.uint16), np.zeros(1, np.uint16), np.zeros(1, np.uint8))
    for encoding in ENCODINGS:
        if encoding == "trigger":  # holds no events and needs no kernel
            continue
        payload, time_base_ns = make_encoder(encoding, 1, 1).encode(one)
        make_decoder(encoding, 1, 1).decode(payload, time_base_ns)
    decode_dvs_event_array_cdr(encode_dvs_event_array_cdr(0, "", 1, 1, one))
    buffer = EventBuffer(1, 1, 1 << 10)
    buffer.append(one)
    buffer.window(0, 1)
    SensorClock().update(0, 0)
    filters = FilterSettings((0, 0, 1, 1), "both", hot_pixels=True, background_ms=1, max_event_rate=1e6).make(1, 1)
    for keep in filters:  # the one after a pause ends the period of hot pixels; without neighbours it is background
        keep(concatenate([one] * 1000 + [Events(one.t + 10**7, one.x, one.y, one.p)]))
    Rectification(np.zeros((1, 1, 2)))(one)
    tencode(one, 0, 1, 1, 1)
    tencode(concatenate([Events(one.t + 1, one.x, one.y, one.p), one]), 0, 2, 1, 1)  # not sorted: another kernel
    tencode_reference(one, 1, 1)
    voxel_grid(one, 0, 1, 1, 1, normalise=True)
    histogram(one, 0, 1, 1, 1)
    time_surface(one, 0, 1, 1, 1)


if __name__ == "__main__":
    warm_up()
