"""The same object keeps the same id from frame to frame, whatever labels its masks bear. Without ROS.

A reconstruction continues the track that it overlaps most: its box in 3D, where depth gives the scale on both sides,
and its mask in the image. Overlap is the IoU less the squared distance of the centres over the squared diagonal of
the box around both (DIoU, Zheng et al., AAAI 2020), so that fast objects that no longer touch where they were are
still told apart by nearness. Tracks move on at their latest speed before they are compared; all pairs of a frame are
chosen together (Hungarian method). What overlaps nothing continues the track of its label, as long as labels have
always agreed with overlaps: then their source tracks too, which helps where the model is slower than the motion. The
outcome depends on nothing but what was given, in the order of giving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from event_sam3d_ros.reconstruction import Reconstruction

PATIENCE_S = 1.0
MIN_MISSED = 3  # frames: a slow model sees too little of the time to say that an object is gone
MIN_OVERLAP = -0.35  # DIoU of equal boxes that are about 1.7 of their widths apart
HORIZON_S = 0.5  # a track moves on at its latest speed for at most this long
SPEED_TIME_S = 0.1  # over which speeds are averaged
MAX_MISSING = 200  # tracks; what is missing for longest is given up first
_LABELS = 1 << 16


@dataclass(frozen=True)
class TrackedFrame:
    """``reconstructions``: those of one frame with track ids, ascending; ``labels``: the mask's label of each;
    ``born``: ids that are new; ``died``: ids of tracks that ended, which come never again."""

    reconstructions: list[Reconstruction]
    labels: tuple[int, ...]
    born: tuple[int, ...]
    died: tuple[int, ...]


@dataclass(frozen=True)
class _Box:
    """An axis-aligned box of 2 (pixels) or 3 (metres) dimensions."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def centre(self) -> NDArray[np.float64]:
        return (self.low + self.high) / 2

    def moved(self, by: NDArray[np.float64]) -> _Box:
        return _Box(self.low + by, self.high + by)


@dataclass(frozen=True)
class _Sight:
    """What was seen of an object once. ``box``: metres, in the world (``in_world``) or the camera's frame, None where
    its scale is a guess; ``pixels``: (h, w) bool, its mask inside ``window`` (x, y in pixels)."""

    label: int
    stamp_ns: int
    box: _Box | None
    in_world: bool
    window: _Box
    pixels: NDArray[np.bool_]


@dataclass(frozen=True)
class _Track:
    """``speed`` of the box, m/s, and ``image_speed`` of the mask, pixels/s; None until it was seen twice."""

    id: int
    sight: _Sight
    speed: NDArray[np.float64] | None = None
    image_speed: NDArray[np.float64] | None = None
    missed: int = 0  # frames since its sight

    def moved_to(self, stamp_ns: int) -> _Sight:
        """Where the object should be at a time."""
        elapsed_s = min(max(0.0, (stamp_ns - self.sight.stamp_ns) / 1e9), HORIZON_S)
        window, box = self.sight.window, self.sight.box
        if self.image_speed is not None:
            window = window.moved(np.rint(self.image_speed * elapsed_s))
        if box is not None and self.speed is not None:
            box = box.moved(self.speed * elapsed_s)
        return replace(self.sight, window=window, box=box)

    def continued(self, sight: _Sight) -> _Track:
        """The track with its newest sight."""
        elapsed_s = (sight.stamp_ns - self.sight.stamp_ns) / 1e9
        image_speed = _averaged(self.image_speed, self.sight.window, sight.window, elapsed_s)
        return _Track(
            self.id, sight, _averaged(self.speed, *_comparable_boxes(self.sight, sight), elapsed_s), image_speed
        )


