"""How long the synthetic world takes to render.

    OMP_NUM_THREADS=1 python benchmarks/simulation.py [--frames 60] [--device cuda]

Prints the median time of a live frame (`simulator_node`: pixels_per_sub_frame 2, speed 0.2), and of the same pictures
by the compiled renderer and by the one in torch on ``--device``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from event_sam3d_ros.synthetic import world
from event_sam3d_ros.synthetic.motion import random_glide
from event_sam3d_ros.synthetic.scene import random_placement
from event_sam3d_ros.synthetic.shapes import random_shape

LIVE_SIZES = ((240, 180), (160, 120))
PICTURES, SIDE = 126, 112


def frame_seconds(width: int, height: int, frames: int) -> Iterator[float]:
    """Times of the frames of a live scene, after three to warm up."""
    rendered = world.sequence(0, 0, np.inf, width, height, 0.2, 2.0)
    for _ in islice(rendered, 3):
        pass
    for _ in range(frames):
        yield seconds(lambda: next(rendered))


def picture_seconds(device: str) -> float:
    """Time of `PICTURES` pictures of an object that glides by, the best of three after one to warm up."""
    start = random_placement(random_shape(600), np.random.default_rng(600), SIDE, SIDE, 0.1, 0.0)
    scene = replace(start.scene, render_device=device)
    path = random_glide(np.random.default_rng(0), start.side, 0.2)
    poses = path.poses(start, np.linspace(-15_000, 15_000, PICTURES))
    scene.images(poses)
    return min(seconds(lambda: scene.images(poses)) for _ in range(3))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--device", default="cpu", help="of the renderer in torch: cpu or cuda")
    options = parser.parse_args()
    for width, height in LIVE_SIZES:
        median = statistics.median(frame_seconds(width, height, options.frames))
        print(f"live frame of {width}x{height}: {1e3 * median:.0f} ms")
    for name, device in (("compiled", ""), (f"torch, {options.device}", options.device)):
        print(f"{PICTURES} pictures of {SIDE}x{SIDE}, {name}: {picture_seconds(device):.2f} s")


if __name__ == "__main__":
    main()
