"""Synthetic training runs with what training/requirements.txt names and torch, and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Names under which packages are imported, where they differ from those under which they are installed.
IMPORTED = {"opencv-python-headless": "cv2", "pyyaml": "yaml", "dv-processing": "dv_processing"}
SCRIPT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ImportError(f"{name} is not on a bare machine")
sys.meta_path.insert(0, Blocked())
from pathlib import Path
import training.pretrain, training.distill, training.fuse, training.render, training.export, training.flow.stages
from training.datasets import render_case
from training.settings import load_config
for name in ("toy", "flow_toy"):
    config, model = load_config(Path("training/config") / f"{name}.yaml")
    print(len(render_case(0, config.data, model)))
try:
    import cv2
except ImportError as error:
    print(error)
"""


def _packages(file: Path) -> set[str]:
    lines = (line.strip() for line in file.read_text().splitlines())
    return {re.split(r"[<>=]", line)[0].lower() for line in lines if line and not line.startswith("#")}


def test_training_needs_no_more_than_its_requirements():
    needed = _packages(ROOT / "training" / "requirements.txt") | {"torch"}
    others = _packages(ROOT / "requirements.txt") - needed
    assert {"open3d", "h5py", "rosbags"} <= others
    blocked = [IMPORTED.get(name, name) for name in others] + ["rclpy"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *blocked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["11", "11", "cv2 is not on a bare machine"]
