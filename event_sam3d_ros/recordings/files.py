"""Opens a recording of whatever kind: a rosbag2 (mcap or sqlite3), or a folder of text files and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.recordings.ecd import EcdFolder
from event_sam3d_ros.recordings.rosbag2 import Rosbag2Recording, write_rosbag2
from event_sam3d_ros.recordings.samples import Calibration, EventChunk, Frame, Sample, Topics

__all__ = [
    "Calibration",
    "EcdFolder",
    "EventChunk",
    "Frame",
    "Recording",
    "Rosbag2Recording",
    "Sample",
    "Topics",
    "open_recording",
    "open_rosbag2",
    "write_rosbag2",
]

_BAG_FILES = (".mcap", ".db3")


class Recording(Protocol):
    """What every kind of recording offers: its samples in time order with bounded memory, and its bounds in time."""

    path: Path
    start_ns: int
    end_ns: int

    @property
    def image_count(self) -> int: ...

    def samples(self) -> Iterator[Sample]: ...


def open_recording(path: str | Path) -> Recording:
    """Opens ``path``. RecordingError if it is missing, of unknown kind or damaged."""
    path = Path(path).expanduser()
    if path.is_dir() and not (path / "metadata.yaml").is_file() and EcdFolder.recognises(path):
        return EcdFolder(path)
    return open_rosbag2(path)


def open_rosbag2(path: str | Path) -> Rosbag2Recording:
    """Opens a rosbag2 folder or one of its files. RecordingError if it is missing, something else or damaged."""
    path = Path(path).expanduser()
    if not path.exists():
        raise RecordingError(f"{path} does not exist", reason="no_recording")
    if path.is_file() and path.suffix not in _BAG_FILES:
        raise RecordingError(f"{path} is not a rosbag2 file ({' or '.join(_BAG_FILES)})", reason="unknown_recording")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        files = sorted(file.name for file in path.iterdir() if file.suffix in _BAG_FILES)
        hint = (
            f"give {path / files[0]} itself, or run ros2 bag reindex"
            if files
            else (
                "expected a rosbag2 folder, or a folder with events.txt, images.txt and calib.txt; "
                "event-sam3d convert turns the second into the first"
            )
        )
        raise RecordingError(f"{path} has no metadata.yaml: {hint}", reason="unknown_recording")
    return Rosbag2Recording(path)
