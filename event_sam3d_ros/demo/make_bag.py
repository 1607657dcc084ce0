"""Makes the bundled recording: an unseen object, shaken too fast for its camera, with exact truth beside it.

Everything follows from the seeds, so the recording can be made anew at any time.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from event_sam3d_ros.simulation import write_simulation
from event_sam3d_ros.synthetic import world

OBJECT_SEED = world.HELD_OUT_OBJECT_SEEDS[0]
# This motion's scene has a plain background and an image without grain: uncompressed images still fit into 8 MB.
MOTION_SEED = 74
DURATION_S = 3.5
SPEED = 0.2


def make_demo_bag(path: Path, duration_s: float = DURATION_S) -> None:
    """Writes the rosbag2 folder ``path`` with ground_truth.yaml and the object's mesh in it."""
    frames = world.sequence(OBJECT_SEED, MOTION_SEED, duration_s, speed=SPEED)
    progress = tqdm(frames, total=round(duration_s * world.FRAME_RATE_HZ), unit="frame", desc="simulating")
    write_simulation(path, progress, with_truth_topics=False)
