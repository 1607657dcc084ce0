"""A saved 4D sequence: what a camera saw and what was reconstructed, frame after frame, in one NPZ file.

Fields that EgoMono4D's result has too bear its names and shapes; f frames of h x w pixels, n reconstructions with m
points together. All 3D is in the world's frame; where the camera's pose is not known that is its optical frame.

    xyzs              (f, h, w, 3) float32  metres, NaN where there is no depth
    rgbs              (f, h, w, 3) uint8    rectified
    event_images      (f, h, w, 3) uint8    Tencode of the frames' event windows; black where there are no events
    depths            (f, h, w) float32     metres along the optical axis, NaN where not given
    intrinsics        (f, 3, 3) float64     K: pixel from camera, pixel centres at whole numbers
    extrinsics        (f, 4, 4) float64     camera (OpenCV: x right, y down, z forward) to world; identity if not known
    poses_known       (f,) bool             whether the extrinsics are known
    masks             (f, h, w) uint16      labels as given, 0 nothing
    stamps            (f,) int64            ns
    object_frames     (n,) int32            index of the frame, ascending
    object_ids        (n,) uint32           track
    object_labels     (n,) uint16           label in the frame's mask
    object_scores     (n,) float32          expected IoU, 0 to 1
    object_metric     (n,) bool             whether the scale comes from depth
    object_poses      (n, 4, 4) float64     object frame (centre, z up) to world
    object_sizes      (n, 3) float64        extents along the object's axes, metres
    object_offsets    (n + 1,) int64        points of object i: object_points[offsets[i] : offsets[i + 1]]
    object_points     (m, 3) float32        on the surface
    object_colors     (m, 3) uint8          RGB
    info              str                   JSON: recording, model, world frame, tracks

The file is a plain `numpy.savez` archive. Its members are not compressed, so that `load_sequence` maps them: a frame is
read from the disk when it is looked at.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.recordings.npz import ARCHIVE_DAMAGE

FILE_NAME = "sequence.npz"
FLOATS, DOUBLES = "<f4", "<f8"
# dtype and shape behind the first axis; h and w stand for the image's size.
FIELDS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "xyzs": (FLOATS, ("h", "w", 3)),
    "rgbs": ("|u1", ("h", "w", 3)),
    "event_images": ("|u1", ("h", "w", 3)),
    "depths": (FLOATS, ("h", "w")),
    "intrinsics": (DOUBLES, (3, 3)),
    "extrinsics": (DOUBLES, (4, 4)),
    "poses_known": ("|b1", ()),
    "masks": ("<u2", ("h", "w")),
    "stamps": ("<i8", ()),
    "object_frames": ("<i4", ()),
    "object_ids": ("<u4", ()),
    "object_labels": ("<u2", ()),
    "object_scores": (FLOATS, ()),
    "object_metric": ("|b1", ()),
    "object_poses": (DOUBLES, (4, 4)),
    "object_sizes": (DOUBLES, (3,)),
    "object_offsets": ("<i8", ()),
    "object_points": (FLOATS, (3,)),
    "object_colors": ("|u1", (3,)),
}


@dataclass(frozen=True)
class SequenceObject:
    """One reconstruction in one frame. ``pose``: (4, 4) object to world; ``size``: (3,) metres; ``points``: (N, 3)
    float32 in the world, ``colors``: (N, 3) uint8 RGB."""

    id: int
    label: int
    score: float
    metric: bool
    pose: NDArray[np.float64]
    size: NDArray[np.float64]
    points: NDArray[np.float32]
    colors: NDArray[np.uint8]


@dataclass(frozen=True)
class SequenceFrame:
    """One frame; the arrays are those of the file (see above) without their first axis."""

    stamp_ns: int
    xyz: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    event_image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K: NDArray[np.float64]
    camera_to_world: NDArray[np.float64]
    pose_known: bool
    mask: NDArray[np.uint16]
    objects: tuple[SequenceObject, ...]

    def track_mask(self) -> NDArray[np.uint32]:
        """(h, w) ids of the tracks instead of labels; what has no reconstruction is 0."""
        ids = np.zeros(1 << 16, np.uint32)
        for item in self.objects:
            ids[item.label] = item.id
        return ids[self.mask]


class Sequence:
    """A saved sequence: ``len``, index and iteration give frames. ``arrays``: the file's, mapped and read-only;
    ``info``: recording, model, world_frame (empty where no pose is known) and tracks."""

    def __init__(self, path: Path, arrays: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        self.path, self.arrays, self.info = path, arrays, info
        self._objects_of = np.searchsorted(arrays["object_frames"], np.arange(len(self) + 1))

    def __len__(self) -> int:
        return len(self.arrays["stamps"])

    def __iter__(self) -> Iterator[SequenceFrame]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> SequenceFrame:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        i, of = index % len(self), self.arrays
        return SequenceFrame(
            stamp_ns=int(of["stamps"][i]),
            xyz=of["xyzs"][i],
            rgb=of["rgbs"][i],
            event_image=of["event_images"][i],
            depth=of["depths"][i],
            K=of["intrinsics"][i],
            camera_to_world=of["extrinsics"][i],
            pose_known=bool(of["poses_known"][i]),
            mask=of["masks"][i],
            objects=tuple(self._object(n) for n in range(self._objects_of[i], self._objects_of[i + 1])),
        )

    def _object(self, n: int) -> SequenceObject:
        of = self.arrays
        points = slice(int(of["object_offsets"][n]), int(of["object_offsets"][n + 1]))
        return SequenceObject(
            id=int(of["object_ids"][n]),
            label=int(of["object_labels"][n]),
            score=float(of["object_scores"][n]),
            metric=bool(of["object_metric"][n]),
            pose=of["object_poses"][n],
            size=of["object_sizes"][n],
            points=of["object_points"][points],
            colors=of["object_colors"][points],
        )


def load_sequence(path: str | Path) -> Sequence:
    """Opens a sequence: its folder or its NPZ file. InputError where there is none or it can't be used."""
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist: give a folder that event-sam3d sequence wrote", reason="missing_file")
    try:
        arrays = _map_archive(file)
        info = json.loads(str(arrays.pop("info")))
        _check(arrays)
    except ARCHIVE_DAMAGE as error:
        raise InputError(f"{file} is not a whole sequence ({error}): write it anew", reason="bad_sequence") from error
    return Sequence(file, arrays, info)


