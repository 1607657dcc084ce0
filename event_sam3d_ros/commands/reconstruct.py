"""``event-sam3d reconstruct``: objects of one picture, or of each of a folder's, as files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from event_sam3d_ros.reconstructor import Reconstructor
    from event_sam3d_ros.single import SingleInput

MODES = ("rgb", "events", "fused")

_DESCRIPTION = """
Reconstructs every object of a mask from a frame, its events, or both. For each input it writes object_ID.ply (points
with colours, metres, the camera's optical frame), pose.json and preview.png.

FOLDER holds the files of one input by name: image.*, mask.*, events.* (a recording, or a Tencode picture), depth.*,
camera.yaml; or folders of that kind, for which a camera.yaml beside them counts too. Options win over files. One that
can't be used is told, and the others are done; the exit code is 2 then.
"""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    command = commands.add_parser(
        "reconstruct",
        help="objects of one picture with its events, as PLY, JSON and a preview",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="the files by name")
    command.add_argument("--image", type=Path, help="the frame, any picture")
    command.add_argument("--mask", type=Path, help="label picture: 0 nothing, k object k")
    command.add_argument("--events", type=Path, help="recording of any kind, or a Tencode picture")
    command.add_argument("--depth", type=Path, help="16-bit picture in mm, or a .npy in metres; 0 unknown")
    command.add_argument("--camera", type=Path, metavar="YAML", help="calibration as ROS's camera_calibration writes")
    command.add_argument("--K", metavar="FX,FY,CX,CY", help="pinhole without distortion, instead of --camera")
    command.add_argument(
        "--time", type=float, metavar="S", help="middle of the events' window, in the file's seconds (its middle)"
    )
    command.add_argument("--mode", choices=MODES, help="what the model sees (all that is given)")
    command.add_argument("--weights", default="nano", metavar="NAME|FILE", help="model (%(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    command.set_defaults(command=_reconstruct)


def _reconstruct(options: argparse.Namespace) -> int:
    from event_sam3d_ros.errors import EventSam3dError
    from event_sam3d_ros.reconstructor import Reconstructor
    from event_sam3d_ros.single import SingleInput, find_folders, input_of

    given = {name: getattr(options, name) for name in ("image", "mask", "events", "depth", "camera") if
             getattr(options, name) is not None}  # fmt: skip
    folders = find_folders(options.folder) if options.folder else []
    reconstructor = Reconstructor.from_pretrained(options.weights, options.device)
    if not options.folder:
        _one(SingleInput("", **given), options, reconstructor)
        return 0
    if folders == [options.folder]:
        _one(input_of(options.folder, options.folder, given), options, reconstructor)
        return 0
    failed = 0
    for folder in folders:
        try:
            _one(input_of(folder, options.folder, given), options, reconstructor)
        except EventSam3dError as error:  # the others are done all the same
            failed += 1
            print(f"event-sam3d reconstruct: {folder}: {error}", file=sys.stderr)
    if failed:
        print(f"event-sam3d reconstruct: {failed} of {len(folders)} inputs could not be used", file=sys.stderr)
    return 2 if failed else 0


def _one(files: SingleInput, options: argparse.Namespace, reconstructor: Reconstructor) -> None:
    from event_sam3d_ros.single import read_observation, write_results

    frame = read_observation(files, options.K, options.time, options.mode, reconstructor.info)
    found = reconstructor(frame.observation)
    out = options.out / files.name
    write_results(out, files, frame, found, reconstructor.info)
    for item in found:
        size = " x ".join(f"{value:.3f}" for value in item.size)
        unit = "m" if item.metric else "(no depth: scale unknown)"
        print(f"{out}: object {item.id}, {len(item.points)} points, size {size} {unit}, score {item.score:.2f}")
