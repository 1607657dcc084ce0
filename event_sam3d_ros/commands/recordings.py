"""``event-sam3d convert``, ``cut`` and ``info``: recordings of any kind."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError, RecordingError

if TYPE_CHECKING:
    from event_sam3d_ros.recordings.files import Recording, Sample


# Endings of recordings that are files and that are not written.
_FILE_ENDINGS = (".mcap", ".db3", ".bag", ".raw", ".dat", ".aedat", ".aedat4", ".es", ".txt", ".csv", ".npz")


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    convert = commands.add_parser("convert", help="turn a recording of any kind into a rosbag2 or HDF5")
    _add_files(convert)
    convert.set_defaults(command=_convert)

    cut = commands.add_parser("cut", help="take a piece of a recording by time, as a rosbag2 or HDF5")
    _add_files(cut)
    cut.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds from the begin (%(default)s)")
    cut.add_argument("--end", type=float, default=float("inf"), metavar="S", help="seconds from the begin (the end)")
    cut.set_defaults(command=_cut)

    info = commands.add_parser("info", help="show the installed model, or what a recording holds")
    info.add_argument("path", type=Path, nargs="?", help="recording of any kind")
    info.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    info.set_defaults(command=_info)


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("input", type=Path, help="recording of any kind (docs/recordings.md)")
    command.add_argument(
        "output", type=Path, help="rosbag2 folder, or, with the ending .h5 or .hdf5, HDF5 file to write"
    )
    command.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="of a rosbag2 (%(default)s)")


def _convert(options: argparse.Namespace) -> None:
    from event_sam3d_ros.recordings.files import open_recording

    recording = open_recording(options.input)
    _write(options, recording, _with_progress("converting", recording, recording.samples()))


def _cut(options: argparse.Namespace) -> None:
    from event_sam3d_ros.recordings.files import open_recording
    from event_sam3d_ros.recordings.summary import cut

    recording = open_recording(options.input)
    _write(options, recording, _with_progress("cutting", recording, cut(recording, options.start, options.end)))


def _write(options: argparse.Namespace, recording: Recording, samples: Iterator[Sample]) -> None:
    from event_sam3d_ros.recordings.event_file import EventFile
    from event_sam3d_ros.recordings.files import write_rosbag2
    from event_sam3d_ros.recordings.hdf5_writer import write_hdf5
    from event_sam3d_ros.recordings.losses import counted

    if options.output.suffix in _FILE_ENDINGS:
        raise RecordingError(
            f"a rosbag2 is a folder: name it without {options.output.suffix}, or end the name in .h5 for an HDF5 file",
            reason="bad_output",
        )
    _check_writable(options.output)
    if options.output.suffix in (".h5", ".hdf5"):
        count, what = write_hdf5(options.output, samples), "sample{s}"
    else:
        count, what = write_rosbag2(options.output, samples, storage=options.storage), "message{s}"
    losses = str(recording.losses)
    print(f"{counted(count, what)} written to {options.output}" + (f"; not in it: {losses}" if losses else ""))
    if count and isinstance(recording, EventFile) and recording.time_offset_ns:
        seconds = recording.time_offset_ns // 1_000_000_000
        print(f"all stamps are {seconds} s later than in the input: a ROS stamp of 0 would mean that there is none")


def _check_writable(output: Path) -> None:
    """RecordingError where the output, which does not exist, can't be made. Leaves nothing behind: the writers make
    the folders that they need."""
    if output.exists():
        return  # the writers say what they think of that
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise RecordingError(
            f"{output} can't be written ({error.strerror}): choose another place", reason="bad_output"
        ) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not made, or in use by now
                folder.rmdir()


def _with_progress(what: str, recording: Recording, samples: Iterator[Sample]) -> Iterator[Sample]:
    """``samples`` of the recording, with a bar over how much of it is read."""
    from tqdm import tqdm

    layout = "{l_bar}{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=1.0, desc=what, bar_format=layout) as bar:
        for sample in samples:
            yield sample
            bar.update(max(0.0, min(1.0, recording.progress) - bar.n))
        bar.update(1.0 - bar.n)


def _info(options: argparse.Namespace) -> None:
    if options.path is not None:
        _print_recording(options.path, options.json)
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


def _print_recording(path: Path, as_json: bool) -> None:
    import json

    from event_sam3d_ros.recordings.files import Rosbag2Recording, open_recording
    from event_sam3d_ros.recordings.losses import counted
    from event_sam3d_ros.recordings.summary import summarize

    recording = open_recording(path)
    summary = summarize(recording)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    inferred = " (inferred)" if summary.geometry_inferred else ""
    print(f"{summary.path}: {summary.duration_s:.3f} s, {summary.encoding or 'no events'}")
    if isinstance(recording, Rosbag2Recording):
        for topic, kind in sorted(recording.types.items()):
            print(f"{recording.counts[topic]:8d}  {topic}  {kind}")
    events, frames = counted(summary.events, "event{s}"), counted(summary.frames, "frame{s}")
    print(f"{events}, sensor {summary.width}x{summary.height}{inferred}, {frames}")
    if summary.events:
        print(f"{summary.polarity_on} ON, times {summary.t_first_us} us to {summary.t_last_us} us")
    names = {"masks": "mask{s}", "depths": "depth{s}", "triggers": "trigger{s}", "imu": "imu", "poses": "pose{s}"}
    for name, words in names.items():
        if count := getattr(summary, name):
            print(counted(count, words))
    if losses := str(summary.losses):
        print(f"not read: {losses}")
