"""Nodes inside of the test's process, in a domain of their own."""

import os

import pytest

os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)


@pytest.fixture
def ros():
    """rclpy between init and shutdown."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
    rclpy.init()
    yield rclpy
    rclpy.shutdown()
