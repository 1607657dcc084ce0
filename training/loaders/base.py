"""What all datasets have in common: sequences of frames with events, and the moments that are cut out of them.

No dataset here has truth in 3D. A `Moment` has none, batches of moments lack `training.datasets.TRUTH`, and a stage
that needs it says so before it starts (`mixture.open_batches`).
"""

from __future__ import annotations

import fnmatch
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import ConfigurationError, EventSam3dError, InputError, RecordingError, RecordingWarning
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.representations import tencode
from event_sam3d_ros.sam3d.config import ModelConfig
from event_sam3d_ros.synthetic.appearance import GAMMA
from training.loaders.files import EventCache, Size, cut, read_events
from training.loaders.settings import DatasetConfig

UNUSABLE = (InputError, RecordingError)
"""What is wrong with a file or a sequence, which others need not share (a ConfigurationError they do)."""
LARGEST_MASK = 0.9  # share of the frame; what is larger is the background (event_sam3d leaves out the same)


@dataclass(frozen=True)
class Moment:
    """One instant of a recording, everything in the grid H x W of its event camera, without truth in 3D.

    sharp, blurry: (H, W, 3) uint8 RGB. events: those of the half-open ``window_us``, around the frame's time on the
    sensor's clock. mask: (H, W) uint8 0/1 of the sharp frame. coverage: (H, W) float32, for which share of the exposure
    the object was seen at a pixel: what a segmentation of the blurry frame has to go by.
    """

    sharp: NDArray[np.uint8]
    blurry: NDArray[np.uint8]
    events: Events
    window_us: tuple[int, int]
    mask: NDArray[np.uint8]
    coverage: NDArray[np.float32]

    def event_image(self, events: Events | None = None) -> NDArray[np.uint8]:
        """(H, W, 3) Tencode, by the robot's own kernel, of these events or of others of the same window."""
        height, width = self.mask.shape
        return tencode(self.events if events is None else events, *self.window_us, width, height)


