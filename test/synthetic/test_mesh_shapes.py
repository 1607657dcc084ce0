"""Meshes of others: solids whose form is known, whatever their triangles are like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.meshes import mesh_files, read_mesh
from event_sam3d_ros.synthetic.mesh_shapes import mesh_shape
from event_sam3d_ros.synthetic.shapes import LONGEST_SIDE

SQUARES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
CORNERS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2.0 - 1


def write(path: Path, corners: np.ndarray, faces: list[list[int]]) -> Path:
    """An OBJ or OFF file."""
    if path.suffix == ".off":
        head = ["OFF", f"{len(corners)} {len(faces)} 0"]
        lines = head + [f"{x} {y} {z}" for x, y, z in corners] + [f"{len(f)} {' '.join(map(str, f))}" for f in faces]
    else:
        lines = [f"v {x} {y} {z}" for x, y, z in corners]
        lines += ["f " + " ".join(str(i + 1) for i in face) for face in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


def box(path: Path, half=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0), faces=SQUARES) -> Path:
    return write(path, CORNERS * half + np.array(offset), faces)


def cells() -> np.ndarray:
    """(64, 64, 64, 3) cell centres."""
    return np.moveaxis((np.indices((64,) * 3) + 0.5) / 32 - 1, 0, -1)


def test_distances_of_a_ball(tmp_path):
    import open3d

    ball = open3d.geometry.TriangleMesh.create_sphere(37.0, resolution=60).translate([5, -8, 100])
    open3d.io.write_triangle_mesh(tmp_path / "ball.ply", ball)
    shape = mesh_shape(tmp_path / "ball.ply")
    true = np.linalg.norm(cells(), axis=-1) - LONGEST_SIDE / 2
    error = shape.sdf - true
    near = np.abs(true) < 0.06  # two cells
    assert np.abs(error[near]).max() < 0.01
    assert error[true > 0].max() < 0.01  # outside never much more than the distance: sphere tracing relies on it
    assert np.abs(error).max() < 0.06
    assert shape.extent == pytest.approx([LONGEST_SIDE] * 3, abs=0.02)
    assert shape.sdf.dtype == np.float32 and shape.sdf.flags.c_contiguous
    assert len(shape.surface_points) > 100


@pytest.mark.parametrize(
    ("name", "up", "sides"),
    [
        ("brick.obj", None, [1.8, 0.6, 0.9]),  # y up: the file's y, the second side, becomes z
        ("brick.off", None, [1.8, 0.9, 0.6]),
        ("brick.obj", "z", [1.8, 0.9, 0.6]),
        ("brick.off", "y", [1.8, 0.6, 0.9]),
    ],
)
def test_up_axis(tmp_path, name, up, sides):
    path = box(tmp_path / name, half=(3, 1.5, 1), offset=(10, 20, 30))
    assert mesh_shape(path, up).extent == pytest.approx(sides, abs=0.03)
    with pytest.raises(InputError) as refused:
        mesh_shape(path, "x")
    assert refused.value.reason == "bad_up_axis"


def test_up_stays_up_and_nothing_is_mirrored(tmp_path):
    """An L: a foot along +x at the bottom, and a notch towards +z of the file, which is towards the viewer."""
    low = CORNERS * [2, 0.5, 1] + [1, -1.5, 0]
    tall = CORNERS * [1, 2, 1]
    notch = CORNERS * [0.4, 2, 0.4] + [0, 0, 1.2]
    faces = [[i + 8 * part for i in face] for part in range(3) for face in SQUARES]
    shape = mesh_shape(write(tmp_path / "l.obj", np.concatenate([low, tall, notch]), faces))
    inside = cells()[shape.occupancy]
    foot = inside[inside[:, 2] < -0.5]
    head = inside[inside[:, 2] > 0.5]
    assert foot[:, 0].max() > head[:, 0].max() + 0.5  # y up became z up
    assert (
        inside[:, 1].min() < -0.5
        and head[np.abs(head[:, 0] - head[:, 0].mean()) < 0.1][:, 1].mean()
        < head[np.abs(head[:, 0] - head[:, 0].mean()) > 0.25][:, 1].mean()
    )  # the file's +z became -y: a turn, not a mirror


def test_inner_faces_and_sheets_do_not_matter(tmp_path):
    outer, inner = CORNERS, CORNERS * 0.4
    sheet = CORNERS * [0.0, 1.0, 1.0] * 0.9
    faces = [[i + 8 * part for i in face] for part in range(2) for face in SQUARES] + [[16, 17, 19, 18]]
    messy = mesh_shape(write(tmp_path / "messy.obj", np.concatenate([outer, inner, sheet]), faces))
    clean = mesh_shape(box(tmp_path / "clean.obj"))
    assert np.array_equal(messy.occupancy, clean.occupancy)
    assert np.abs(messy.sdf - clean.sdf).max() < 1e-6


def test_name_gives_material_and_seed_not_the_place(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = mesh_shape(box(tmp_path / "a.obj")), mesh_shape(box(tmp_path / "other" / "a.obj"))
    assert first.seed == second.seed != mesh_shape(box(tmp_path / "b.obj")).seed
    assert np.array_equal(first.material.colours, second.material.colours)


def test_polygons_become_triangles(tmp_path):
    vertices, triangles = read_mesh(box(tmp_path / "squares.obj"))
    assert len(triangles) == 12
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(24)


@pytest.mark.parametrize(
    ("faces", "half", "reason"),
    [
        (SQUARES[:-1], (1, 1, 1), "not_watertight"),
        (SQUARES, (1, 1, 0.002), "not_watertight"),
        ([], (1, 1, 1), "bad_mesh"),
    ],
)
def test_what_is_no_solid_is_refused(tmp_path, faces, half, reason):
    with pytest.raises(InputError, match=r"it\.obj") as refused:
        mesh_shape(box(tmp_path / "it.obj", half, faces=faces))
    assert refused.value.reason == reason


@pytest.mark.parametrize("name", ["it.obj", "it.glb", "it.ply", "it.stl", "it.off"])
def test_files_that_are_no_meshes_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"no mesh at all\n")
    with pytest.raises(InputError, match="no triangles") as refused:
        mesh_shape(tmp_path / name)
    assert refused.value.reason == "bad_mesh"


def test_folders(tmp_path):
    for name in ("b.OBJ", "a.glb", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.ply").mkdir()
    assert [path.name for path in mesh_files(tmp_path)] == ["a.glb", "b.OBJ"]
    with pytest.raises(InputError, match="no such folder"):
        mesh_files(tmp_path / "none")
    with pytest.raises(InputError, match="no mesh in it"):
        mesh_files(tmp_path / "folder.ply")
