"""Child processes that never outlive their parent's block."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from event_sam3d_ros.errors import EventSam3dError

# Ctrl-C, kill, and the closing of the terminal.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP_TIMEOUT_S = 5.0
_LAST_LINES = 15

Parameters: TypeAlias = Mapping[str, "bool | float | str"]


class DemoError(EventSam3dError):
    """The demo could not do its work: a node ended, nothing came out, ROS is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="demo")


class Processes:
    """Starts nodes as processes of their own sessions; leaving the ``with`` block stops them all, whatever happened.

    What they print goes to ``<log_folder>/<name>.log``.
    """

    def __init__(self, log_folder: Path, environment: Mapping[str, str]) -> None:
        self._log_folder = log_folder
        self._environment = {**os.environ, **environment}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start_node(self, name: str, parameters: Parameters, *arguments: str) -> None:
        """Runs ``event_sam3d_ros.nodes.<name>`` with this Python, these parameters and more ROS arguments."""
        module = f"event_sam3d_ros.nodes.{name}"
        code = f"import sys; from {module} import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "--ros-args", *arguments]
        for key, value in parameters.items():
            command += ["-p", f"{key}:={json.dumps(value) if not isinstance(value, str) else value}"]
        with open(self.log_file(name), "wb") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def log_file(self, name: str) -> Path:
        """Where the output of a node goes."""
        return self._log_folder / f"{name}.log"

    def exit_code(self, name: str) -> int | None:
        """None while the node runs."""
        return self._running[name].poll()

    def check(self, *may_have_ended: str) -> None:
        """DemoError with the last lines of the first node that ended though it should run, or ended with an error."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None and (code != 0 or name not in may_have_ended):
                lines = self.log_file(name).read_text(errors="replace").splitlines()[-_LAST_LINES:]
                raise DemoError("\n    ".join([f"{name} ended with exit code {code}. Its last lines:", *lines]))

    def stop(self) -> None:
        """SIGINT to every process group; five seconds later, or when its leader has ended, SIGKILL to what is left of
        it. Can't be interrupted."""
        ignored = ENDING_SIGNALS
        before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
        try:
            for process in self._running.values():
                _signal_group(process, signal.SIGINT)
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for process in self._running.values():
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
                _signal_group(process, signal.SIGKILL)
                process.wait()
            self._running.clear()
        finally:
            for number, handler in zip(ignored, before, strict=True):
                signal.signal(number, handler)


def free_domain_id() -> int:
    """A ROS domain that nobody on this machine uses, for this process until it ends.

    Its first unicast port can be bound (DDSI-RTPS 9.6.1.1), and its lock, which is a file among the temporary ones, can
    be taken: so two that ask at the same time, before they open a port, get different ones.
    """
    for domain in random.Random(os.getpid()).sample(range(1, 101), 100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
        if _take_lock(Path(tempfile.gettempdir()) / f"event_sam3d_ros_{os.getuid()}_{domain}.lock"):
            return domain
    raise DemoError("no free ROS domain between 1 and 100: too many ROS programs run on this machine")


def _take_lock(path: Path) -> bool:
    """Whether this process has a lock now, which the operating system gives back when the process ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    return True


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Also reaches what the process started, even if it has ended itself."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
