"""Model configurations: one dataclass per part, read from YAML, every unknown key refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from event_sam3d_ros.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True)
class EncoderConfig:
    """A vision transformer (`vit.py`). ``stem`` empty: one patch convolution, as DINOv2; else a convolutional stem
    whose stages halve the image, ``stem[i]`` channels at stride ``2 ** (i + 1)``, before the patch grid. The position
    table is for ``image_size``; inputs are resized to ``input_size``, where 0 stands for ``image_size``.
    ``mask_token``: hold the unused token of DINOv2's pretraining, for its checkpoints have it."""

    image_size: int = 64
    patch_size: int = 8
    in_channels: int = 4
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    registers: int = 0
    stem: tuple[int, ...] = (32, 64)
    input_size: int = 0
    mask_token: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "image_size", "patch_size", "width", "depth", "heads")
        _at_least(self, 3, "in_channels")
        _at_least(self, 0, "registers", "input_size")
        _groups(self, "stem")
        _require(self.image_size % self.patch_size == 0, "image_size must be a multiple of patch_size")
        _require(self.input_size % self.patch_size == 0, "input_size must be a multiple of patch_size")
        _require(self.width % self.heads == 0, "width must be a multiple of heads")
        _require(1 <= self.width * self.mlp_ratio < math.inf, "mlp_ratio must leave the MLP a channel")
        if self.stem:
            _require(
                2 ** (len(self.stem) + 1) == self.patch_size,
                f"a stem of {len(self.stem)} stages needs patch_size {2 ** (len(self.stem) + 1)}",
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the position table."""
        return self.image_size // self.patch_size

    @property
    def size(self) -> int:
        """Side in pixels that the network sees."""
        return self.input_size or self.image_size


@dataclass(frozen=True)
class FusionConfig:
    """Where events enter (`event_fusion.py`): at stem stages and transformer blocks of the RGB encoder, by index, and
    at the final tokens by the fusion that ``tokens`` names ("gated", "attn", "cattn"; empty: none)."""

    stems: tuple[int, ...] = (0, 1)
    blocks: tuple[int, ...] = (0, 2, 3)
    heads: int = 4
    tokens: str = ""

    def __post_init__(self) -> None:
        known = ("", "gated", "attn", "cattn")
        _at_least(self, 1, "heads")
        _require(self.tokens in known, f"tokens is {self.tokens!r}; known are 'gated', 'attn', 'cattn' and '' for none")

    @property
    def anywhere(self) -> bool:
        """Whether events enter at all; where not, a flow model has no event branch."""
        return bool(self.stems or self.blocks or self.tokens)


@dataclass(frozen=True)
class PointmapConfig:
    """The pointmap embedder (`pointmap_embedder.py`); the defaults are the released size."""

    input_size: int = 256
    patch_size: int = 8
    width: int = 512
    heads: int = 16

    def __post_init__(self) -> None:
        _at_least(self, 1, "input_size", "patch_size", "width", "heads")
        _require(self.input_size % self.patch_size == 0, "input_size must be a multiple of patch_size")
        _require(self.width % self.heads == 0, "width must be a multiple of heads")


@dataclass(frozen=True)
class DirectHeadConfig:
    """The one-pass geometry head (`geometry_direct.py`): a column decoder over the crop."""

    resolution: int = 32
    depth_range: float = 1.25
    channels: tuple[int, ...] = (128, 96, 64)

    def __post_init__(self) -> None:
        _at_least(self, 1, "resolution")
        _positive(self, "depth_range")
        _require(bool(self.channels), "channels must have at least one stage")
        _groups(self, "channels")


@dataclass(frozen=True)
class FlowHeadConfig:
    """The sampling geometry head (`geometry_flow.py`); the defaults are the released size. ``resolution``: side of the
    latent shape grid; ``condition_width``: channels of the condition tokens."""

    width: int = 1024
    condition_width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    resolution: int = 16
    channels: int = 8

    def __post_init__(self) -> None:
        _at_least(self, 1, "width", "condition_width", "depth", "heads", "resolution", "channels")
        _require(self.width % self.heads == 0, "width must be a multiple of heads")
        _require(1 <= self.width * self.mlp_ratio < math.inf, "mlp_ratio must leave the MLP a channel")


@dataclass(frozen=True)
class SamplerConfig:
    """How a flow is sampled (`flow.py`); the defaults are those of the released geometry model.

    ``steps`` Euler steps on a schedule bent by ``rescale``; guidance of ``strength`` while the network's time (0 to
    1000) lies in ``interval``, ends included. ``shortcut``: few steps (1, 2, 4) whose size the network is told, never
    guided.
    """

    steps: int = 25
    rescale: float = 3.0
    strength: float = 7.0
    interval: tuple[int, ...] = (0, 500)
    shortcut: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps")
        _at_least(self, 0, "strength")
        _positive(self, "rescale")
        _require(
            len(self.interval) == 2 and 0 <= self.interval[0] <= self.interval[1] <= 1000,
            "interval must be two times from 0 to 1000, the earlier first",
        )

    def guided(self, times: list[float]) -> list[bool]:
        """Which of these network times are guided."""
        first, last = self.interval
        return [not self.shortcut and self.strength > 0 and first <= time <= last for time in times]


@dataclass(frozen=True)
class StructureConfig:
    """The structure decoder (`structure_vae.py`); the defaults are the released size."""

    channels: tuple[int, ...] = (512, 128, 32)
    blocks: int = 2
    middle_blocks: int = 2

    def __post_init__(self) -> None:
        _require(bool(self.channels), "channels must have at least one stage")
        _at_least(self, 1, "channels")
        _at_least(self, 0, "blocks", "middle_blocks")


@dataclass(frozen=True)
class FlowConfig:
    """All parts of the sampling geometry head beside its image encoders."""

    pointmap: PointmapConfig = field(default_factory=PointmapConfig)
    transformer: FlowHeadConfig = field(default_factory=FlowHeadConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @property
    def resolution(self) -> int:
        """Side of the occupancy grid."""
        return self.transformer.resolution * 2 ** (len(self.structure.channels) - 1)


@dataclass(frozen=True)
class PreprocessConfig:
    """How an object is cut out of the frame (`preprocess.py`)."""

    crop_factor: float = 1.4
    window_ms: float = 50.0
    min_events: int = 500
    prior_size_m: float = 0.2

    def __post_init__(self) -> None:
        _at_least(self, 1, "crop_factor")
        _at_least(self, 0, "min_events")
        _positive(self, "window_ms", "prior_size_m")


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. ``head`` names the geometry head, "direct" or "flow"; the other one's part has no meaning."""

    name: str = "nano"
    head: str = "direct"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    direct: DirectHeadConfig = field(default_factory=DirectHeadConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        _require(self.head in ("direct", "flow"), f"head is {self.head!r}; known are 'direct' and 'flow'")
        _require(
            all(0 <= i < len(self.encoder.stem) for i in self.fusion.stems)
            and all(0 <= i < self.encoder.depth for i in self.fusion.blocks),
            "fusion names a stem stage or block that the encoder lacks",
        )
        if self.head == "flow":
            self._check_flow()
        else:
            self._check_direct()
        widths = {"encoder.width": self.encoder.width} if self.fusion.blocks else {}
        if self.fusion.tokens in ("attn", "cattn"):
            widths |= {"the tokens' width": self.encoder.width if self.head == "direct" else self._condition_width}
        for name, width in widths.items():
            _require(width % self.fusion.heads == 0, f"{name}, {width}, must be a multiple of fusion.heads")

    @property
    def _condition_width(self) -> int:
        return max(self.encoder.width, self.flow.pointmap.width)

    def _check_flow(self) -> None:
        _require(self.encoder.in_channels == 3, "the flow head's encoder has in_channels 3: masks go through it alone")
        _require(
            self.flow.transformer.condition_width == self._condition_width,
            f"flow.transformer.condition_width must be {self._condition_width}, the width of the widest embedder",
        )

    def _check_direct(self) -> None:
        encoder = self.encoder
        _require(encoder.in_channels == 4, "the direct head's encoder has in_channels 4: an image and its mask")
        _require(encoder.size == encoder.image_size, "the direct head's encoder takes no other input_size")
        _require(
            len(self.direct.channels) <= 1 + len(encoder.stem),
            "direct.channels has more stages than the encoder's stem can follow with features: at most one more",
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> ModelConfig:
        """Reads a model configuration; ConfigurationError if the file or a key in it is wrong."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"cannot read the model configuration {path}: {error}") from error
        return from_dict(cls, data, where=str(path))


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Builds the dataclass ``cls`` from nested dicts and lists; ConfigurationError names an unknown or bad key."""
    if not isinstance(data, dict):
        raise ConfigurationError(f"{where}: expected a mapping of settings, found {type(data).__name__}")
    hints = get_type_hints(cls)
    unknown = sorted(set(map(str, data)) - set(hints))
    if unknown:
        raise ConfigurationError(f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(hints))}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`, with tuples as lists so that JSON and YAML can hold it."""
    return {
        f.name: to_dict(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for f in dataclasses.fields(config)
        for v in [getattr(config, f.name)]
    }


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, where)
    if kind == tuple[int, ...]:
        if not isinstance(value, list) or not all(type(v) is int for v in value):
            raise ConfigurationError(f"{where} must be a list of whole numbers, not {value!r}")
        return tuple(value)
    if get_origin(kind) is tuple:  # tuple[X, ...]
        if not isinstance(value, list):
            raise ConfigurationError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(get_args(kind)[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigurationError(f"{where} must be of type {kind.__name__}, not {value!r}")
    return value


def _at_least(config: Any, minimum: int, *names: str) -> None:
    """Requires these settings of ``config``, or all entries of them, to be numbers not below ``minimum``."""
    for name in names:
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else (value,)
        _require(all(minimum <= entry < math.inf for entry in entries), f"{name} must be at least {minimum}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        _require(0 < getattr(config, name) < math.inf, f"{name} must be positive")


def _groups(config: Any, name: str) -> None:
    """Requires channels that `layers.conv_block` can normalise: in up to 8 groups of at least 4, all alike."""
    _at_least(config, 4, name)
    fitting = all(channels % min(8, channels // 4) == 0 for channels in getattr(config, name))
    _require(fitting, f"{name} must be multiples of 8, or of 4 below 32")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)
