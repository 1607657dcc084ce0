"""MVSEC (Zhu et al. 2018): ``<sequence>.hdf5`` with events, frames and their times of the left DAVIS 346, and masks of
SAM 3 in ``<sequence>/sam3/<object>_<frame, six digits>.pt`` (or .png)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events
from training.loaders.base import Loader, Sequence
from training.loaders.files import mask_file, read_mask, resized

CAMERA = "davis/left"


class Mvsec(Loader):
    layout = "<sequence>.hdf5 (davis/left/events, image_raw, image_raw_ts), <sequence>/sam3/<object>_<frame:06d>.pt"
    blur_frames = (1, 3, 5)  # frames of about 30 per second
    default_object = "barrel"

    def find(self) -> list[tuple[str, Path]]:
        files = self.root.glob("*.hdf5")
        return sorted((path.stem, path) for path in files if not path.stem.endswith("_gt"))  # _gt: depth and poses

    def open(self, name: str, path: Path) -> Sequence:
        return _Flight(self, name, path)


class _Flight(Sequence):
    gamma = 1.0  # a DAVIS gives the charge of its pixels, which is proportional to light

    def __init__(self, loader: Loader, name: str, path: Path) -> None:
        self.name, self.path, self.loader = name, path, loader
        self._times_us = np.rint(self._read("image_raw_ts", ..., 1, np.float64) * 1e6).astype(np.int64)
        self.length = len(self._times_us)
        masks = path.with_suffix("") / "sam3"
        self._masks = [mask_file(masks / f"{loader.object}_{frame:06d}") for frame in range(self.length)]
        self.usable = [frame for frame, file in enumerate(self._masks) if file.is_file()]

    def picture(self, frame: int) -> NDArray[np.uint8]:
        picture = self._read("image_raw", frame, 2, np.uint8)
        return resized(np.repeat(picture[..., None], 3, axis=-1), self.loader.size)

    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        return read_mask(self._masks[frame], self.loader.size) if self._masks[frame].is_file() else None

    def events(self, frame: int) -> tuple[Events, tuple[int, int]]:
        return self.loader.window(self.path, int(self._times_us[frame]))

    def _read(self, name: str, rows: object, axes: int, kind: type) -> NDArray:
        """Rows of a dataset as an array of so many axes."""
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                values: NDArray = np.asarray(file[f"{CAMERA}/{name}"][rows], kind)
            if values.ndim != axes or not values.size:
                raise ValueError(f"it has the shape {values.shape}")
        except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
            raise RecordingError(
                f"{self.path} has no readable {CAMERA}/{name}: {error}", reason="broken_recording"
            ) from error
        return values
