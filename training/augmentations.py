"""Variations of training samples: of events, of crops before they are cut, and of batches.

What changes targets changes them too: a mirrored picture has a mirrored grid and up vector. Crops are moved before
targets are made for them, because a grid lies on its crop. Everything random comes from the generator that is passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from event_sam3d_ros.errors import ConfigurationError, InputError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.preprocess import Crop
from event_sam3d_ros.synthetic.appearance import GAMMA


@dataclass(frozen=True)
class AugmentationConfig:
    """How much samples are varied; the defaults are what the shipped weights were trained with.

    Of batches:

    flip           share of samples that are mirrored
    gain           each colour channel is multiplied by 1 - gain to 1 + gain
    grey           share of samples whose frames lose their colour
    pixel_dropout  a sample loses up to this share of its event image's pixels
    polarity       share of samples whose event images swap brighter and darker
    blur           share of samples whose blurry frame is blurred once more along a line of up to ``blur_length`` of the
                   crop's side
    wavelet        share of samples whose blurry frame keeps only its low frequencies and whose event image keeps only
                   its high ones, split at 1 to ``wavelet_levels`` octaves

    Of what the loaders cut out of recordings (rendered samples are cut already):

    crop           crops are moved and scaled by up to this share of their side
    event_dropout  a sample loses up to this share of its events
    time_reversal  share of samples whose events run backwards, polarities swapped
    """

    flip: float = 0.5
    gain: float = 0.2
    grey: float = 0.2
    pixel_dropout: float = 0.15
    polarity: float = 0.0
    blur: float = 0.0
    blur_length: float = 0.25
    wavelet: float = 0.0
    wavelet_levels: int = 3
    crop: float = 0.0
    event_dropout: float = 0.0
    time_reversal: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "wavelet_levels" and not 0 <= value <= 1:
                raise ConfigurationError(f"{field.name} is {value}: give a share, 0 to 1")
        if self.wavelet_levels < 1:
            raise ConfigurationError(f"wavelet_levels is {self.wavelet_levels}: give 1 or more")


# Batches


def augment(
    batch: dict[str, Tensor], rng: np.random.Generator, settings: AugmentationConfig | None = None
) -> dict[str, Tensor]:
    """Varies a batch (see `training.datasets.fields` for its names); the tensors passed in stay as they are.

    What is off draws nothing, so that a setting that is added leaves the random numbers of the others alone.
    """
    settings = settings or AugmentationConfig()
    count, _, height, width = batch["degraded_events"].shape
    mirror = torch.from_numpy(rng.random(count) < settings.flip)
    gain = rng.uniform(1 - settings.gain, 1 + settings.gain, (count, 3, 1, 1)).astype(np.float32)
    grey = torch.from_numpy(rng.random(count) < settings.grey)
    result = {name: mirrored(name, value, mirror) for name, value in batch.items()}
    for name, value in result.items():
        if name.endswith(("sharp", "blurry")):
            value = (value * torch.from_numpy(gain)).clamp(0, 1)
            value[grey] = value[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
            result[name] = value
    drop = rng.random((count, 1, height, width)) < rng.uniform(0, settings.pixel_dropout, (count, 1, 1, 1))
    result["degraded_events"] = result["degraded_events"] * ~torch.from_numpy(drop)
    if settings.polarity:
        chosen = torch.from_numpy(rng.random(count) < settings.polarity)
        result["degraded_events"][chosen] = swap_polarity(result["degraded_events"][chosen])
    if settings.blur:
        result["degraded_blurry"] = _blur_some(result["degraded_blurry"], rng, settings)
    if settings.wavelet:
        _split_some(result, rng, settings)
    return result


def mirrored(name: str, value: Tensor, mirror: Tensor) -> Tensor:
    """A copy of the field ``name`` (B, ...), left and right swapped where ``mirror`` (B,) is true: pictures and masks
    (B, C, H, W) and grids (B, D, H, W) along their last axis, up vectors (B, 3) in x."""
    value = value.clone()
    if name.endswith("up"):
        value[mirror, 0] *= -1
    else:
        value[mirror] = value[mirror].flip(-1)
    return value


def swap_polarity(event_images: Tensor) -> Tensor:
    """Tencode images (..., 3, H, W) with brighter and darker swapped: red and blue. The same as swapping the events'
    polarities before Tencode. It does not reverse time: that would let each pixel's oldest event win (`reverse_time`).
    """
    return event_images.flip(-3)


def motion_blur(images: Tensor, path: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1], gamma encoded, blurred along straight lines of (B, 2) pixels (x, y).

    The mean, in linear light, of the image moved along the line from -1/2 to 1/2; borders are continued.
    """
    count, _, height, width = images.shape
    taps = math.ceil(float(path.norm(dim=1).max())) + 1  # at most a pixel apart
    base = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 1, height, width], align_corners=False)
    step = path * torch.tensor([2 / width, 2 / height])
    linear = images.clamp(0, 1) ** GAMMA
    total = torch.zeros_like(linear)
    for share in torch.linspace(-0.5, 0.5, taps) if taps > 1 else (0.0,):
        grid = base + share * step[:, None, None, :]
        total += F.grid_sample(linear, grid, padding_mode="border", align_corners=False)
    return (total / taps).clamp(0, 1) ** (1 / GAMMA)


