"""What the way from process start to the first result must not touch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FIRST_RESULT = """
import sys
import numpy as np
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstructor

image, mask = np.full((60, 80, 3), 90, np.uint8), np.zeros((60, 80), np.uint8)
mask[20:40, 30:50] = 1
K = np.array([[70.0, 0, 39.5], [0, 70.0, 29.5], [0, 0, 1]])
Reconstructor.from_pretrained("nano", "cpu")(Observation(image, mask, image, K))
print(*sys.modules)
"""


def test_the_first_result_needs_no_slow_imports():
    """torch's compiler and sympy alone take as long as torch itself."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RESULT], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    slow = {"torch._dynamo", "torch._inductor", "sympy", "open3d", "numba", "dv_processing", "h5py", "viser"}
    assert not loaded & {*slow, "matplotlib", "pandas", "rclpy"}
