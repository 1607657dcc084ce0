"""Fixed transforms between coordinate frames, as /tf_static tells them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from event_sam3d_ros.errors import CalibrationError, excerpt

_NAMED = 10  # frames that an error names


class StaticTransforms:
    """A graph of frames. ``revision`` counts changes."""

    def __init__(self) -> None:
        self.revision = 0
        self._edges: dict[str, dict[str, NDArray[np.float64]]] = {}

    def add(self, parent: str, child: str, translation: Sequence[float], quaternion: Sequence[float]) -> None:
        """Take in p_parent = R p_child + t, the quaternion as x y z w; a newer one takes the place of an older one.

        Raises CalibrationError ``bad_transform`` for numbers that are no transform.
        """
        values = np.array([*translation, *quaternion], np.float64)
        if not np.isfinite(values).all() or abs(np.linalg.norm(values[3:]) - 1) > 1e-2:
            raise CalibrationError(
                f"the transform from {excerpt(child)} to {excerpt(parent)} is none "
                f"(translation {list(translation)}, quaternion {list(quaternion)}): publish finite numbers and "
                "a unit quaternion",
                reason="bad_transform",
            )
        matrix: NDArray[np.float64] = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = Rotation.from_quat(values[3:]).as_matrix(), values[:3]
        known = self._edges.get(parent, {}).get(child)
        if known is not None and np.array_equal(known, matrix):
            return
        self._edges.setdefault(parent, {})[child] = matrix
        self._edges.setdefault(child, {})[parent] = np.asarray(np.linalg.inv(matrix), np.float64)
        self.revision += 1

    def between(self, target: str, source: str) -> NDArray[np.float64]:
        """The 4x4 matrix that takes points of ``source`` to ``target``.

        Raises CalibrationError ``no_transform`` where they are not connected.
        """
        found = {source: np.eye(4)}
        waiting = deque([source])
        while waiting and target not in found:
            frame = waiting.popleft()
            for neighbour in self._edges.get(frame, {}):
                if neighbour not in found:
                    found[neighbour] = self._edges[neighbour][frame] @ found[frame]
                    waiting.append(neighbour)
        if target not in found:
            known = ", ".join(map(excerpt, sorted(self._edges)[:_NAMED]))
            raise CalibrationError(
                f"/tf_static does not connect the RGB camera's frame '{excerpt(target)}' with the event camera's "
                f"'{excerpt(source)}' (it knows {known or 'no frames'}): publish the transform with "
                "static_transform_publisher, or give a calibration_file",
                reason="no_transform",
            )
        return found[target]
