"""``event-sam3d sequence``: a recording as points, depths, poses, masks and tracked objects over time."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's command."""
    command = commands.add_parser("sequence", help="turn a recording into a 4D sequence (NPZ and PLY)")
    command.add_argument("recording", type=Path, help="recording with events, frames, calibration and masks")
    command.add_argument("--out", type=Path, required=True, help="folder to write; must not exist, or be empty")
    command.add_argument("--poses", type=Path, help="camera poses, TUM format (those of the recording)")
    command.add_argument("--world-frame", default="", help="frame of /tf to give poses in (the uppermost)")
    command.add_argument("--every", type=_positive, default=1, metavar="N", help="take every Nth frame (%(default)s)")
    command.add_argument(
        "--topics", action="append", default=[], metavar="KIND=/TOPIC", help="image, mask, ... where they have others"
    )
    command.add_argument("--model", default="nano", help="name or .safetensors file (%(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    command.set_defaults(command=_sequence)


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _sequence(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from event_sam3d_ros.evaluation.bag_inputs import open_input, parse_topics
    from event_sam3d_ros.evaluation.poses import read_tum
    from event_sam3d_ros.reconstructor import Reconstructor
    from event_sam3d_ros.recordings.losses import counted
    from event_sam3d_ros.sequence_maker import check_folder, make_sequence
    from event_sam3d_ros.sequence_writer import describe_tracks

    check_folder(options.out)
    poses = read_tum(options.poses) if options.poses else None
    recording, _ = open_input(options.recording, parse_topics(options.topics), ("fused",))
    reconstructor = Reconstructor.from_pretrained(options.model, options.device)
    with tqdm(total=recording.image_count, desc="sequence", unit="frame") as bar:
        result = make_sequence(
            recording, reconstructor, options.out, poses, options.world_frame, options.every, bar.update
        )
    print(f"{counted(result.frames, 'frame{s}')} written to {options.out}")
    known = f"known for {result.poses} of them, in {result.world}" if result.poses else "not known: identity"
    print(f"camera poses: {known}")
    for line in describe_tracks(result.tracks, result.first_ns):
        print(line)
    for line in result.counts():
        print(line)
