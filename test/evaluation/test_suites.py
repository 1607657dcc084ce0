import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from event_sam3d_ros.cli import main
from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.evaluation import cases, suites
from event_sam3d_ros.evaluation.baselines import BASELINE_OBJECT_SEEDS, BASELINES_FILE, Baselines
from event_sam3d_ros.evaluation.cases import MODES, TIERS, CaseKey, EvaluationCase, cached_case
from event_sam3d_ros.evaluation.metrics import silhouette
from event_sam3d_ros.reconstructor import share_folder
from event_sam3d_ros.sam3d.checkpoint import save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network
from event_sam3d_ros.synthetic.world import HELD_OUT_OBJECT_SEEDS


def case_of(solid, K) -> EvaluationCase:
    rng = np.random.default_rng(0)
    mask = silhouette(solid, K, 346, 260).astype(np.uint8)
    images = {name: rng.integers(0, 256, (260, 346, 3), np.uint8) for name in ("sharp", "blurry", "event_image")}
    depth = np.where(mask > 0, 0.9876, 0).astype(np.float32)
    return EvaluationCase(
        **images, mask=mask, degraded_mask=np.roll(mask, 2, 0), depth=depth, K=K, truth=solid, motion_share=0.2
    )


def answer(solid) -> SimpleNamespace:
    quaternion = Rotation.from_matrix(solid.rotation).as_quat()
    return SimpleNamespace(
        occupancy=solid.occupancy, quaternion=quaternion, position=solid.position, size=solid.size, metric=False
    )


@pytest.fixture(scope="module")
def hammer_case(hammer, K) -> EvaluationCase:
    return case_of(hammer, K)


@pytest.fixture(scope="module")
def baselines(sphere, K) -> Baselines:
    return Baselines.fit([case_of(sphere, K).view])


def test_every_mode_sees_its_own_inputs(hammer_case):
    seen = {mode: hammer_case.observation(mode) for mode in MODES}
    assert seen["sharp"].image is hammer_case.sharp and seen["sharp"].mask is hammer_case.mask
    assert seen["sharp"].event_image is None and seen["blurry"].event_image is None
    assert seen["blurry"].image is hammer_case.blurry and seen["fused"].image is hammer_case.blurry
    assert seen["events"].image is None
    assert seen["events"].event_image is hammer_case.event_image
    assert seen["fused"].event_image is hammer_case.event_image
    assert all(seen[mode].mask is hammer_case.degraded_mask for mode in ("blurry", "events", "fused"))
    assert all(observation.depth is None for observation in seen.values())
    assert hammer_case.observation("fused", depth=True).depth is hammer_case.depth


def test_case_is_the_same_from_disk(hammer_case, tmp_path):
    path = tmp_path / "hard" / "case.npz"
    hammer_case.save(path)
    loaded = EvaluationCase.load(path)
    for name in (*cases.IMAGES, "K"):
        assert np.array_equal(getattr(loaded, name), getattr(hammer_case, name)), name
    assert loaded.depth.dtype == np.float32
    assert np.unique(loaded.depth) == pytest.approx([0, 0.988])
    assert loaded.motion_share == hammer_case.motion_share
    for field in dataclasses.fields(loaded.truth):
        assert np.array_equal(getattr(loaded.truth, field.name), getattr(hammer_case.truth, field.name)), field.name
    assert [file.name for file in path.parent.iterdir()] == ["case.npz"]


def test_cached_case_is_not_rendered_again(hammer_case, tmp_path, monkeypatch):
    key = CaseKey("hard", 1, 7)
    hammer_case.save(key.path(tmp_path))
    monkeypatch.setattr(cases, "make_case", lambda *args: pytest.fail("rendered again"))
    assert np.array_equal(cached_case(key, tmp_path).sharp, hammer_case.sharp)


