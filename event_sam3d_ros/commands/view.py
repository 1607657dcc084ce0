"""``event-sam3d view``: recordings, results and live systems in a web browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from event_sam3d_ros.viewer.frames import Frames

_DESCRIPTION = """
PATH: a sequence (`event-sam3d sequence`), a recording, which is reconstructed while it is watched, or the folder of
`event-sam3d evaluate BAG`. --live: the topics of a running system. See docs/viewer.md.
"""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's command."""
    command = commands.add_parser(
        "view", help="show a sequence, a recording, results or a live system in a browser", description=_DESCRIPTION
    )
    command.add_argument("path", nargs="?", type=Path, metavar="PATH", help="what to show")
    command.add_argument("--live", action="store_true", help="show the topics of a running system instead")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (%(default)s)")
    command.add_argument("--port", type=_port, default=8080, help="0: any that is free (%(default)s)")
    command.add_argument("--paused", action="store_true", help="do not play at once")
    command.add_argument(
        "--ground-truth", type=Path, metavar="FILE", help="YAML with meshes and poses (ground_truth.yaml beside PATH)"
    )
    command.add_argument("--bag", default="", metavar="NAME", help="which recording of an evaluation (the first)")
    command.add_argument(
        "--topics", nargs="+", default=(), metavar="KIND=/TOPIC", help="that are not found: image, ..."
    )
    command.add_argument("--weights", default="nano", metavar="NAME|FILE", help="model for a recording (%(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.set_defaults(command=_view)


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return value


def _view(options: argparse.Namespace) -> None:
    frames = _frames(options)
    from event_sam3d_ros.viewer.server import Viewer  # behind the source: a wrong path is told at once

    viewer = Viewer(frames, options.host, options.port, playing=not options.paused)
    try:
        print(f"{frames.title}\nopen {viewer.url} in a browser; Ctrl-C ends", flush=True)
        viewer.run()
    except KeyboardInterrupt:
        print()
    finally:
        viewer.close()


def _frames(options: argparse.Namespace) -> Frames:
    from event_sam3d_ros.errors import ConfigurationError
    from event_sam3d_ros.viewer import sources

    if options.live == (options.path is not None):
        raise ConfigurationError("give a PATH, or --live", reason="bad_options")
    if options.live:
        return sources.open_live(options.topics)
    from event_sam3d_ros.evaluation.bag_inputs import parse_topics

    topics = parse_topics(options.topics)
    chosen = sources.SourceOptions(options.ground_truth, options.bag, topics, options.weights, options.device)
    return sources.open_frames(options.path, chosen)
