"""``event-sam3d doctor``: what is wrong with a stream of events."""

from __future__ import annotations

import argparse


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this module's commands."""
    doctor = commands.add_parser("doctor", help="say in plain words what is wrong with a stream of events")
    doctor.add_argument("target", metavar="TOPIC|FILE", help="topic to listen to, or recording")
    doctor.add_argument("--seconds", type=float, default=5.0, help="how long to listen to a topic (%(default)s)")
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from event_sam3d_ros.doctor import examine

    diagnoses = examine(options.target, options.seconds)
    for diagnosis in diagnoses:
        print(diagnosis.text())
    return int(any(diagnosis.findings for diagnosis in diagnoses))
