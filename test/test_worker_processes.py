"""Worker processes of a parent that was killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from event_sam3d_ros.worker_processes import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1]), end_with_parent)
    first = [pool.submit(os.getpid), pool.submit(os.getpid)]
    print(*{one.result() for one in first}, flush=True)
    time.sleep(100)
"""


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("context", ["spawn", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, context, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script, context], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers and all(is_running(pid) for pid in workers)
        os.kill(parent.pid, number)
        parent.wait(20)
        deadline = time.monotonic() + 20
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.05)
