"""What the synthetic world may hold beyond its default."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.meshes import MESH_ENDINGS, mesh_files
from event_sam3d_ros.synthetic.event_simulator import EventCameraParameters
from event_sam3d_ros.synthetic.shapes import Shape, random_shape

MOTIONS = ("swing", "circle", "camera")


@dataclass(frozen=True)
class WorldOptions:
    """Choices of a world. The default is the world of the evaluation and of the bundled recording.

    motion: "swing", the object glides through a case and swings in a recording; "circle", it goes round in space;
    "camera", it rests and the camera shakes; "mixed", one of these by seed.
    occluded: share of the cases, and of the recordings, with a second object that flies before the first (in a third of
    the cases behind it).
    meshes: a mesh file, or a folder of them, that take the place of procedural objects in a share `mesh_share` of the
    cases; mesh_up: "y" or "z", the axis of the files that points up, "" by their format.
    cutoff_hz: bandwidth of the event camera's photoreceptors in full light, less in the dark; 0 = without bounds.
    hot_pixels: share of the event camera's pixels that fire without cause.
    render_device: "" renders by the compiled renderer; a torch device ("cuda", "cpu") by the one in torch, there. The
    same world, up to roundings.
    ConfigurationError (`bad_world`) for values out of range.
    """

    motion: str = "swing"
    occluded: float = 0.0
    meshes: str = ""
    mesh_share: float = 1.0
    mesh_up: str = ""
    cutoff_hz: float = 0.0
    hot_pixels: float = 0.0
    render_device: str = ""

    def __post_init__(self) -> None:
        if self.motion not in (*MOTIONS, "mixed"):
            known = ", ".join((*MOTIONS, "mixed"))
            raise ConfigurationError(f"motion {self.motion!r} is not known: take one of {known}", reason="bad_world")
        if self.mesh_up not in ("", "y", "z"):
            raise ConfigurationError(f"mesh_up {self.mesh_up!r} is not known: take y or z", reason="bad_world")
        for name in ("occluded", "mesh_share", "hot_pixels"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} {getattr(self, name):g} is no share: 0 to 1", reason="bad_world")
        if not 0 <= self.cutoff_hz < np.inf:
            raise ConfigurationError(f"cutoff_hz {self.cutoff_hz:g}: give 0 or more hertz", reason="bad_world")
        if not re.fullmatch(r"(|cpu|cuda(:\d+)?)", self.render_device):
            raise ConfigurationError(
                f"render_device {self.render_device!r} is not known: take cuda, cpu, or nothing", reason="bad_world"
            )

    def shape(self, seed: int) -> Shape:
        """The object of this seed: a mesh of the folder by turns, or a procedural one. InputError as `mesh_shape`."""
        if not self.meshes or np.random.default_rng((seed, 0x3E5)).random() >= self.mesh_share:
            return random_shape(seed)
        from event_sam3d_ros.synthetic.mesh_shapes import mesh_shape

        files = _files(Path(self.meshes).expanduser())
        return mesh_shape(files[seed % len(files)], self.mesh_up or None)

    def motion_of(self, rng: np.random.Generator) -> str:
        """One of `MOTIONS`."""
        return MOTIONS[int(rng.integers(len(MOTIONS)))] if self.motion == "mixed" else self.motion

    def event_camera(self, parameters: EventCameraParameters) -> EventCameraParameters:
        """The event camera with this world's flaws."""
        return replace(parameters, cutoff_hz=self.cutoff_hz, hot_pixel_share=self.hot_pixels)


def _files(path: Path) -> list[Path]:
    if not path.is_file():
        return mesh_files(path)
    if path.suffix.lower() not in MESH_ENDINGS:
        raise InputError(f"{path}: not one of {', '.join(MESH_ENDINGS)}", reason="bad_mesh")
    return [path]


DEFAULT_WORLD = WorldOptions()
