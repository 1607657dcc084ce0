"""``event-sam3d``: the package's one command.

Exit codes: 0 done, 1 the work could not be done (doctor: something is wrong with the events), 2 the input or the
command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from event_sam3d_ros import __version__
from event_sam3d_ros.commands import demo, doctor, evaluate, models, reconstruct, recordings, sequence, simulate, view
from event_sam3d_ros.errors import EventSam3dError, RecordingWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; ``arguments`` default to the command line's. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths need not be text
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
    for module in (recordings, demo, doctor, models, evaluate, reconstruct, simulate, sequence, view):
        module.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
