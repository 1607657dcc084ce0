"""Training on other worlds than the default one."""

from pathlib import Path

import numpy as np
import pytest

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict
from training.datasets import DataConfig, render, render_case

MODEL = ModelConfig.from_yaml(Path(__file__).parents[2] / "config" / "models" / "nano.yaml")
WORLD = {"motion": "mixed", "occluded": 1.0, "cutoff_hz": 200}


def test_samples_are_of_the_world_in_the_settings():
    other = from_dict(DataConfig, {"sensor": 96, "world": WORLD}, "data")
    plain, changed = (render_case(3, data, MODEL) for data in (DataConfig(sensor=96), other))
    assert plain.keys() == changed.keys()
    assert not np.array_equal(plain["degraded_events"], changed["degraded_events"])


def test_a_folder_keeps_to_one_world(tmp_path):
    render(tmp_path, DataConfig(cases=1, sensor=96), MODEL, workers=1)
    with pytest.raises(InputError) as error:
        render(tmp_path, from_dict(DataConfig, {"cases": 1, "sensor": 96, "world": WORLD}, ""), MODEL, workers=1)
    assert error.value.reason == "other_data"


def test_an_unknown_setting_of_the_world_is_named():
    with pytest.raises(ConfigurationError, match="occlusion"):
        from_dict(DataConfig, {"world": {"occlusion": 1.0}}, "data")
