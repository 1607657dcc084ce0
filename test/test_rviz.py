"""The RViz configurations have the form in which RViz 2 writes its files, and name topics that the nodes have."""

import ast
from pathlib import Path

import pytest
import yaml

from event_sam3d_ros.nodes.parameters import NODES
from event_sam3d_ros.recordings.samples import Topics

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "config").glob("*.rviz"))
TYPES = {
    "rviz_default_plugins/Image": "sensor_msgs/Image",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/MarkerArray",
    "rviz_default_plugins/PointCloud2": "sensor_msgs/PointCloud2",
}
WITHOUT_TOPIC = {"rviz_default_plugins/Grid", "rviz_default_plugins/TF"}
QOS = {
    "Depth": {5},
    "Durability Policy": {"Volatile", "Transient Local", "System Default"},
    "History Policy": {"Keep Last", "Keep All", "System Default"},
    "Reliability Policy": {"Reliable", "Best Effort", "System Default"},
}


def read(file):
    return yaml.safe_load(file.read_text())


def displays(file):
    return read(file)["Visualization Manager"]["Displays"]


def outputs():
    """Topics of our nodes by absolute name, with their types."""
    return {
        topic.name.replace("~", f"/{node}"): topic.type
        for node, (topics, _) in NODES.items()
        for topic in topics
        if topic.direction == "out"
    }


def test_there_is_one_for_live_and_one_for_replay():
    assert [file.name for file in FILES] == ["live.rviz", "replay.rviz"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_form_is_that_of_rviz(file):
    content = read(file)
    assert set(content) == {"Panels", "Visualization Manager", "Window Geometry"}
    assert all(panel["Class"].startswith("rviz_common/") for panel in content["Panels"])
    manager = content["Visualization Manager"]
    keys = {"Class", "Displays", "Enabled", "Global Options", "Name", "Tools", "Transformation", "Value", "Views"}
    assert set(manager) == keys
    assert manager["Global Options"]["Fixed Frame"] == "camera_optical_frame"
    assert all(tool["Class"].startswith("rviz_default_plugins/") for tool in manager["Tools"])
    found = displays(file)
    assert len({display["Name"] for display in found}) == len(found)
    time = next(panel for panel in content["Panels"] if panel["Class"] == "rviz_common/Time")
    assert time["SyncSource"] in {display["Name"] for display in found}
    for display in found:
        assert display["Class"] in WITHOUT_TOPIC | set(TYPES)
        assert type(display["Enabled"]) is bool and display["Value"] is display["Enabled"]
        assert ("Topic" in display) == (display["Class"] not in WITHOUT_TOPIC)
        if "Topic" in display:
            assert set(display["Topic"]) - {"Filter size"} == {*QOS, "Value"}
            assert all(display["Topic"][name] in allowed for name, allowed in QOS.items())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_topics_are_those_of_the_nodes_and_the_recording(file):
    recorded = {Topics.image: "sensor_msgs/Image", Topics.mask: "sensor_msgs/Image"}
    known = outputs() | (recorded if file.name == "replay.rviz" else {})
    shown = {display["Topic"]["Value"]: TYPES[display["Class"]] for display in displays(file) if "Topic" in display}
    assert shown.items() <= known.items()
    ours = {f"/reconstruction_node/{name}" for name in ("debug_image", "points", "markers")}
    assert shown.keys() >= ours | {"/event_image_node/event_image"}
    launch = ast.parse((ROOT / "launch" / "reconstruct.launch.py").read_text()).body
    moved = next(n.value for n in launch if isinstance(n, ast.Assign) and n.targets[0].id == "RVIZ_TOPICS")
    assert set(eval(ast.unparse(moved))) == shown.keys() - recorded.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_clouds_are_coloured_by_object(file):
    (cloud,) = (display for display in displays(file) if display["Class"] == "rviz_default_plugins/PointCloud2")
    assert (cloud["Color Transformer"], cloud["Channel Name"], cloud["Use rainbow"]) == ("Intensity", "object_id", True)
    assert not cloud["Autocompute Intensity Bounds"]  # else colours change whenever an object comes or goes