def test_rendered_case_agrees_with_its_truth(tmp_path):
    case = cached_case(CaseKey("easy", 0, 3), tmp_path)
    drawn = silhouette(case.truth, case.K, 346, 260)
    assert (drawn & (case.mask > 0)).sum() / (drawn | (case.mask > 0)).sum() > 0.9
    rows, columns = np.nonzero(case.mask)
    drawn_rows, drawn_columns = np.nonzero(drawn)
    assert drawn_rows.mean() == pytest.approx(rows.mean(), abs=1)
    assert drawn_columns.mean() == pytest.approx(columns.mean(), abs=1)
    assert 0.02 < case.motion_share < 0.07


def test_tasks_cover_the_suite_and_mix_other_objects():
    wanted = suites.synthetic_suite(5, 2).tasks
    assert len({task.key for task in wanted}) == len(wanted) == 5 * 2 * len(TIERS)
    for task in wanted:
        assert task.other.object != task.key.object
        assert (task.other.tier, task.other.seed) == (task.key.tier, task.key.seed)
    assert {task.other for task in wanted} == {task.key for task in wanted}


def test_the_subset_is_the_same_objects_in_every_tier_and_seed():
    wanted = suites.synthetic_suite(200, 2).tasks
    subset = {task.key.object for task in wanted if task.subset}
    assert subset == set(range(100))
    assert all(task.subset == (task.key.object in subset) for task in wanted)


@pytest.mark.parametrize(("objects", "seeds"), [(1, 3), (0, 3), (201, 3), (200, 0)])
def test_sizes_that_make_no_suite_are_refused(objects, seeds):
    with pytest.raises(ConfigurationError):
        suites.synthetic_suite(objects, seeds)


def test_a_perfect_model_is_perfect_but_for_the_control(hammer_case, sphere, K, baselines):
    other = case_of(sphere, K)

    def model(observation):
        return [answer(hammer_case.truth if observation.image is not other.sharp else other.truth)]

    result = suites.evaluate_case(model, baselines, hammer_case, other)
    assert result["failures"] == {}
    assert set(result["metrics"]) == {*MODES, "mean_shape", "inflated_silhouette", "shuffled"}
    for mode in MODES:
        assert result["metrics"][mode]["iou"] == pytest.approx(1)
        assert ("add_s" in result["metrics"][mode]) == (mode == "fused")
    assert result["metrics"]["fused"]["add_s"] == pytest.approx(0, abs=1e-6)
    assert result["metrics"]["shuffled"]["iou"] < 0.7
    assert result["metrics"]["mean_shape"]["iou"] < 0.7
    assert not any("emd" in values for values in result["metrics"].values())


def test_the_subset_has_its_metrics_in_every_row_and_one_object_has_no_control(hammer_case, baselines):
    result = suites.evaluate_case(lambda _: [answer(hammer_case.truth)], baselines, hammer_case, None, subset=True)
    assert set(result["metrics"]) == {*MODES, "mean_shape", "inflated_silhouette"}
    for mode, values in result["metrics"].items():
        assert (values["emd"] == pytest.approx(0)) == (mode in MODES)
        assert 0 <= values["icp_rot"] <= 180


def test_a_model_without_an_answer_is_counted(hammer_case, baselines):
    def model(observation):
        if observation.image is None:
            raise InputError("the network finds nothing solid", reason="nothing_solid")
        return [answer(hammer_case.truth)]

    result = suites.evaluate_case(model, baselines, hammer_case, hammer_case)
    assert result["failures"] == {"events": "nothing_solid"}
    assert "events" not in result["metrics"]


def write_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = Network(ModelConfig())
    with torch.no_grad():
        network.get_parameter("geometry.columns.bias").fill_(1.0)  # an untrained network is sure that nothing is solid
    save_checkpoint(path, network, {"tag": "untrained", "version": "0", "licence": "Apache-2.0"})
    return path


@pytest.fixture
def cache(hammer_case, sphere, K, tmp_path) -> Path:
    """The rendered cases of two objects and one seed."""
    folder = tmp_path / "cache"
    for task in suites.synthetic_suite(2, 1).tasks:
        (hammer_case if task.key.object == 0 else case_of(sphere, K)).save(task.key.path(folder))
    return folder


