"""Triangle meshes of others: reading them, and telling their inside from their outside."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from event_sam3d_ros.errors import InputError

Floats = NDArray[np.floating]

MESH_ENDINGS = (".glb", ".obj", ".off", ".ply", ".stl")
MESH_RESOLUTION = 128  # cells along the grid in which a mesh is flooded
MIN_CLOSED_SHARE = 0.5  # of the mesh's surface must have an inside


def mesh_files(folder: Path) -> list[Path]:
    """The mesh files right in a folder, by name. InputError if there is no folder or no mesh in it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of meshes", reason="missing_file")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in MESH_ENDINGS and path.is_file())
    if not found:
        raise InputError(
            f"{folder}: no mesh in it; give a folder with {', '.join(MESH_ENDINGS)} files", reason="no_input"
        )
    return found


def read_mesh(path: str | Path) -> tuple[Floats, NDArray[np.integer]]:
    """Vertices (N, 3) as the file has them and triangles (M, 3) of a mesh file (GLB, OBJ, OFF, PLY, STL)."""
    import open3d  # heavy, and needed for meshes alone

    if not Path(path).is_file():
        raise InputError(f"{path}: no such mesh file", reason="missing_file")
    vertices, faces = np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        with contextlib.suppress(LookupError, RuntimeError):  # how open3d says that it found none
            mesh = open3d.t.io.read_triangle_mesh(path)  # unlike open3d.io's, it keeps polygons, as triangles
            vertices, faces = mesh.vertex.positions.numpy().astype(float), mesh.triangle.indices.numpy()
    if not len(faces) or not np.isfinite(vertices[faces]).all() or not np.ptp(vertices[faces], axis=(0, 1)).max() > 0:
        raise InputError(
            f"{path}: no triangles could be read; give a GLB, OBJ, OFF, PLY or STL triangle mesh", reason="bad_mesh"
        )
    return vertices, faces


def flood_fill(vertices: Floats, faces: NDArray[np.integer], name: str) -> tuple[NDArray[np.float32], Floats, float]:
    """Share of each cell that is solid ((128,) * 3; cells cut by the surface count half), the cube's centre and its
    side, in the mesh's units. What a flood from outside does not reach is inside, so a mesh may have gaps up to a
    cell; InputError with reason ``not_watertight`` where the flood gets in."""
    low, high = vertices[faces].min((0, 1)), vertices[faces].max((0, 1))
    centre, side = (low + high) / 2, float(np.max(high - low)) * MESH_RESOLUTION / (MESH_RESOLUTION - 4)
    shell = np.zeros((MESH_RESOLUTION,) * 3, dtype=bool)
    cells = to_cells((vertices - centre) / side, MESH_RESOLUTION)
    shell[tuple(np.rint(_cover(cells[faces])).astype(int).T)] = True
    outside, _ = ndimage.label(~shell)
    interior = ~shell & (outside != outside[0, 0, 0])
    # where a hole let the flood in, the shell encloses nothing, apart from pockets between close surfaces
    closed = shell & ndimage.binary_dilation(interior, np.ones((3, 3, 3)))
    if closed.sum() < MIN_CLOSED_SHARE * shell.sum():
        raise InputError(f"{name}: not watertight, its inside cannot be told; close its holes", reason="not_watertight")
    return (interior + 0.5 * shell).astype(np.float32), centre, side


def to_cells(points: Floats, resolution: int) -> Floats:
    """Points in cube sides (-0.5 .. 0.5) -> continuous cell indices (0 = centre of the first cell)."""
    return (points + 0.5) * resolution - 0.5


def _cover(triangles: Floats) -> Floats:
    """Points (M, 3) that cover the triangles (N, 3, 3), at most half a unit apart along their edges."""
    edges = triangles - np.roll(triangles, 1, axis=1)
    steps = np.ceil(2.0 * np.linalg.norm(edges, axis=2).max(1)).astype(int) + 1
    points = []
    for n in np.unique(steps):
        i, j = (grid[np.add(*np.indices((n + 1, n + 1))) <= n] for grid in np.indices((n + 1, n + 1)))
        weights = np.stack([i, j, n - i - j], axis=1) / n
        points.append(np.einsum("wc,ncx->nwx", weights, triangles[steps == n]).reshape(-1, 3))
    return np.concatenate(points)
