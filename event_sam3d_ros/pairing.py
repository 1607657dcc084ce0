"""Bringing together the messages that belong to one frame, by stamp."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Report = Callable[[str, str], None]

_FINISHED_KEPT_S = 2.0
_NEAR_KEPT = 16
_STEP_BACK_NS = 1_000_000_000


@dataclass
class Frame:
    """The messages of one stamp by source; ``arrived_s`` is when the first of them came."""

    stamp_ns: int
    arrived_s: float
    messages: dict[str, Any] = field(default_factory=dict)


class StampPairing:
    """Collects messages of equal stamp until a frame is complete, newer ones are, or its time is over.

    required  groups of sources without which a frame is dropped, counted as ``missing_<first of the group>``, once for
              each frame: by the first group that it lacks
    optional  groups that are waited for, but not needed; what a frame goes on without is counted the same way. Where
              one of a group is missing, all of it counts as missing
    near      one source (depth) whose stamps may differ by ``tolerance_ns``; waited for while ``near_expected()``

    Messages of one topic arrive in their order. So when a frame is complete, older ones will not be any more: they are
    handed out before it, or dropped. Frames leave in the order of their stamps. At most ``capacity`` frames wait.
    When the stamps of a required source step back by more than a second, as when a bag loops, all starts anew.
    ``report(reason, sentence)`` is called for everything that is lost. Times ``now_s`` come from any steady clock.
    """

    def __init__(
        self,
        required: Sequence[tuple[str, ...]],
        optional: Sequence[tuple[str, ...]],
        report: Report,
        near: str = "",
        near_expected: Callable[[], bool] = lambda: False,
        capacity: int = 64,
    ) -> None:
        self.timeout_s = 0.3
        self.tolerance_ns = 20_000_000
        self._required, self._optional, self._near = tuple(required), tuple(optional), near
        self._near_expected = near_expected
        self._report = report
        self._capacity = capacity
        self._waiting: dict[int, Frame] = {}
        self._near_messages: deque[tuple[int, Any]] = deque(maxlen=_NEAR_KEPT)
        self._finished: OrderedDict[int, float] = OrderedDict()
        self._newest = {source: 0 for group in required for source in group}  # stamps
        self._following: set[str] = set()  # sources that have yet to step back after another one

    def clear(self) -> None:
        """Forget everything that waits."""
        self._waiting.clear()
        self._near_messages.clear()
        self._finished.clear()
        self._newest = dict.fromkeys(self._newest, 0)
        self._following.clear()

    def add(self, source: str, stamp_ns: int, message: Any, now_s: float) -> list[Frame]:
        """Take a message in; the frames that are now ready, oldest first."""
        if stamp_ns <= 0:
            self._report("zero_stamp", f"{source} without a stamp was dropped: the sender has to fill header.stamp")
            return []
        if source in self._newest:
            self._follow(source, stamp_ns)
        if source == self._near:
            self._forget_near_after(stamp_ns + _STEP_BACK_NS)
            self._near_messages.append((stamp_ns, message))
        elif self._is_finished(stamp_ns, now_s):
            self._report(
                f"late_{source}",
                f"{source} came after its frame had been handled: raise pair_timeout_ms (now {self.timeout_s * 1e3:g})",
            )
            return []
        else:
            self._waiting.setdefault(stamp_ns, Frame(stamp_ns, now_s)).messages[source] = message
        return self.expire(now_s)

    def _follow(self, source: str, stamp_ns: int) -> None:
        """Start anew where a required source's stamps step back, unless it follows another one."""
        limit = stamp_ns + _STEP_BACK_NS
        before, self._newest[source] = self._newest[source], stamp_ns
        if before <= limit:
            return
        if source in self._following:
            self._following.remove(source)
            return
        self._following = {name for name, newest in self._newest.items() if newest > limit}
        self._waiting.clear()
        self._finished.clear()
        self._forget_near_after(limit)
        self._report(
            "backward_time", f"stamps of {source} step back by {(before - stamp_ns) / 1e9:.3f} s: pairing starts anew"
        )

    def _forget_near_after(self, limit_ns: int) -> None:
        kept = [item for item in self._near_messages if item[0] <= limit_ns]
        self._near_messages = deque(kept, maxlen=_NEAR_KEPT)

    def expire(self, now_s: float) -> list[Frame]:
        """The frames that are complete, older than a complete one, or out of time, oldest first."""
        complete = [stamp for stamp, frame in self._waiting.items() if self._is_complete(frame)]
        due = max(complete, default=-1)
        excess = sorted(self._waiting)[: max(0, len(self._waiting) - self._capacity)]
        stamps = [
            stamp
            for stamp, frame in self._waiting.items()
            if stamp <= due or stamp in excess or now_s - frame.arrived_s >= self.timeout_s
        ]
        frames = [self._finish(self._waiting.pop(stamp), now_s) for stamp in sorted(stamps)]
        return [frame for frame in frames if frame is not None]

    def _is_complete(self, frame: Frame) -> bool:
        if self._missing(frame, self._required + self._optional):
            return False
        if not self._near or not self._near_expected():
            return True
        # Once a near message of this stamp or a later one is here, none that fits better will come.
        return any(stamp >= frame.stamp_ns for stamp, _ in self._near_messages)

    @staticmethod
    def _missing(frame: Frame, groups: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
        return [group for group in groups if any(source not in frame.messages for source in group)]

    def _finish(self, frame: Frame, now_s: float) -> Frame | None:
        self._finished[frame.stamp_ns] = now_s
        if self._near:
            self._attach_near(frame)
        lacking = self._missing(frame, self._required)
        if lacking:
            source = lacking[0][0]
            self._report(f"missing_{source}", f"no {source} with the stamp of a frame: the frame was dropped")
            return None
        for group in self._missing(frame, self._optional):
            source = group[0]
            self._report(f"missing_{source}", f"no {source} with the stamp of a frame: the frame goes on without it")
            for source in group:
                frame.messages.pop(source, None)
        return frame

    def _attach_near(self, frame: Frame) -> None:
        fitting = [
            (abs(stamp - frame.stamp_ns), index)
            for index, (stamp, _) in enumerate(self._near_messages)
            if abs(stamp - frame.stamp_ns) <= self.tolerance_ns
        ]
        if fitting:
            frame.messages[self._near] = self._near_messages[min(fitting)[1]][1]
        elif self._near_expected() and not self._missing(frame, self._required):
            self._report(
                f"missing_{self._near}",
                f"no {self._near} within {self.tolerance_ns / 1e6:g} ms of a frame: it goes on without it",
            )

    def _is_finished(self, stamp_ns: int, now_s: float) -> bool:
        # Only for a while: a looping bag brings the same stamps again.
        while self._finished and now_s - next(iter(self._finished.values())) > _FINISHED_KEPT_S:
            self._finished.popitem(last=False)
        return stamp_ns in self._finished
