"""Lets the tests of this folder import what they share, `tiny`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