def _check(arrays: dict[str, NDArray[Any]]) -> None:
    """ValueError, or KeyError, where fields are missing, or their types or shapes do not fit together."""
    _, height, width, _ = arrays["xyzs"].shape
    counts = {
        "stamps": len(arrays["stamps"]),
        "object_ids": len(arrays["object_ids"]),
        "object_points": len(arrays["object_points"]),
    }
    for name, (dtype, shape) in FIELDS.items():
        first = counts["object_ids"] if name.startswith("object_") else counts["stamps"]
        first = counts["object_points"] if name in ("object_points", "object_colors") else first
        first += name == "object_offsets"
        wanted = (first, *({"h": height, "w": width}.get(str(side), side) for side in shape))
        found = arrays[name]
        if found.dtype.str != dtype or found.shape != wanted:
            raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {np.dtype(dtype)} {wanted}")
    frames, offsets = arrays["object_frames"], arrays["object_offsets"]
    bounds = len(frames) == 0 or (frames[0] >= 0 and frames[-1] < counts["stamps"])
    in_order = (np.diff(frames) >= 0).all() and (np.diff(offsets) >= 0).all()
    if not (bounds and in_order and offsets[0] == 0 and offsets[-1] == counts["object_points"]):
        raise ValueError("objects, frames and points do not belong together")


def _map_archive(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an NPZ, mapped where they are not compressed."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _map_member(file, member)
            else:
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _map_member(file: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    with file.open("rb") as stream:
        stream.seek(member.header_offset + 26)  # behind it: lengths of the name and of what the archiver added
        lengths = np.frombuffer(stream.read(4), "<u2")
        stream.seek(int(lengths.sum()), 1)
        begin = stream.tell()
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        offset = stream.tell()
        if fortran or dtype.hasobject or offset - begin + size != member.file_size:
            raise ValueError(f"{member.filename} is no array that can be mapped")
        if size == 0:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape)
