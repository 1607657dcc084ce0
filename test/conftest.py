"""What all tests share: where real data lies, and how hypothesis searches."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

_REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything loads torch: on a busy machine the threads of one small operation wait for each other, and a test of a
# second takes a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline, because kernels compile inside the first example; the same examples in every run, so that a test which
# turns red has met a change.
settings.register_profile("project", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> None:
    """A job in the background of a shell, or under nohup, ignores signals, and so would all that the tests start."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with real recordings and meshes: $EVENT_SAM3D_TEST_DATA, by default ../shared/data beside the repository.

    Where it is missing the test is skipped; with CI=true it fails.
    """
    path = Path(os.environ.get("EVENT_SAM3D_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (path / "recordings").is_dir():
        message = f"no test data in {path}: set EVENT_SAM3D_TEST_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
