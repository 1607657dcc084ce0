"""A thread for slow work that always takes the newest task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Task = TypeVar("Task")


class LatestWinsWorker(Generic[Task]):
    """Runs ``work(task)`` in one thread; a task that still waits when the next one comes is given to ``on_drop``.

    ``work`` has to handle its own errors. ``stop`` waits until the running task has ended and drops the waiting one.
    """

    def __init__(self, work: Callable[[Task], None], on_drop: Callable[[Task], None], name: str) -> None:
        self._work, self._on_drop = work, on_drop
        self._waiting: Task | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Hand over a task; it replaces the one that waits."""
        with self._changed:
            replaced, self._waiting = self._waiting, task
            self._changed.notify()
        if replaced is not None:
            self._on_drop(replaced)

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._changed:
            self._stopping = True
            self._waiting = None
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                task, self._waiting = self._waiting, None
            assert task is not None
            self._work(task)
