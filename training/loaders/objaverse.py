"""Renderings of Objaverse's objects with events of v2e: ``<object>/<variant>/`` with ``images/*.png`` and
``events.aedat``. Objects are rendered before one colour, so that a mask is found where none is given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.loaders.base import Loader, Sequence
from training.loaders.files import Size, read_alpha, read_mask, read_picture
from training.loaders.v2e import V2eSequence

BACKGROUND = ((0, 0, 0), (26, 26, 26))
"""Colours behind the objects in event_sam3d's renderings."""
_OPENING = np.ones((5, 5), np.uint8)


class Objaverse(Loader):
    layout = "<object>/<variant>/images/*.png, events.aedat"
    blur_frames = (10, 20, 40)  # event_sam3d's easy, medium and hard

    def find(self) -> list[tuple[str, Path]]:
        folders = (path.parent for path in self.root.glob("*/*/images"))
        return sorted((folder.relative_to(self.root).as_posix(), folder) for folder in folders)

    def open(self, name: str, path: Path) -> Sequence:
        return _Rendering(self, name, path, "images/*.png")


class _Rendering(V2eSequence):
    """Masks, in this order: of the folder ``masks``, the picture's opacity, what is not of the background's colour."""

    def has_mask(self, frame: int) -> bool:
        return True

    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        if self.mask_path(frame).is_file():
            return read_mask(self.mask_path(frame), self.loader.size)
        return foreground(self.pictures[frame], self.loader.size)


def foreground(path: Path, size: Size) -> NDArray[np.bool_]:
    """The object (H, W) in a rendering, without specks of under 5 pixels."""
    alpha = read_alpha(path, size)
    if alpha is not None:
        return alpha > 127
    picture = read_picture(path, size)
    inside = ~np.any([(picture == colour).all(-1) for colour in BACKGROUND], axis=0)
    return cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_OPEN, _OPENING) > 0
