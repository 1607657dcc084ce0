"""Folders of frames whose events v2e simulated: ``<pictures>/*`` and one ``events.aedat`` (AEDAT 2) beside them.

v2e is given the frames at a fixed rate and stretches them to its sensor; frame i of the folder, in the order of the
numbers in the names, is at i / rate. The first frame only starts the simulation, so that no events surround it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events
from training.loaders.base import Loader, Sequence
from training.loaders.files import in_order, read_mask, read_picture

EVENTS = "events.aedat"


class V2eSequence(Sequence):
    """One folder; masks of the same names as the pictures in the folder ``masks``."""

    def __init__(self, loader: Loader, name: str, folder: Path, pattern: str) -> None:
        """``pattern``: of the pictures. InputError where pictures or events are missing."""
        self.name, self.folder, self.loader = name, folder, loader
        self.pictures = in_order(folder, pattern)
        self.length = len(self.pictures)
        self._events = folder / EVENTS
        if self.length < 2:
            raise InputError(f"{folder} has {self.length} pictures {pattern}", reason="missing_pictures")
        if not self._events.is_file():
            raise InputError(f"{self._events} is missing: make it with v2e", reason="missing_events")
        self.usable = [i for i in range(1, self.length) if self.has_mask(i)]

    def mask_path(self, frame: int) -> Path:
        return self.folder / "masks" / f"{self.pictures[frame].stem}.png"

    def has_mask(self, frame: int) -> bool:
        return self.mask_path(frame).is_file()

    def picture(self, frame: int) -> NDArray[np.uint8]:
        return read_picture(self.pictures[frame], self.loader.size)

    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        return read_mask(self.mask_path(frame), self.loader.size) if self.has_mask(frame) else None

    def events(self, frame: int) -> tuple[Events, tuple[int, int]]:
        return self.loader.window(self._events, round(frame * 1e6 / self.loader.settings.frame_rate))
