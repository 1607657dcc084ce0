import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.evaluation.metrics import shape_metrics
from event_sam3d_ros.evaluation.solids import Solid, sample_surface
from event_sam3d_ros.meshes import MESH_RESOLUTION, read_mesh

POSE = Rotation.from_euler("xyz", [110, 20, 5], degrees=True).as_matrix()
POSITION = np.array([0.1, -0.05, 0.8])


def grid(resolution: int = 64) -> np.ndarray:
    return np.moveaxis((np.indices((resolution,) * 3) + 0.5) * (2 / resolution) - 1, 0, -1)


def ball_shape(radius: float = 0.9) -> SimpleNamespace:
    return SimpleNamespace(sdf=(np.linalg.norm(grid(), axis=-1) - radius).astype(np.float32))


def box_shape(*half: float) -> SimpleNamespace:
    beyond = np.abs(grid()) - np.array(half)
    sdf = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(-1), 0)
    return SimpleNamespace(sdf=sdf.astype(np.float32))


def write_mesh(path: Path, vertices, faces) -> Path:
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


BOX_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4]]
    + [[1, 5, 7], [1, 7, 3]]
)


def box_vertices(half) -> np.ndarray:
    return (np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2 - 1) * np.array(half)


def test_shape_becomes_a_tight_solid_in_the_object_frame():
    solid = Solid.from_shape(ball_shape(), POSE, POSITION, scale=0.1)
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 0.09**3, rel=0.01)
    assert solid.position == pytest.approx(POSITION, abs=0.002)
    assert solid.size == pytest.approx(np.full(3, 0.18), rel=0.02)
    assert solid.diameter == pytest.approx(0.18, rel=0.02)
    assert solid.rotation[:, 2] == pytest.approx(POSE[:, 2])
    heading = solid.rotation.T @ (POSITION / np.linalg.norm(POSITION))
    assert heading[1] == pytest.approx(0, abs=1e-9) and heading[0] > 0  # x is the camera's heading


def test_posed_box_keeps_its_place():
    solid = Solid.from_shape(box_shape(0.9, 0.5, 0.3), POSE, POSITION, scale=0.1)
    local = np.random.default_rng(0).uniform(-0.95, 0.95, (20_000, 3))
    inside = (np.abs(local) < [0.9, 0.5, 0.3]).all(1)
    assert (solid.contains(local * 0.1 @ POSE.T + POSITION) == inside).mean() > 0.97
    assert solid.volume == pytest.approx(0.18 * 0.1 * 0.06, rel=0.02)


def test_surface_points_lie_evenly_on_a_sphere(sphere):
    points = sphere.surface * 2
    radius = np.linalg.norm(points, axis=1)
    assert radius.mean() == pytest.approx(1, abs=0.02)
    assert radius.std() < 0.01
    directions = np.abs(points / radius[:, None])
    diagonal = (directions > 0.45).all(1).mean()
    expected = (np.abs(_random_directions()) > 0.45).all(1).mean()
    assert diagonal == pytest.approx(expected, rel=0.15)


def _random_directions() -> np.ndarray:
    directions = np.random.default_rng(0).normal(size=(100_000, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_surface_points_are_the_same_every_time(hammer):
    assert np.array_equal(sample_surface(hammer.occupancy, 500), sample_surface(hammer.occupancy.copy(), 500))


def test_single_cell_has_a_surface():
    occupancy = np.zeros((64,) * 3, dtype=bool)
    occupancy[10, 20, 30] = True
    centre = (np.array([10, 20, 30]) + 0.5) / 64 - 0.5
    assert np.abs(sample_surface(occupancy, 100) - centre).max() < 2 / 64


def test_mesh_equals_the_shape_it_describes(tmp_path):
    half = np.array([0.9, 0.5, 0.3]) * 0.1
    path = write_mesh(tmp_path / "box.obj", box_vertices(half), BOX_FACES)
    mesh = Solid.from_mesh(path, POSE, POSITION)
    shape = Solid.from_shape(box_shape(0.9, 0.5, 0.3), POSE, POSITION, scale=0.1)
    assert mesh.position == pytest.approx(shape.position, abs=0.002)
    assert mesh.volume == pytest.approx(float(np.prod(2 * half)), rel=0.03)
    assert shape_metrics(mesh, shape)["iou"] > 0.95


def test_mesh_off_its_origin_keeps_its_place(tmp_path):
    half, offset = np.array([0.09, 0.05, 0.03]), np.array([0.3, 0.0, 0.0])
    path = write_mesh(tmp_path / "box.obj", box_vertices(half) + offset, BOX_FACES)
    assert Solid.from_mesh(path, POSE, POSITION).position == pytest.approx(POSITION + POSE @ offset, abs=0.002)


def test_mesh_with_a_hole_is_refused(tmp_path):
    path = write_mesh(tmp_path / "open.obj", box_vertices([0.1, 0.1, 0.1]), BOX_FACES[:-2])
    with pytest.raises(InputError, match=r"open\.obj.*not watertight") as refused:
        Solid.from_mesh(path, POSE, POSITION)
    assert refused.value.reason == "not_watertight"


def test_missing_and_empty_mesh_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such mesh"):
        Solid.from_mesh(tmp_path / "none.ply", POSE, POSITION)
    (tmp_path / "empty.ply").write_text("")
    with pytest.raises(InputError, match="no triangles"):
        Solid.from_mesh(tmp_path / "empty.ply", POSE, POSITION)


@pytest.mark.parametrize("name", ["common3d_spot.obj", "trimesh_torus.STL", "trimesh_fuze.obj"])
def test_flooded_volume_of_real_meshes_is_the_signed_volume(test_data, name):
    path = test_data / "meshes" / name
    vertices, triangles = read_mesh(path)
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    volume = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    assert Solid.from_mesh(path, POSE, POSITION + [0, 0, 100]).volume == pytest.approx(volume, rel=0.03)


def test_a_real_mesh_with_holes_is_refused(test_data):
    with pytest.raises(InputError, match="not watertight"):
        Solid.from_mesh(test_data / "meshes" / "common3d_teapot.obj", POSE, POSITION)


def test_reconstruction_becomes_a_solid(hammer):
    quaternion = Rotation.from_matrix(hammer.rotation).as_quat().astype(np.float32)
    answer = SimpleNamespace(
        occupancy=hammer.occupancy, quaternion=quaternion, position=hammer.position, size=np.array([0.2, 0.1, 0.1])
    )
    solid = Solid.from_reconstruction(answer)
    assert solid.rotation == pytest.approx(hammer.rotation, abs=1e-6)
    assert solid.side == 0.2
    assert np.array_equal(solid.occupancy, hammer.occupancy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"occupancy": np.zeros((64,) * 3, dtype=bool)}, "empty_occupancy"),
        ({"occupancy": np.ones((64, 64, 32), dtype=bool)}, "bad_occupancy"),
        ({"occupancy": np.ones((64,) * 3)}, "bad_occupancy"),
        ({"rotation": 2 * np.eye(3)}, "bad_pose"),
        ({"position": np.array([0, np.nan, 1])}, "bad_pose"),
        ({"size": np.array([0.1, 0.0, 0.1])}, "bad_size"),
        ({"size": np.array([0.1, 0.1])}, "bad_size"),
    ],
)
def test_bad_solids_are_refused(hammer, change, reason):
    with pytest.raises(InputError) as refused:
        dataclasses.replace(hammer, **change)
    assert refused.value.reason == reason


def test_mesh_grid_is_finer_than_the_solid(hammer):
    assert len(hammer.occupancy) * 2 == MESH_RESOLUTION
