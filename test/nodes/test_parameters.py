"""The parameter table: what is refused and how, and that documents and YAML files agree with it."""

from pathlib import Path

import pytest
import yaml

from event_sam3d_ros.errors import ConfigurationError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.nodes.parameters import EVENT_IMAGE_NODE, NODES, RECONSTRUCTION_NODE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("table", [EVENT_IMAGE_NODE, RECONSTRUCTION_NODE])
def test_every_default_is_allowed_and_described(table):
    for parameter in table.by_name.values():
        assert parameter.check(parameter.default) == parameter.default
        assert parameter.description.endswith(".")


def test_whole_numbers_are_taken_for_doubles_but_not_the_other_way_round():
    value = EVENT_IMAGE_NODE.check({"window_ms": 40})["window_ms"]
    assert value == 40.0 and type(value) is float
    with pytest.raises(ConfigurationError, match="qos_depth can't be 2.5: it takes a value of type int from 1 to 1000"):
        EVENT_IMAGE_NODE.check({"qos_depth": 2.5})


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"window_ms": 0.5}, "from 1 to 1000"),
        ({"window_ms": float("nan")}, "from 1 to 1000"),
        ({"window_mode": "sometimes"}, "one of frame, continuous"),
        ({"autostart": 1}, "type bool"),
        ({"qos_depth": True}, "type int"),
        ({"buffer_max_events": 3}, "at least 1000"),
    ],
)
def test_values_that_are_not_allowed_are_refused_in_words(values, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as error:
        EVENT_IMAGE_NODE.check(values)
    assert error.value.reason == "bad_parameter"


def test_whole_bounds_are_printed_as_they_are():
    assert RECONSTRUCTION_NODE.get("seed").allowed() == "a value of type int from 0 to 2147483647"


def test_each_limit_of_the_buffer_can_apply():
    values = {name: parameter.default for name, parameter in EVENT_IMAGE_NODE.by_name.items()}
    by_memory = EventBuffer(10**6, 10**12, int(values["buffer_max_mb"] * 1e6)).capacity
    assert 0.5 * by_memory < values["buffer_max_events"] < by_memory
    bytes_each = values["buffer_max_mb"] * 1e6 / by_memory
    assert f"({bytes_each:.0f} bytes each)" in EVENT_IMAGE_NODE.get("buffer_max_mb").description


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigurationError, match="no parameter windw_ms: did you mean window_ms") as error:
        EVENT_IMAGE_NODE.check({"windw_ms": 50.0})
    assert error.value.reason == "unknown_parameter"


def test_yaml_files_name_known_parameters_with_allowed_values_for_any_namespace():
    files = sorted((ROOT / "config").glob("*_node.yaml"))
    assert [file.stem for file in files] == ["event_image_node", "reconstruction_node"]
    for file in files:
        table = NODES[file.stem][1]
        content = yaml.safe_load(file.read_text())
        assert list(content) == ["/**"]
        values = content["/**"]["ros__parameters"]
        assert table.check(values) == {name: parameter.default for name, parameter in table.by_name.items()}