class Sequence(ABC):
    """Frames and events that belong together. Frames are numbered from 0 in order of time.

    ``usable``: frames that have everything that a moment needs, by the names of the files; ``gamma``: exponent that
    gives linear light from the frames' values.
    """

    name: str
    length: int
    usable: list[int]
    gamma: float = GAMMA

    @abstractmethod
    def picture(self, frame: int) -> NDArray[np.uint8]:
        """The frame, (H, W, 3) RGB, in the events' grid."""

    @abstractmethod
    def mask(self, frame: int) -> NDArray[np.bool_] | None:
        """The object in the frame, (H, W); None where the dataset has no mask of it."""

    @abstractmethod
    def events(self, frame: int) -> tuple[Events, tuple[int, int]]:
        """The events around the frame, and the half-open window in us that they were cut by."""

    def exposure(self, frame: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The blurry frame (H, W, 3), the mean in linear light of ``count`` frames around this one, as far as there are
        as many on both sides of it; and its coverage (H, W), the mean of their masks."""
        frames = around(frame, count, self.length)
        linear = [(self.picture(i).astype(np.float32) / 255) ** self.gamma for i in frames]
        blurry = np.mean(linear, axis=0) ** (1 / self.gamma)
        masks = [mask for i in frames if (mask := self.mask(i)) is not None]
        return np.rint(blurry * 255).astype(np.uint8), np.mean(masks, axis=0, dtype=np.float32)


def around(frame: int, count: int, length: int) -> range:
    """Up to ``count`` frames with ``frame`` in their middle, all within ``length``; the odd one out of an even count
    comes before it."""
    reach = min(count // 2, frame, length - 1 - frame)
    return range(frame - reach, frame + min(reach, (count - 1) // 2) + 1)


@dataclass
class Loader(ABC):
    """A dataset: its moments by number, in an order that depends on the names of its files alone.

    What the index can't use (a sequence without events, say) is counted in ``left_out`` by reason, and said once per
    reason; InputError where nothing is left. A moment that turns out to be broken when it is read raises one
    of `UNUSABLE`; `source.RecordedSource` counts it and goes on with the next.
    """

    settings: DatasetConfig
    model: ModelConfig
    left_out: Counter[str] = field(default_factory=Counter)
    cache: EventCache = field(default_factory=EventCache)

    layout: ClassVar[str]
    """The files of the dataset in a few words, for messages."""
    sensor: ClassVar[Size] = (346, 260)
    blur_frames: ClassVar[tuple[int, ...]]
    default_object: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(f"{self.root}, the root of {self.name}, is no folder", reason="no_dataset")

    @abstractmethod
    def find(self) -> list[tuple[str, Path]]:
        """Names and places of all sequences there are, sorted."""

    @abstractmethod
    def open(self, name: str, path: Path) -> Sequence:
        """A sequence; one of `UNUSABLE` where it can't be used."""

    @cached_property
    def index(self) -> list[tuple[Sequence, int]]:
        """Sequence and frame of every moment."""
        index: list[tuple[Sequence, int]] = []
        patterns = self.settings.sequences or ("*",)
        first: EventSam3dError | None = None
        for name, path in self.find():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                try:
                    sequence = self.open(name, path)
                    if not sequence.usable:
                        raise InputError(f"{path} has no frame with a mask", reason="no_masks")
                except UNUSABLE as error:
                    first = first or error
                    self.leave_out(error)
                    continue
                index += [(sequence, frame) for frame in sequence.usable]
        if not index:
            why = f"; the first problem: {first}" if first else ""
            raise InputError(
                f"{self.root} has no samples of {self.name} (sequences {', '.join(patterns)}); expected {self.layout}"
                f"{why}",
                reason="no_samples",
            )
        return index

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int, rng: np.random.Generator) -> Moment:
        """A moment, blurred by one of the numbers of frames at random. One of `UNUSABLE` where it can't be used."""
        sequence, frame = self.index[number]
        events, window_us = sequence.events(frame)
        if len(events) < self.min_events:
            raise InputError(
                f"frame {frame} of {sequence.name} has {len(events)} events, fewer than {self.min_events}",
                reason="too_few_events",
            )
        sharp, mask = sequence.picture(frame), sequence.mask(frame)
        if mask is None or not 0 < mask.mean() <= LARGEST_MASK:
            raise InputError(f"frame {frame} of {sequence.name} has a mask of nothing or of all", reason="bad_mask")
        blurry, coverage = sequence.exposure(frame, int(rng.choice(self.settings.blur_frames or self.blur_frames)))
        return Moment(sharp, blurry, events, window_us, mask.astype(np.uint8), coverage)

    def leave_out(self, error: EventSam3dError) -> None:
        """Counts something that can't be used."""
        self.left_out[error.reason] += 1
        if self.left_out[error.reason] == 1:
            warnings.warn(RecordingWarning(f"{self.name}: {error}; what has this problem is left out"), stacklevel=3)

    @property
    def name(self) -> str:
        return self.settings.kind

    @property
    def root(self) -> Path:
        return Path(self.settings.root).expanduser()

    @property
    def size(self) -> Size:
        """Width and height of the events' grid."""
        return (self.settings.sensor[0], self.settings.sensor[1]) if self.settings.sensor else self.sensor

    @property
    def object(self) -> str:
        """Whose masks are taken."""
        chosen = self.settings.object or self.default_object
        if not chosen:
            raise ConfigurationError(f"the masks of {self.name} are named by object: set object")
        return chosen

    @property
    def min_events(self) -> int:
        return self.model.preprocess.min_events if self.settings.min_events < 0 else self.settings.min_events

    def window(self, path: Path, middle_us: int) -> tuple[Events, tuple[int, int]]:
        """The events of a recording around a time, and the window's bounds."""
        return self._cut(self.cache.read(path, self.size), middle_us)

    def whole(self, path: Path) -> tuple[Events, tuple[int, int]]:
        """The events of a file that has those of one frame alone. The file does not say when the frame was: the window,
        as long as on the robot so that a colour means the same age, lies in the middle of the file's events."""
        events = read_events(path, self.size)
        middle_us = (int(events.t[0]) + int(events.t[-1]) + 1) // 2 if len(events) else 0
        return self._cut(events, middle_us)

    def _cut(self, events: Events, middle_us: int) -> tuple[Events, tuple[int, int]]:
        length_us = round(self.model.preprocess.window_ms * 1000)
        t0 = middle_us - length_us // 2
        return cut(events, t0, t0 + length_us), (t0, t0 + length_us)
