"""Events of one camera in the pixel grid of another, live: what event_image_node does where the cameras differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.calibration import CameraPair
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.camera.pixel_map import MappedEvents, PixelMap, PixelMapper
from event_sam3d_ros.camera.transforms import StaticTransforms
from event_sam3d_ros.errors import CalibrationError, InputError
from event_sam3d_ros.events.events import Events

_DEPTHS_KEPT = 8


@dataclass(frozen=True)
class AlignmentSettings:
    """See the node's parameters of the same names; 0 metres: no fallback."""

    mode: Literal["homography", "depth"] = "homography"
    depth_of: Literal["rgb", "events"] = "rgb"
    depth_tolerance_ns: int = 50_000_000
    fallback_depth_m: float = 0.0


class Alignment:
    """Takes in calibration and depth as they come, and maps the events of one frame's window.

    ``cameras`` from a file; without them both cameras' ``set_camera`` and ``transforms`` tell them.

    ``counters``: events that were mapped, and that were dropped: see `MappedEvents`.
    """

    def __init__(self, settings: AlignmentSettings, cameras: CameraPair | None = None) -> None:
        self.transforms = StaticTransforms()
        self.counters = dict.fromkeys(("mapped", "unknown_depth", "outside"), 0)
        self._settings = settings
        self._mapper = None if cameras is None else PixelMapper(cameras)
        self._fixed = cameras is not None
        self._cameras: dict[str, tuple[str, CameraModel]] = {}
        self._built_for: tuple | None = None  # what the mapper was made of
        self._map: PixelMap | None = None
        self._map_ns: int | None = None  # stamp of the depth that the map was made from
        self._depths: deque[tuple[int, NDArray]] = deque(maxlen=_DEPTHS_KEPT)

    # What is known

    def set_camera(self, which: Literal["events", "rgb"], frame_id: str, camera: CameraModel) -> None:
        """A camera's calibration and optical frame; does not count beside a file."""
        known = self._cameras.get(which)
        if known is None or (known[0], _values(known[1])) != (frame_id, _values(camera)):
            self._cameras[which] = frame_id, camera

    def add_transform(self, parent: str, child: str, translation: Sequence[float], quaternion: Sequence[float]) -> None:
        """One transform of /tf_static; see `StaticTransforms.add`."""
        self.transforms.add(parent, child, translation, quaternion)

    def add_depth(self, stamp_ns: int, depth: NDArray) -> None:
        """A depth image [H,W] in metres of the camera ``depth_of``, in that camera's grid."""
        if self._depths and stamp_ns < self._depths[-1][0]:
            self._depths.clear()  # a bag that loops
        self._depths.append((stamp_ns, depth))

    # What is done with it

    def is_ready(self, stamp_ns: int) -> bool:
        """Whether nothing that would serve a frame of this stamp better is still to come."""
        return self._settings.mode != "depth" or any(depth_ns >= stamp_ns for depth_ns, _ in self._depths)

    def place(self, events: Events, stamp_ns: int, width: int, height: int) -> tuple[MappedEvents, int, int]:
        """The events of a sensor of width x height pixels in the RGB grid, and the size of that.

        Raises CalibrationError or InputError with what is missing: ``no_camera_info``, ``no_transform``,
        ``size_mismatch``, ``missing_depth``.
        """
        mapper = self._up_to_date()
        camera = mapper.cameras.events
        if (width, height) != (camera.width, camera.height):
            raise CalibrationError(
                f"events come from {width}x{height} pixels, the event camera's calibration is for "
                f"{camera.width}x{camera.height}: calibrate at the size that is used",
                reason="size_mismatch",
            )
        mapped = self._map_for(mapper, stamp_ns).map(events)
        self.counters["unknown_depth"] += mapped.unknown_depth
        self.counters["outside"] += mapped.outside
        self.counters["mapped"] += len(events) - mapped.dropped
        return mapped, mapper.cameras.rgb.width, mapper.cameras.rgb.height

    def _up_to_date(self) -> PixelMapper:
        if self._fixed:
            assert self._mapper is not None
            return self._mapper
        missing = [name for name in ("events", "rgb") if name not in self._cameras]
        if missing:
            names = {"events": "the event camera", "rgb": "the RGB camera"}
            raise CalibrationError(
                f"no CameraInfo of {' and of '.join(names[name] for name in missing)} has come: publish it, or give a "
                "calibration_file",
                reason="no_camera_info",
            )
        (events_frame, events), (rgb_frame, rgb) = self._cameras["events"], self._cameras["rgb"]
        state = id(events), id(rgb), events_frame, rgb_frame, self.transforms.revision
        if self._mapper is None or state != self._built_for:
            matrix = self.transforms.between(rgb_frame, events_frame)
            self._mapper = PixelMapper(CameraPair(events, rgb, matrix[:3, :3], matrix[:3, 3]))
            self._built_for, self._map = state, None
        return self._mapper

    def _map_for(self, mapper: PixelMapper, stamp_ns: int) -> PixelMap:
        if self._settings.mode == "homography":
            if self._map is None:
                self._map = mapper.by_homography()
            return self._map
        depth_ns, depth = self._nearest_depth(stamp_ns)
        if self._map is None or depth_ns != self._map_ns:
            self._map = mapper.by_depth(depth, self._settings.depth_of, self._settings.fallback_depth_m)
            self._map_ns = depth_ns
        return self._map

    def _nearest_depth(self, stamp_ns: int) -> tuple[int, NDArray]:
        nearest = min(self._depths, key=lambda item: abs(item[0] - stamp_ns), default=None)
        if nearest is None or abs(nearest[0] - stamp_ns) > self._settings.depth_tolerance_ns:
            away_ms = None if nearest is None else abs(nearest[0] - stamp_ns) / 1e6
            found = "none has come" if away_ms is None else f"the nearest is {away_ms:.0f} ms away"
            raise InputError(
                f"no depth within {self._settings.depth_tolerance_ns / 1e6:g} ms of a frame ({found}): the frame gets "
                "no event image; send depth more often, or raise depth_tolerance_ms or max_wait_ms",
                reason="missing_depth",
            )
        return nearest


def _values(camera: CameraModel) -> tuple:
    """All that counts of a camera."""
    return camera.width, camera.height, camera.model, *np.ravel(camera.K).tolist(), *camera.D.tolist()
