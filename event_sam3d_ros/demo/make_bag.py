"""Makes the bundled recording: an unseen object, shaken too fast for its camera, with exact truth beside it.

Everything follows from the seeds, so the recording can be made anew at any time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from event_sam3d_ros.demo.truth import write_truth
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.files import Calibration, EventChunk, Frame, Sample, write_rosbag2
from event_sam3d_ros.synthetic import world

OBJECT_SEED = world.HELD_OUT_OBJECT_SEEDS[0]
# This motion's scene has a plain background and an image without grain: uncompressed images still fit into 8 MB.
MOTION_SEED = 74
DURATION_S = 3.5
SPEED = 0.2
FRAME_ID = "camera_optical_frame"
LABEL = 1
PACKET_US = 4000
DEPTH_RANGE_M = 2.5  # of the simulated depth camera: what is beyond gives no return
# From mid-exposure until a picture is there: the rest of the exposure and the readout; the mask takes a network more.
_IMAGE_DELAY_NS = 18_000_000
_MASK_DELAY_NS = 22_000_000


@dataclass
class _Truth:
    """What the simulator knows, collected while its frames pass by."""

    poses: list[dict[str, Any]] = field(default_factory=list)
    last: world.Frame | None = None

    def note(self, frames: Iterable[world.Frame]) -> Iterator[world.Frame]:
        for frame in frames:
            quaternion = Rotation.from_matrix(frame.rotation).as_quat()
            self.poses.append(
                {
                    "stamp_ns": frame.stamp_us * 1000,
                    "position": [round(float(value), 6) for value in frame.position],
                    "quaternion": [round(float(value), 6) for value in quaternion],
                }
            )
            self.last = frame
            yield frame


def make_demo_bag(path: Path, duration_s: float = DURATION_S) -> None:
    """Writes the rosbag2 folder ``path`` with ground_truth.yaml and the object's mesh in it."""
    truth = _Truth()
    frames = world.sequence(OBJECT_SEED, MOTION_SEED, duration_s, speed=SPEED)
    progress = tqdm(frames, total=round(duration_s * world.FRAME_RATE_HZ), unit="frame", desc="simulating")
    write_rosbag2(path, samples_of(truth.note(progress)))
    assert truth.last is not None
    try:
        mesh = f"object_{LABEL}.ply"
        vertices, faces = surface_mesh(truth.last.shape.sdf)
        write_mesh(path / mesh, vertices * truth.last.scale, faces)
        size = [round(float(value), 6) for value in truth.last.size]
        write_truth(path, FRAME_ID, [{"id": LABEL, "mesh": mesh, "size": size, "poses": truth.poses}])
    except BaseException:
        shutil.rmtree(path)
        raise


def samples_of(frames: Iterable[world.Frame]) -> Iterator[Sample]:
    """What the drivers of a camera, an event camera, a segmenter and a depth camera would have sent, by arrival."""
    waiting: list[Sample] = []
    pending = Events.empty()
    for frame in frames:
        waiting += _pictures(frame)
        pending = concatenate([pending, frame.events])
        height, width = frame.mask.shape
        cuts = np.flatnonzero(np.diff(pending.t // PACKET_US)) + 1
        for begin, end in zip([0, *cuts[:-1]], cuts, strict=False):
            waiting.append(_packet(pending[int(begin) : int(end)], width, height))
        pending = pending[int(cuts[-1]) :] if len(cuts) else pending
        waiting.sort(key=lambda sample: sample.receive_ns)
        # What is still to come arrives after the last complete packet, so the rest can go out.
        complete_ns = (int(pending.t[0]) // PACKET_US) * PACKET_US * 1000 if len(pending) else 0
        while waiting and waiting[0].receive_ns <= complete_ns:
            yield waiting.pop(0)
    if len(pending):
        waiting.append(_packet(pending, width, height))
    yield from sorted(waiting, key=lambda sample: sample.receive_ns)


def _packet(events: Events, width: int, height: int) -> EventChunk:
    """A packet is stamped with its first event and arrives when its 4 ms are over."""
    arrival_us = (int(events.t[-1]) // PACKET_US + 1) * PACKET_US
    return EventChunk(int(events.t[0]) * 1000, arrival_us * 1000, FRAME_ID, width, height, events)


def _pictures(frame: world.Frame) -> list[Sample]:
    stamp = frame.stamp_us * 1000
    arrival, mask_arrival = stamp + _IMAGE_DELAY_NS, stamp + _MASK_DELAY_NS
    height, width = frame.mask.shape
    depth_mm = np.where(frame.depth < DEPTH_RANGE_M, np.rint(frame.depth * 1000), 0).astype(np.uint16)
    return [
        Calibration(stamp, arrival, FRAME_ID, width, height, frame.K, np.zeros(5)),
        Frame("image", stamp, arrival, FRAME_ID, frame.blurry),
        Frame("depth", stamp, arrival, FRAME_ID, depth_mm),
        Frame("mask", stamp, mask_arrival, FRAME_ID, frame.degraded_mask * np.uint8(LABEL)),
    ]


def surface_mesh(sdf: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Closed triangle mesh of a signed distance grid (R, R, R) on the cell centres of [-1, 1]^3, negative inside.

    Naive surface nets (Gibson 1998): one vertex for each cube of eight neighbouring samples that the surface cuts, in
    the middle of its edges' crossings; four cubes around a cut edge make a quad. Vertices (N, 3), faces (M, 3) turned
    outside.
    """
    inside = sdf < 0
    corners = np.indices((2, 2, 2)).reshape(3, 8).T
    shape = np.array(sdf.shape) - 1

    def corner(array: NDArray[Any], offset: NDArray[np.intp]) -> NDArray[Any]:
        return array[tuple(slice(int(o), int(o + n)) for o, n in zip(offset, shape, strict=True))]

    total = np.zeros((*shape, 3))
    count = np.zeros(shape)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        for start in corners[corners[:, axis] == 0]:
            a, b = corner(sdf, start), corner(sdf, start + step)
            crossed = (a < 0) != (b < 0)
            share = np.divide(a, a - b, out=np.zeros_like(a), where=crossed)
            total += crossed[..., None] * (start + share[..., None] * step)
            count += crossed
    cubes = np.argwhere(count > 0)
    vertices = cubes + total[tuple(cubes.T)] / count[tuple(cubes.T)][:, None]
    number = np.full(shape, -1)
    number[tuple(cubes.T)] = np.arange(len(cubes))
    faces = []
    for axis in range(3):
        u, v = (np.eye(3, dtype=int)[(axis + turn) % 3] for turn in (1, 2))
        first, second = np.moveaxis(inside, axis, 0)[:-1], np.moveaxis(inside, axis, 0)[1:]
        edges = np.argwhere(np.moveaxis(first != second, 0, axis))
        quad = np.stack([number[tuple((edges - d).T)] for d in (0 * u, u, u + v, v)], axis=1)
        outwards = inside[tuple(edges.T)]
        quad[~outwards] = quad[~outwards, ::-1]
        faces += [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
    points = (vertices + 0.5) * (2 / len(sdf)) - 1
    return points, np.concatenate(faces).astype(np.int32)


def write_mesh(path: Path, vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
    """Binary PLY of a triangle mesh; vertices in metres."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    records = np.empty(len(faces), np.dtype([("count", "u1"), ("vertices", "<i4", 3)]))
    records["count"], records["vertices"] = 3, faces
    path.write_bytes("\n".join(header).encode() + vertices.astype("<f4").tobytes() + records.tobytes())
