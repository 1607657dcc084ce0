"""A recording through the same core as the nodes, frame by frame, without ROS: what every frame should have given.

Nothing is dropped here, however slow the model. Windows, pairing and their limits are the nodes' defaults.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.clock import SensorClock
from event_sam3d_ros.events.recordings import Calibration, EventChunk, Frame, Recording
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstructor import Reconstruction, Reconstructor
from event_sam3d_ros.sam3d.config import PreprocessConfig

WINDOW_NS = 50_000_000
EVENTS_WAIT_NS = 100_000_000
PAIR_TIMEOUT_NS = 300_000_000
DEPTH_TOLERANCE_NS = 20_000_000
_BUFFER_US, _BUFFER_EVENTS, _BUFFER_BYTES = 1_000_000, 20_000_000, 256 * 2**20


@dataclass
class ReplayedFrame:
    """One RGB frame with what belongs to it. ``observation`` is None if mask or calibration are missing."""

    stamp_ns: int
    image: NDArray[np.uint8]
    event_image: NDArray[np.uint8] | None
    event_count: int
    mask: NDArray[np.generic] | None
    observation: Observation | None


@dataclass
class _Pending:
    frame: Frame
    event_image: NDArray[np.uint8] | None = None
    event_count: int | None = None
    mask: Frame | None = None


@dataclass
class _State:
    """Everything received so far that a frame may still need."""

    min_events: int
    clock: SensorClock = field(default_factory=SensorClock)
    buffer: EventBuffer = field(default_factory=lambda: EventBuffer(_BUFFER_US, _BUFFER_EVENTS, _BUFFER_BYTES))
    camera: CameraModel | None = None
    calibration: Calibration | None = None
    depths: deque[Frame] = field(default_factory=lambda: deque(maxlen=60))
    masks: deque[Frame] = field(default_factory=lambda: deque(maxlen=60))
    pending: deque[_Pending] = field(default_factory=deque)
    sensor_size: tuple[int, int] | None = None


def replay(recording: Recording, reconstructor: Reconstructor) -> Iterator[tuple[int, list[Reconstruction]]]:
    """Yields (stamp_ns, reconstructions) of every frame that can be used, in order."""
    for frame in replay_frames(recording, reconstructor.info["min_events"]):
        if frame.observation is None:
            continue
        try:
            yield frame.stamp_ns, reconstructor(frame.observation)
        except InputError:  # an empty mask, say: the nodes count it and go on
            continue


def replay_frames(recording: Recording, min_events: int = PreprocessConfig.min_events) -> Iterator[ReplayedFrame]:
    """Yields every RGB frame with its event image, mask and observation, in order, with bounded memory.

    Frames with fewer than ``min_events`` events in their window are observed without them.
    """
    state = _State(min_events)
    for sample in recording.samples():
        _receive(state, sample)
        while state.pending and _is_complete(state, state.pending[0], sample.receive_ns):
            yield _finish(state, state.pending.popleft())
    while state.pending:
        yield _finish(state, state.pending.popleft())


def _receive(state: _State, sample: EventChunk | Frame | Calibration) -> None:
    if isinstance(sample, EventChunk):
        state.sensor_size = (sample.width, sample.height)
        state.clock.update(sample.stamp_ns, int(sample.events.t[0]))
        state.buffer.append(sample.events)
    elif isinstance(sample, Calibration):
        if state.camera is None:
            state.camera = CameraModel(sample.K, sample.D.tolist(), sample.width, sample.height, sample.model)
    elif sample.role == "image":
        state.pending.append(_Pending(sample))
    elif sample.role == "mask":
        state.masks.append(sample)
    else:
        state.depths.append(sample)


def _is_complete(state: _State, pending: _Pending, now_ns: int) -> bool:
    """Events are waited for as event_image_node does, the mask as reconstruction_node does."""
    stamp = pending.frame.stamp_ns
    if pending.event_count is None:
        end = stamp + WINDOW_NS // 2
        if _reached(state, end) or now_ns > end + EVENTS_WAIT_NS:
            _make_event_image(state, pending)
    if pending.event_count is None:
        return False
    return _mask_of(state, stamp) is not None or now_ns > stamp + PAIR_TIMEOUT_NS


def _reached(state: _State, ros_ns: int) -> bool:
    last = state.buffer.t_last
    return last is not None and last >= state.clock.to_sensor_us(ros_ns)


def _make_event_image(state: _State, pending: _Pending) -> None:
    pending.event_count = 0
    if state.sensor_size is None:
        return
    stamp = pending.frame.stamp_ns
    t0, t1 = state.clock.to_sensor_us(stamp - WINDOW_NS // 2), state.clock.to_sensor_us(stamp + WINDOW_NS // 2)
    events = state.buffer.window(t0, t1)
    pending.event_image = tencode(events, t0, t1, *state.sensor_size)
    pending.event_count = len(events)


def _finish(state: _State, pending: _Pending) -> ReplayedFrame:
    if pending.event_count is None:
        _make_event_image(state, pending)
    stamp = pending.frame.stamp_ns
    image = _rgb(pending.frame.data)
    mask = _mask_of(state, stamp)
    observation = None
    if mask is not None and state.camera is not None:
        observation = _observation(state, state.camera, pending, image, mask)
    labels = None if mask is None else mask.data
    return ReplayedFrame(stamp, image, pending.event_image, pending.event_count or 0, labels, observation)


def _observation(
    state: _State, camera: CameraModel, pending: _Pending, image: NDArray[np.uint8], mask: Frame
) -> Observation:
    stamp = pending.frame.stamp_ns
    event_image = pending.event_image
    if event_image is not None and (pending.event_count or 0) >= state.min_events:
        event_image = camera.rectify(event_image, nearest=True)
    else:
        event_image = None
    depth = min(state.depths, key=lambda frame: abs(frame.stamp_ns - stamp), default=None)
    if depth is not None and abs(depth.stamp_ns - stamp) > DEPTH_TOLERANCE_NS:
        depth = None
    return Observation(
        image=camera.rectify(image, nearest=False),
        mask=camera.rectify(mask.data, nearest=True),
        event_image=event_image,
        K=camera.K,
        depth=None if depth is None else camera.rectify(_metres(depth.data), nearest=True),
        stamp_ns=stamp,
    )


def _mask_of(state: _State, stamp_ns: int) -> Frame | None:
    return next((mask for mask in state.masks if mask.stamp_ns == stamp_ns), None)


def _rgb(data: NDArray[np.generic]) -> NDArray[np.uint8]:
    """(H, W) grey or (H, W, 3) -> (H, W, 3)."""
    pixels = np.asarray(data, dtype=np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _metres(depth: NDArray[np.generic]) -> NDArray[np.float32]:
    """16-bit millimetres or float metres -> float32 metres, 0 where unknown."""
    if depth.dtype == np.uint16:
        return depth.astype(np.float32) * np.float32(1e-3)
    return np.nan_to_num(depth.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
