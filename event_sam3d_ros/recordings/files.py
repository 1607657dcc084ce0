"""Opens a recording of whatever kind: by its content first, then by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.recordings import aedat2, aedat4, es, hdf5, rosbag1
from event_sam3d_ros.recordings.ecd import EcdFolder
from event_sam3d_ros.recordings.losses import Losses
from event_sam3d_ros.recordings.npz import NpzFile
from event_sam3d_ros.recordings.prophesee import DatFile, RawFile, is_raw, read_header
from event_sam3d_ros.recordings.rosbag2 import Rosbag2Recording
from event_sam3d_ros.recordings.rosbag2_writer import write_rosbag2
from event_sam3d_ros.recordings.samples import (
    Calibration,
    EventChunk,
    Frame,
    ImuChunk,
    Pose,
    Sample,
    Topics,
    TriggerChunk,
)
from event_sam3d_ros.recordings.text import TextFile

__all__ = [
    "Calibration",
    "EcdFolder",
    "EventChunk",
    "Frame",
    "ImuChunk",
    "Pose",
    "Recording",
    "Rosbag2Recording",
    "Sample",
    "Topics",
    "TriggerChunk",
    "open_recording",
    "open_rosbag2",
    "write_rosbag2",
]

_BAG_FILES = (".mcap", ".db3")
_BAG_MAGIC = {b"\x89MCAP0\r\n": ".mcap", b"SQLite format 3\0": ".db3"}
_MAGIC: dict[bytes, Callable[[Path], Recording]] = {
    aedat2.MAGIC: aedat2.Aedat2File,
    aedat4.MAGIC: aedat4.Aedat4File,
    es.MAGIC: es.EsFile,
    hdf5.MAGIC: hdf5.open_hdf5,
    rosbag1.MAGIC: rosbag1.Rosbag1Recording,
    b"PK\x03\x04": NpzFile,
}


class Recording(Protocol):
    """What every kind of recording offers: its samples in time order with bounded memory, and what is known of it.

    ``start_ns``, ``end_ns``: receive times of the first and the last sample (to know the last, some files are read
    once); ``width``, ``height``: the event sensor, ``geometry_inferred`` where the file does not say it; ``encoding``:
    how the events are kept; ``progress``: share of it, 0 to 1, that the latest `samples` has read; ``losses``: what
    that has left out.
    """

    path: Path
    progress: float
    losses: Losses

    @property
    def start_ns(self) -> int: ...

    @property
    def end_ns(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def geometry_inferred(self) -> bool: ...

    @property
    def encoding(self) -> str: ...

    @property
    def image_count(self) -> int: ...

    def samples(self) -> Iterator[Sample]: ...


def open_recording(path: str | Path) -> Recording:
    """Opens ``path``. RecordingError if it is missing, of unknown kind or damaged."""
    path = Path(path).expanduser()
    if path.is_dir():
        is_text = not (path / "metadata.yaml").is_file() and EcdFolder.recognises(path)
        return EcdFolder(path) if is_text else open_rosbag2(path)
    if not path.exists():
        raise RecordingError(f"{path} does not exist", reason="no_recording")
    if not path.is_file():
        raise RecordingError(f"{path} is neither a file nor a folder", reason="no_recording")
    with path.open("rb") as file:
        begin = file.read(16)
        if not begin:
            raise RecordingError(f"{path} is empty", reason="broken_recording")
        file.seek(0)
        header = read_header(file)
    for magic, suffix in _BAG_MAGIC.items():
        if begin.startswith(magic):
            if path.suffix != suffix:
                raise RecordingError(f"{path} is a rosbag2: name it *{suffix}", reason="unknown_recording")
            return open_rosbag2(path)
    for magic, kind in _MAGIC.items():
        if begin.startswith(magic):
            return kind(path)
    if begin.startswith(b"#!AER-DAT"):
        raise RecordingError(
            f"{path} is an {begin[2:12].decode(errors='replace')}; AEDAT 2.0 and 4.0 can be read",
            reason="unknown_encoding",
        )
    if is_raw(header):
        return RawFile(path)
    if path.suffix in (".aedat", ".aedat2"):
        return aedat2.Aedat2File(path)
    # Comments of a text may look like the header of a DAT.
    if DatFile.recognises(path):
        return DatFile(path)
    if TextFile.recognises(path):
        return TextFile(path)
    if path.suffix == ".raw":
        return RawFile(path)
    if header or path.suffix == ".dat":
        return DatFile(path)
    if path.suffix in _BAG_FILES:
        return open_rosbag2(path)
    raise RecordingError(
        f"{path} is of no kind that can be read: its content is none of {_KINDS}", reason="unknown_recording"
    )


_KINDS = (
    "rosbag2, ROS 1 bag, Prophesee RAW, DAT or HDF5, AEDAT 2 or 4, Event Stream, MVSEC, DSEC, npz with x, y, t, p, "
    "or lines 't x y p'"
)


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
