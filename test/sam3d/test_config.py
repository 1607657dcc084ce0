"""Configurations: the YAML is the default, and mistakes in it are named."""

from pathlib import Path

import pytest
import yaml

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.sam3d.config import ModelConfig, from_dict, to_dict

NANO = Path(__file__).parents[2] / "config" / "models" / "nano.yaml"


def test_the_shipped_file_is_the_default():
    assert ModelConfig.from_yaml(NANO) == ModelConfig()


def test_a_configuration_survives_the_round_trip():
    assert from_dict(ModelConfig, to_dict(ModelConfig()), "here") == ModelConfig()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"encoder": {"depth": "four"}}, "depth"),
        ({"encoder": {"stem": [32, 6.5]}}, "stem"),
        ({"encoder": {"image_size": 65}}, "image_size"),
        ({"encoder": {"heads": 5}}, "heads"),
        ({"encoder": 3}, "encoder"),
        ({"head": "guess"}, "head"),
        ({"fusion": {"blocks": [9]}}, "fusion"),
        ({"preprocess": {"crop_factor": 0.5}}, "crop_factor"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(tmp_path, change, named):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(NANO.read_text()), **change}))
    with pytest.raises(ConfigurationError, match=named) as error:
        ModelConfig.from_yaml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=str(path)):
        ModelConfig.from_yaml(path)
