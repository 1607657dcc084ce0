"""The latest-wins worker and the node's own statistics."""

import threading
from types import SimpleNamespace

import pytest

from event_sam3d_ros.nodes.health import Health
from event_sam3d_ros.nodes.worker import LatestWinsWorker


def test_the_newest_task_wins_and_the_others_are_handed_back():
    started, go_on = threading.Event(), threading.Event()
    done, dropped = [], []

    def work(task):
        started.set()
        go_on.wait(5)
        done.append(task)

    worker = LatestWinsWorker(work, dropped.append, "test")
    worker.submit(1)
    assert started.wait(5)
    for task in (2, 3, 4):
        worker.submit(task)
    started.clear()
    go_on.set()
    assert started.wait(5)
    worker.stop()
    assert done == [1, 4]
    assert dropped == [2, 3]


def test_stopping_ends_the_thread_and_forgets_what_waits():
    go_on = threading.Event()
    done = []
    worker = LatestWinsWorker(lambda task: (go_on.wait(5), done.append(task)), lambda task: None, "stop test")
    worker.submit(1)
    threading.Timer(0.05, go_on.set).start()
    worker.stop()
    assert done in ([], [1])
    assert "stop test" not in [thread.name for thread in threading.enumerate()]


def test_reports_are_all_counted_and_logged_once_in_five_seconds():
    now, lines = [0.0], []
    health = Health(lines.append, ["empty_mask"], clock=lambda: now[0])
    assert health.counts == {"empty_mask": 0}
    for _ in range(10):
        health.report("empty_mask", "nothing to see")
        now[0] += 1
    assert health.counts == {"empty_mask": 10}
    assert lines == ["empty_mask: nothing to see", "empty_mask: nothing to see (5 times since the last message)"]
    assert health.recent() == {"empty_mask": "nothing to see"}
    now[0] += 10
    assert health.recent() == {}


def test_a_node_whose_name_is_not_known_yet_is_not_named():
    inputs = pytest.importorskip("event_sam3d_ros.nodes.inputs", reason="needs ROS 2: run in the shell of env.sh")
    names = [inputs.name_of(SimpleNamespace(node_name=name)) for name in ("camera", "_NODE_NAME_UNKNOWN_")]
    assert names == ["camera", "a node"]


def test_rates_and_latencies():
    now = [100.0]
    health = Health(lambda _: None, clock=lambda: now[0])
    for index in range(100):
        now[0] += 0.1
        health.tick("image")
        health.latency(float(index))
    values = health.values()
    assert abs(float(values["rate_hz/image"]) - 10) < 0.5
    assert values["latency_ms/median"] == "49.5"
    assert health.last_tick("image") == now[0]
    assert health.last_tick("mask") is None