class Tracker:
    """Gives reconstructions the ids of their tracks, frame after frame.

    A track that is not seen for ``patience_s`` (by the frames' stamps) and at least 3 frames ends. A new one takes its
    mask's label as its id if no track had that id before, else the next number that none had: as long as the source
    of the masks keeps its labels, ids are labels. A stamp that is earlier by more than the patience (a recording
    starts again) ends all tracks and forgets all ids. Memory: the latest mask of each track, of at most 200 tracks
    that are not in the picture.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_ns = round(patience_s * 1e9)
        self._start_over()

    def _start_over(self) -> None:
        self._tracks: list[_Track] = []
        self._newest_ns: int | None = None
        self._used = np.zeros(_LABELS, bool)  # ids that a mask could name
        self._next = 1
        self._labels_hold = True

    @property
    def alive(self) -> tuple[int, ...]:
        """Ids of the tracks that may go on, ascending."""
        return tuple(sorted(track.id for track in self._tracks))

    def update(
        self,
        stamp_ns: int,
        reconstructions: Sequence[Reconstruction],
        mask: NDArray[np.integer],
        camera_to_world: NDArray[np.float64] | None = None,
    ) -> TrackedFrame:
        """The reconstructions of one frame, whose ids are labels of ``mask`` (H, W), with the ids of their tracks.

        ``camera_to_world``: (4, 4) pose of the camera's optical frame; without it boxes are compared in that frame.
        """
        died = self._end_tracks(stamp_ns)
        sights = [_sight(stamp_ns, item, mask, camera_to_world) for item in reconstructions]
        # Pairs of equal overlap must not be chosen by the order of labels, which may change at any time.
        order = sorted(range(len(sights)), key=lambda i: (*sights[i].window.low, *reconstructions[i].position))
        found = self._associate([sights[i] for i in order])
        track_of = {order[column]: row for row, column in found}
        born, ids = [], []
        for i, (item, sight) in enumerate(zip(reconstructions, sights, strict=True)):
            if i in track_of:
                track = self._tracks[track_of[i]] = self._tracks[track_of[i]].continued(sight)
            else:
                track = _Track(self._new_id(item.id), sight)
                self._tracks.append(track)
                born.append(track.id)
            ids.append(track.id)
        died += self._give_up(set(ids))
        by_id = sorted(range(len(ids)), key=lambda i: ids[i])
        tracked = [replace(reconstructions[i], id=ids[i]) for i in by_id]
        labels = tuple(reconstructions[i].id for i in by_id)
        return TrackedFrame(tracked, labels, tuple(sorted(born)), tuple(sorted(died)))

    def _end_tracks(self, stamp_ns: int) -> list[int]:
        if self._newest_ns is not None and stamp_ns < self._newest_ns - self._patience_ns:
            died = list(self.alive)
            self._start_over()
        else:
            died = [track.id for track in self._tracks if self._is_over(track, stamp_ns)]
            self._tracks = [replace(track, missed=track.missed + 1) for track in self._tracks if track.id not in died]
        self._newest_ns = max(stamp_ns, self._newest_ns or stamp_ns)
        return died

    def _is_over(self, track: _Track, stamp_ns: int) -> bool:
        return track.missed >= MIN_MISSED and stamp_ns - track.sight.stamp_ns > self._patience_ns

    def _associate(self, sights: list[_Sight]) -> list[tuple[int, int]]:
        """Pairs (track, sight) of the largest sum of overlaps over the least that is allowed, then those by label."""
        if not sights or not self._tracks:
            return []
        gain = _overlaps([track.moved_to(sights[0].stamp_ns) for track in self._tracks], sights) - MIN_OVERLAP
        rows, columns = linear_sum_assignment(np.maximum(gain, 0.0), maximize=True)
        found = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if gain[row, column] > 0}
        if any(self._tracks[row].sight.label != sights[column].label for row, column in found.items()):
            self._labels_hold = False
        if self._labels_hold:
            # One label belongs to one track: had there been two, they would have disagreed with an overlap.
            left = {sight.label: column for column, sight in enumerate(sights) if column not in found.values()}
            labels = {track.sight.label: row for row, track in enumerate(self._tracks) if row not in found}
            found |= {row: left[label] for label, row in labels.items() if label in left}
        return list(found.items())

    def _new_id(self, label: int) -> int:
        new = label if 0 < label < _LABELS and not self._used[label] else self._next
        if new < _LABELS:
            self._used[new] = True
        self._next = max(self._next, new + 1)
        return new

    def _give_up(self, seen: set[int]) -> list[int]:
        missing = sorted((t.sight.stamp_ns, t.id) for t in self._tracks if t.id not in seen)
        given_up = [track_id for _, track_id in missing[:-MAX_MISSING]]
        self._tracks = [track for track in self._tracks if track.id not in given_up]
        return given_up


def _sight(
    stamp_ns: int, item: Reconstruction, mask: NDArray[np.integer], camera_to_world: NDArray[np.float64] | None
) -> _Sight:
    rows, columns = np.nonzero(mask == item.id)
    low = np.array([columns.min(initial=mask.shape[1]), rows.min(initial=mask.shape[0])])
    high = np.maximum(low, np.array([columns.max(initial=-1), rows.max(initial=-1)]) + 1)
    pixels = mask[low[1] : high[1], low[0] : high[0]] == item.id
    box = _world_box(item, camera_to_world) if item.metric else None
    return _Sight(
        item.id, stamp_ns, box, camera_to_world is not None, _Box(low.astype(float), high.astype(float)), pixels
    )


def _world_box(item: Reconstruction, camera_to_world: NDArray[np.float64] | None) -> _Box:
    """The axis-aligned box around the object's own."""
    axes, centre = Rotation.from_quat(item.quaternion).as_matrix(), np.asarray(item.position, float)
    if camera_to_world is not None:
        axes, centre = camera_to_world[:3, :3] @ axes, camera_to_world[:3, :3] @ centre + camera_to_world[:3, 3]
    half = np.abs(axes) @ (np.asarray(item.size, float) / 2)
    return _Box(centre - half, centre + half)


