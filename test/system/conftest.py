"""Real nodes as processes over real DDS, in a domain of their own; nothing is left running."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from event_sam3d_ros.demo.processes import free_domain_id

# Chosen before anything of ROS is loaded; domains above 101 reach into the ports that Linux gives to clients.
os.environ["ROS_DOMAIN_ID"] = str(free_domain_id())
os.environ.setdefault("OMP_NUM_THREADS", "1")

if os.environ.get("CI") == "true":
    import rclpy  # noqa: F401  # where ROS has to be, these tests must not be skipped for want of it

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20


class NodeProcess:
    """An installed executable of the package as a process in a group of its own; its output goes to a file."""

    def __init__(self, name, *arguments):
        prefix = next(
            prefix
            for prefix in map(Path, os.environ["AMENT_PREFIX_PATH"].split(os.pathsep))
            if (prefix / "lib/event_sam3d_ros" / name).exists()
        )
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"{name}.", suffix=".log")  # noqa: SIM115
        command = [prefix / "lib/event_sam3d_ros" / name, "--ros-args", *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    @property
    def log(self):
        return Path(self._log.name).read_text(errors="replace")

    @property
    def exit_code(self):
        return self._process.poll()

    def stop(self, signal_number=signal.SIGINT):
        """Ask the process to end, wait for it, and give its exit code; what is left of its group is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


class Peer:
    """The test's own node: publishes inputs, collects outputs, calls services, watches diagnostics."""

    def __init__(self):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray

        rclpy.init()
        self._rclpy = rclpy
        self.node = rclpy.create_node("peer")
        self._statuses = {}
        self._subscriptions = [self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, 10)]

    def _diagnostics(self, message):
        for status in message.status:
            self._statuses[status.name.split(":")[0]] = status

    def collect(self, message_type, topic, qos=10):
        """A list that fills with the messages of a topic."""
        messages = []
        self._subscriptions.append(self.node.create_subscription(message_type, topic, messages.append, qos))
        return messages

    def spin(self, seconds):
        self.wait_for(lambda: False, seconds, must=False)

    def wait_for(self, condition, timeout_s=10.0, must=True):
        """Spin until the condition holds; its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()) and time.monotonic() < deadline:
            self._rclpy.spin_once(self.node, timeout_sec=0.02)
        assert value or not must, f"timed out; last diagnostics: {self._statuses}"
        return value

    def publisher(self, message_type, topic, qos=10, subscribers=1):
        """A publisher that already has its subscribers."""
        publisher = self.node.create_publisher(message_type, topic, qos)
        self.wait_for(lambda: publisher.get_subscription_count() >= subscribers, START_TIMEOUT_S)
        return publisher

    def status(self, node, ready=lambda status: True, timeout_s=START_TIMEOUT_S):
        """The next diagnostics of a node that fulfil a condition: (level, message, values)."""
        self._statuses.pop(node, None)

        def fresh():
            status = self._statuses.pop(node, None)
            if status is None:
                return None
            found = status.level, status.message, {item.key: item.value for item in status.values}
            return found if ready(found) else None

        return self.wait_for(fresh, timeout_s)

    def counts(self, node):
        """The counters in a node's next diagnostics."""
        values = self.status(node)[2]
        return {key: int(value) for key, value in values.items() if value.isdigit() and "/" not in key}

    def wait_active(self, node, timeout_s=START_TIMEOUT_S):
        self.status(node, lambda found: found[2]["state"] == "active", timeout_s)

    def call(self, service_type, name, request, timeout_s=START_TIMEOUT_S):
        """The answer of a service."""
        client = self.node.create_client(service_type, name)
        try:
            self.wait_for(client.service_is_ready, START_TIMEOUT_S)
            future = client.call_async(request)
            self.wait_for(future.done, timeout_s)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def set_parameter(self, node, name, value):
        """The result of setting one parameter, as `ros2 param set` does."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, f"/{node}/set_parameters", request).results[0]

    def transition(self, node, label):
        """Whether a lifecycle transition succeeded, as `ros2 lifecycle set` does."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(label=label))
        return self.call(ChangeState, f"/{node}/change_state", request).success

    def close(self):
        self.node.destroy_node()
        self._rclpy.shutdown()


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
    made = Peer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def start():
    """Starts nodes; all of them are stopped after the module."""
    processes = []

    def start_one(name, *arguments):
        processes.append(NodeProcess(name, *arguments))
        return processes[-1]

    yield start_one
    for process in processes:
        process.stop()
        print(process.log)  # shown by pytest where a test of the module failed
