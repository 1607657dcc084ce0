"""Nodes inside of the test's process, in a domain of their own."""

import os

import pytest

from event_sam3d_ros.demo.processes import free_domain_id

os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())


@pytest.fixture
def ros():
    """rclpy between init and shutdown."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
    rclpy.init()
    yield rclpy
    rclpy.shutdown()
