"""Makes the ROS 2 wheels of this environment usable for building.

The wheels carry CMake files with the paths of the machine that built them
(``/opt/python/cp311-cp311/include/python3.11``, ``.../site-packages``). They are replaced by the paths of the
environment that runs this script, and the environment gets the files by which colcon knows a prefix. Running it again
changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

INCLUDE = re.compile(r"/opt/python/cp3\d+-cp3\d+/include/python3\.\d+")
SITE_PACKAGES = re.compile(r"/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages")


def fix(share: Path, include: str, site_packages: str) -> int:
    """Rewrites the ``*.cmake`` files under ``share``; returns how many changed."""
    changed = 0
    for path in share.rglob("*.cmake"):
        text = path.read_text(encoding="utf-8")
        fixed = SITE_PACKAGES.sub(lambda _: site_packages, INCLUDE.sub(lambda _: include, text))
        if fixed != text:
            path.write_text(fixed, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    paths = sysconfig.get_paths()
    count = fix(Path(sys.prefix) / "share", paths["include"], paths["purelib"])
    for shell in ("bash", "sh", "zsh"):
        file = Path(sys.prefix) / f"local_setup.{shell}"
        file.write_text("# env.sh sets what this prefix needs\n", encoding="utf-8")
    print(f"adapted {count} CMake files of the ROS wheels to {sys.prefix}")
