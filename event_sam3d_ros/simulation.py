"""The synthetic world as a robot's drivers would report it: messages by arrival, a recording with its truth beside it.

Everything follows from the seeds, so a recording can be made anew at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from event_sam3d_ros.demo.truth import FILE_NAME
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.recordings.bag_messages import IMAGE_TYPE, TF_TYPE, RawMessage, encode_frame, encode_transform
from event_sam3d_ros.recordings.files import Calibration, EventChunk, Frame, Sample, write_rosbag2
from event_sam3d_ros.synthetic import world
from event_sam3d_ros.synthetic.surface import surface_mesh, write_mesh

FRAME_ID = "camera_optical_frame"
LABEL = 1
PACKET_US = 4000
DEPTH_RANGE_M = 2.5  # of the simulated depth camera: what is beyond gives no return
SHARP_TOPIC = "/camera/image_sharp"
TF_TOPIC = "/tf"
TRUE_FRAME = f"true_object_{LABEL}"
# From mid-exposure until a picture is there: the rest of the exposure and the readout; the mask takes a network more.
_IMAGE_DELAY_NS = 18_000_000
_MASK_DELAY_NS = 22_000_000

Simulated: TypeAlias = Sample | RawMessage


def write_simulation(path: Path, frames: Iterable[world.Frame], *, with_truth_topics: bool = True) -> int:
    """Writes frames as the new rosbag2 folder ``path``, with ground_truth.yaml and the object's mesh in it, as they
    come; returns the number of messages. Topics of the truth: see `samples_of`. RecordingError if the folder exists; on
    any error nothing is left behind."""
    return write_rosbag2(path, samples_of(_with_truth_beside(path, frames), with_truth_topics=with_truth_topics))


def _with_truth_beside(folder: Path, frames: Iterable[world.Frame]) -> Iterator[world.Frame]:
    """The frames, while their truth is written into a folder that exists when the first of them is asked for."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    mesh = f"object_{LABEL}.ply"
    vertices, faces = surface_mesh(first.shape.sdf)
    write_mesh(folder / mesh, vertices * first.scale, faces)
    entry = {"id": LABEL, "mesh": mesh, "size": _rounded(first.size)}
    with (folder / FILE_NAME).open("w") as file:
        file.write(_yaml({"frame_id": FRAME_ID, "objects": [entry]}) + "  poses:\n")
        frame: world.Frame | None = first
        while frame is not None:
            quaternion = Rotation.from_matrix(frame.rotation).as_quat()
            pose = {"stamp_ns": frame.stamp_us * 1000, "position": _rounded(frame.position)}
            lines = _yaml([pose | {"quaternion": _rounded(quaternion)}]).splitlines()
            file.writelines(f"  {line}\n" for line in lines)
            yield frame
            frame = next(frames, None)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=160)


def samples_of(
    frames: Iterable[world.Frame], clock_offset_ns: int = 0, *, with_truth_topics: bool = False
) -> Iterator[Simulated]:
    """What the drivers of a camera, an event camera, a segmenter and a depth camera would have sent, by arrival.

    ``clock_offset_ns``: from the sensor's clock, on which frames and events are, to stamps. ``with_truth_topics``: also
    the sharp frames on `SHARP_TOPIC`, and the object's pose on `TF_TOPIC` as `TRUE_FRAME`.
    """
    waiting: list[Simulated] = []
    pending = Events.empty()
    for frame in frames:
        waiting += _pictures(frame, clock_offset_ns)
        if with_truth_topics:
            waiting += _truth(frame, clock_offset_ns)
        pending = concatenate([pending, frame.events])
        height, width = frame.mask.shape
        cuts = np.flatnonzero(np.diff(pending.t // PACKET_US)) + 1
        for begin, end in zip([0, *cuts[:-1]], cuts, strict=False):
            waiting.append(_packet(pending[int(begin) : int(end)], width, height, clock_offset_ns))
        pending = pending[int(cuts[-1]) :] if len(cuts) else pending
        waiting.sort(key=lambda sample: sample.receive_ns)
        # What is still to come arrives after the last complete packet, so the rest can go out.
        complete_ns = (int(pending.t[0]) // PACKET_US) * PACKET_US * 1000 + clock_offset_ns if len(pending) else 0
        while waiting and waiting[0].receive_ns <= complete_ns:
            yield waiting.pop(0)
    if len(pending):
        waiting.append(_packet(pending, width, height, clock_offset_ns))
    yield from sorted(waiting, key=lambda sample: sample.receive_ns)


def _packet(events: Events, width: int, height: int, offset_ns: int) -> EventChunk:
    """A packet is stamped with its first event and arrives when its 4 ms are over."""
    stamp = int(events.t[0]) * 1000 + offset_ns
    arrival = (int(events.t[-1]) // PACKET_US + 1) * PACKET_US * 1000 + offset_ns
    return EventChunk(stamp, arrival, FRAME_ID, width, height, events)


def _pictures(frame: world.Frame, offset_ns: int) -> list[Simulated]:
    stamp = frame.stamp_us * 1000 + offset_ns
    arrival, mask_arrival = stamp + _IMAGE_DELAY_NS, stamp + _MASK_DELAY_NS
    height, width = frame.mask.shape
    depth_mm = np.where(frame.depth < DEPTH_RANGE_M, np.rint(frame.depth * 1000), 0).astype(np.uint16)
    return [
        Calibration(stamp, arrival, FRAME_ID, width, height, frame.K, np.zeros(5)),
        Frame("image", stamp, arrival, FRAME_ID, frame.blurry),
        Frame("depth", stamp, arrival, FRAME_ID, depth_mm),
        Frame("mask", stamp, mask_arrival, FRAME_ID, frame.degraded_mask * np.uint8(LABEL)),
    ]


def _truth(frame: world.Frame, offset_ns: int) -> list[Simulated]:
    stamp = frame.stamp_us * 1000 + offset_ns
    arrival = stamp + _IMAGE_DELAY_NS
    sharp = encode_frame(Frame("image", stamp, arrival, FRAME_ID, frame.sharp))
    quaternion = Rotation.from_matrix(frame.rotation).as_quat()
    transform = encode_transform(stamp, FRAME_ID, TRUE_FRAME, frame.position, quaternion)
    return [
        RawMessage(SHARP_TOPIC, IMAGE_TYPE, arrival, bytes(sharp)),
        RawMessage(TF_TOPIC, TF_TYPE, arrival, bytes(transform)),
    ]
