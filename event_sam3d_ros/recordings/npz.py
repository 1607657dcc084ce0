"""Events as numpy archives (.npz) with the arrays x, y, t and p, compressed or not."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.recordings.event_file import BLOCK_ROWS, Block, EventFile, events_from_columns

_NAMES = ("t", "x", "y", "p")
# What zipfile, its decompressors and numpy say about archives that are damaged, or none.
ARCHIVE_DAMAGE: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, NotImplementedError, RuntimeError),
    *(MemoryError, OverflowError, SyntaxError, tokenize.TokenError, struct.error, lzma.LZMAError, KeyError),
)


class NpzFile(EventFile):
    """``t`` in microseconds, or, as floats that are not all whole, in seconds; ``p`` 0/1 or -1/1. The size is inferred.

    The four arrays are read side by side in blocks.
    """

    encoding = "npz"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seconds = False
        try:
            self._seconds = self._has_fractions()
            super().__init__(path)
        except ARCHIVE_DAMAGE as error:
            raise _broken(path, error) from error

    def _has_fractions(self) -> bool:
        with zipfile.ZipFile(self.path) as archive, archive.open(self._member(archive, "t")) as file:
            array = _Array(file)
            if array.dtype.kind != "f":
                return False
            while len(block := array.read(BLOCK_ROWS)):
                if not np.all(block == np.floor(block)):
                    return True
        return False

    def _member(self, archive: zipfile.ZipFile, name: str) -> str:
        if f"{name}.npy" not in archive.namelist():
            found = ", ".join(sorted(Path(member).stem for member in archive.namelist())) or "nothing"
            raise RecordingError(
                f"{self.path} holds {found}; expected the arrays x, y, t and p", reason="unknown_recording"
            )
        return f"{name}.npy"

    def _blocks(self) -> Iterator[Block]:
        try:
            with zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
                members = [self._member(archive, name) for name in _NAMES]
                arrays = [_Array(stack.enter_context(archive.open(member))) for member in members]
                lengths = [array.length for array in arrays]
                if len(set(lengths)) > 1:
                    said = ", ".join(f"{name} {length}" for name, length in zip(_NAMES, lengths, strict=True))
                    raise RecordingError(f"{self.path} has arrays of several lengths: {said}", reason="size_mismatch")
                for begin in range(0, lengths[0], BLOCK_ROWS):
                    t, x, y, p = (array.read(BLOCK_ROWS) for array in arrays)
                    if t.dtype.kind == "f" and not self._seconds:
                        with np.errstate(invalid="ignore"):  # what is too large becomes a number that is refused
                            t = t.astype(np.int64)
                    yield events_from_columns(f"{self.path}, from event {begin} on", t, x, y, p), None
                    self.progress = begin / lengths[0]
        except ARCHIVE_DAMAGE as error:
            raise _broken(self.path, error) from error


class _Array:
    """One .npy of numbers in an archive, read from its begin in pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        version = npy.read_magic(file)
        header: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, self.dtype = header(file)
        self.length = int(np.prod(shape))
        if self.dtype.kind not in "buif" or max(shape, default=0) != self.length:
            raise ValueError(f"an array is {self.dtype}{shape}, not a column of numbers")
        self._file = file
        self._left = self.length

    def read(self, count: int) -> NDArray[Any]:
        size = min(count, self._left) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("an array ends too early")
        self._left -= size // self.dtype.itemsize
        return np.frombuffer(data, self.dtype)


def _broken(path: Path, error: Exception) -> RecordingError:
    return RecordingError(f"{path} can't be read as a numpy archive ({error})", reason="broken_recording")
