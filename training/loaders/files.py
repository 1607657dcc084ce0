"""The files that datasets consist of: pictures, masks, recordings of events. Whatever is wrong with one is an
InputError or a RecordingError that names it."""

from __future__ import annotations

import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError, RecordingError
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.files import open_recording
from event_sam3d_ros.recordings.samples import EventChunk

Size = tuple[int, int]
"""Width and height in pixels."""

_DVS640 = (640, 480)
# What torch and numpy say about files that hold something else than a tensor of masks, or are damaged.
_NO_MASKS = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile),
    *(LookupError, TypeError, ValueError, AttributeError, AssertionError, OverflowError, MemoryError),
)
# numpy reads its headers with Python's ast, which several threads can't use at once: with Python 3.11.7 some fail with
# "SystemError: AST constructor recursion depth mismatch".
_PARSING = threading.Lock()


def in_order(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by the numbers in their names: frame9 before frame10."""
    return sorted(folder.glob(pattern), key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name))


def read_picture(path: Path, size: Size) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, stretched to ``size`` where it has another, as v2e stretches the frames that it is given."""
    return resized(_decoded(path, cv2.IMREAD_COLOR)[..., ::-1], size)


def read_alpha(path: Path, size: Size) -> NDArray[np.uint8] | None:
    """(H, W) uint8 opacity of a picture that has one."""
    picture = _decoded(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.shape[2] != 4:
        return None
    alpha = picture[..., 3]
    return resized((alpha >> 8).astype(np.uint8) if alpha.dtype == np.uint16 else alpha, size)


def read_mask(path: Path, size: Size) -> NDArray[np.bool_]:
    """(H, W) of a picture (any channel above 0), or of a ``.pt`` that SAM 3 gave: its largest mask."""
    if path.suffix == ".pt":
        mask = _largest(path)
    else:
        picture = _decoded(path, cv2.IMREAD_UNCHANGED)
        mask = np.asarray(picture > 0 if picture.ndim == 2 else picture[..., :3].any(-1))
    return resized(mask.astype(np.uint8) * 255, size) > 127


def mask_file(stem: Path) -> Path:
    """``stem``.pt, or ``stem``.png where there is no such file."""
    path = stem.with_name(stem.name + ".pt")
    return path if path.exists() else stem.with_name(stem.name + ".png")


def _decoded(path: Path, how: int) -> NDArray[Any]:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(data, how) if len(data) else None
    except (OSError, cv2.error) as error:
        raise InputError(f"{path} can't be read: {error}", reason="missing_file") from error
    if picture is None:
        raise InputError(f"{path} is no picture that can be read: it is damaged or cut", reason="broken_picture")
    return picture


def resized(picture: NDArray[Any], size: Size) -> NDArray[Any]:
    """A picture (H, W) or (H, W, C) stretched to ``size``."""
    if picture.shape[1::-1] == size:
        return np.ascontiguousarray(picture)
    smaller = picture.shape[1] > size[0]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _largest(path: Path) -> NDArray[np.bool_]:
    """The largest of ``masks`` (N, 1, H, W) or (N, H, W) in a file that torch.save wrote."""
    try:
        masks = torch.load(path, map_location="cpu", weights_only=True)["masks"]
        masks = masks.reshape(-1, *masks.shape[-2:]).bool().numpy()
        return masks[masks.sum((1, 2)).argmax()]
    except _NO_MASKS as error:
        raise InputError(f"{path} holds no masks of SAM 3 ({error})", reason="broken_mask") from error


def read_events(path: Path, size: Size) -> Events:
    """All events of a recording, by the sensor's clock, on a sensor of ``size``.

    AEDAT 2 counts pixels from the lower right corner and does not say where that is, so the reader takes the smallest
    usual sensor that holds all events; here the corner is that of ``size``. RecordingError for a file that can't be
    read, whose clock starts anew on the way, or that is of another sensor.
    """
    with _PARSING if path.suffix == ".npz" else nullcontext():
        recording = open_recording(path)
        events = concatenate([sample.events for sample in recording.samples() if isinstance(sample, EventChunk)])
    found = recording.width, recording.height
    guessed_large = recording.encoding == "aedat2" and found == _DVS640
    if found != size and (guessed_large or not recording.geometry_inferred):
        raise RecordingError(
            f"{path} is of a sensor of {found[0]}x{found[1]}, not {size[0]}x{size[1]}: set sensor",
            reason="size_mismatch",
        )
    if len(events) and not events.extent().is_sorted:
        raise RecordingError(f"{path} has times that run backwards: cut it there", reason="time_jump")
    if recording.encoding == "aedat2" and found != size:
        events = _moved(events, size[0] - found[0], size[1] - found[1])
    return events


def _moved(events: Events, right: int, down: int) -> Events:
    x, y = events.x.astype(np.int64) + right, events.y.astype(np.int64) + down
    inside = (x >= 0) & (y >= 0)
    return Events(events.t, x.astype(np.uint16), y.astype(np.uint16), events.p)[inside]


class EventCache:
    """Events of whole recordings, kept as long as they fit into ``budget`` bytes; the one used longest ago goes first.

    For several threads: each file is read once, by whoever asks first.
    """

    def __init__(self, budget: int = 2 << 30) -> None:
        self._budget = budget
        self._kept: OrderedDict[Path, Events] = OrderedDict()
        self._busy: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, size: Size) -> Events:
        """See `read_events`."""
        with self._lock:
            busy = self._busy.setdefault(path, threading.Lock())
        with busy:
            with self._lock:
                events = self._kept.get(path)
                if events is not None:
                    self._kept.move_to_end(path)
                    return events
            events = read_events(path, size)
            with self._lock:
                self._kept[path] = events
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._budget:
                    self._kept.popitem(last=False)
        return events


def cut(events: Events, t0_us: int, t1_us: int) -> Events:
    """The events of [t0, t1) of sorted ones."""
    first, end = np.searchsorted(events.t, (t0_us, t1_us))
    return events[int(first) : int(end)]
