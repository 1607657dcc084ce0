"""The build files agree with each other and with the source tree."""

import ast
import importlib.util
import re
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
INTERFACES = sorted(path.parent for path in ROOT.glob("interfaces/*/package.xml"))
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
CONSTRAINTS = sorted(ROOT.glob("constraints/*.txt"))
# Used where a machine has them; nothing ends where one hasn't.
OPTIONAL_ROS_PACKAGES = {"cv_bridge", "dvs_msgs", "event_array_msgs", "sensor_msgs_py"}


def cmake_list(name: str) -> list[str]:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(rf"set\({name}\s+([^)]*?)\s*\)", text)[1].split()


def setup_py(*arguments: str) -> str:
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(path: Path) -> list[str]:
    """The lines of a requirements or constraints file that are not comments."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in lines(path))


def test_cmake_and_setup_py_install_the_same_executables() -> None:
    in_setup = re.findall(r'"([\w-]+) = event_sam3d_ros\.([\w.]+):main"', (ROOT / "setup.py").read_text("utf-8"))
    in_cmake = [tuple(entry.split("=")) for entry in cmake_list("NODES") + cmake_list("COMMANDS")]
    assert sorted(in_cmake) == sorted(in_setup)


@pytest.mark.parametrize("entry", cmake_list("NODES") + cmake_list("COMMANDS"))
def test_every_executable_has_a_module_with_main(entry: str) -> None:
    module = ROOT / "event_sam3d_ros" / (entry.split("=")[1].replace(".", "/") + ".py")
    assert re.search(r"^def main\(", module.read_text(encoding="utf-8"), re.MULTILINE)


def test_installed_executables_use_the_python_of_the_environment() -> None:
    prefix = Path(get_package_prefix("event_sam3d_ros"))
    for folder, entries in ((prefix / "lib/event_sam3d_ros", "NODES"), (prefix / "bin", "COMMANDS")):
        for entry in cmake_list(entries):
            path = folder / entry.split("=")[0]
            assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
            assert path.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("folder", ["config", "data", "launch", "weights"])
def test_share_folder_holds_what_the_source_tree_holds(folder: str) -> None:
    share = Path(get_package_share_directory("event_sam3d_ros"))
    source = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
    source = {path for path in source if "__pycache__" not in path.parts}
    assert source
    assert source <= {path.relative_to(share) for path in (share / folder).rglob("*")}


def test_cmake_builds_every_message() -> None:
    built = re.findall(r"^  (msg/\w+\.msg)$", (ROOT / "CMakeLists.txt").read_text("utf-8"), re.MULTILINE)
    assert sorted(built) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("msg/*.msg"))


@pytest.mark.parametrize("folder", [ROOT, *INTERFACES], ids=lambda folder: folder.name)
def test_package_xml_is_valid_and_names_what_cmake_finds(folder: Path) -> None:
    from catkin_pkg.package import parse_package

    package = parse_package(str(folder))
    package.validate()
    assert package.get_build_type() == "ament_cmake"
    declared = {d.name for d in package.buildtool_depends + package.build_depends}
    found = re.findall(r"^find_package\((\w+)", (folder / "CMakeLists.txt").read_text("utf-8"), re.MULTILINE)
    assert declared == set(found)


def test_versions_agree() -> None:
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    module = (ROOT / "event_sam3d_ros/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version}"' in module
    assert setup_py("--version") == version


def test_constraints_pin_every_requirement_without_naming_hosts_or_paths() -> None:
    assert [path.stem for path in CONSTRAINTS] == ["3.10", "3.11", "3.12"]
    required = [Requirement(line) for path in REQUIREMENTS for line in lines(path)]
    for path in CONSTRAINTS:
        pinned = pins(path)
        here = {"python_version": path.stem}
        names = {normalised(one.name) for one in required if one.marker is None or one.marker.evaluate(here)}
        assert names <= pinned.keys(), path.name
        assert not re.search(r"[/@+]|://", "".join(f"{k}{v}" for k, v in pinned.items())), path.name
        assert pinned["torch"] == "2.13.0"


def test_constraints_install_the_same_ros_for_every_python() -> None:
    ros = [{k: v for k, v in pins(path).items() if k.startswith("ros-")} for path in CONSTRAINTS]
    assert ros[0] == ros[1] == ros[2]


@pytest.mark.parametrize("package", [folder.name for folder in INTERFACES] + ["event_sam3d_ros"])
def test_messages_are_built_and_importable(package: str) -> None:
    assert importlib.util.find_spec(f"{package}.msg") is not None


def test_interfaces_have_the_fields_of_the_packages_they_stand_for() -> None:
    """In order, as the wire wants it."""
    from dvs_msgs.msg import Event, EventArray
    from event_array_msgs.msg import EventArray as OldPacket
    from event_camera_msgs.msg import EventPacket
    from tf2_msgs.msg import TFMessage

    packet = {
        "header": "std_msgs/Header",
        "height": "uint32",
        "width": "uint32",
        "seq": "uint64",
        "time_base": "uint64",
        "encoding": "string",
        "is_bigendian": "boolean",
        "events": "sequence<uint8>",
    }
    array = {"header": "std_msgs/Header", "height": "uint32", "width": "uint32", "events": "sequence<dvs_msgs/Event>"}
    event = {"x": "uint16", "y": "uint16", "ts": "builtin_interfaces/Time", "polarity": "boolean"}
    for message, fields in (
        (EventPacket, packet),
        (OldPacket, packet),
        (EventArray, array),
        (Event, event),
        (TFMessage, {"transforms": "sequence<geometry_msgs/TransformStamped>"}),
    ):
        assert list(message.get_fields_and_field_types().items()) == list(fields.items())


def imported(folder: Path) -> set[str]:
    """Top-level names of the absolute imports in all modules under ``folder``."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"event_sam3d_ros", "training"}


def test_every_import_is_declared_and_every_declaration_is_imported() -> None:
    distributions = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}
    required = {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines(ROOT / "requirements.txt")}
    ros = {element.text for element in ElementTree.parse(ROOT / "package.xml").iter() if element.tag.endswith("depend")}
    names = imported(ROOT / "event_sam3d_ros") | imported(ROOT / "training")
    python = {normalised(distributions.get(name, name)) for name in names - ros - OPTIONAL_ROS_PACKAGES}
    assert python == required
