"""What a run shows of itself: a log of scalars, sample pictures and, on demand, TensorBoard."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from event_sam3d_ros.errors import ConfigurationError


class Monitor:
    """Writes beside the model file ``out``: ``<out>.jsonl``, a line of scalars at a time, and ``<out>_samples/*.png``.

    ``first``: the step that a resumed run starts with; what an interrupted run logged beyond it is dropped, for it
    comes again. ``tensorboard``: folder of event files, None for none; ConfigurationError where the package is missing.
    """

    def __init__(self, out: Path, first: int, tensorboard: Path | None = None) -> None:
        self.log, self.pictures = out.with_suffix(".jsonl"), out.with_name(out.stem + "_samples")
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() and first else []
        kept = [line for line in lines if _step(line) <= first]
        self.log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.board = _board(tensorboard, first) if tensorboard else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of the log: values after ``step`` steps."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{name: float(f"{v:.6g}") for name, v in values.items()}}) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def picture(self, step: int, image: Tensor) -> None:
        """``image``: (3, H, W) float in [0, 1]."""
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        self.pictures.mkdir(exist_ok=True)
        (self.pictures / f"{step:07d}.png").write_bytes(png(pixels))
        if self.board:
            self.board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        if self.board:
            self.board.close()


def _step(line: str) -> float:
    """The step of a line of the log; a line that was cut by a kill belongs to no step that is kept."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _board(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigurationError("--tensorboard needs a package: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=first)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 RGB -> a PNG file (ISO/IEC 15948: one IDAT chunk, no row filters). Own code, because a bare GPU
    machine has torch and numpy but no image library."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row begins with its filter's number
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b""))
    )
