"""What is known of a recording beside itself: meshes with poses over time, or the camera's poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.spatial.transform import Rotation

from event_sam3d_ros.demo.truth import FILE_NAME, TrueObject, read_truth_file
from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.evaluation.poses import CameraPose, PoseTrack, read_tum
from event_sam3d_ros.evaluation.solids import Solid

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Truth:
    """``objects``: true shapes by the masks' labels, and their poses in the camera's frame; ``camera``: the camera's
    poses in the world, or None. Poses between two that are at most 0.2 s apart are interpolated."""

    path: Path | None = None
    objects: Mapping[int, tuple[TrueObject, PoseTrack]] | None = None
    camera: PoseTrack | None = None

    @property
    def kind(self) -> str:
        """In words."""
        if self.objects:
            return "meshes with poses"
        return "camera poses" if self.camera else "none"

    @property
    def files(self) -> list[Path]:
        """The file, and the meshes that it names."""
        meshes = {true.mesh for true, _ in (self.objects or {}).values()}
        return [] if self.path is None else [self.path, *sorted(meshes)]

    def solid(self, label: int, stamp_ns: int) -> Solid | None:
        """The true solid of an object at a stamp, where there is one."""
        if not self.objects or label not in self.objects:
            return None
        true, track = self.objects[label]
        pose = track.at(stamp_ns)
        return None if pose is None else Solid.from_mesh(true.mesh, pose.rotation, pose.position)

    def span_ns(self) -> tuple[int, int] | None:
        """First and last stamp of all poses."""
        tracks = [track for _, track in (self.objects or {}).values()] + ([self.camera] if self.camera else [])
        return (min(t.first_ns for t in tracks), max(t.last_ns for t in tracks)) if tracks else None

    def check_overlap(self, first_ns: int, last_ns: int | None) -> None:
        """RecordingError where frames from ``first_ns`` to ``last_ns`` (None: to an unknown end) lie outside."""
        span = self.span_ns()
        if span is None or not (first_ns > span[1] or (last_ns is not None and last_ns < span[0])):
            return
        frames = f"from {first_ns / 1e9:.3f} s" + ("" if last_ns is None else f" to {last_ns / 1e9:.3f} s")
        raise RecordingError(
            f"{self.path} does not overlap the recording in time: its poses go from {span[0] / 1e9:.3f} s to "
            f"{span[1] / 1e9:.3f} s, the frames {frames}. Both need the clock of the frames' stamps",
            reason="no_overlap",
        )


def find_truth(bag: Path) -> Path | None:
    """ground_truth.yaml in a recording's folder, or beside its file."""
    beside = (bag if bag.is_dir() else bag.parent) / FILE_NAME
    return beside if beside.is_file() else None


def read_bag_truth(bag: Path, given: Path | None) -> Truth:
    """The truth of a recording: the file that was given (YAML: meshes; else TUM: camera poses), or ground_truth.yaml
    beside it, or nothing. RecordingError for a file that can't be used, InputError for a mesh."""
    path = given or find_truth(bag)
    if path is None:
        return Truth()
    if not path.is_file():
        raise RecordingError(f"{path} does not exist: give a ground truth file", reason="bad_truth")
    if path.suffix not in _YAML:
        return Truth(path, camera=read_tum(path))
    objects = {label: (true, _track(path, true)) for label, true in read_truth_file(path).items()}
    if not objects:
        raise RecordingError(f"{path} names no objects", reason="bad_truth")
    truth = Truth(path, objects)
    for label, (_, track) in objects.items():
        truth.solid(label, track.first_ns)  # a mesh that can't be used is told now, not after an hour
    return truth


def _track(path: Path, true: TrueObject) -> PoseTrack:
    if not true.poses:
        raise RecordingError(f"{path}: object {true.id} has no poses", reason="bad_truth")
    return PoseTrack(
        [
            CameraPose(stamp, pose.position, Rotation.from_matrix(pose.rotation).as_quat())
            for stamp, pose in true.poses.items()
        ]
    )
