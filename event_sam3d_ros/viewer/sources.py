"""What a path holds, as frames of the viewer."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from event_sam3d_ros.errors import ConfigurationError, RecordingError
from event_sam3d_ros.evaluation.bag_evaluation import CONFIGURATION
from event_sam3d_ros.recordings.npz import ARCHIVE_DAMAGE
from event_sam3d_ros.sequence import FILE_NAME
from event_sam3d_ros.viewer.feeds import open_recording_feed, open_results_feed, read_summary
from event_sam3d_ros.viewer.frames import Frames
from event_sam3d_ros.viewer.sequences import SequenceFrames
from event_sam3d_ros.viewer.truths import read_view_truth


@dataclass(frozen=True)
class SourceOptions:
    """``ground_truth``: instead of that beside the path; ``bag``: which one of an evaluation; ``topics``: by kind, see
    `bag_inputs`; ``weights``, ``device``: for recordings."""

    ground_truth: Path | None = None
    bag: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)
    weights: str = "nano"
    device: str = "auto"


def open_frames(path: Path, options: SourceOptions) -> Frames:
    """A sequence, the results of an evaluation, or else a recording. An EventSam3dError says why it is none."""
    path = path.expanduser()
    if not path.exists():
        raise RecordingError(
            f"{path} does not exist: give a sequence, a recording, or the results of an evaluation",
            reason="missing_file",
        )
    if (path / FILE_NAME).exists() or _is_sequence(path):
        return SequenceFrames(path, read_view_truth(path, options.ground_truth))
    summary = read_summary(path)
    if summary is not None:
        return open_results_feed(path, summary, options.bag, options.topics, options.ground_truth)
    if (path / CONFIGURATION).exists() and (path / "frames").is_dir():
        raise RecordingError(
            f"{path} is an evaluation that is not finished: run its command again, it goes on where it was",
            reason="incomplete",
        )
    truth = read_view_truth(path, options.ground_truth)
    return open_recording_feed(path, options.topics, options.weights, options.device, truth)


def open_live(words: Iterable[str]) -> Frames:
    """The topics of a running system; ``words``: KIND=/TOPIC for those with other names than the defaults.
    ConfigurationError where there is no ROS, or for other words."""
    try:
        from event_sam3d_ros.nodes.live_view import TOPICS, LiveFrames
    except ImportError as error:
        raise ConfigurationError(
            f"--live needs ROS 2 and this package's messages ({error}): use the shell of env.sh, or source the "
            "workspace that it was built in",
            reason="no_ros",
        ) from error
    topics = dict(TOPICS)
    for word in words:
        kind, _, topic = word.partition("=")
        if kind not in topics or not topic:
            raise ConfigurationError(
                f"{word!r} names no topic: give KIND=/TOPIC with one of {', '.join(topics)}", reason="bad_topic"
            )
        topics[kind] = topic
    return LiveFrames(topics)


def _is_sequence(path: Path) -> bool:
    """Whether it is the NPZ of a sequence, wherever it was moved to; recordings may be NPZ files, too."""
    if path.suffix != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "extrinsics.npy" in archive.namelist()
    except ARCHIVE_DAMAGE:  # what opens recordings says how
        return False
