"""``event-sam3d demo`` and ``make-demo-bag``: the main job on the bundled recording."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    demo = commands.add_parser("demo", help="play a recording through the ROS 2 nodes and show what comes out")
    demo.add_argument(
        "--bag", type=Path, help="rosbag2 with events, frames, calibration, masks (the bundled recording)"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)")
    demo.add_argument("--rate", type=_rate, default=1.0, help="speed, 1 = as recorded (%(default)s)")
    demo.set_defaults(command=_demo)

    make = commands.add_parser("make-demo-bag", help="simulate the bundled recording anew")
    make.add_argument("output", type=Path, help="folder to write")
    make.set_defaults(command=_make_demo_bag)


def _rate(text: str) -> float:
    """A speed that the player takes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.001 to 1000")
    return value


def _demo(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.run import DemoOptions, run_demo
    from event_sam3d_ros.reconstructor import share_folder

    bag = options.bag or share_folder() / "data" / "demo_bag"
    run_demo(DemoOptions(bag, options.out, options.rate))


def _make_demo_bag(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.make_bag import make_demo_bag

    make_demo_bag(options.output)
