"""An event camera beside an RGB camera, all nodes as processes: event images come in the RGB camera's grid."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2: run in the shell of env.sh")
from event_camera_msgs.msg import EventPacket
from geometry_msgs.msg import Quaternion, TransformStamped, Vector3
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

sys.path.insert(0, str(Path(__file__).parents[1] / "camera"))
from scenes import Scene, pair, pinhole, views

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.pixel_map import PixelMapper
from event_sam3d_ros.events.codecs import encode_event_packet_cdr, make_encoder
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.msg import EventWindow, ReconstructedObjectArray
from event_sam3d_ros.nodes.conversions import image_message, image_to_numpy, ns_to_stamp, stamp_to_ns

NODE, RECONSTRUCTION = "event_image_node", "reconstruction_node"
EVENT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TURN, SHIFT = (0.02, -0.03, 0.1), (0.08, 0.02, -0.03)
# The event camera's lens bends, the RGB camera has more pixels and another focal length.
EVENT_CAMERA = CameraModel([[150, 0, 79], [0, 151, 60], [0, 0, 1]], (-0.2, 0.05, 0.001, -0.001), 160, 120)
CAMERAS = pair(EVENT_CAMERA, pinhole(200, 150, 190.0), TURN, SHIFT)
DEPTH = views(Scene(sphere=((0.05, 0.0, 1.0), 0.25)), CAMERAS)["rgb"][0].copy()
DEPTH[:20, :20] = 0
SPAN_US = 150_000


class Rig:
    """Both cameras: each ``shoot`` is 150 ms of events and one frame, mask and depth in their middle."""

    def __init__(self, peer):
        self.peer = peer
        self.events = peer.publisher(EventPacket, "/event_camera/events", EVENT_QOS)
        self.event_info = peer.publisher(CameraInfo, "/event_camera/camera_info")
        self.infos = peer.publisher(CameraInfo, "/camera/camera_info", subscribers=3)
        self.depths = peer.publisher(Image, "/camera/depth", subscribers=2)
        self.frames = peer.publisher(Image, "/camera/image_raw")
        self.masks = peer.publisher(Image, "/camera/mask")
        self.static = peer.publisher(TFMessage, "/tf_static", LATCHED)
        self.images = peer.collect(Image, f"/{NODE}/event_image")
        self.windows = peer.collect(EventWindow, f"/{NODE}/event_window")
        self.objects = peer.collect(ReconstructedObjectArray, f"/{RECONSTRUCTION}/objects")
        peer.spin(0.5)
        self.generator, self.encoder = np.random.default_rng(0), make_encoder("evt3", 160, 120)
        self.start_ns, self.now_us, self.seq = time.time_ns(), 0, 0

    def calibrate(self):
        """The transform between the cameras, and the event camera's calibration."""
        x, y, z, w = Rotation.from_rotvec(TURN).as_quat()
        transform = TransformStamped(header=Header(frame_id="rgb_optical"), child_frame_id="event_optical")
        transform.transform.translation = Vector3(x=SHIFT[0], y=SHIFT[1], z=SHIFT[2])
        transform.transform.rotation = Quaternion(x=x, y=y, z=z, w=w)
        self.static.publish(TFMessage(transforms=[transform]))
        self.event_info.publish(info(CAMERAS.events, Header(frame_id="event_optical")))

    def shoot(self):
        """Stamp of the frame in ns, and the events of its window."""
        begin_us, parts = self.now_us, []
        stamp_ns = self.start_ns + (begin_us + SPAN_US // 2) * 1000
        header = Header(stamp=ns_to_stamp(stamp_ns), frame_id="rgb_optical")
        rows, columns = np.mgrid[:150, :200]
        mask = ((rows - 75) ** 2 + (columns - 110) ** 2 < 40**2).astype(np.uint8)
        pixels = self.generator.integers(0, 256, (150, 200, 3)).astype(np.uint8)
        for publisher, message in (
            (self.infos, info(CAMERAS.rgb, header)),
            (self.frames, image_message(pixels, "rgb8", header)),
            (self.masks, image_message(mask, "mono8", header)),
            (self.depths, image_message(DEPTH, "32FC1", header)),
        ):
            publisher.publish(message)
        for _ in range(SPAN_US // 10_000):
            t = np.sort(self.generator.integers(self.now_us, self.now_us + 10_000, 2000))
            t[0] = self.now_us  # so that stamp minus first event is the same for all packets
            x, y = self.generator.integers(0, (160, 120), (2000, 2)).astype(np.uint16).T
            parts.append(Events(t, x, y, self.generator.integers(0, 2, 2000).astype(np.uint8)))
            payload, _ = self.encoder.encode(parts[-1])
            fields = {"stamp_ns": self.start_ns + self.now_us * 1000, "frame_id": "event_optical", "seq": self.seq}
            geometry = {"width": 160, "height": 120, "time_base": 0, "encoding": "evt3", "payload": payload}
            self.events.publish(encode_event_packet_cdr(**fields, **geometry))
            self.seq, self.now_us = self.seq + 1, self.now_us + 10_000
        events = Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in "txyp"))
        t0 = begin_us + SPAN_US // 2 - 25_000
        return stamp_ns, t0, events[(events.t >= t0) & (events.t < t0 + 50_000)]

    def answer(self, messages, stamp_ns, timeout_s=30):
        """The message of a stamp."""
        fits = lambda message: stamp_to_ns(message.header.stamp) == stamp_ns  # noqa: E731
        return self.peer.wait_for(lambda: next(filter(fits, messages), None), timeout_s)

    def check(self, pixel_map):
        """One frame's event image is what the ROS-free map gives, and the reconstruction takes it."""
        stamp_ns, t0, events = self.shoot()
        image, window = self.answer(self.images, stamp_ns), self.answer(self.windows, stamp_ns)
        mapped = pixel_map.map(events)
        assert (image.header.frame_id, image.width, image.height) == ("rgb_optical", 200, 150)
        assert np.array_equal(image_to_numpy(image), tencode(mapped.events, t0, t0 + 50_000, 200, 150))
        assert window.event_count == len(events) - mapped.dropped > 1000
        assert self.answer(self.objects, stamp_ns).event_count == window.event_count


