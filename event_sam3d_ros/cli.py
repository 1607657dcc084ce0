"""``event-sam3d``: the package's one command.

Exit codes: 0 done, 1 the work could not be done, 2 the input or the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError, EventSam3dError

if TYPE_CHECKING:
    from event_sam3d_ros.recordings.files import Recording, Sample

# Modules are imported by the commands that need them: torch and numba take seconds.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; ``arguments`` default to the command line's. Returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except EventSam3dError as error:
        print(f"event-sam3d {options.name}: {error}", file=sys.stderr)
        return 1 if error.reason == "demo" else 2
    except OSError as error:  # no space, no permission: what and where is in the error
        print(f"event-sam3d {options.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"event-sam3d {options.name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="event-sam3d", description="3D objects from event cameras and blurry RGB frames."
    )
    parser.add_argument("--version", action="version", version=f"event-sam3d {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="turn a recording into a rosbag2 that the nodes can play")
    convert.add_argument(
        "input", type=Path, help="folder with events.txt, images.txt, calib.txt (and masks/), or a rosbag2"
    )
    convert.add_argument("output", type=Path, help="rosbag2 folder to write")
    convert.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="file format (%(default)s)")
    convert.set_defaults(command=_convert)

    demo = commands.add_parser("demo", help="play a recording through the ROS 2 nodes and show what comes out")
    demo.add_argument(
        "--bag", type=Path, help="rosbag2 with events, frames, calibration, masks (the bundled recording)"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)")
    demo.add_argument("--rate", type=_rate, default=1.0, help="speed, 1 = as recorded (%(default)s)")
    demo.set_defaults(command=_demo)

    info = commands.add_parser("info", help="show the installed model, or what a recording holds")
    info.add_argument("path", type=Path, nargs="?", help="recording")
    info.set_defaults(command=_info)

    make = commands.add_parser("make-demo-bag", help="simulate the bundled recording anew")
    make.add_argument("output", type=Path, help="folder to write")
    make.set_defaults(command=_make_demo_bag)
    return parser


def _rate(text: str) -> float:
    """A speed that the player takes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.001 to 1000")
    return value


def _convert(options: argparse.Namespace) -> None:
    from event_sam3d_ros.recordings.files import EcdFolder, open_recording, write_rosbag2

    recording = open_recording(options.input)
    count = write_rosbag2(options.output, _with_progress(recording), storage=options.storage)
    print(f"{count} messages written to {options.output}")
    if isinstance(recording, EcdFolder) and recording.time_offset_ns:
        print("all stamps are 1 s later than in the input: a ROS stamp of 0 would mean that there is none")


def _with_progress(recording: Recording) -> Iterator[Sample]:
    """The recording's samples, with a bar over its time."""
    from tqdm import tqdm

    total = max(1e-9, (recording.end_ns - recording.start_ns) / 1e9)
    layout = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of recording [{elapsed}<{remaining}]"
    with tqdm(total=total, desc="converting", bar_format=layout) as bar:
        for sample in recording.samples():
            yield sample
            bar.update(min(total, max(bar.n, (sample.receive_ns - recording.start_ns) / 1e9)) - bar.n)
        bar.update(total - bar.n)


def _demo(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.run import DemoOptions, run_demo
    from event_sam3d_ros.reconstructor import share_folder

    bag = options.bag or share_folder() / "data" / "demo_bag"
    run_demo(DemoOptions(bag, options.out, options.rate))


def _info(options: argparse.Namespace) -> None:
    if options.path is not None:
        _print_recording(options.path)
        return
    from event_sam3d_ros.reconstructor import Reconstructor, find_weights

    print(f"event_sam3d_ros {__version__}")
    try:
        reconstructor = Reconstructor.from_pretrained("nano")
    except CheckpointError as error:
        print(f"model: {error}")
        return
    print(f"model file: {find_weights('nano')}\ndevice: {reconstructor.device}")
    for name, value in reconstructor.info.items():
        print(f"{name}: {value}")


def _print_recording(path: Path) -> None:
    from event_sam3d_ros.recordings.files import EventChunk, Rosbag2Recording, open_recording

    recording = open_recording(path)
    print(f"{recording.path}: {(recording.end_ns - recording.start_ns) / 1e9:.3f} s")
    if isinstance(recording, Rosbag2Recording):
        for topic, kind in sorted(recording.types.items()):
            print(f"{recording.counts[topic]:8d}  {topic}  {kind}")
    events = 0
    size = ""
    for sample in recording.samples():
        if isinstance(sample, EventChunk):
            events += len(sample.events)
            size = f", sensor {sample.width}x{sample.height}"
    print(f"{events} events{size}, {recording.image_count} frames")


def _make_demo_bag(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.make_bag import make_demo_bag

    make_demo_bag(options.output)


if __name__ == "__main__":
    sys.exit(main())
