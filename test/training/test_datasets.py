"""Folders of rendered samples: what they were made for, what is done, and what may be wrong with them."""

import json
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.synthetic.options import WorldOptions
from training import datasets, sources
from training.augmentations import AugmentationConfig
from training.datasets import MOTIONS, DataConfig, find_case, render
from training.loaders.settings import DatasetConfig
from training.settings import StageConfig, load_config

CONFIG = ModelConfig()
DATA = DataConfig(cases=4, sensor=96)
STAGE = StageConfig(cases=4, batch_size=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    render(folder, DATA, CONFIG, workers=1)
    return folder


@pytest.fixture
def folder(rendered, tmp_path):
    return Path(shutil.copytree(rendered, tmp_path / "samples"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("first_seed: 0", "first_seed is 0: give 1000000 or more"),
        ("first_seed: -1000001", "first_seed is -1000001"),
        ("cases: 0", "cases is 0"),
        ("workers: 0", "workers 0"),
        ("sensor: 8", "sensor is 8"),
        ("sensor: 100000", "sensor is 100000"),
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_read(settings, said, tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(f"data: {{{settings}}}\n")
    with pytest.raises(ConfigurationError, match=said):
        load_config(file)


def _open(folder, data=DATA, config=CONFIG, stage=STAGE):
    with sources.open_batches(folder, data, config, stage) as batches:
        return batches(0)


@pytest.mark.parametrize(
    ("data", "config", "setting"),
    [
        ({}, {"preprocess": replace(CONFIG.preprocess, crop_factor=2.0)}, "crop_factor 1.4 instead of 2.0"),
        ({}, {"direct": replace(CONFIG.direct, depth_range=2.0)}, "depth_range 1.25 instead of 2.0"),
        ({}, {"direct": replace(CONFIG.direct, resolution=64)}, "resolution 32 instead of 64"),
        ({"first_seed": 2_000_000}, {}, "first_seed"),
        ({"sensor": 128}, {}, "sensor 96 instead of 128"),
        ({"world": WorldOptions(occluded=0.5)}, {}, "world"),
    ],
)
def test_samples_for_other_settings_are_neither_read_nor_added_to(data, config, setting, rendered):
    data, config = replace(DATA, **data), replace(CONFIG, **config)
    for call in (lambda: _open(rendered, data, config), lambda: render(rendered, data, config, workers=1)):
        with pytest.raises(InputError, match=f"other settings .*{setting}") as error:
            call()
        assert error.value.reason == "other_data"


def test_folders_from_before_grids_were_recorded_are_those_of_the_nano_model(folder):
    file = folder / "progress.json"
    progress = json.loads(file.read_text())
    for name in ("crop_factor", "depth_range", "resolution", "world"):
        del progress[name]
    file.write_text(json.dumps(progress))
    assert len(_open(folder)["degraded_events"]) == 2
    with pytest.raises(InputError, match="crop_factor"):
        _open(folder, config=replace(CONFIG, preprocess=replace(CONFIG.preprocess, crop_factor=2.0)))
    with pytest.raises(InputError, match="occluded"):
        _open(folder, replace(DATA, world=WorldOptions(occluded=0.5)))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (shutil.rmtree, "no_data"),
        (lambda folder: (folder / "progress.json").unlink(), "no_data"),
        (lambda folder: _cut(folder / "progress.json"), "damaged_data"),
        (lambda folder: (folder / "progress.json").write_text("[]"), "damaged_data"),
        (lambda folder: (folder / "progress.json").write_text('{"size": 64}'), "damaged_data"),
        (lambda folder: (folder / "true_up.npy").unlink(), "damaged_data"),
        (lambda folder: _cut(folder / "degraded_events.npy"), "damaged_data"),
        (lambda folder: np.save(folder / "true_up.npy", np.zeros((4, 2), np.float32)), "damaged_data"),
        (lambda folder: (folder / "true_up.npy").write_bytes(b""), "damaged_data"),
    ],
)
def test_what_is_missing_or_damaged_is_one_error(harm, reason, folder):
    harm(folder)
    with pytest.raises(InputError, match="render") as error:
        _open(folder)
    assert error.value.reason == reason


def test_what_is_damaged_is_not_rendered_over(folder):
    (folder / "true_up.npy").unlink()
    with pytest.raises(InputError, match="true_up"):
        render(folder, DATA, CONFIG, workers=1)
    (folder / "progress.json").unlink()
    with pytest.raises(InputError, match="nobody knows what of"):
        render(folder, DATA, CONFIG, workers=1)
    assert (folder / "degraded_events.npy").exists()


def test_rendering_goes_on_where_it_was_stopped(folder, capsys):
    before = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(progress | {"done": []}))
    (folder / "true_up.npy").write_bytes(b"stopped while the files were made")
    capsys.readouterr()
    render(folder, DATA, CONFIG, workers=1)
    assert {file.name: file.read_bytes() for file in folder.glob("*.npy")} == before
    assert json.loads((folder / "progress.json").read_text()) == progress
    render(folder, DATA, CONFIG, workers=1)
    bar = capsys.readouterr().err.splitlines()[-1]
    assert "4/4" in bar  # the bar of a finished folder is full, not fuller
    assert not list(folder.glob("*.partial"))
    with pytest.raises(ConfigurationError, match="0 workers"):
        render(folder, DATA, CONFIG, workers=0)


def test_a_second_attempt_takes_seeds_that_no_other_case_has(monkeypatch):
    taken, real = [], datasets.make_case

    def made(seed, motion_seed, *arguments, **options):
        taken.append((seed, motion_seed))
        return real(seed, motion_seed, *arguments, **options)

    monkeypatch.setattr(datasets, "make_case", made)
    find_case(6, DATA)
    assert taken == [(1_000_003, 6)]
    crops = iter([False, True, True])
    monkeypatch.setattr(datasets, "object_crops", lambda *_: next(crops))
    find_case(6, DATA)
    assert taken[1:] == [(1_000_003, 6), (1_000_003, 6 + 2**60)]
    monkeypatch.setattr(datasets, "object_crops", lambda *_: [])
    with pytest.raises(InputError, match=r"case 6 \(object seed 1000003, tier medium\)"):
        find_case(6, DATA)
    assert len({motion for _, motion in taken[3:]}) == len(taken[3:]) == datasets.ATTEMPTS


def test_a_stream_heeds_the_curriculum(monkeypatch):
    class Noted:
        """Notes what it is asked to render and gives the same for all."""

        asked: list[tuple[int, str]] = []

        def submit(self, function, index, data, config, motions):
            self.asked.append((index, motions[index % len(motions)]))
            future = Future()
            future.set_result({"true_up": np.zeros(3, np.float32)})
            return future

    monkeypatch.setattr(sources, "augment", lambda batch, *_: batch)
    pool = Noted()
    stream = sources.Stream(DATA, CONFIG, 10, 0, pool, curriculum=8)
    for step in range(9):
        stream(step)
    seen = {step: {tier for index, tier in pool.asked if index // 10 == step} for step in (0, 4, 8)}
    assert seen == {0: {"still", "easy"}, 4: {"still", "easy", "medium"}, 8: set(MOTIONS)}
    assert len({index for index, _ in pool.asked}) == len(pool.asked)


@pytest.mark.parametrize("name", ["crop", "event_dropout", "time_reversal"])
def test_variations_that_rendered_samples_can_not_have_are_refused(name, rendered):
    stage = replace(STAGE, augmentation=AugmentationConfig(**{name: 0.5}))
    for entries in ((), (DatasetConfig("rendered"),)):
        with pytest.raises(ConfigurationError, match=f"{name} is for recorded datasets alone"):
            _open(rendered, stage=replace(stage, datasets=entries))


def test_moved_crops_are_the_direct_heads_alone(flow_config, flow_folder):
    recorded = (DatasetConfig("mvsec", root="x"),)
    stage = replace(STAGE, augmentation=AugmentationConfig(crop=0.5), datasets=recorded)
    with pytest.raises(ConfigurationError, match="direct head alone"):
        _open(flow_folder, flow_config[0].data, flow_config[1], stage)