def info(camera, header):
    message = CameraInfo(header=header, width=camera.width, height=camera.height, k=camera.K.ravel())
    message.d, message.distortion_model = camera.D.tolist(), camera.model
    return message


@pytest.fixture(scope="module")
def processes(start):
    options = ("max_age_ms:=0.0", "pair_timeout_ms:=10000.0", "threads:=1")
    return {
        NODE: start(NODE, "-p", "alignment:=depth", "-p", "max_wait_ms:=800.0"),
        RECONSTRUCTION: start(RECONSTRUCTION, *(text for option in options for text in ("-p", option))),
    }


@pytest.fixture(scope="module")
def rig(peer, processes):
    for node in processes:
        peer.wait_active(node)
    return Rig(peer)


def test_without_a_transform_nothing_is_guessed(rig, peer, processes):
    rig.event_info.publish(info(CAMERAS.events, Header(frame_id="event_optical")))
    rig.shoot()
    peer.status(NODE, lambda found: int(found[2]["no_transform"]) >= 1)
    assert "'rgb_optical' with the event camera's 'event_optical' (it knows no frames)" in processes[NODE].log
    assert not rig.images


def test_by_depth_and_tf_events_lie_on_the_rgb_grid_and_are_reconstructed(rig, peer):
    rig.calibrate()
    peer.spin(0.5)
    before = peer.counts(RECONSTRUCTION)["size_mismatch"]
    for _ in range(3):
        rig.check(PixelMapper(CAMERAS).by_depth(DEPTH))
    assert peer.counts(RECONSTRUCTION)["size_mismatch"] == before
    values = peer.status(NODE)[2]
    assert int(values["alignment/mapped"]) > 3000
    assert int(values["alignment/unknown_depth"]) > 0  # a hole in depth, and what the RGB camera does not see


def again_with(peer, **parameters):
    """event_image_node taken down and up again with other parameters."""
    assert peer.transition(NODE, "deactivate") and peer.transition(NODE, "cleanup")
    for name, value in parameters.items():
        assert peer.set_parameter(NODE, name, value).successful
    assert peer.transition(NODE, "configure") and peer.transition(NODE, "activate")
    peer.spin(1.0)


def test_by_homography_from_a_file(rig, peer, tmp_path):
    cameras = {
        name: {"width": c.width, "height": c.height, "K": c.K.ravel().tolist(), "D": c.D.tolist()}
        for name, c in (("event_camera", CAMERAS.events), ("rgb_camera", CAMERAS.rgb))
    }
    between = {"translation": list(SHIFT), "rotation": Rotation.from_rotvec(TURN).as_quat().tolist()}
    path = tmp_path / "cameras.yaml"
    path.write_text(yaml.safe_dump({**cameras, "rgb_from_events": between}))
    again_with(peer, alignment="homography", calibration_file=str(path))
    rig.check(PixelMapper(CAMERAS).by_homography())


def test_without_alignment_other_geometry_is_refused_in_words(rig, peer, processes):
    again_with(peer, alignment="none")
    before = peer.counts(RECONSTRUCTION)["size_mismatch"]
    stamp_ns, _, _ = rig.shoot()
    image = rig.answer(rig.images, stamp_ns)
    assert (image.width, image.height) == (160, 120)
    peer.status(RECONSTRUCTION, lambda found: int(found[2]["size_mismatch"]) == before + 1)
    assert "160x120" in processes[RECONSTRUCTION].log and "one pixel grid" in processes[RECONSTRUCTION].log
