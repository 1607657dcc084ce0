"""One frame from files: picture, mask, events and depth in, points, pose and a preview out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.camera.calibration import load_camera_info
from event_sam3d_ros.camera.model import CameraModel
from event_sam3d_ros.demo.results import write_ply
from event_sam3d_ros.errors import CalibrationError, ConfigurationError, InputError, RecordingWarning
from event_sam3d_ros.events.events import Events, concatenate
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.nodes.debug_image import draw
from event_sam3d_ros.observations import FrameArrays, build_observation
from event_sam3d_ros.pixels import depth_from_pixels, rgb_from_pixels
from event_sam3d_ros.preprocess import Observation
from event_sam3d_ros.reconstruction import Reconstruction
from event_sam3d_ros.recordings.files import EventChunk, Recording, open_recording

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_STEMS = ("image", "mask", "events", "depth", "camera")


@dataclass(frozen=True)
class SingleInput:
    """The files of one frame; ``name``: of the folder for its results, empty for the folder of all."""

    name: str
    image: Path | None = None
    mask: Path | None = None
    events: Path | None = None
    depth: Path | None = None
    camera: Path | None = None


@dataclass(frozen=True)
class SingleFrame:
    """What a model is given, and the number of events in it, 0 without events."""

    observation: Observation
    event_count: int


def find_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds an input, else those in it that do, by the names of their files. InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", reason="missing_file")
    if _holds(folder, "mask"):
        return [folder]
    found = [one for one in sorted(folder.iterdir()) if one.is_dir() and _holds(one, "image", "mask", "events")]
    if not found:
        raise InputError(
            f"{folder} holds no mask.*, nor does a folder in it: name the files image.*, mask.*, events.*, depth.*, "
            "camera.yaml, or give them one by one",
            reason="no_input",
        )
    return found


def input_of(one: Path, folder: Path, given: Mapping[str, Path]) -> SingleInput:
    """The files in ``one``, which is ``folder`` or lies in it, with the camera of ``folder``; ``given`` ones win.
    InputError where two have one name."""
    shared = _by_name(folder, ("camera",), given)
    name = "" if one == folder else one.name
    return SingleInput(name, **{**shared, **_by_name(one, _STEMS, given), **given})


def _holds(folder: Path, *stems: str) -> bool:
    return any(path.stem in stems for path in folder.iterdir())


def _by_name(folder: Path, stems: Sequence[str], given: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.stem not in stems or path.stem in given:
            continue
        if path.stem in found:
            raise InputError(
                f"{folder} holds {found[path.stem].name} and {path.name}: leave one, or give it by --{path.stem}",
                reason="ambiguous_input",
            )
        found[path.stem] = path
    return found


def read_observation(
    files: SingleInput, K: str | None, time_s: float | None, mode: str | None, info: Mapping[str, Any]
) -> SingleFrame:
    """The files as a model sees them in a mode (None: all that is given; a warning where there are too few events for
    that). ``K``: "fx,fy,cx,cy"; ``time_s``: middle of the window, None: of the file; ``info``: of the model.
    InputError, CalibrationError, RecordingError for bad ones."""
    wanted = {"rgb": ("image",), "events": ("events",), "fused": ("image", "events"), None: ()}[mode]
    missing = [name for name in ("mask", *wanted) if getattr(files, name) is None]
    if missing:
        where = f" of {files.name}" if files.name else ""
        raise InputError(f"no {' and no '.join(missing)}{where}: give --{missing[0]} FILE", reason="no_input")
    assert files.mask is not None
    mask = _read_picture(files.mask)
    mask = mask[..., 0] if mask.ndim == 3 else mask
    if mask.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{files.mask}: a mask has 8 or 16 bits, not {mask.dtype}", reason="bad_dtype")
    camera = _camera(files, K, mask.shape)
    event_image, count = None, 0
    if files.events is not None and mode != "rgb":
        event_image, count, span = _event_image(files.events, time_s, info["window_ms"])
        if count < info["min_events"]:
            sentence = f"{files.events}: {count} events in the window, the model needs {info['min_events']}{span}"
            if mode is not None or files.image is None:
                instead = " or --mode rgb" if mode == "fused" else ""
                raise InputError(f"{sentence}: give another --time{instead}", reason="few_events")
            warnings.warn(RecordingWarning(f"{sentence}: the frame is used without them"), stacklevel=2)
            event_image, count = None, 0
    arrays = FrameArrays(
        stamp_ns=0,
        mask=mask,
        image=None if files.image is None or mode == "events" else rgb_from_pixels(_read_picture(files.image)),
        event_image=event_image,
        event_count=count,
        depth=None if files.depth is None else _read_depth(files.depth),
    )
    if arrays.image is None and arrays.event_image is None:
        raise InputError("neither a frame nor events are given: add --image or --events", reason="no_input")

    def never(reason: str, sentence: str) -> None:
        raise InputError(sentence, reason=reason)  # too few events were told above

    return SingleFrame(build_observation(arrays, camera, info["min_events"], never), count)


def _camera(files: SingleInput, K: str | None, shape: tuple[int, ...]) -> CameraModel:
    if K is not None:
        try:
            fx, fy, cx, cy = map(float, K.split(","))
        except ValueError:
            raise ConfigurationError(f"--K {K!r}: give fx,fy,cx,cy in pixels", reason="bad_intrinsics") from None
        return CameraModel([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], (), shape[1], shape[0])
    if files.camera is None:
        raise CalibrationError("no camera is given: add --camera YAML or --K fx,fy,cx,cy", reason="no_camera_info")
    return load_camera_info(files.camera)


def _read_picture(path: Path) -> NDArray[Any]:
    """RGB or grey, as many bits as the file has."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if picture is None:
        state = "can't be read as a picture" if path.is_file() else "no such file"
        raise InputError(f"{path}: {state}", reason="bad_image" if path.is_file() else "missing_file")
    return picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., 2::-1])


