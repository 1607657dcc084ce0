"""Messages made without ROS are those that the nodes publish."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.recordings.bag_outputs import DEFINITIONS, MESSAGES, OBJECT_TYPE, TYPES, header, output_typestore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def found() -> list[Reconstruction]:
    rng = np.random.default_rng(0)
    return [
        Reconstruction(
            id=id_,
            score=0.25 * id_,
            metric=id_ == 1,
            occupancy=np.ones((64,) * 3, bool),
            points=rng.random((20 * id_, 3)).astype(np.float32),
            colors=rng.integers(0, 256, (20 * id_, 3)).astype(np.uint8),
            position=rng.random(3),
            quaternion=np.array([0.5, -0.5, 0.5, 0.5]),
            size=rng.random(3),
        )
        for id_ in (1, 2)
    ]


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_definitions_are_those_of_the_package(kind: str) -> None:
    text = (ROOT / "msg" / f"{kind.rpartition('/')[2]}.msg").read_text()
    lines = [re.sub(r"\s*#.*", "", line) for line in text.splitlines()]
    assert DEFINITIONS[kind].split("\n")[:-1] == [line for line in lines if line]


def test_every_message_is_the_one_that_the_nodes_publish(found: list[Reconstruction]) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
    from builtin_interfaces.msg import Time
    from rclpy.serialization import deserialize_message, serialize_message
    from std_msgs.msg import Header

    from event_sam3d_ros.nodes import conversions, outputs

    ros = Header(stamp=Time(sec=3, nanosec=5), frame_id="camera")
    bag = header(3_000_000_005, "camera")
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    pairs: dict[str, tuple[Any, Any]] = {
        OBJECT_TYPE: (outputs.object_message(found[0], ros, "7"), MESSAGES.object_message(found[0], bag, "7")),
        "sensor_msgs/msg/PointCloud2": (outputs.merged_points(found, ros), MESSAGES.merged_points(found, bag)),
        "tf2_msgs/msg/TFMessage": (outputs.transforms(found, ros), MESSAGES.transforms(found, bag)),
        "visualization_msgs/msg/MarkerArray": (outputs.markers(found, ros), MESSAGES.markers(found, bag)),
        "sensor_msgs/msg/Image": (
            conversions.image_message(picture, "rgb8", ros),
            MESSAGES.image_message(picture, "rgb8", bag),
        ),
    }
    for kind, (live, offline) in pairs.items():
        # Padding between fields is whatever lay there, so what is compared is what a subscriber would get.
        written = bytes(output_typestore().serialize_cdr(offline, kind))
        received = deserialize_message(serialize_message(live), type(live))
        assert deserialize_message(written, type(live)) == received, kind


def test_unknown_message_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = TYPES.Nothing
