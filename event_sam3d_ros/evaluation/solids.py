"""A solid in front of a camera: what every metric compares, whether predicted, true or a baseline's guess.

Camera frame: optical (x right, y down, z forward), metres. Object frame: a cube of side ``max(size)`` around the
object's centre, z up, x the camera's heading projected on the plane orthogonal to z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.meshes import flood_fill, read_mesh, to_cells
from event_sam3d_ros.sam3d.layout import object_rotation

if TYPE_CHECKING:
    import open3d

    from event_sam3d_ros.reconstructor import Reconstruction
    from event_sam3d_ros.synthetic.shapes import Shape

Floats = NDArray[np.floating]

RESOLUTION = 64  # cells along a solid's cube
DIAMETER_DIRECTIONS = 300
SURFACE_POINTS = 10_000
ICP_SOURCE_POINTS = 500
ICP_TARGET_POINTS = 2_000
SMOOTHING_CELLS = 1.0  # Gaussian that turns the staircase of cells into a surface


@dataclass(frozen=True)
class Normalised:
    """A surface turned by ``rotation`` (3, 3), then moved by ``-centre`` and scaled so that its box just fills [-1,
    1]: ``points`` (N, 3) = (surface @ rotation.T - centre) * scale."""

    points: Floats
    rotation: Floats
    centre: Floats
    scale: float

    @classmethod
    def of(cls, surface: Floats, rotation: Floats) -> Normalised:
        turned = surface @ rotation.T
        low, high = turned.min(0), turned.max(0)
        scale = 2.0 / float(np.max(high - low))
        return cls((turned - (low + high) / 2) * scale, rotation, (low + high) / 2, scale)

    @cached_property
    def tree(self) -> cKDTree:
        """Search tree over all points."""
        return search_tree(self.points)

    @property
    def icp_source(self) -> open3d.geometry.PointCloud:
        """The first few points, to be moved by ICP."""
        return _cloud(self.points[:ICP_SOURCE_POINTS])

    @cached_property
    def icp_target(self) -> open3d.geometry.PointCloud:
        """More of them, for ICP to move others to."""
        return _cloud(self.points[:ICP_TARGET_POINTS])


def _cloud(points: Floats) -> open3d.geometry.PointCloud:
    import open3d

    return open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))


def search_tree(points: Floats) -> cKDTree:
    """A k-d tree with the options that are fastest for surface points."""
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


@dataclass(frozen=True)
class Solid:
    """``occupancy``: (R, R, R) bool indexed [x, y, z] in the object frame's cube; ``rotation``: (3, 3), its columns
    are the object's axes in the camera frame; ``position``: (3,) the cube's centre in the camera frame, m; ``size``:
    (3,) extents along the object's axes, m. InputError if one of them cannot be used."""

    occupancy: NDArray[np.bool_]
    rotation: Floats
    position: Floats
    size: Floats

    def __post_init__(self) -> None:
        grid = self.occupancy
        if grid.ndim != 3 or len(set(grid.shape)) != 1 or grid.dtype != bool:
            raise InputError(f"occupancy is {grid.dtype} {grid.shape}; give a cube of bool", reason="bad_occupancy")
        if not grid.any():
            raise InputError("occupancy is empty: a solid needs at least one cell", reason="empty_occupancy")
        pose_is_good = (
            np.shape(self.rotation) == (3, 3)
            and np.shape(self.position) == (3,)
            and np.allclose(np.transpose(self.rotation) @ self.rotation, np.eye(3), atol=1e-3)
            and np.isfinite(self.position).all()
        )
        if not pose_is_good:
            raise InputError("pose must be a rotation matrix (3, 3) and a finite position (3,)", reason="bad_pose")
        if np.shape(self.size) != (3,) or not (np.isfinite(self.size).all() and np.min(self.size) > 0):
            raise InputError(f"size is {self.size}; give three positive extents in metres", reason="bad_size")

    @classmethod
    def from_reconstruction(cls, reconstruction: Reconstruction) -> Solid:
        """The solid that a model's answer describes."""
        rotation = Rotation.from_quat(np.asarray(reconstruction.quaternion, dtype=float)).as_matrix()
        position = np.asarray(reconstruction.position, dtype=float)
        return cls(
            np.asarray(reconstruction.occupancy), rotation, position, np.asarray(reconstruction.size, dtype=float)
        )

    @classmethod
    def from_shape(cls, shape: Shape, rotation: Floats, position: Floats, scale: float) -> Solid:
        """The true solid of a procedural shape whose point x (grid units) lies at ``rotation @ (x * scale) +
        position`` in the camera frame; ``scale``: metres per grid unit."""
        return cls._from_grid(np.negative(shape.sdf), 0.0, 2.0 * scale, rotation, position)

    @classmethod
    def from_mesh(cls, path: str | Path, rotation: Floats, position: Floats) -> Solid:
        """The true solid of a mesh file (GLB, OBJ, OFF, PLY, STL; metres, z up) whose point x lies at
        ``rotation @ x + position`` in the camera frame. Made solid by flood fill from outside; InputError with reason
        ``not_watertight`` where the flood gets in."""
        path = Path(path)
        fill, centre, side = _filled(path, path.stat().st_mtime_ns if path.is_file() else 0)
        position = np.asarray(position, dtype=float) + np.asarray(rotation, dtype=float) @ centre
        return cls._from_grid(fill, 0.5, side, rotation, position)

    @classmethod
    def _from_grid(cls, field: Floats, level: float, side: float, rotation: Floats, position: Floats) -> Solid:
        """Resamples a field (solid above ``level``) in a posed cube of ``side`` metres into the object frame."""
        rotation, position = np.asarray(rotation, dtype=float), np.asarray(position, dtype=float)
        outside = float(np.min(field)) - 1.0

        def inside(points: Floats) -> NDArray[np.bool_]:
            cells = to_cells((points - position) @ rotation / side, len(field))
            return ndimage.map_coordinates(field, cells.T, order=1, cval=outside) > level

        corners = np.argwhere(field > level).astype(float)
        if not len(corners):
            raise InputError("the field has no cell inside the solid", reason="empty_occupancy")
        points = ((corners + 0.5) / len(field) - 0.5) * side @ rotation.T + position
        frame = object_rotation(rotation[:, 2], position / np.linalg.norm(position))
        return cls.from_function(inside, np.asarray(frame, dtype=float), points, margin=side / len(field))

    @classmethod
    def from_function(
        cls, inside: Callable[[Floats], NDArray[np.bool_]], rotation: Floats, points: Floats, margin: float
    ) -> Solid:
        """Fills the tight cube of a solid given by ``inside`` ((N, 3) camera points -> (N,) bool), which reaches at
        most ``margin`` metres beyond its ``points`` (N, 3, camera frame); ``rotation``: the wanted object axes."""
        local = points @ rotation
        low, high = local.min(0) - margin, local.max(0) + margin
        for _ in range(2):  # the first, loose cube finds the extents
            centre, side = (low + high) / 2, float(np.max(high - low))
            cells = np.indices((RESOLUTION,) * 3).reshape(3, -1).T
            grid = inside(((cells + 0.5) / RESOLUTION - 0.5) * side @ rotation.T + centre @ rotation.T)
            solid = cls(grid.reshape((RESOLUTION,) * 3), rotation, rotation @ centre, np.full(3, side))
            low, high = (bound * side + centre for bound in solid.bounds)
        size = high - low
        size[np.argmax(size)] = side  # the cube that was filled
        return cls(solid.occupancy, rotation, solid.position, size)

    @property
    def side(self) -> float:
        """Side of the cube, m."""
        return float(np.max(self.size))

    @property
    def volume(self) -> float:
        """Volume, m^3."""
        return len(self.cells) * (self.side / len(self.occupancy)) ** 3

    @cached_property
    def cells(self) -> Floats:
        """(N, 3) centres of the occupied cells in the object frame, in cube sides (-0.5 .. 0.5)."""
        return (np.argwhere(self.occupancy).astype(np.float32) + 0.5) / len(self.occupancy) - 0.5

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Lowest and highest corner of the occupied cells, object frame, in cube sides."""
        half = 0.5 / len(self.occupancy)
        return self.cells.min(0).astype(float) - half, self.cells.max(0).astype(float) + half

    @cached_property
    def surface(self) -> Floats:
        """(10000, 3) points spread evenly over the surface, object frame, in cube sides; the same at every call."""
        return sample_surface(self.occupancy, SURFACE_POINTS)

    @cached_property
    def normalised(self) -> Normalised:
        """The surface in the box [-1, 1] of the object frame."""
        return Normalised.of(self.surface, np.eye(3))

    @cached_property
    def diameter(self) -> float:
        """Largest distance between two surface points, m; sought among the outermost ones along many directions."""
        points = self.surface * self.side
        directions = np.random.default_rng(0).normal(size=(3, DIAMETER_DIRECTIONS))
        return float(pdist(points[np.unique((points @ directions).argmax(0))]).max())

    def to_camera(self, points: Floats) -> Floats:
        """(N, 3) points in cube sides -> camera frame, m."""
        return points @ (self.rotation.T * self.side) + self.position

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Which of the (N, 3) camera points (m) lie in an occupied cell."""
        return self.contains_local((points - self.position) @ (self.rotation / self.side))

    def contains_local(self, points: Floats) -> NDArray[np.bool_]:
        """Which of the (N, 3) points, object frame in cube sides, lie in an occupied cell."""
        resolution = len(self.occupancy)
        cells = np.floor((points + 0.5) * resolution).astype(np.int32)
        within = ((cells >= 0) & (cells < resolution)).all(1)
        x, y, z = np.clip(cells, 0, resolution - 1).T
        return self.occupancy[x, y, z] & within


