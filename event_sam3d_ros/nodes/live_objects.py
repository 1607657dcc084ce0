"""The objects of a message as the live view shows them, whoever sent it and whatever it left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError, excerpt
from event_sam3d_ros.msg import ReconstructedObject, ReconstructedObjectArray
from event_sam3d_ros.nodes.demo_recorder import object_result
from event_sam3d_ros.viewer.feeds import shown
from event_sam3d_ros.viewer.frames import ViewObject

_LABELS = 1 << 16  # of a mask


def object_name(item: ReconstructedObject) -> str:
    """The track, and what the mask calls it where that is more than a number."""
    return f"{item.id} {excerpt(item.label)}" if item.label and not item.label.isdecimal() else str(item.id)


def view_object(item: ReconstructedObject, name: str) -> ViewObject:
    """InputError where it is not said where and how large it is. Points without a place are left out."""
    found = object_result(item, int(item.id))
    numbers = np.array([*found.position, *found.quaternion, *found.size, found.score])
    if not (np.isfinite(numbers).all() and found.quaternion.any()):
        raise InputError(
            "position, orientation, size and score have to be numbers, and the orientation not all zeros",
            reason="bad_object",
        )
    known = np.isfinite(found.points).all(axis=1)
    return replace(shown(replace(found, points=found.points[known], colors=found.colors[known])), name=name)


def tracks_of(mask: NDArray[Any] | None, message: ReconstructedObjectArray) -> NDArray[np.uint32] | None:
    """The mask (h, w) by ids, uint32; labels that no mask can have are left out."""
    if mask is None:
        return None
    ids = np.zeros(_LABELS, np.uint32)
    for item in message.objects:
        # No mask's label has more than five digits, and thousands of them would be an error to int().
        label = int(item.label) if item.label.isdecimal() and len(item.label) <= 5 else 0
        if 0 < label < _LABELS:
            ids[label] = item.id
    return ids[mask]
