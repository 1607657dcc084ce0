"""A small recording with everything in it, as samples."""

from __future__ import annotations

import numpy as np

from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.files import Calibration, EventChunk, Frame, Sample

WIDTH, HEIGHT, COUNT = 24, 16, 6
MS = 1_000_000
START = 1_700_000_000_000 * MS
PERIOD = 40 * MS
K = np.array([[30.0, 0, 12], [0, 30.0, 8], [0, 0, 1]])


def make_samples(start_ns: int = START) -> list[Sample]:
    """Six frames with all that belongs to them, and events without gaps."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for begin in range(0, COUNT * 40 + 80, 4):
        t = (start_ns // 1000 - 40_000) + begin * 1000 + np.sort(rng.integers(0, 4000, 200))
        x, y = rng.integers(0, WIDTH, 200).astype(np.uint16), rng.integers(0, HEIGHT, 200).astype(np.uint16)
        events = Events(t, x, y, rng.integers(0, 2, 200).astype(np.uint8))
        samples.append(EventChunk(int(t[0]) * 1000, int(t[-1]) * 1000, "o", WIDTH, HEIGHT, events))
    for number in range(COUNT):
        stamp = start_ns + number * PERIOD
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4:12, 6:18] = 1
        samples += [
            Calibration(stamp, stamp + 10 * MS, "o", WIDTH, HEIGHT, K, np.zeros(5)),
            Frame("image", stamp, stamp + 11 * MS, "o", np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)),
            Frame("depth", stamp, stamp + 12 * MS, "o", np.full((HEIGHT, WIDTH), 500 + number, np.uint16)),
            Frame("mask", stamp, stamp + 13 * MS, "o", mask),
        ]
    return samples


def in_order(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.receive_ns)
