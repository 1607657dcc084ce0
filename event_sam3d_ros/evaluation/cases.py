"""The held-out cases on disk: rendering takes long, and every model is judged on the same pictures."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation.baselines import View
from event_sam3d_ros.evaluation.solids import Floats, Solid
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.synthetic.mesh_shapes import mesh_shape
from event_sam3d_ros.synthetic.shapes import Shape
from event_sam3d_ros.synthetic.world import Case, case_of, make_case

MODES = ("sharp", "blurry", "events", "fused")
TIERS = ("easy", "medium", "hard")
WORLD_VERSION = 1
"""Of the world of the cases; raised with any change of their pictures or truth, so that none are taken from an older
cache."""
IMAGES = ("sharp", "blurry", "event_image", "mask", "degraded_mask")


@dataclass(frozen=True)
class MeshObject:
    """A mesh file as an object; ``up``: its axis that points up, "y", "z", or None: by the format."""

    path: Path
    up: str | None

    @property
    def folder(self) -> Path:
        """Where a cache keeps its cases: changes with the file's content."""
        return Path("meshes") / f"{self.path.name}-{self.up or ''}{zlib.crc32(self.path.read_bytes()):08x}"

    def shape(self) -> Shape:
        """As `mesh_shape`."""
        return mesh_shape(self.path, self.up)


@dataclass(frozen=True)
class CaseKey:
    """Names a case: blur tier, seed of motion, noise and thresholds, and the object: a procedural one's seed, or a
    mesh."""

    tier: str
    seed: int
    object: int | MeshObject

    @property
    def identity(self) -> str:
        """What tells results of it from those of any other case, also of another mesh of that name."""
        return self.path(Path()).as_posix()

    @property
    def name(self) -> int | str:
        """The object's, for tables."""
        return self.object.path.name if isinstance(self.object, MeshObject) else self.object

    def path(self, cache: Path) -> Path:
        """Where the cache keeps it; what makes cases differ, all of it is in its name."""
        if WORLD_VERSION > 1:
            cache = cache / f"world{WORLD_VERSION}"
        if isinstance(self.object, MeshObject):
            return cache / self.object.folder / self.tier / f"seed{self.seed}.npz"
        return cache / self.tier / f"seed{self.seed}" / f"{self.object:07d}.npz"

    def render(self) -> Case:
        """Makes the case."""
        if isinstance(self.object, MeshObject):
            return case_of(self.object.shape(), self.seed, self.tier)
        return make_case(self.object, self.seed, self.tier)


@dataclass(frozen=True)
class EvaluationCase:
    """What of a rendered case the suites need. Images (H, W, 3) uint8; masks (H, W) uint8 0/1; ``depth`` (H, W)
    float32 m, on disk in whole millimetres as a depth camera sends it, 0 = unknown; ``truth``: the object at the
    frame's stamp."""

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    event_image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    degraded_mask: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K: Floats
    truth: Solid
    motion_share: float

    @classmethod
    def from_case(cls, case: Case) -> EvaluationCase:
        truth = Solid.from_shape(case.shape, case.rotation, case.position, case.scale)
        images = {name: getattr(case, name) for name in IMAGES}
        return cls(**images, depth=case.depth, K=case.K, truth=truth, motion_share=case.motion_share)

    def observation(self, mode: str, *, depth: bool = False) -> Observation:
        """What the model sees in a mode: `sharp` the sharp frame and the true mask; `blurry`, `events`, `fused` the
        blurry frame, the events or both with the degraded mask."""
        return Observation(
            image={"sharp": self.sharp, "events": None}.get(mode, self.blurry),
            mask=self.mask if mode == "sharp" else self.degraded_mask,
            event_image=self.event_image if mode in ("events", "fused") else None,
            K=self.K,
            depth=self.depth if depth else None,
        )

    @property
    def view(self) -> View:
        """What baselines see."""
        return View(self.truth, self.mask, self.K)

    def save(self, path: Path) -> None:
        """Writes a .npz with the images as PNG; the file appears only when complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        millimetres = np.clip(np.rint(np.nan_to_num(self.depth, posinf=0.0) * 1000), 0, 65535).astype(np.uint16)
        partial = path.with_suffix(f".{os.getpid()}.partial.npz")
        content: dict[str, Any] = {name: _to_png(getattr(self, name)) for name in IMAGES}
        content |= {"depth": _to_png(millimetres), "K": self.K, "motion_share": self.motion_share}
        content |= {"occupancy": np.packbits(self.truth.occupancy), "size": self.truth.size}
        content |= {"rotation": self.truth.rotation, "position": self.truth.position}
        np.savez(partial, **content)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> EvaluationCase:
        """Reads what `save` wrote."""
        with np.load(path) as data:
            images: dict[str, Any] = {name: _from_png(data[name]) for name in IMAGES}
            depth = _from_png(data["depth"]).astype(np.float32) / np.float32(1000)
            cells = np.unpackbits(data["occupancy"]).astype(bool)
            grid = cells.reshape((round(len(cells) ** (1 / 3)),) * 3)
            truth = Solid(grid, data["rotation"], data["position"], data["size"])
            return cls(**images, depth=depth, K=data["K"], truth=truth, motion_share=float(data["motion_share"]))


def _to_png(image: NDArray[np.integer]) -> NDArray[np.uint8]:
    return cv2.imencode(".png", image)[1]


def _from_png(png: NDArray[np.uint8]) -> NDArray[Any]:
    image = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError("a picture in the case cache is damaged; remove the cache folder", reason="bad_cache")
    return image


def cached_case(key: CaseKey, cache: Path) -> EvaluationCase:
    """The case from the cache, rendered first if it is not there."""
    path = key.path(cache)
    if not path.exists():
        EvaluationCase.from_case(key.render()).save(path)
    return EvaluationCase.load(path)
