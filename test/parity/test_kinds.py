"""What the parity tests cover: every kind has its test, and cases that none covers are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_every_kind_has_its_test(kinds):
    for kind, test in kinds.items():
        file, name = test.split("::")
        path = Path(__file__).parent / file
        assert path.is_file(), f"{kind}: {file} does not exist"
        assert re.search(rf"^def {name}\(.*\bcase\b", path.read_text(encoding="utf-8"), re.M), f"{kind}: no test {name}"


def test_uncovered_case(uncovered_case):
    """Shows in the summary as skipped what the reference folder holds and no test reads."""
    pytest.skip(f"no test covers the case {uncovered_case}")
