"""What worker processes have in common."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """To be called in a worker process when it begins: ends it when its parent is gone. A parent that was killed can't
    say so, and workers that wait for the next task would stay for ever, with their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no worker process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="end with parent", daemon=True).start()
