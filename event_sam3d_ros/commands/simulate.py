"""``event-sam3d simulate``: a recording of the synthetic world, with its truth."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

# Longer sides take minutes a frame and are more pixels than an event camera of today has.
_LONGEST_SIDE = 2048
# One side of the crop in an exposure, as in simulator_node. Time and memory of a frame grow with the speed.
_FASTEST = 1.0


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    simulate = commands.add_parser("simulate", help="make a rosbag2 with truth: events, blurry frames, masks, depth")
    simulate.add_argument("output", type=Path, help="rosbag2 folder to write")
    simulate.add_argument("--seed", type=_whole(0), default=0, help="of motion, light, background, noise (%(default)s)")
    simulate.add_argument("--duration", type=_number(0.05), default=5.0, metavar="S", help="seconds (%(default)s)")
    chosen = simulate.add_mutually_exclusive_group()
    chosen.add_argument("--object", type=_whole(0), metavar="N", help="which procedural object (that of the seed)")
    chosen.add_argument("--mesh", type=Path, metavar="FILE", help="a GLB, OBJ, OFF, PLY or STL mesh instead")
    simulate.add_argument("--mesh-up", choices=("y", "z"), help="its axis that points up (GLB, OBJ: y, others: z)")
    simulate.add_argument(
        "--motion",
        choices=("swing", "circle", "camera"),
        default="swing",
        help="the object swings about or goes round, or the camera shakes (%(default)s)",
    )
    simulate.add_argument(
        "--speed",
        type=_number(1e-3, _FASTEST),
        default=0.2,
        help=f"largest motion in the 30 ms exposure, in sides of the object's crop, up to {_FASTEST:g} (%(default)s)",
    )
    simulate.add_argument("--width", type=_whole(32, _LONGEST_SIDE), default=346, help="pixels (%(default)s)")
    simulate.add_argument("--height", type=_whole(32, _LONGEST_SIDE), default=260, help="pixels (%(default)s)")
    simulate.add_argument("--occluder", action="store_true", help="a second object flies before the first")
    simulate.add_argument(
        "--cutoff-hz",
        type=_number(1e-3),
        default=0.0,
        metavar="HZ",
        help="bandwidth of the event camera's photoreceptors in full light (without bounds)",
    )
    simulate.set_defaults(command=_simulate)


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _number(least: float, most: float = 1e6) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:.10g}")
        return value

    return parse


def _simulate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from event_sam3d_ros.recordings.losses import counted
    from event_sam3d_ros.simulation import write_simulation
    from event_sam3d_ros.synthetic import world
    from event_sam3d_ros.synthetic.options import WorldOptions

    frames = world.sequence(
        options.seed if options.object is None else options.object,
        options.seed,
        options.duration,
        options.width,
        options.height,
        options.speed,
        options=WorldOptions(
            motion=options.motion,
            occluded=float(options.occluder),
            meshes=str(options.mesh or ""),
            mesh_up=options.mesh_up or "",
            cutoff_hz=options.cutoff_hz,
        ),
    )
    total = round(options.duration * world.FRAME_RATE_HZ)
    with tqdm(frames, total=total, unit="frame", desc="simulating", delay=0.1) as shown:  # no bar before an error
        count = write_simulation(options.output, shown)
    print(f"{counted(count, 'message{s}')} and the truth written to {options.output}")
