"""Compiles all kernels of recordings/: ``python -m event_sam3d_ros.recordings.warmup``."""

from __future__ import annotations

import numpy as np

from event_sam3d_ros.recordings.ecf import decode_ecf
from event_sam3d_ros.recordings.es import STATE, decode_es


def warm_up() -> None:
    """Run every kernel once."""
    decode_es(np.frombuffer(bytes(1), np.uint8), np.zeros(len(STATE), np.int64))
    for packing in range(3):
        decode_ecf(packing.to_bytes(4, "little") + bytes(8))


if __name__ == "__main__":
    warm_up()
