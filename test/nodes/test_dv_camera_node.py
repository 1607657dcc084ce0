"""dv_camera_node without hardware: dv-processing's own network writer, a real recording, and what can go wrong."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
pytest.importorskip("dv_processing", reason="dv-processing has no wheel for this machine")
from event_camera_msgs.msg import EventPacket
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, Imu

sys.path.insert(0, str(Path(__file__).parent))
import dv_sender

from event_sam3d_ros.events.codecs import make_decoder
from event_sam3d_ros.nodes import dv_camera_node
from event_sam3d_ros.nodes.conversions import image_to_numpy, stamp_to_ns
from event_sam3d_ros.nodes.dv_camera_node import DvCameraNode

QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
TOPICS = {"events": EventPacket, "image_raw": Image, "camera_info": CameraInfo, "imu": Imu}
G = 9.80665


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def bench(ros):
    """Makes the node with parameters, and a peer that listens to it."""
    made = []

    def make(activate=True, **parameters):
        values = {"autostart": False, **parameters}
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
        arguments = [text for name, value in texts.items() for text in ("-p", f"{name}:={value}")]
        ros.shutdown()
        ros.init(args=["--ros-args", *arguments])
        node = DvCameraNode()
        peer = ros.create_node("peer")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.add_node(peer)
        made.append((executor, node, peer))
        got = {name: [] for name in TOPICS}
        for name, kind in TOPICS.items():
            peer.create_subscription(kind, f"/event_camera/{name}", got[name].append, QOS)

        def wait_for(condition, timeout_s=60):
            deadline = time.monotonic() + timeout_s
            while not condition() and time.monotonic() < deadline:
                executor.spin_once(timeout_sec=0.02)
            assert condition(), (node.diagnostic_values(), node.health.recent(600))

        if activate:
            assert node.trigger_configure().name == "SUCCESS"
            wait_for(lambda: peer.count_publishers("/event_camera/imu"))
            assert node.trigger_activate().name == "SUCCESS"
        return SimpleNamespace(node=node, wait_for=wait_for, **got)

    yield make
    for executor, node, peer in made:
        executor.shutdown()
        node.close()
        peer.destroy_node()


@pytest.fixture
def sender():
    """Starts dv servers; all are killed at the end."""
    processes = []

    def start(ports):
        command = [sys.executable, dv_sender.__file__, *map(str, ports)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        assert processes[-1].stdout.readline() == b"ready\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def decoded(packets):
    """Events of all packets as one array [N,4]: t x y p."""
    first = packets[0]
    decoder = make_decoder(first.encoding, first.width, first.height)
    parts = [decoder.decode(bytes(packet.events), packet.time_base) for packet in packets]
    return np.concatenate([np.stack([e.t, e.x, e.y, e.p], -1) for e in parts])


CALIBRATION = """
image_width: 64
image_height: 48
camera_name: davis
camera_matrix: {rows: 3, cols: 3, data: [60.0, 0, 32, 0, 61, 24, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.3, 0.1, 0, 0, 0]}
"""


def test_a_dv_stream_is_published_as_it_was_sent_and_one_that_drops_is_taken_up_again(bench, sender, tmp_path):
    (tmp_path / "davis.yaml").write_text(CALIBRATION)
    ports = free_ports(3)
    names = dict(zip(("events_port", "frames_port", "imu_port"), ports, strict=True))
    process = sender(ports)
    made = bench(source="network", frame_id="davis", camera_info_file=tmp_path / "davis.yaml", **names)
    made.wait_for(lambda: min(map(len, (made.events, made.image_raw, made.camera_info, made.imu))) == dv_sender.BATCHES)
    expected = np.concatenate([np.stack(dv_sender.batch(n), -1) for n in range(dv_sender.BATCHES)])
    assert np.array_equal(decoded(made.events), expected)
    for number, packet in enumerate(made.events):
        assert (packet.encoding, packet.seq, packet.width, packet.height) == ("libcaer", number, 64, 48)
        assert stamp_to_ns(packet.header.stamp) == expected[100 * number, 0] * 1000
        assert packet.header.frame_id == "davis"
    for number, (image, info) in enumerate(zip(made.image_raw, made.camera_info, strict=True)):
        pixels, t = dv_sender.frame(number)
        assert image.encoding == "bgr8" and np.array_equal(image_to_numpy(image), pixels)
        assert image.header == info.header and stamp_to_ns(image.header.stamp) == t * 1000
        assert info.k[0] == 60 and info.p[0] == 60 and info.d[0] == -0.3 and info.distortion_model == "plumb_bob"
    imu = made.imu[3]
    assert imu.header.frame_id == "davis_imu" and stamp_to_ns(imu.header.stamp) == dv_sender.frame(3)[1] * 1000
    acceleration, turn = imu.linear_acceleration, imu.angular_velocity
    assert np.allclose((acceleration.x, acceleration.y, acceleration.z), np.array((0.5, -1, 0.25)) * G, rtol=1e-6)
    assert np.allclose((turn.x, turn.y, turn.z), np.radians((90, -45, 180)), rtol=1e-5)
    assert imu.orientation_covariance[0] == -1

    process.kill()
    process.wait()
    made.wait_for(lambda: made.node.health.counts["stream_ended"] == 1)
    made.wait_for(lambda: made.node.health.counts["no_connection"] >= 1)
    assert "no dv network stream at 127.0.0.1" in made.node.diagnostic_values()["source"]
    sender(ports)
    made.wait_for(lambda: len(made.events) == 2 * dv_sender.BATCHES)
    assert [packet.seq for packet in made.events] == list(range(2 * dv_sender.BATCHES))


def test_a_recording_is_played_to_its_end(bench, test_data):
    path = test_data / "recordings/raw/sample.aedat4"
    before_ns = time.time_ns()
    made = bench(source="file", file=path, rate=2.0)
    made.wait_for(lambda: made.node.health.counts["end_of_recording"] == 1)
    made.wait_for(lambda: len(made.imu) == 475 and sum(len(p.events) for p in made.events) == 8 * 111_954)
    events = decoded(made.events)
    assert (np.diff(events[:, 0]) >= 0).all() and events[-1, 0] - events[0, 0] == 1605537494308262 - 1605537493718345
    # Moved to the time of playing; and the calibration comes although there are no frames.
    assert 0 <= events[0, 0] * 1000 - before_ns + 10**9 < 60 * 10**9
    assert not made.image_raw
    assert 4 <= len(made.camera_info) <= 7 and (made.camera_info[0].width, made.camera_info[0].k[0]) == (320, 0)
    assert made.node.diagnostic_values()["source"] == "the recording is over"
    assert made.node.state == "active"


def test_a_recording_goes_round_with_times_as_recorded_if_wished(bench, test_data):
    path = test_data / "recordings/raw/sample.aedat4"
    made = bench(source="file", file=path, rate=20.0, loop=True, restamp=False)
    made.wait_for(lambda: len(made.events) >= 3 * 59)
    starts = [i for i, packet in enumerate(made.events) if packet.header.stamp.sec == 1605537493][:60]
    assert stamp_to_ns(made.events[0].header.stamp) == 1605537493718345000
    assert len(starts) == 60  # 28 in each round, so this is the third


def damaged(path, test_data):
    """A recording with 50 bytes overwritten, at which dv-processing 2.0.4 hangs for ever."""
    content = bytearray((test_data / "recordings/raw/sample.aedat4").read_bytes())
    content[300_000:300_050] = b"\xff" * 50
    path.write_bytes(content)
    return path


def test_a_reader_that_hangs_is_ended_and_named(bench, test_data, tmp_path, monkeypatch):
    monkeypatch.setattr(dv_camera_node, "_HANGS_AFTER_S", 3.0)
    made = bench(source="file", file=damaged(tmp_path / "damaged.aedat4", test_data), rate=10.0)
    made.wait_for(lambda: made.node.health.counts["source_hangs"] == 1)
    assert "dv-processing hangs: a damaged file" in made.node.diagnostic_values()["source"]
    assert len(made.events) > 10  # what comes before the damage was published
    made.wait_for(lambda: not made.node._thread.is_alive())
    assert made.node.health.counts["source_failed"] == 0


def test_a_sender_that_is_no_dv_is_ended_and_tried_again(bench, monkeypatch):
    monkeypatch.setattr(dv_camera_node, "_OPENS_WITHIN_S", 4.0)
    monkeypatch.setattr(dv_camera_node, "_RETRY_S", 0.1)
    server = socket.create_server(("127.0.0.1", 0))
    try:
        made = bench(source="network", events_port=server.getsockname()[1])
        made.wait_for(lambda: made.node.health.counts["source_hangs"] == 1)
        ended = made.node._heard_s
        made.wait_for(lambda: made.node._heard_s > ended)  # the next reader was started
        assert made.node.state == "active"
    finally:
        server.close()


@pytest.mark.parametrize("rest", [b'{"kind": "ali', b'{"kind": "frame", "size": 100, "t_us": 5}\n123'])
def test_a_reader_that_ends_inside_a_record_is_started_again(bench, monkeypatch, tmp_path, rest):
    """As where it was killed: what it had begun to say is no error of the node's."""
    monkeypatch.setattr(dv_camera_node, "_RETRY_S", 0.05)
    code = f"import os; os.write(1, {rest!r}); os._exit(9)"
    monkeypatch.setattr(DvCameraNode, "_command", lambda node: [sys.executable, "-c", code])
    made = bench(source="network")
    made.wait_for(lambda: made.node.health.counts["source_failed"] >= 2)
    assert made.node.health.counts["internal_error"] == 0
    assert "ended without a word (exit code 9)" in made.node.health.recent()["source_failed"]


