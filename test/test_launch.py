"""Launch files, where ROS 2's launch system is installed: they load, and every argument is described."""

import ast
import runpy
from pathlib import Path

import pytest

from event_sam3d_ros.nodes.parameters import DV_CAMERA_NODE, EVENT_IMAGE_NODE, SIMULATOR_NODE

FOLDER = Path(__file__).parents[1] / "launch"
FILES = sorted(FOLDER.glob("*.launch.py"))


def test_launch_files_are_there():
    assert {file.name.split(".")[0] for file in FILES} == {
        *("reconstruct", "davis", "prophesee", "dv_camera", "replay", "simulate")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_argument_is_described(file):
    pytest.importorskip("launch_ros", reason="needs ROS 2's launch system, which the wheels lack")
    from launch import LaunchContext

    description = runpy.run_path(str(file))["generate_launch_description"]()
    arguments = description.get_launch_arguments()
    names = {argument.name for argument in arguments}
    assert {"model", "device", "input_mode", "use_sim_time", "events_topic", "mask_topic"} <= names
    described = {argument.name for argument in arguments if argument.description != "no description given"}
    assert described >= names
    for argument in arguments:
        argument.default_value[0].perform(LaunchContext())


def constants(name):
    """What is assigned at the top of a launch file, without loading launch."""
    nodes = ast.parse((FOLDER / f"{name}.launch.py").read_text()).body
    assigned = [node for node in nodes if isinstance(node, ast.Assign)]
    return {node.targets[0].id: eval(ast.unparse(node.value)) for node in assigned}


def test_the_camera_has_all_parameters_of_its_node_with_their_defaults():
    source = constants("dv_camera")["SOURCE"]
    table = {name: parameter for name, parameter in DV_CAMERA_NODE.by_name.items() if name != "autostart"}
    assert list(source) == list(table)
    for name, (default, kind, _) in source.items():
        expected = table[name].default
        assert kind is type(expected)
        assert default == (str(expected).lower() if kind is bool else str(expected))


def test_the_scene_has_parameters_of_its_node_with_their_defaults():
    for name, (default, kind, _) in constants("simulate")["SCENE"].items():
        expected = SIMULATOR_NODE.get(name).default
        assert kind is type(expected)
        assert default == (str(expected).lower() if kind is bool else str(expected))


def test_choices_are_those_of_the_nodes():
    found = constants("reconstruct")
    for name in ("event_type", "window_mode"):
        assert tuple(found[f"{name.upper()}S"]) == EVENT_IMAGE_NODE.get(name).choices


def test_paths_stay_text_and_the_player_waits_for_the_model():
    reconstruct, replay = (FOLDER / f"{name}.launch.py" for name in ("reconstruct", "replay"))
    assert '"model": ParameterValue(value("model"), value_type=str)' in reconstruct.read_text()
    assert '"bag": ParameterValue(LaunchConfiguration("bag"), value_type=str)' in replay.read_text()
    assert '"wait_for_subscribers_s": 60.0' in replay.read_text()


@pytest.mark.parametrize("installed", [True, False])
def test_rviz_starts_where_it_is_installed_and_else_a_sentence_says_so(tmp_path, monkeypatch, installed):
    pytest.importorskip("launch_ros", reason="needs ROS 2's launch system, which the wheels lack")
    from launch import LaunchContext

    index = tmp_path / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    if installed:
        (index / "rviz2").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    context = LaunchContext()
    context.launch_configurations.update(rviz_frame="optical")
    (action,) = runpy.run_path(str(FOLDER / "reconstruct.launch.py"))["start_rviz"](context)
    assert type(action).__name__ == ("Node" if installed else "LogInfo")
    if not installed:
        assert "there is no package rviz2" in action.msg[0].perform(context)


def test_the_pipeline_is_there_with_and_without_rviz():
    pytest.importorskip("launch_ros", reason="needs ROS 2's launch system, which the wheels lack")
    from launch import LaunchContext

    description = runpy.run_path(str(FOLDER / "reconstruct.launch.py"))["generate_launch_description"]()
    last = description.entities[-1]
    for asked in ("true", "false"):
        context = LaunchContext()
        context.launch_configurations.update(rviz=asked)
        assert last.condition.evaluate(context) == (asked == "true")
    assert [type(entity).__name__ for entity in description.entities[-3:]] == ["Node", "Node", "OpaqueFunction"]