def evaluate(out: Path, *arguments) -> int:
    return main(["evaluate", "--json", str(out), "--seeds", "1", "--workers", "1", *map(str, arguments)])


def test_suite_runs_in_processes_resumes_and_depends_on_the_weights(cache, tmp_path, capsys):
    first, other = (write_weights(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    out, cases_file = tmp_path / "new" / "results.json", tmp_path / "new" / "results.cases.jsonl"
    arguments = ["--suite", "synthetic", "--objects", 2, "--tiers", "hard", "--cache", cache]
    assert evaluate(out, *arguments, "--weights", first) == 0
    printed = capsys.readouterr().out
    assert "| fused |" in printed and "| inflated_silhouette |" in printed
    summary = json.loads(out.read_text())
    assert list(summary["tiers"]) == ["hard"]
    assert summary["tiers"]["hard"]["mean_shape"]["iou"]["n"] == 2
    assert set(summary["recovered"]["hard"]) >= {"iou", "iou_camera", "mask_iou", "chamfer", "emd", "icp_rot"}

    lines = cases_file.read_text().splitlines()
    cases_file.write_text("\n".join([*lines[:-1], lines[-1][:40]]))  # as if interrupted while the last was written
    assert evaluate(out, *arguments, "--weights", first) == 0
    assert json.loads(out.read_text()) == summary
    assert len(cases_file.read_text().splitlines()) == len(lines)
    capsys.readouterr()

    assert evaluate(out, *arguments, "--weights", other) == 2
    assert "other weights" in capsys.readouterr().err
    assert evaluate(tmp_path / "other.json", *arguments, "--weights", other) == 0
    changed = json.loads((tmp_path / "other.json").read_text())
    assert changed["model"] != summary["model"]
    assert changed["tiers"]["hard"]["fused"] != summary["tiers"]["hard"]["fused"]
    assert changed["tiers"]["hard"]["mean_shape"] == summary["tiers"]["hard"]["mean_shape"]


BOX_TRIANGLES = [[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5]] + [
    [2, 3, 7],
    [2, 7, 6],
    [0, 2, 6],
    [0, 6, 4],
    [1, 5, 7],
    [1, 7, 3],
]


def write_box(path: Path, half, triangles=BOX_TRIANGLES) -> None:
    corners = (np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2 - 1) * np.array(half)
    lines = [f"v {x} {y} {z}" for x, y, z in corners] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in triangles]
    path.write_text("\n".join(lines) + "\n")


def test_meshes_of_a_folder_are_judged_and_open_ones_are_listed(tmp_path, capsys):
    folder, cache = tmp_path / "meshes", tmp_path / "cache"
    folder.mkdir()
    write_box(folder / "cube.obj", [1, 1, 1])
    write_box(folder / "brick.obj", [30, 15, 10])
    write_box(folder / "open.obj", [1, 1, 1], BOX_TRIANGLES[:-2])
    (folder / "notes.txt").write_text("no mesh\n")
    weights, out = write_weights(tmp_path / "w.safetensors", 0), tmp_path / "meshes.json"
    arguments = ["--suite", "meshes", "--meshes", folder, "--cache", cache, "--weights", weights, "--tiers", "easy"]
    assert evaluate(out, *arguments) == 0
    assert "Left out: open.obj (not_watertight)." in capsys.readouterr().out
    summary = json.loads(out.read_text())
    assert summary["left_out"] == {"open.obj": "not_watertight"}
    assert summary["objects"] == summary["tiers"]["easy"]["inflated_silhouette"]["iou"]["n"] == 2
    records = [json.loads(line) for line in out.with_suffix(".cases.jsonl").read_text().splitlines()]
    assert {record["object"] for record in records} == {"cube.obj", "brick.obj"}
    truth = EvaluationCase.load(next((cache / "meshes").glob("brick.obj*/easy/seed0.npz"))).truth
    diagonal = np.linalg.norm([30, 15, 10])
    assert truth.volume / truth.diameter**3 == pytest.approx(30 * 15 * 10 / diagonal**3, rel=0.1)
    assert truth.size[2] / truth.diameter == pytest.approx(15 / diagonal, rel=0.1)  # an OBJ's y axis points up

    write_box(folder / "brick.obj", [30, 3, 10])  # edited: judged anew, the other one is not
    assert evaluate(out, *arguments) == 0
    again = [json.loads(line) for line in out.with_suffix(".cases.jsonl").read_text().splitlines()]
    assert again[: len(records)] == records and {r["object"] for r in again[len(records) :]} == {"brick.obj"}
    assert json.loads(out.read_text())["tiers"]["easy"]["sharp"] != summary["tiers"]["easy"]["sharp"]


def test_what_makes_results_differ_is_in_the_name_of_a_task(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_box(tmp_path / folder / "box.obj", [1, 1, 2 + len(folder) + (folder == "two")])
    keys = [
        CaseKey("hard", 0, cases.MeshObject(tmp_path / folder / "box.obj", up))
        for folder, up in (("one", None), ("one", "z"), ("two", None))
    ]
    keys.append(CaseKey("hard", 0, 7))
    assert keys[3].identity == "hard/seed0/0000007.npz"
    monkeypatch.setattr(cases, "WORLD_VERSION", 2)
    keys.append(CaseKey("hard", 0, 7))
    before = {key.identity for key in keys[:3]}
    assert len(before) == 3 and keys[4].identity == "world2/hard/seed0/0000007.npz"
    tasks = [suites.Task(keys[3], other, subset) for other in (None, keys[0]) for subset in (True, False)]
    assert len({suites._identity(task) for task in tasks}) == 4


def test_results_of_another_version_are_not_mixed_in(cache, tmp_path, capsys, monkeypatch):
    weights = write_weights(tmp_path / "w.safetensors", 0)
    arguments = ["--suite", "synthetic", "--objects", 2, "--tiers", "hard", "--cache", cache, "--weights", weights]
    assert evaluate(tmp_path / "out.json", *arguments) == 0
    monkeypatch.setattr(suites, "RESULTS_VERSION", suites.RESULTS_VERSION + 1)
    assert evaluate(tmp_path / "out.json", *arguments) == 2
    assert "another version" in capsys.readouterr().err


def test_shipped_baselines_are_of_training_objects():
    shipped = Baselines.load(share_folder() / BASELINES_FILE)
    assert shipped.mean_occupancy.shape == (64, 64, 64) and 0.01 < shipped.mean_occupancy.mean() < 0.5
    assert shipped.up[1] < -0.5 and np.linalg.norm(shipped.up) == pytest.approx(1)  # an upright object, from above
    assert not set(BASELINE_OBJECT_SEEDS) & set(HELD_OUT_OBJECT_SEEDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "meshes"], "add --meshes DIR"),
        (["--suite", "meshes", "--meshes", "nowhere"], "nowhere: no such folder"),
        (["--suite", "meshes", "--meshes", "."], "no mesh in it"),
        (["--suite", "meshes", "--meshes", ".", "--objects", "9"], "--objects goes with --suite synthetic"),
        (["--suite", "synthetic", "--meshes", "."], "--suite meshes alone"),
        (["--suite", "synthetic", "--weights", "nano", "other"], "one model"),
        ([], "--suite synthetic or meshes"),
        (["--suite", "synthetic", "--objects", "0"], "2 to 200"),
        (["--suite", "synthetic", "--workers", "0"], "at least 1"),
        (["--suite", "synthetic", "--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_bad_options_are_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--json", "out.json", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_file_of_something_else_is_not_written_on(cache, tmp_path, capsys):
    (tmp_path / "out.cases.jsonl").write_text("my notes\n")
    weights = write_weights(tmp_path / "w.safetensors", 0)
    arguments = ["--suite", "synthetic", "--objects", 2, "--cache", cache, "--weights", weights]
    assert evaluate(tmp_path / "out.json", *arguments) == 2
    assert "something else" in capsys.readouterr().err
    assert (tmp_path / "out.cases.jsonl").read_text() == "my notes\n"
