"""Users' meshes in the synthetic world: a mesh file becomes a `Shape`, as a procedural solid is one.

The mesh is flooded from outside, the surface of what the flood does not reach is taken, and its distances are
sampled on the shape's grid. So the shape is a clean solid whatever the mesh's triangles are like; parts thinner than
about 1/60 of the object are lost, as procedural shapes have none. Colours of the file are not used: a random material,
always the same for a file's name, covers the solid.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.meshes import flood_fill, read_mesh
from event_sam3d_ros.synthetic.appearance import random_material
from event_sam3d_ros.synthetic.shapes import LONGEST_SIDE, Shape, cell_centres

if TYPE_CHECKING:
    import open3d

UP_AXES = ("y", "z")
Y_UP_ENDINGS = (".glb", ".obj")
"""Formats whose y axis points up: GLB by definition, OBJ as most programs write it. In the others z does."""

_SMOOTHING_CELLS = 1.0
"""Gaussian over the flooded cells before the surface between them is taken; half a cell of the shape's grid."""
_LEVEL = 0.5
_EXACT_WITHIN = 4.0
"""Cells of the flooded grid: two of the shape's."""
_MARGIN_CELLS = 6
"""Around the flooded grid, so that the shape's lies within it."""


@lru_cache(maxsize=16)
def mesh_shape(path: Path, up: str | None = None, resolution: int = 64) -> Shape:
    """The shape of a mesh file (GLB, OBJ, OFF, PLY, STL), centred and of longest side 1.8, z up.

    up: the file's axis that points up, "y" or "z"; None: by the format (`Y_UP_ENDINGS`). Its seed, from which the
    world draws the size and the material, follows from the file's name. InputError where the file can't be read
    (`bad_mesh`, `missing_file`) or its inside can't be told (`not_watertight`).
    """
    import open3d  # heavy, and needed for meshes alone

    vertices, triangles = read_mesh(path)
    vertices = _z_up(vertices, up or ("y" if path.suffix.lower() in Y_UP_ENDINGS else "z"))
    fill, _, _ = flood_fill(vertices, triangles, str(path))
    field = ndimage.gaussian_filter(np.pad(fill, _MARGIN_CELLS), _SMOOTHING_CELLS)
    if not field.max() > _LEVEL:
        raise InputError(f"{path}: too thin everywhere; a solid needs parts thicker than 1/60 of it", reason="too_thin")
    # The isosurface takes the fastest axis as x.
    surface = open3d.t.geometry.TriangleMesh.create_isosurfaces(_tensor(field.T), [_LEVEL])
    corners = surface.vertex.positions.numpy()
    low, high = corners.min(axis=0), corners.max(axis=0)
    centre, cells = (low + high) / 2, float((high - low).max()) / LONGEST_SIDE  # of the field, per grid unit
    points = cell_centres(resolution).numpy().T * cells + centre
    inside = ndimage.map_coordinates(field, points.T, order=1) > _LEVEL
    sdf = np.where(inside, -1.0, 1.0) * _distance(surface, field > _LEVEL, points)
    seed = zlib.crc32(path.name.encode())
    material = random_material(np.random.default_rng((seed, 0x3A7)))
    return Shape(
        sdf=(sdf / cells).astype(np.float32).reshape((resolution,) * 3),
        extent=((high - low) / cells).astype(np.float64),
        material=material,
        seed=seed,
    )


def _distance(surface: open3d.t.geometry.TriangleMesh, solid: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance (M,) of points (M, 3) to the surface of the `solid` cells (R, R, R) bool, in cells: exact near it;
    further away, where exactness costs seconds and nobody sees it, up to a cell too small."""
    import open3d

    to_other = ndimage.distance_transform_edt(solid) + ndimage.distance_transform_edt(~solid)
    distance = ndimage.map_coordinates(to_other, points.T, order=1, mode="nearest") - 1.0
    near = np.flatnonzero(distance < _EXACT_WITHIN)
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(surface)
    distance[near] = scene.compute_distance(_tensor(points[near]), nthreads=1).numpy()
    return distance


def _tensor(array: np.ndarray) -> open3d.core.Tensor:
    import open3d

    return open3d.core.Tensor.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _z_up(vertices: np.ndarray, up: str) -> np.ndarray:
    """Vertices (N, 3) turned about x so that the axis `up` becomes z."""
    if up not in UP_AXES:
        raise InputError(f"up axis {up!r} is not known: take {' or '.join(UP_AXES)}", reason="bad_up_axis")
    return vertices if up == "z" else np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1)
