"""The surface of a shape as a triangle mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def surface_mesh(sdf: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Closed triangle mesh of a signed distance grid (R, R, R) on the cell centres of [-1, 1]^3, negative inside.

    Naive surface nets (Gibson 1998): one vertex for each cube of eight neighbouring samples that the surface cuts, in
    the middle of its edges' crossings; four cubes around a cut edge make a quad. Vertices (N, 3), faces (M, 3) turned
    outside.
    """
    inside = sdf < 0
    corners = np.indices((2, 2, 2)).reshape(3, 8).T
    shape = np.array(sdf.shape) - 1

    def corner(array: NDArray[Any], offset: NDArray[np.intp]) -> NDArray[Any]:
        return array[tuple(slice(int(o), int(o + n)) for o, n in zip(offset, shape, strict=True))]

    total = np.zeros((*shape, 3))
    count = np.zeros(shape)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        for start in corners[corners[:, axis] == 0]:
            a, b = corner(sdf, start), corner(sdf, start + step)
            crossed = (a < 0) != (b < 0)
            share = np.divide(a, a - b, out=np.zeros_like(a), where=crossed)
            total += crossed[..., None] * (start + share[..., None] * step)
            count += crossed
    cubes = np.argwhere(count > 0)
    vertices = cubes + total[tuple(cubes.T)] / count[tuple(cubes.T)][:, None]
    number = np.full(shape, -1)
    number[tuple(cubes.T)] = np.arange(len(cubes))
    faces = []
    for axis in range(3):
        u, v = (np.eye(3, dtype=int)[(axis + turn) % 3] for turn in (1, 2))
        first, second = np.moveaxis(inside, axis, 0)[:-1], np.moveaxis(inside, axis, 0)[1:]
        edges = np.argwhere(np.moveaxis(first != second, 0, axis))
        quad = np.stack([number[tuple((edges - d).T)] for d in (0 * u, u, u + v, v)], axis=1)
        outwards = inside[tuple(edges.T)]
        quad[~outwards] = quad[~outwards, ::-1]
        faces += [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
    points = (vertices + 0.5) * (2 / len(sdf)) - 1
    return points, np.concatenate(faces).astype(np.int32)


def write_mesh(path: Path, vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
    """Binary PLY of a triangle mesh; vertices in metres."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    records = np.empty(len(faces), np.dtype([("count", "u1"), ("vertices", "<i4", 3)]))
    records["count"], records["vertices"] = 3, faces
    path.write_bytes("\n".join(header).encode() + vertices.astype("<f4").tobytes() + records.tobytes())
