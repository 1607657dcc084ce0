"""From the arrays of one frame to a rectified Observation, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.errors import InputError
from event_sam3d_ros.preprocess import Observation


@dataclass(frozen=True)
class FrameArrays:
    """What came for one frame, not yet rectified; None is what did not come.

    image        [H,W,3] uint8 RGB
    mask         [H,W] uint8 or uint16 labels
    event_image  [H,W,3] uint8 Tencode
    event_count  events in its window
    depth        [H,W] float32 metres
    points       [N,3] float32 metres in the optical frame: the other form of depth
    """

    stamp_ns: int
    mask: NDArray
    image: NDArray[np.uint8] | None = None
    event_image: NDArray[np.uint8] | None = None
    event_count: int = 0
    depth: NDArray[np.float32] | None = None
    points: NDArray[np.float32] | None = None


def build_observation(
    arrays: FrameArrays, camera: CameraModel, min_events: int, report: Callable[[str, str], None]
) -> Observation:
    """Rectify everything to the camera's pixel grid; with fewer than ``min_events`` events, go on without them.

    The latter is reported as ``few_events``, or raised as InputError where there is no image. Raises InputError
    ``size_mismatch`` where an image is not of the camera's size: there is one pixel grid in this version.
    """
    event_image = arrays.event_image
    if event_image is not None:
        event_image = camera.rectify(event_image, nearest=True, name="event image")
        if arrays.event_count < min_events:
            found = f"{arrays.event_count} events in a window, the model needs {min_events}"
            if arrays.image is None:
                raise InputError(f"{found}, and there is no image to go on with", reason="few_events")
            report("few_events", f"{found}: the frame goes on without them")
            event_image = None
    depth = arrays.depth
    if depth is not None:
        depth = camera.rectify(depth, nearest=True, name="depth")
    elif arrays.points is not None:
        depth = camera.depth_image(arrays.points)
    return Observation(
        image=None if arrays.image is None else camera.rectify(arrays.image, nearest=False, name="frame"),
        mask=camera.rectify(arrays.mask, nearest=True, name="mask"),
        event_image=event_image,
        K=camera.K,
        depth=depth,
        stamp_ns=arrays.stamp_ns,
    )
