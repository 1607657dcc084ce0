"""How fast packets become events and events become images: ``python benchmarks/events.py [events]``.

Times depend on the machine; the last column does much less: how many times longer than copying the same events
(13 bytes each) a step takes. Medians of 15 runs, processor time of one thread.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import numpy as np

from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import ENCODINGS, make_decoder, make_encoder
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.events.warmup import warm_up

WIDTH, HEIGHT, WINDOW_US = 640, 480, 50_000


def moving_edges(count: int, seed: int = 0) -> Events:
    """Half of the events lie in rows of neighbours (an edge that moves), half anywhere (texture, noise)."""
    rng = np.random.default_rng(seed)
    edge = rng.random(count // 8) < 0.5
    x0, y0 = rng.integers(0, WIDTH - 8, edge.size), rng.integers(0, HEIGHT, edge.size)
    t0, p0 = np.sort(rng.integers(0, WINDOW_US, edge.size)), rng.integers(0, 2, edge.size)
    along = edge[:, None]
    x = np.where(along, x0[:, None] + np.arange(8), rng.integers(0, WIDTH, (edge.size, 8)))
    y = np.where(along, y0[:, None], rng.integers(0, HEIGHT, (edge.size, 8)))
    t = np.repeat(t0, 8)
    p = np.repeat(p0, 8)
    return Events(t, x.ravel().astype(np.uint16), y.ravel().astype(np.uint16), p.astype(np.uint8))


def median_seconds(step: Callable[[], object], runs: int = 15) -> float:
    seconds = []
    for _ in range(runs):
        start = time.thread_time()
        step()
        seconds.append(time.thread_time() - start)
    return float(np.median(seconds))


def main() -> None:
    events = moving_edges(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    warm_up()
    # Packets of 1 ms, as drivers send them.
    bounds = np.searchsorted(events.t, np.arange(0, WINDOW_US + 1, 1000))
    packets = [events[first:last] for first, last in itertools.pairwise(bounds)]
    steps: dict[str, Callable[[], object]] = {"copy": lambda: concatenate([events, Events.empty()])}
    for encoding in ENCODINGS:
        encoder = make_encoder(encoding, WIDTH, HEIGHT)
        encoded = [encoder.encode(packet) for packet in packets]
        steps[f"decode {encoding}"] = lambda encoding=encoding, encoded=encoded: [
            decoder.decode(*packet) for decoder in [make_decoder(encoding, WIDTH, HEIGHT)] for packet in encoded
        ]
    buffer = EventBuffer(1_000_000, 2 * len(events), 1 << 30)
    steps["buffer append"] = lambda: (buffer.clear(), [buffer.append(packet) for packet in packets])
    steps["buffer window"] = lambda: buffer.window(0, WINDOW_US)
    steps["tencode"] = lambda: tencode(events, 0, WINDOW_US, WIDTH, HEIGHT)
    shuffled = events[np.random.default_rng(0).permutation(len(events))]
    steps["tencode, unsorted"] = lambda: tencode(shuffled, 0, WINDOW_US, WIDTH, HEIGHT)

    print(f"{len(events)} events, {WIDTH}x{HEIGHT}, {len(packets)} packets")
    print(f"{'step':20}{'ms':>9}{'Mev/s':>9}{'x copy':>9}")
    copy = 0.0
    for name, step in steps.items():
        seconds = median_seconds(step)
        copy = copy or seconds
        print(f"{name:20}{1e3 * seconds:9.2f}{len(events) / seconds / 1e6:9.0f}{seconds / copy:9.1f}")


if __name__ == "__main__":
    main()
