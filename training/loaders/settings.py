"""What a training configuration says about one dataset (an entry of its list ``datasets``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from event_sam3d_ros.errors import ConfigurationError

RENDERED = "rendered"
KINDS = (RENDERED, "mvsec", "co3d", "objaverse", "event_replica", "rgbe_seg")


@dataclass(frozen=True)
class DatasetConfig:
    """``kind``: one of `KINDS`; "rendered" are the samples of --data, for which only ``weight`` counts.

    weight       its share of the samples is this over the sum of all weights
    root         folder of the dataset
    sequences    patterns of sequence names, as of files ("cup/*"); empty: all
    object       whose masks are taken where masks are named by object; empty: the loader's default
    split        RGBE-SEG: the folder of this name under root
    sensor       width and height of the events' grid; empty: the loader's default
    frame_rate   CO3D, Objaverse: frames per second that v2e was given as --input_frame_rate
    blur_frames  how many neighbouring frames a blurry one is the mean of, one of these at random; empty: the loader's
                 default; [1]: none
    min_events   windows with fewer events are left out; -1: the model's min_events
    """

    kind: str = ""
    weight: float = 1.0
    root: str = ""
    sequences: tuple[str, ...] = ()
    object: str = ""
    split: str = "train"
    sensor: tuple[int, ...] = ()
    frame_rate: float = 30.0
    blur_frames: tuple[int, ...] = ()
    min_events: int = -1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"kind is {self.kind!r}; known are {', '.join(KINDS)}")
        if not 0 < self.weight < float("inf"):
            raise ConfigurationError(f"weight is {self.weight}: give a positive number")
        if self.kind != RENDERED and not self.root:
            raise ConfigurationError(f"a dataset of kind {self.kind} needs root, the folder where it lies")
        if self.sensor and (len(self.sensor) != 2 or min(self.sensor) < 1):
            raise ConfigurationError(f"sensor is {list(self.sensor)}: give width and height in pixels")
        if not 0 < self.frame_rate < float("inf"):
            raise ConfigurationError(f"frame_rate is {self.frame_rate}: give a positive number")
        if any(count < 1 for count in self.blur_frames):
            raise ConfigurationError(f"blur_frames is {list(self.blur_frames)}: give numbers of frames, 1 or more")


def require_truth(stage: str, datasets: Sequence[DatasetConfig]) -> None:
    """ConfigurationError where a stage that learns from the truth is given data that have none."""
    without = sorted({entry.kind for entry in datasets} - {RENDERED})
    if without:
        raise ConfigurationError(
            f"{stage} learns from the truth in 3D, which {', '.join(without)} have not: take them out of its datasets. "
            "distill and fuse can use them: they learn from the network's own view of sharp frames"
        )
