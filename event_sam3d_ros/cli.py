"""``event-sam3d``: the package's one command.

Exit codes: 0 done, 1 the work could not be done (doctor: something is wrong with the events), 2 the input or the
command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_sam3d_ros import __version__
from event_sam3d_ros.errors import CheckpointError, EventSam3dError, RecordingError, RecordingWarning

if TYPE_CHECKING:
    from event_sam3d_ros.recordings.files import Recording, Sample

# Modules are imported by the commands that need them: torch and numba take seconds.

# Endings of recordings that are files and that are not written.
_FILE_ENDINGS = (".mcap", ".db3", ".bag", ".raw", ".dat", ".aedat", ".aedat4", ".es", ".txt", ".csv", ".npz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; ``arguments`` default to the command line's. Returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        with warnings.catch_warnings():
            _show_warnings(options.name)
            return command(options) or 0
    except EventSam3dError as error:
        print(f"event-sam3d {options.name}: {error}", file=sys.stderr)
        return 1 if error.reason == "demo" else 2
    except OSError as error:  # no space, no permission: what and where is in the error
        place = f"{error.filename}: " if error.filename else ""
        print(f"event-sam3d {options.name}: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"event-sam3d {options.name}: interrupted", file=sys.stderr)
        return 130


def _show_warnings(name: str) -> None:
    """What recordings have to say becomes a sentence, once; other warnings stay as they are."""
    show = warnings.showwarning

    def sentence(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, RecordingWarning):
            print(f"event-sam3d {name}: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *rest, **named)

    warnings.simplefilter("always", RecordingWarning)
    warnings.showwarning = sentence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="event-sam3d", description="3D objects from event cameras and blurry RGB frames."
    )
    parser.add_argument("--version", action="version", version=f"event-sam3d {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="turn a recording of any kind into a rosbag2 or HDF5")
    _add_files(convert)
    convert.set_defaults(command=_convert)

    cut = commands.add_parser("cut", help="take a piece of a recording by time, as a rosbag2 or HDF5")
    _add_files(cut)
    cut.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds from the begin (%(default)s)")
    cut.add_argument("--end", type=float, default=float("inf"), metavar="S", help="seconds from the begin (the end)")
    cut.set_defaults(command=_cut)

    demo = commands.add_parser("demo", help="play a recording through the ROS 2 nodes and show what comes out")
    demo.add_argument(
        "--bag", type=Path, help="rosbag2 with events, frames, calibration, masks (the bundled recording)"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)")
    demo.add_argument("--rate", type=_rate, default=1.0, help="speed, 1 = as recorded (%(default)s)")
    demo.set_defaults(command=_demo)

    doctor = commands.add_parser("doctor", help="say in plain words what is wrong with a stream of events")
    doctor.add_argument("target", metavar="TOPIC|FILE", help="topic to listen to, or recording")
    doctor.add_argument("--seconds", type=float, default=5.0, help="how long to listen to a topic (%(default)s)")
    doctor.set_defaults(command=_doctor)

    take = commands.add_parser("import-sam3d", help="turn the official SAM 3D weights into a model file")
    take.add_argument("folder", type=Path, help="the official checkpoints/hf, or a folder that holds it")
    take.add_argument("out", type=Path, nargs="?", help="model file to write (event-sam3d-full.safetensors)")
    take.add_argument(
        "--config", type=Path, metavar="YAML", help="of weights of another size (config/models/full.yaml)"
    )
    take.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="type to store (as in the official files)")
    take.add_argument("--events", action="store_true", help="with a new event branch, which changes nothing untrained")
    take.add_argument("--force", action="store_true", help="overwrite the output")
    take.set_defaults(command=_import_sam3d)

    info = commands.add_parser("info", help="show the installed model, or what a recording holds")
    info.add_argument("path", type=Path, nargs="?", help="recording of any kind")
    info.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    info.set_defaults(command=_info)

    model_info = commands.add_parser("model-info", help="say what a model takes: parameters, memory, FLOPs per stage")
    model_info.add_argument(
        "model", metavar="NAME|FILE", help="nano, small, base, full, a YAML file, or a .safetensors file"
    )
    model_info.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    model_info.set_defaults(command=_model_info)

    make = commands.add_parser("make-demo-bag", help="simulate the bundled recording anew")
    make.add_argument("output", type=Path, help="folder to write")
    make.set_defaults(command=_make_demo_bag)
    return parser


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("input", type=Path, help="recording of any kind (docs/recordings.md)")
    command.add_argument(
        "output", type=Path, help="rosbag2 folder, or, with the ending .h5 or .hdf5, HDF5 file to write"
    )
    command.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap", help="of a rosbag2 (%(default)s)")


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


def _demo(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.run import DemoOptions, run_demo
    from event_sam3d_ros.reconstructor import share_folder

    bag = options.bag or share_folder() / "data" / "demo_bag"
    run_demo(DemoOptions(bag, options.out, options.rate))


def _doctor(options: argparse.Namespace) -> int:
    from event_sam3d_ros.doctor import examine

    diagnoses = examine(options.target, options.seconds)
    for diagnosis in diagnoses:
        print(diagnosis.text())
    return int(any(diagnosis.findings for diagnosis in diagnoses))


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


def _import_sam3d(options: argparse.Namespace) -> None:
    from event_sam3d_ros.reconstructor import share_folder
    from event_sam3d_ros.sam3d.config import ModelConfig
    from event_sam3d_ros.sam3d.import_released import TYPES, import_released

    config = ModelConfig.from_yaml(options.config or share_folder() / "config" / "models" / "full.yaml")
    out = options.out or Path(f"event-sam3d-{config.name}.safetensors")
    dtype = TYPES[options.dtype] if options.dtype else None

    def report(what: str) -> None:
        print(what, file=sys.stderr)

    imported = import_released(options.folder, out, config, dtype, options.events, options.force, report)
    print("\n".join(imported.lines()))


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


def _model_info(options: argparse.Namespace) -> None:
    import json

    from event_sam3d_ros.reconstructor import share_folder
    from event_sam3d_ros.sam3d.model_info import describe, find_model

    info = describe(*find_model(options.model, share_folder() / "config" / "models"))
    print(json.dumps(info.as_dict(), indent=2) if options.json else "\n".join(info.lines()))


def _make_demo_bag(options: argparse.Namespace) -> None:
    from event_sam3d_ros.demo.make_bag import make_demo_bag

    make_demo_bag(options.output)


if __name__ == "__main__":
    sys.exit(main())
