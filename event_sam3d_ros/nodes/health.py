"""How a node is doing: counted reasons, rates, latencies, and sentences that do not flood the log."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

_LOG_EVERY_S = 5.0
_RATE_OVER_S = 5.0
_LATENCIES_KEPT = 200


class Health:
    """Counters by reason, rates by name and recent latencies; usable from several threads.

    ``log(sentence)`` gets the first report of a reason at once and later ones at most every five seconds, with their
    number. Known reasons start at 0, so that they can be watched before they happen.
    """

    def __init__(
        self, log: Callable[[str], None], reasons: Iterable[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts: dict[str, int] = dict.fromkeys(reasons, 0)
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, str]] = {}
        self._logged: dict[str, tuple[float, int]] = {}
        self._ticks: dict[str, deque[float]] = {}
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def count(self, reason: str, sentence: str = "") -> None:
        """Count a reason by one, without a word in the log; without a sentence it is nothing to worry about either."""
        with self._lock:
            self.counts[reason] = self.counts.get(reason, 0) + 1
            if sentence:
                self._last[reason] = (self._clock(), sentence)

    def report(self, reason: str, sentence: str) -> None:
        """Count a reason by one and log its sentence unless it was logged a moment ago."""
        self.count(reason, sentence)
        now = self._clock()
        with self._lock:
            count = self.counts[reason]
            logged_s, logged_count = self._logged.get(reason, (-np.inf, 0))
            if now - logged_s < _LOG_EVERY_S:
                return
            self._logged[reason] = (now, count)
        more = f" ({count - logged_count} times since the last message)" if count - logged_count > 1 else ""
        self._log(f"{reason}: {sentence}{more}")

    def unexpected(self, where: str, error: Exception) -> None:
        """Report an exception that nobody thought of as ``internal_error``, with the line that raised it."""
        line = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{line.filename.rpartition('/')[2]}:{line.lineno}"
        self.report("internal_error", f"{where}: {type(error).__name__}: {error} ({place}): please report it")

    def recent(self, within_s: float = _LOG_EVERY_S) -> dict[str, str]:
        """Reasons reported within the last seconds with their newest sentence, newest first."""
        now = self._clock()
        with self._lock:
            newest_first = sorted(self._last.items(), key=lambda item: -item[1][0])
        return {reason: sentence for reason, (when, sentence) in newest_first if now - when <= within_s}

    def tick(self, name: str) -> None:
        """Note that something with a rate happened."""
        with self._lock:
            self._ticks.setdefault(name, deque(maxlen=10_000)).append(self._clock())

    def last_tick(self, name: str) -> float | None:
        """When it happened last, on this object's clock; None if never."""
        with self._lock:
            ticks = self._ticks.get(name)
            return ticks[-1] if ticks else None

    def latency(self, milliseconds: float) -> None:
        """Note one latency."""
        with self._lock:
            self._latencies.append(milliseconds)

    def values(self) -> dict[str, str]:
        """Everything as text by key: ``rate_hz/<name>``, ``latency_ms/median``, ``latency_ms/p95``, the counts."""
        now = self._clock()
        with self._lock:
            rates = {
                f"rate_hz/{name}": f"{sum(now - tick <= _RATE_OVER_S for tick in ticks) / _RATE_OVER_S:.1f}"
                for name, ticks in self._ticks.items()
            }
            latencies = np.array(self._latencies)
            counts = {reason: str(count) for reason, count in self.counts.items()}
        if len(latencies):
            median, p95 = np.percentile(latencies, (50, 95))
            rates |= {"latency_ms/median": f"{median:.1f}", "latency_ms/p95": f"{p95:.1f}"}
        return rates | counts
