"""Installs the Python half without ROS: `pip install -e .` gives the Python API, the command line and training.

The nodes need the messages, which colcon builds (CMakeLists.txt); colcon does not read this file.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "event_sam3d_ros/__init__.py").read_text(encoding="utf-8"))[1]
REQUIREMENTS = [
    line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
]
SHARED_FOLDERS = ("config", "data", "launch", "weights")


def shared_files() -> list[tuple[str, list[str]]]:
    """The files that go to share/event_sam3d_ros, by folder."""
    folders: dict[str, list[str]] = {}
    for top in SHARED_FOLDERS:
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file():
                relative = path.relative_to(ROOT)
                folders.setdefault(f"share/event_sam3d_ros/{relative.parent}", []).append(str(relative))
    return list(folders.items())


setup(
    name="event_sam3d_ros",
    version=VERSION,
    description="3D objects with pose from event cameras and motion-blurred RGB frames, as point clouds in ROS 2.",
    license="Apache-2.0",
    packages=find_packages(include=["event_sam3d_ros", "event_sam3d_ros.*"]),
    python_requires=">=3.10,<3.13",
    install_requires=REQUIREMENTS,
    data_files=shared_files(),
    entry_points={
        "console_scripts": [
            "event-sam3d = event_sam3d_ros.cli:main",
            "bag_player_node = event_sam3d_ros.nodes.bag_player_node:main",
            "dv_camera_node = event_sam3d_ros.nodes.dv_camera_node:main",
            "event_image_node = event_sam3d_ros.nodes.event_image_node:main",
            "reconstruction_node = event_sam3d_ros.nodes.reconstruction_node:main",
            "simulator_node = event_sam3d_ros.nodes.simulator_node:main",
        ],
    },
)