def is_alive(pid):
    """Whether a process runs; one that ended and that nobody waits for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux alone")
def test_a_reader_that_hangs_does_not_outlive_a_node_that_is_killed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = {"source": "network", "address": "127.0.0.1", "ports": [server.getsockname()[1]]}
        command = [sys.executable, "-m", "event_sam3d_ros.nodes.dv_reader", json.dumps(settings)]
        code = f"import subprocess; p = subprocess.Popen({command}); print(p.pid, flush=True); p.wait()"
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        pid = int(parent.stdout.readline())
        connection, _ = server.accept()  # says nothing, at which dv-processing waits for ever
        with connection:
            time.sleep(0.5)
            assert is_alive(pid)
            parent.kill()
            parent.wait()
            deadline = time.monotonic() + 10
            while is_alive(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not is_alive(pid)


@pytest.mark.parametrize(
    "parameters, reason, sentence",
    [
        ({"source": "camera"}, "no_camera", "no iniVation camera is connected"),
        ({"source": "file", "file": "/nowhere.aedat4"}, "no_recording", "there is no file '/nowhere.aedat4'"),
        ({"source": "file", "file": __file__}, "bad_recording", "can't be opened as AEDAT4"),
        ({"source": "network", "events_port": 1}, "no_connection", "127.0.0.1 .an IP address., port 1 .connect"),
    ],
)
def test_a_source_that_cannot_be_opened_is_named_and_the_node_lives_on(bench, parameters, reason, sentence):
    made = bench(**parameters)
    made.wait_for(lambda: made.node.health.counts[reason] >= 1)
    assert made.node.state == "active"
    assert made.node.trigger_deactivate().name == "SUCCESS"
    assert made.node.diagnostic_values() == {"source": "closed"}


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"source": "file"}, "bad_parameter"),
        ({"source": "network", "events_port": 0}, "bad_parameter"),
        ({"camera_info_file": "/nowhere.yaml"}, "no_calibration"),
    ],
)
def test_parameters_that_cannot_work_stop_the_configuration(bench, parameters, reason):
    made = bench(activate=False, **parameters)
    assert made.node.trigger_configure().name == "FAILURE"
    assert reason in made.node.health.recent()


def test_without_dv_processing_the_reader_says_so_in_one_sentence(tmp_path):
    (tmp_path / "dv_processing.py").write_text("raise ImportError('no wheel')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "event_sam3d_ros.nodes.dv_reader", json.dumps({"source": "camera"})]
    output = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout
    (record,) = map(json.loads, output.splitlines())
    assert (record["kind"], record["reason"]) == ("end", "missing_package")
    assert "pip install dv-processing" in record["sentence"]