def _overlaps(tracks: Sequence[_Sight], sights: Sequence[_Sight]) -> NDArray[np.float64]:
    """Overlap of every track (rows) with every sight (columns), -1 to 1: the mean of image and 3D where that counts."""
    common, separation, _ = _pairs([t.window for t in tracks], [s.window for s in sights])
    for row, column in np.argwhere(common > 0):
        common[row, column] = _common_pixels(tracks[row], sights[column])
    areas = [np.array([np.count_nonzero(one.pixels) for one in many], float) for many in (tracks, sights)]
    in_image = _iou(common, areas[0], areas[1]) - separation
    common, separation, volumes = _pairs([t.box for t in tracks], [s.box for s in sights])
    in_space = _iou(common, volumes[0], volumes[1]) - separation
    comparable = np.equal.outer([t.in_world for t in tracks], [s.in_world for s in sights]) & np.isfinite(in_space)
    return np.where(comparable, (in_image + in_space) / 2, in_image)


def _pairs(
    first: Sequence[_Box | None], second: Sequence[_Box | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[NDArray[np.float64]]]:
    """Of every pair of boxes their common volume and the squared distance of their centres over the squared diagonal
    of the box around both, 0 to 1; and the volumes. NaN where a box is None."""
    unknown = np.full(3, np.nan)
    (low, high), (other_low, other_high) = (
        [np.array([unknown if box is None else getattr(box, name) for box in many]) for name in ("low", "high")]
        for many in (first, second)
    )
    a_low, a_high, b_low, b_high = low[:, None], high[:, None], other_low[None], other_high[None]
    common = np.prod(np.maximum(np.minimum(a_high, b_high) - np.maximum(a_low, b_low), 0.0), axis=2)
    around = np.sum((np.maximum(a_high, b_high) - np.minimum(a_low, b_low)) ** 2, axis=2)
    apart = np.sum((a_low + a_high - b_low - b_high) ** 2, axis=2) / 4
    volumes = [np.prod(high - low, axis=1), np.prod(other_high - other_low, axis=1)]
    return common, apart / np.maximum(around, 1e-12), volumes


def _iou(common: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    either: NDArray[np.float64] = first[:, None] + second[None] - common
    return common / np.maximum(either, 1e-12)


def _common_pixels(a: _Sight, b: _Sight) -> int:
    low = np.maximum(a.window.low, b.window.low)
    size = np.minimum(a.window.high, b.window.high) - low
    return int(np.count_nonzero(_cut(a.pixels, low - a.window.low, size) & _cut(b.pixels, low - b.window.low, size)))


def _cut(pixels: NDArray[np.bool_], low: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.bool_]:
    x, y = low.astype(int)
    width, height = size.astype(int)
    return pixels[y : y + height, x : x + width]


def _comparable_boxes(a: _Sight, b: _Sight) -> tuple[_Box | None, _Box | None]:
    """The boxes of both, if both are known in the same frame."""
    return (a.box, b.box) if a.in_world == b.in_world else (None, None)


def _averaged(
    speed: NDArray[np.float64] | None, before: _Box | None, now: _Box | None, elapsed_s: float
) -> NDArray[np.float64] | None:
    """Exponential average of a speed with that between two boxes; the first one counts in full."""
    if before is None or now is None:
        return None
    if elapsed_s <= 0:
        return speed
    latest = (now.centre - before.centre) / elapsed_s
    return latest if speed is None else speed + (1 - np.exp(-elapsed_s / SPEED_TIME_S)) * (latest - speed)