def _read_depth(path: Path) -> NDArray[np.float32]:
    if path.suffix != ".npy":
        return depth_from_pixels(_read_picture(path))
    try:
        depth = np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} can't be read as depth ({error})", reason="bad_image") from error
    return depth_from_pixels(depth)


def _event_image(path: Path, time_s: float | None, window_ms: float) -> tuple[NDArray[np.uint8], int, str]:
    """A Tencode picture, its number of events, and in words from when to when the file has any; of a picture that is
    one already, its coloured pixels."""
    if path.suffix.lower() in _PICTURES:
        picture = rgb_from_pixels(_read_picture(path))
        return picture, int(picture.any(axis=2).sum()), ""
    recording = open_recording(path)
    half_us = round(window_ms * 500)
    middle_us = _middle_us(recording) if time_s is None else round(time_s * 1e6)
    t0, t1 = middle_us - half_us, middle_us + half_us
    pieces, ends = [Events.empty()], []
    for events in _chunks(recording):
        ends += [int(events.t.min()), int(events.t.max())]
        inside = (t0 <= events.t) & (events.t < t1)
        if inside.any():
            pieces.append(events[inside])
    if not ends:
        raise InputError(f"{path} has no events", reason="few_events")
    window = f"{t0 / 1e6:.6g} to {t1 / 1e6:.6g} s of a file from {min(ends) / 1e6:.6g} to {max(ends) / 1e6:.6g} s"
    inside_events = concatenate(pieces)
    picture = tencode(inside_events, t0, t1, recording.width, recording.height)
    return picture, len(inside_events), f" ({window})"


def _chunks(recording: Recording) -> Iterator[Events]:
    return (one.events for one in recording.samples() if isinstance(one, EventChunk) and len(one.events))


def _middle_us(recording: Recording) -> int:
    """Of the events' times; 0 without any."""
    ends = [int(end) for events in _chunks(recording) for end in (events.t.min(), events.t.max())]
    return (min(ends) + max(ends)) // 2 if ends else 0


def write_results(
    out: Path, files: SingleInput, frame: SingleFrame, found: Sequence[Reconstruction], info: Mapping[str, Any]
) -> None:
    """object_ID.ply, pose.json and preview.png; the points of an earlier run go."""
    out.mkdir(parents=True, exist_ok=True)
    for name in _earlier_points(out / "pose.json"):
        (out / name).unlink(missing_ok=True)
    for one in found:
        write_ply(out / f"object_{one.id}.ply", one.points, one.colors)
    objects = [
        {
            "id": one.id,
            "score": round(float(one.score), 6),
            "metric": one.metric,
            "position": [round(float(value), 6) for value in one.position],
            "quaternion_xyzw": [round(float(value), 6) for value in one.quaternion],
            "size": [round(float(value), 6) for value in one.size],
            "points": f"object_{one.id}.ply",
        }
        for one in found
    ]
    model = {name: info[name] for name in ("name", "tag", "version", "sha256") if name in info}
    seen = frame.observation
    used = {"image": seen.image, "mask": seen.mask, "events": seen.event_image, "depth": seen.depth}
    inputs = {name: None if array is None else str(getattr(files, name)) for name, array in used.items()}
    content = {
        "frame": "camera, optical: x right, y down, z forward; metres",
        "inputs": {**inputs, "event_count": frame.event_count, "K": seen.K.tolist()},
        "model": model,
        "objects": objects,
    }
    (out / "pose.json").write_text(json.dumps(content, indent=2) + "\n")
    picture = cv2.imencode(".png", draw(seen, found)[..., ::-1])[1]
    (out / "preview.png").write_bytes(picture.tobytes())


def _earlier_points(path: Path) -> list[str]:
    """The names of the points that a run before wrote beside its pose.json."""
    try:
        names = [one["points"] for one in json.loads(path.read_text())["objects"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return []
    return [name for name in names if isinstance(name, str) and re.fullmatch(r"object_\d+\.ply", name)]