@lru_cache(maxsize=8)
def _filled(path: Path, modified_ns: int) -> tuple[Floats, Floats, float]:
    """`flood_fill` of a mesh file, which takes as long as all the rest: kept while the file stays as it is."""
    vertices, faces = read_mesh(path)
    return flood_fill(vertices, faces, str(path))


def sample_surface(occupancy: NDArray[np.bool_], count: int) -> Floats:
    """``count`` points on the surface of an occupancy (R, R, R), object frame in cube sides.

    Points are drawn on the open faces of the cells and moved along the normal to the half level of the smoothed
    occupancy, at most one cell away. A face counts with its share of the normal, so that slanted surfaces, whose
    staircase has more faces, get no more points than flat ones. The random generator is fixed: equal occupancies,
    equal points.
    """
    solid = np.pad(occupancy, 3)
    smooth = ndimage.gaussian_filter(solid.astype(np.float32), SMOOTHING_CELLS, truncate=2.0)
    found = [np.argwhere(np.diff(solid, axis=axis)) for axis in range(3)]  # faces between a cell and the next one
    axis = np.repeat(np.arange(3), [len(faces) for faces in found])
    first = np.concatenate(found)
    second = first + np.eye(3, dtype=int)[axis]
    normals = _gradient(smooth, first) + _gradient(smooth, second)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    rng = np.random.default_rng(0)
    weights = np.cumsum(np.abs(np.take_along_axis(normals, axis[:, None], 1)[:, 0]) + 1e-6)
    chosen = np.searchsorted(weights, rng.random(count) * weights[-1])
    normal, axis = normals[chosen], axis[chosen]
    jitter = rng.random((count, 3)) - 0.5
    jitter[np.arange(count), axis] = 0.0
    points = (first + second)[chosen] / 2 + jitter
    near, far = (ndimage.map_coordinates(smooth, (points + side * normal).T, order=1) for side in (-1, 1))
    level = np.clip((0.5 - near) / np.maximum(far - near, 1e-3), 0.0, 1.0)  # linear between the two
    points += (2 * level - 1)[:, None] * normal
    return (points - 3 + 0.5) / len(occupancy) - 0.5


def _gradient(field: Floats, cells: NDArray[np.integer]) -> Floats:
    """Central differences of a field at cells (N, 3), none of them on its border."""
    x, y, z = cells.T
    return np.stack(
        [
            field[x + 1, y, z] - field[x - 1, y, z],
            field[x, y + 1, z] - field[x, y - 1, z],
            field[x, y, z + 1] - field[x, y, z - 1],
        ],
        axis=1,
    ).astype(float)
