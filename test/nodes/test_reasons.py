"""Every reason that a node can meet is among those that its diagnostics show from the start."""

import re
from pathlib import Path

import pytest

import event_sam3d_ros
from event_sam3d_ros.nodes.parameters import NODES

PACKAGE = Path(event_sam3d_ros.__file__).parent
SHARED = ["nodes/inputs.py", "nodes/health.py", "nodes/pipeline_node.py", "nodes/parameters.py"]
# What each node runs; the reasons of their other users (encoders, recordings) are left out by name.
FILES = {
    "event_image_node": [
        *("nodes/event_image_node.py", "nodes/message_classes.py", "events/windows.py", "events/stream.py"),
        *("events/buffer.py", "events/clock.py", "events/message_cdr.py", "events/filters.py"),
        *(str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.glob("events/codec*.py"))),
        *(str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.glob("camera/*.py"))),
    ],
    "reconstruction_node": [
        *("nodes/reconstruction_node.py", "pairing.py", "nodes/conversions.py", "observations.py"),
        *("pixels.py", "camera/model.py", "preprocess.py", "reconstructor.py", "sam3d/checkpoint.py"),
        *("direct_pipeline.py", "flow_pipeline.py", "sam3d/preprocessing.py", "sam3d/condition.py"),
        "sam3d/geometry_flow.py",
    ],
    "dv_camera_node": ["nodes/dv_camera_node.py", "nodes/dv_reader.py", "camera/calibration.py"],
}
OF_ENCODERS = {"out_of_range_events", "unsorted_events", "bad_events", "bad_triggers"}
# Wrong calls, and writing: no input of a node can cause them.
OF_CALLERS = {"missing_input", "batch_mismatch", "wrong_condition", "wrong_seeds", "checkpoint_not_written"}
BY_SOURCE = {"late_": ["image", "mask", "event_image", "event_window"], "missing_": ["image", "mask", "event_image"]}


@pytest.mark.parametrize("node", FILES)
def test_every_reason_in_the_code_is_shown_from_the_start(node):
    files = [PACKAGE / name for name in SHARED + FILES[node]]
    code = "\n".join(file.read_text() for file in files)
    used = set(re.findall(r'reason="([a-z0-9_]+)"', code))
    used |= set(re.findall(r'(?:report|count)\(\s*"([a-z0-9_]+)"', code))
    used |= set(re.findall(r'warnings\[\s*"([a-z0-9_]+)"', code))
    if node == "reconstruction_node":
        used |= {prefix + source for prefix, sources in BY_SOURCE.items() for source in sources} | {"missing_depth"}
    shown = (PACKAGE / "nodes" / f"{node}.py").read_text().split("_REASONS = (")[1].split("\n)\n")[0]
    assert len(used) > 10 and node in NODES
    assert used - OF_ENCODERS - OF_CALLERS - set(re.findall(r'"([a-z0-9_]+)"', shown)) == set()
