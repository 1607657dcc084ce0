"""Which topic of a recording carries what: by name, found, or missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from event_sam3d_ros.errors import ConfigurationError, RecordingError
from event_sam3d_ros.recordings.bag_messages import (
    CAMERA_INFO_TYPE,
    COMPRESSED_IMAGE_TYPE,
    EVENT_TYPES,
    IMAGE_TYPE,
    POINTS_TYPE,
    POSE_TYPE,
)
from event_sam3d_ros.recordings.files import Recording, Rosbag2Recording, Topics, open_recording

MODES = ("rgb", "events", "fused")
_PICTURES = (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
KINDS: dict[str, tuple[str, ...]] = {
    "events": EVENT_TYPES,
    "image": _PICTURES,
    "camera_info": (CAMERA_INFO_TYPE,),
    "mask": _PICTURES,
    "depth": (*_PICTURES, POINTS_TYPE),
    "pose": (POSE_TYPE,),
}
# Parts of a topic's last words by which it is found where the default name is not there.
_NAMES = {"mask": ("mask", "label", "segmentation"), "depth": ("depth",)}


def parse_topics(words: Iterable[str]) -> dict[str, str]:
    """``image=/x`` or ``image=/x,mask=/y`` -> topics by kind. ConfigurationError for anything else."""
    topics = {}
    for word in (part for one in words for part in one.split(",") if part):
        kind, _, topic = word.partition("=")
        if kind not in KINDS or not topic.startswith("/"):
            raise ConfigurationError(
                f"--topics {word!r} can't be understood: give KIND=/TOPIC, KIND one of {', '.join(KINDS)}",
                reason="bad_topics",
            )
        topics[kind] = topic
    return topics


def open_input(path: Path, given: Mapping[str, str], modes: Sequence[str]) -> tuple[Recording, dict[str, str]]:
    """The recording with its topics set, and for every kind in words where it comes from.

    RecordingError for a recording without what the modes need, or whose topic has a type that nothing here reads.
    """
    recording = open_recording(path)
    if not isinstance(recording, Rosbag2Recording):
        if given:
            raise RecordingError(f"{path} is no bag and has no topics: leave --topics out", reason="bad_topics")
        return recording, {"everything": f"the samples of {path.name} ({recording.encoding})"}
    recording.topics = _find(recording, given)
    missing = [kind for kind in _needed(modes) if getattr(recording.topics, kind) not in recording.types]
    if missing:
        present = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(recording.types.items())) or "nothing"
        wanted = ", ".join(f"{kind} ({getattr(recording.topics, kind)})" for kind in missing)
        raise RecordingError(
            f"{path} has no topic for {wanted}; it has {present}. Name it with --topics {missing[0]}=/NAME",
            reason="missing_topic",
        )
    for kind in _needed(modes):
        _check_type(recording, kind, getattr(recording.topics, kind))
    return recording, {kind: _described(recording, kind) for kind in KINDS}


def _needed(modes: Sequence[str]) -> list[str]:
    """RGB frames lead: their stamps say what belongs together."""
    return ["image", "camera_info", "mask"] + (["events"] if set(modes) - {"rgb"} else [])


def _find(recording: Rosbag2Recording, given: Mapping[str, str]) -> Topics:
    topics = recording.topics
    for kind, words in _NAMES.items():
        if getattr(topics, kind) not in recording.types:
            found = [
                topic
                for topic, type_ in sorted(recording.types.items())
                if type_ in KINDS[kind] and any(word in topic.rpartition("/")[2].lower() for word in words)
            ]
            topics = replace(topics, **{kind: found[0]}) if len(found) == 1 else topics
    for kind, topic in given.items():
        if topic not in recording.types:
            raise RecordingError(
                f"{recording.path} has no topic {topic}; it has {', '.join(sorted(recording.types)) or 'none'}",
                reason="missing_topic",
            )
        _check_type(recording, kind, topic)
        topics = replace(topics, **{kind: topic})
    return topics


def _check_type(recording: Rosbag2Recording, kind: str, topic: str) -> None:
    if recording.types[topic] not in KINDS[kind]:
        raise RecordingError(
            f"{recording.path}: {topic} is a {recording.types[topic]}; for {kind} give one of {', '.join(KINDS[kind])}",
            reason="unsupported_type",
        )


def _described(recording: Rosbag2Recording, kind: str) -> str:
    topic = getattr(recording.topics, kind)
    if topic not in recording.types:
        return "not there"
    return f"{topic} ({recording.types[topic]}, {recording.counts[topic]} messages)"