def wavelet_split(images: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Low and high frequencies (B, C, H, W) of images; their sum is the image.

    The undecimated ("a trous") wavelet transform with the kernel (1, 2, 1)/4 along both axes, which is what event_sam3d
    calls wavelet: at level i the kernel's taps lie 2**i pixels apart, low is what the last level leaves, high the sum
    of what each level took away. Borders are continued.
    """
    kernel = torch.tensor([0.25, 0.5, 0.25])
    channels = images.shape[1]
    weight = torch.outer(kernel, kernel).expand(channels, 1, 3, 3)
    low = images
    for level in range(levels):
        reach = 2**level
        low = F.conv2d(F.pad(low, [reach] * 4, mode="replicate"), weight, groups=channels, dilation=reach)
    return low, images - low


def _blur_some(images: Tensor, rng: np.random.Generator, settings: AugmentationConfig) -> Tensor:
    count, size = len(images), images.shape[-1]
    length = rng.uniform(0, settings.blur_length * size, count) * (rng.random(count) < settings.blur)
    angle = rng.uniform(0, np.pi, count)
    path = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
    blurred = motion_blur(images, torch.from_numpy(path.astype(np.float32)))
    return torch.where(torch.from_numpy(length > 0)[:, None, None, None], blurred, images)


def _split_some(batch: dict[str, Tensor], rng: np.random.Generator, settings: AugmentationConfig) -> None:
    count = len(batch["degraded_events"])
    levels = rng.integers(1, settings.wavelet_levels + 1, count) * (rng.random(count) < settings.wavelet)
    for level in sorted(set(levels.tolist()) - {0}):
        chosen = torch.from_numpy(levels == level)
        batch["degraded_blurry"][chosen] = wavelet_split(batch["degraded_blurry"][chosen], level)[0]
        high = wavelet_split(batch["degraded_events"][chosen], level)[1]
        batch["degraded_events"][chosen] = high.clamp(0, 1)  # event_sam3d lets negative values wrap around in uint8


# Events and crops


def vary_events(
    events: Events, window_us: tuple[int, int], rng: np.random.Generator, settings: AugmentationConfig
) -> Events:
    """The events of a window after dropout and time reversal, as far as they are on."""
    if settings.time_reversal and rng.random() < settings.time_reversal:
        events = reverse_time(events, *window_us)
    if settings.event_dropout:
        events = drop_events(events, rng.uniform(0, settings.event_dropout), rng)
    return events


def reverse_time(events: Events, t0_us: int, t1_us: int) -> Events:
    """What an ideal sensor gives when the window [t0, t1) is played backwards: times mirrored, polarities swapped.

    InputError (``bad_window``) for events outside the window. Doing it twice gives the events back.
    """
    if len(events) and not (t0_us <= events.t.min() and events.t.max() < t1_us):
        raise InputError(f"events outside [{t0_us}, {t1_us}) us can't be reversed: cut the window", reason="bad_window")
    back = slice(None, None, -1)
    return Events(t0_us + t1_us - 1 - events.t[back], events.x[back], events.y[back], 1 - events.p[back])


def drop_events(events: Events, share: float, rng: np.random.Generator) -> Events:
    """All but ``share`` of the events (rounded to whole ones), chosen at random, in their order."""
    kept: NDArray[np.int64] = rng.permutation(len(events))[: round(len(events) * (1 - share))]
    return events[np.sort(kept)]


def vary_crop(crop: Crop, rng: np.random.Generator, settings: AugmentationConfig) -> Crop:
    """The crop, its side scaled and its centre moved by up to the share ``settings.crop`` of the side."""
    if not settings.crop:
        return crop
    zoom, right, down = rng.uniform(-settings.crop, settings.crop, 3)
    side = max(3, round(crop.side * (1 + zoom)))
    x = crop.x0 + crop.side / 2 + right * crop.side
    y = crop.y0 + crop.side / 2 + down * crop.side
    return Crop(crop.label, round(x - side / 2), round(y - side / 2), side)
