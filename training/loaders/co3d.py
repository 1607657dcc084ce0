"""CO3D (Reizenstein et al. 2021) with events of v2e: ``<category>/<sequence>/`` with ``images/*.jpg``, ``masks/*.png``
and ``events.aedat``."""

from __future__ import annotations

from pathlib import Path

from training.loaders.base import Loader, Sequence
from training.loaders.v2e import V2eSequence


class Co3d(Loader):
    layout = "<category>/<sequence>/images/*.jpg, masks/<the same>.png, events.aedat"
    blur_frames = (3, 5, 7)  # a phone's walk around the object, 30 frames per second

    def find(self) -> list[tuple[str, Path]]:
        folders = (path.parent for path in self.root.glob("*/*/images"))
        return sorted((folder.relative_to(self.root).as_posix(), folder) for folder in folders)

    def open(self, name: str, path: Path) -> Sequence:
        return V2eSequence(self, name, path, "images/*.jpg")
