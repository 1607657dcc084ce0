"""The numbers of one stream's packets: which of them are lost, and which only come late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# A number that is still missing when this many more have come is lost: what comes late does so by one or two.
_WAIT = 16


@dataclass
class _Gap:
    numbers: range
    missing: int


class PacketNumbers:
    """Told of every packet that comes, and of those that can't be used.

    A message that can't be read does not tell its number, so refused packets count as so many of the next gap.

    ``lost(count, number)`` is called once for each gap of which something never came, when nothing more of it is
    expected; ``number`` is that of the packet behind it.

    ``refused``: packets since the last one that was taken
    """

    def __init__(self, lost: Callable[[int, int], None]) -> None:
        self.refused = 0
        self._lost = lost
        self._gaps: deque[_Gap] = deque()

    def refuse(self) -> None:
        """A packet came and can't be used."""
        self.refused += 1

    def readmit(self) -> None:
        """A packet that was refused is going to be taken."""
        self.refused -= 1

    def advance(self, before: int, number: int) -> None:
        """The next packet was taken; ``before`` is the number of the one taken before."""
        skipped = max(0, number - before - 1)
        if skipped > self.refused:
            self._gaps.append(_Gap(range(before + 1, number), skipped - self.refused))
        self.refused = 0
        while self._gaps and number - self._gaps[0].numbers.stop >= _WAIT:
            self._give_up(self._gaps.popleft())

    def is_missing(self, number: int) -> bool:
        """Whether this number was skipped and may still come."""
        return any(number in gap.numbers and gap.missing for gap in self._gaps)

    def come_late(self, number: int) -> None:
        """A missing packet came after its successors."""
        gap = next(gap for gap in self._gaps if number in gap.numbers and gap.missing)
        gap.missing -= 1

    def end(self) -> None:
        """No more packets will come, or others, whose numbers begin anew."""
        while self._gaps:
            self._give_up(self._gaps.popleft())
        self.refused = 0

    def _give_up(self, gap: _Gap) -> None:
        if gap.missing:
            self._lost(gap.missing, gap.numbers.stop)
