import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.evaluation import cases, suites
from event_sam3d_ros.evaluation.baselines import Baselines
from event_sam3d_ros.evaluation.cases import MODES, TIERS, CaseKey, EvaluationCase, cached_case
from event_sam3d_ros.evaluation.metrics import silhouette
from event_sam3d_ros.sam3d.checkpoint import save_checkpoint
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.sam3d.network import Network


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
    wanted = suites.tasks(5, 2)
    assert len({task.key for task in wanted}) == len(wanted) == 5 * 2 * len(TIERS)
    for task in wanted:
        assert task.other.object_seed != task.key.object_seed
        assert (task.other.tier, task.other.seed) == (task.key.tier, task.key.seed)
    assert {task.other for task in wanted} == {task.key for task in wanted}


@pytest.mark.parametrize(("objects", "seeds"), [(1, 3), (201, 3), (200, 0)])
def test_sizes_that_make_no_suite_are_refused(objects, seeds):
    with pytest.raises(ConfigurationError):
        suites.tasks(objects, seeds)


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


def test_a_model_without_an_answer_is_counted(hammer_case, baselines):
    def model(observation):
        if observation.image is None:
            raise InputError("the network finds nothing solid", reason="nothing_solid")
        return [answer(hammer_case.truth)]

    result = suites.evaluate_case(model, baselines, hammer_case, hammer_case)
    assert result["failures"] == {"events": "nothing_solid"}
    assert "events" not in result["metrics"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    network = Network(ModelConfig())
    with torch.no_grad():
        network.get_parameter("geometry.columns.bias").fill_(1.0)  # an untrained network is sure that nothing is solid
    save_checkpoint(path, network, {"tag": "untrained", "version": "0", "licence": "Apache-2.0"})
    return str(path)


def test_suite_runs_in_processes_and_resumes(hammer_case, sphere, K, baselines, weights, tmp_path, capsys):
    cache, out = tmp_path / "cache", tmp_path / "results.json"
    wanted = suites.tasks(2, 1)
    for task in wanted:
        case = hammer_case if task.key.object_seed == 0 else case_of(sphere, K)
        case.save(task.key.path(cache))
    baselines.save(cache / "baselines.npz")
    arguments = ["--weights", weights, "--cache", str(cache), "--out", str(out), "--objects", "2", "--seeds", "1"]
    assert suites.main([*arguments, "--workers", "1"]) == 0
    assert "| fused |" in capsys.readouterr().out
    summary = json.loads(out.read_text())
    assert list(summary["tiers"]) == list(TIERS)
    assert summary["tiers"]["hard"]["mean_shape"]["iou"]["n"] == 2

    lines = out.with_suffix(".cases.jsonl").read_text().splitlines()
    out.with_suffix(".cases.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as if interrupted before the last
    assert suites.main([*arguments, "--workers", "1"]) == 0
    assert json.loads(out.read_text()) == summary

    changed = json.dumps(json.loads(lines[0]) | {"sha256": "of another model"})
    out.with_suffix(".cases.jsonl").write_text(changed + "\n")
    assert suites.main([*arguments, "--workers", "1"]) == 1
    assert "other weights" in capsys.readouterr().err
