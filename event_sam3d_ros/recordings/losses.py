"""What a reading of a recording left out because it can't be read or understood."""

from __future__ import annotations

from event_sam3d_ros.errors import RecordingError

_WORDS = {
    "lost_packets": "lost event packet{s}",
    "corrupt_packets": "corrupt event packet{s}",
    "corrupt_messages": "corrupt message{s}",
    "missing_messages": "unreadable message{s}",
    "unknown_words": "unknown word{s}",
    "out_of_range_events": "event{s} outside the sensor",
}


def counted(count: int, words: str) -> str:
    """A number and what it counts, with an "s" at each "{s}" unless it is 1."""
    return f"{count} {words.format(s='' if count == 1 else 's')}"


def left_out(count: int) -> str:
    """The end of a sentence on so many things."""
    return "it was left out" if count == 1 else "they were left out"


class Losses:
    """Counts by name, all 0 for a recording in order.

    lost_packets         event packets that a bag lacks, by gaps of seq
    corrupt_packets      event packets of a bag, or pieces of a file's events, that can't be understood
    corrupt_messages     other messages of a bag, or pieces of a file without events, that can't be understood
    missing_messages     messages that a bag announces, but that can't be read
    unknown_words        words of no type that the encoding defines
    out_of_range_events  events outside the sensor
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_WORDS, 0)
        self.has_events = False
        self._first: dict[str, RecordingError] = {}

    def leave_out(self, name: str, error: RecordingError, count: int = 1) -> None:
        """Count something that can't be used."""
        self._first.setdefault(name, error)
        self.counts[name] += count

    def check(self) -> None:
        """At the end: raises the first error where there were events or triggers, but none that can be understood."""
        if self.counts["corrupt_packets"] and not self.has_events:
            raise self._first["corrupt_packets"]

    def sentences(self) -> list[str]:
        """For each kind of thing that can't be used: what is wrong with the first, and how many there are."""
        return [
            f"{error} ({'the first of ' * (count > 1)}{counted(count, _WORDS[name])}: {left_out(count)})"
            for name, error in self._first.items()
            for count in (self.counts[name],)
        ]

    def __str__(self) -> str:
        """Counts in words, empty where nothing was left out."""
        return ", ".join(counted(count, _WORDS[name]) for name, count in self.counts.items() if count)
