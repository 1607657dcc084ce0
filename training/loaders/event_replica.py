"""Event Replica: ``<scene>/`` with ``original_images/*.png`` (blurry), ``sharp_images/`` and ``event/*.npz`` (x, y, t,
p) of the same names, and masks of SAM 3 in ``sam3/<object>_<name>.pt`` (or .png)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.events import Events
from training.loaders.base import Loader, Sequence
from training.loaders.files import in_order, mask_file, read_mask, read_picture


class EventReplica(Loader):
    layout = "<scene>/original_images/*.png, sharp_images/, event/*.npz, sam3/<object>_<name>.pt"
    sensor = (448, 256)
    blur_frames = (1,)  # it has blurry frames

    def find(self) -> list[tuple[str, Path]]:
        return sorted((path.parent.name, path.parent) for path in self.root.glob("*/original_images"))

    def open(self, name: str, path: Path) -> Sequence:
        return _Scene(self, name, path)


class _Scene(Sequence):
    def __init__(self, loader: Loader, name: str, folder: Path) -> None:
        self.name, self.folder, self.loader = name, folder, loader
        self.frames = in_order(folder, "original_images/*.png")
        self.length = len(self.frames)
        self._masks = [mask_file(folder / "sam3" / f"{loader.object}_{path.stem}") for path in self.frames]
        masked = [i for i, file in enumerate(self._masks) if file.is_file()]
        self.usable = [i for i in masked if self._event_file(i).is_file() and self._sharp_file(i).is_file()]
        if masked and not self.usable:
            raise InputError(
                f"{folder} has masks, but no frame that is in event and sharp_images as well", reason="missing_events"
            )

    def _event_file(self, frame: int) -> Path:
        return self.folder / "event" / f"{self.frames[frame].stem}.npz"

    def _sharp_file(self, frame: int) -> Path:
        return self.folder / "sharp_images" / self.frames[frame].name

    def picture(self, frame: int) -> NDArray[np.uint8]:
        return read_picture(self._sharp_file(frame), self.loader.size)

    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        return read_mask(self._masks[frame], self.loader.size)

    def events(self, frame: int) -> tuple[Events, tuple[int, int]]:
        return self.loader.whole(self._event_file(frame))

    def exposure(self, frame: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The dataset's own blurry frame; of the object, the frame's one mask has to do."""
        mask = read_mask(self._masks[frame], self.loader.size)
        return read_picture(self.frames[frame], self.loader.size), mask.astype(np.float32)
