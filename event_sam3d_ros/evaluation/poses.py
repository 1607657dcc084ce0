"""Poses over time: of the camera in the world, or of an object in the camera's frame; between two of them interpolated.

Camera poses come from a file in the TUM format, lines ``time x y z qx qy qz qw`` (seconds, metres, camera to world)
behind comments with #, or from the recording itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from event_sam3d_ros.errors import RecordingError

# Between two poses that are further apart than this nothing is known.
LONGEST_GAP_NS = 200_000_000
_COLUMNS = 8


@dataclass(frozen=True)
class CameraPose:
    """``position`` (3,) m and ``orientation`` (4,) x y z w of one frame in another at a stamp."""

    stamp_ns: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3): the first frame's axes as columns."""
        return Rotation.from_quat(self.orientation).as_matrix()

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 3) points of the first frame in the second."""
        return points @ self.rotation.T + self.position


class PoseTrack:
    """Poses by ascending stamp; of two with one stamp the later counts."""

    def __init__(self, poses: Sequence[CameraPose]) -> None:
        by_stamp = {pose.stamp_ns: pose for pose in poses}
        self._stamps = sorted(by_stamp)
        self._poses = [by_stamp[stamp] for stamp in self._stamps]

    @property
    def first_ns(self) -> int:
        """Stamp of the first pose."""
        return self._stamps[0]

    @property
    def last_ns(self) -> int:
        """Stamp of the last pose."""
        return self._stamps[-1]

    def at(self, stamp_ns: int) -> CameraPose | None:
        """The pose at a stamp: one of the track, or between two that are at most 0.2 s apart, position on the line and
        rotation on the arc; None where there is none."""
        place = bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            return self._poses[place]
        if place in (0, len(self._stamps)):
            return None
        before, after = self._poses[place - 1], self._poses[place]
        gap_ns = after.stamp_ns - before.stamp_ns
        if gap_ns > LONGEST_GAP_NS:
            return None
        share = (stamp_ns - before.stamp_ns) / gap_ns
        arc = Slerp([0.0, 1.0], Rotation.from_quat([before.orientation, after.orientation]))
        position = before.position + share * (after.position - before.position)
        return CameraPose(stamp_ns, position, arc(share).as_quat())


def read_tum(path: Path) -> PoseTrack:
    """Camera poses of a TUM file. RecordingError, with the line, for one that is none."""
    poses = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} can't be read as camera poses ({error})", reason="bad_truth") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            stamp_ns = int(Decimal(words[0]) * 1_000_000_000)
            values = np.array([float(word) for word in words[1:]])
        except (InvalidOperation, ValueError, OverflowError):
            values = np.empty(0)
        length = float(np.linalg.norm(values[3:])) if len(values) == _COLUMNS - 1 else 0.0
        if not (np.isfinite(length) and length > 0.5 and np.isfinite(values).all()):
            raise RecordingError(
                f"{path}, line {number}: expected 'time x y z qx qy qz qw' (TUM: seconds, metres, camera to world)",
                reason="bad_truth",
            )
        poses.append(CameraPose(stamp_ns, values[:3], values[3:] / length))
    if not poses:
        raise RecordingError(f"{path} has no poses: expected lines 'time x y z qx qy qz qw'", reason="bad_truth")
    return PoseTrack(poses)
