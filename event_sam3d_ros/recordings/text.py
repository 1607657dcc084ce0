"""Events as lines of text: `t x y p`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from event_sam3d_ros.errors import RecordingError
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.recordings.event_file import MAX_US, Block, EventFile

BLOCK_LINES = 100_000
_COMMENTS = ("#", "%")
_EXCERPT = 60
# What programs call the columns; another order or number of them is refused in words.
_NAMES = (("t", "time", "timestamp", "ts"), ("x",), ("y",), ("p", "pol", "polarity", "on"))


class TextFile(EventFile):
    """Lines `t x y p`, separated by blanks or commas: time in seconds, or in microseconds where all digits are whole;
    polarity 0 or 1, or -1 and 1. Lines at the begin that begin with '#' or '%' are skipped; behind them a line may name
    the columns, or give the size as `width height`.
    """

    encoding = "text"

    def __init__(self, path: Path) -> None:
        with path.open(errors="replace") as file:
            self._skip, words = _comments(file)
        self._size = (int(words[0]), int(words[1])) if len(words) == 2 and all(w.isdecimal() for w in words) else None
        if _names_columns(words):
            if len(words) != 4 or any(word.lower() not in names for word, names in zip(words, _NAMES, strict=True)):
                columns = shown(" ".join(words))
                raise RecordingError(
                    f"{path}:{self._skip + 1}: the columns are {columns}; bring them into the order t x y p",
                    reason="bad_columns",
                )
            self._skip += 1
        self._skip += self._size is not None
        super().__init__(path)

    def _said_size(self) -> tuple[int, int] | None:
        return self._size

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the first line that is no comment has two or four numbers, or names columns."""
        with path.open(errors="replace") as file:
            words = _comments(file)[1]
        return (len(words) in (2, 4) and all(_is_number(word) for word in words)) or _names_columns(words)

    def _blocks(self) -> Iterator[Block]:
        number, unit = self._skip + 1, 0.0
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            lines = (line.decode(errors="replace") for line in islice(file, self._skip, None))
            while block := [line.replace(",", " ") for line in islice(lines, BLOCK_LINES)]:
                first = block[0].split()[:1]
                unit = unit or (1.0 if first and first[0].lstrip("-").isdecimal() else 1e6)
                if not block[-1].endswith("\n") and len(block[-1].split()) < 4:
                    self.warn("ends in the middle of a line: it is cut; what is whole was read")
                    block.pop()
                yield self._events(parse_events(block, number, self.path), number, unit), None
                number += len(block)
                self.progress = file.tell() / size

    def _events(self, columns: NDArray[np.float64], number: int, unit: float) -> Events:
        t, x, y, p = columns.T
        whole = (x == np.floor(x)) & (y == np.floor(y))
        refuse(
            ~(whole & (x >= 0) & (x < 65536) & (y >= 0) & (y < 65536)), number, self.path, "the pixel is on no sensor"
        )
        refuse(~np.isin(p, (-1, 0, 1)), number, self.path, "the polarity is neither 0 nor 1, nor -1")
        refuse(
            ~(np.abs(t * unit) < MAX_US), number, self.path, "the time is no number, or more than a ROS stamp can tell"
        )
        return Events(
            np.rint(t * unit).astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), (p > 0).astype(np.uint8)
        )


def _comments(file: TextIO) -> tuple[int, list[str]]:
    """Number of comments at the begin, and the words of the line behind them."""
    count = 0
    while (line := file.readline(1000)).startswith(_COMMENTS):
        count += line.endswith("\n")
    return count, line.replace(",", " ").split()


def _names_columns(words: list[str]) -> bool:
    """Whether the words of a line are names of columns, in whatever order."""
    said = {word.lower() for word in words}
    return {"x", "y"} <= said and not said.isdisjoint(_NAMES[0]) and not any(_is_number(word) for word in words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def parse_events(lines: list[str], number: int, file: Path) -> NDArray[np.float64]:
    """(N, 4) numbers of lines, of which the first is line ``number`` of the file; RecordingError names a bad one. Empty
    lines at the end are left out.

    The slow search for it runs only when the fast reader fails.
    """
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if not lines:
        return np.empty((0, 4))
    try:
        columns = np.loadtxt(lines, dtype=np.float64, ndmin=2, comments=None)
    except ValueError:
        columns = np.empty((0, 0))
    if columns.shape == (len(lines), 4):
        return columns
    for offset, line in enumerate(lines):
        words = line.split()
        if len(words) != 4 or not all(_is_number(word) for word in words):
            raise RecordingError(
                f"{file}:{number + offset}: expected 't x y p', found {shown(line)}", reason="bad_columns"
            )
    raise RecordingError(f"{file}:{number}: the columns can't be read as 't x y p'", reason="bad_columns")


def shown(line: str) -> str:
    """A line as it may stand in a sentence: what is no printable ASCII is escaped, and it is short."""
    text = ascii(line.strip()[:_EXCERPT])
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 3]}..."


def refuse(bad: NDArray[np.bool_], number: int, file: Path, problem: str) -> None:
    """RecordingError that names the first line where ``bad`` is true."""
    if bad.any():
        raise RecordingError(f"{file}:{number + int(np.argmax(bad))}: {problem}", reason="bad_event")
