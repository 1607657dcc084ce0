"""RGBE-SEG (EventSAM): ``<split>/<sequence>/`` with ``rgb_image/*.jpg`` and ``event/*.npz`` (x, y, t, p) of the same
names, and masks of SAM 3 in ``sam3/<object>_<name>.pt`` (or .png). ``<split>/eventsam_split.txt``, if there is one,
lists the frames to use, a line ``<sequence>/rgb_image/<name>.jpg`` each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events
from training.loaders.base import Loader, Sequence
from training.loaders.files import in_order, mask_file, read_mask, read_picture

LIST = "eventsam_split.txt"


class RgbeSeg(Loader):
    layout = "<split>/<sequence>/rgb_image/*.jpg, event/*.npz, sam3/<object>_<name>.pt"
    blur_frames = (1, 3, 5)
    default_object = "person"

    def find(self) -> list[tuple[str, Path]]:
        folder = self.root / self.settings.split
        return sorted((path.parent.name, path.parent) for path in folder.glob("*/rgb_image"))

    def open(self, name: str, path: Path) -> Sequence:
        listed = path.parent / LIST
        try:
            lines = listed.read_text().split("\n") if listed.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{listed} can't be read: {error}", reason="broken_list") from error
        prefix = f"{name}/rgb_image/"
        chosen = None if lines is None else {line.strip()[len(prefix) :] for line in lines if line.startswith(prefix)}
        return _Shot(self, name, path, chosen)


class _Shot(Sequence):
    gamma = 1.0  # a DAVIS, as for MVSEC

    def __init__(self, loader: Loader, name: str, folder: Path, chosen: set[str] | None) -> None:
        """``chosen``: names of the pictures to use, None for all."""
        self.name, self.folder, self.loader = name, folder, loader
        self.frames = in_order(folder, "rgb_image/*.jpg")
        self.length = len(self.frames)
        self._masks = [mask_file(folder / "sam3" / f"{loader.object}_{path.stem}") for path in self.frames]
        self.usable = [
            i
            for i, path in enumerate(self.frames)
            if (chosen is None or path.name in chosen) and self._masks[i].is_file() and self._event_file(i).is_file()
        ]

    def _event_file(self, frame: int) -> Path:
        return self.folder / "event" / f"{self.frames[frame].stem}.npz"

    def picture(self, frame: int) -> NDArray[np.uint8]:
        return read_picture(self.frames[frame], self.loader.size)

    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        return read_mask(self._masks[frame], self.loader.size) if self._masks[frame].is_file() else None

    def events(self, frame: int) -> tuple[Events, tuple[int, int]]:
        return self.loader.whole(self._event_file(frame))
