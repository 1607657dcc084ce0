"""What is wrong with an event stream, in plain words: of a recording or, in nodes/topic_doctor.py, of a live topic."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from event_sam3d_ros.errors import DecodeError, EventSam3dError, RecordingError, RecordingWarning, excerpt
from event_sam3d_ros.events.buffer import EventBuffer
from event_sam3d_ros.events.codecs import ARRAY_TYPES, PACKET_TYPES, make_decoder, parse_event_packet_cdr
from event_sam3d_ros.events.events import Events
from event_sam3d_ros.events.stream import EventStream
from event_sam3d_ros.recordings.files import EventChunk, Rosbag2Recording, open_recording

_FEW_PACKETS = 3
_MANY_EVENTS = 100_000  # enough of them to say how they are spread
_BIN_US = 100_000
_QUIET_NS = 1_000_000_000
_MAX_MESSAGES_PER_S = 5000
_MAX_DRIFT_PPM = 100  # quartz; a clock fit is steady to some ppm after half a minute
_DRIFT_NEEDS_NS = 20_000_000_000
_STAMP_AGE_NS = 1_000_000_000
_SHARE_OUTSIDE = 0.01
_SHARE_REORDERED = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: a reason (snake_case, stable over versions), and a sentence with what to do."""

    reason: str
    sentence: str


@dataclass
class Diagnosis:
    """One stream: what it is called, what it is like, what is wrong with it."""

    name: str
    facts: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def text(self) -> str:
        """Lines for a terminal."""
        lines = [self.name, *(f"  {fact}" for fact in self.facts)]
        lines += [f"  WRONG {finding.reason}: {finding.sentence}" for finding in self.findings]
        return "\n".join(lines if self.findings else [*lines, "  healthy"])


class StreamDoctor:
    """Takes in the packets of one stream as event_image_node would, and remembers what was odd.

    ``stamped_by_host``: whether the packets' stamps are of a clock of their own, as on a topic; those of many files are
    the events' own times.
    """

    def __init__(self, message_type: str = PACKET_TYPES[0], *, stamped_by_host: bool = True) -> None:
        self._stream = EventStream(message_type, EventBuffer(), self._report)
        self._is_packet, self._stamped_by_host = message_type in PACKET_TYPES, stamped_by_host
        self._reports: dict[str, tuple[int, str]] = {}
        self._messages = self._swapped = self._positive = self._max_x = self._max_y = 0
        self._newest_ns = self._span_ns = self._longest_gap_ns = 0
        self._starts = 0
        self._least_age_ns: int | None = None
        self._bin, self._in_bin, self._peak = 0, 0, 0

    def add_message(self, cdr: bytes, received_ns: int | None = None) -> None:
        """Take in one serialized event message; ``received_ns``: when it was received, by this computer's clock."""
        self._messages += 1
        before = self._stream.packets
        try:
            self._stream.add_message(cdr)
        except EventSam3dError as error:
            self._report(error.reason, str(error))
            if error.reason == "corrupt_packet" and self._is_packet:
                self._swapped += _decodes_swapped(cdr)
        if self._stream.packets > before:
            self._look(received_ns)

    def add_events(self, stamp_ns: int, width: int, height: int, events: Events) -> None:
        """Take in one packet that is decoded already."""
        self._messages += 1
        before = self._stream.packets
        try:
            self._stream.add_events(stamp_ns, "", width, height, events)
        except EventSam3dError as error:
            self._report(error.reason, str(error))
        if self._stream.packets > before:
            self._look(None)

    def _report(self, reason: str, sentence: str) -> None:
        count, first = self._reports.get(reason, (0, sentence))
        self._reports[reason] = count + 1, first

    def _look(self, received_ns: int | None) -> None:
        """At the newest packet, and at the events that came now."""
        view = self._stream.newest
        assert view is not None
        for events in (taken.events for taken in self._stream.latest if len(taken.events)):
            self._positive += int(events.p.sum(dtype=int))
            self._max_x, self._max_y = max(self._max_x, int(events.x.max())), max(self._max_y, int(events.y.max()))
            self._count_for_peak(int(events.t[-1]) // _BIN_US, len(events))
        stamp_ns = view.stamp_ns
        if self._newest_ns and self._stream.starts == self._starts:
            self._span_ns += stamp_ns - self._newest_ns
            self._longest_gap_ns = max(self._longest_gap_ns, stamp_ns - self._newest_ns)
        self._newest_ns, self._starts = stamp_ns, self._stream.starts
        if received_ns is not None:
            age_ns = received_ns - stamp_ns
            nearer = self._least_age_ns is None or abs(age_ns) < abs(self._least_age_ns)
            self._least_age_ns = age_ns if nearer else self._least_age_ns

    def _count_for_peak(self, number: int, count: int) -> None:
        self._in_bin = self._in_bin + count if number == self._bin else count
        self._bin, self._peak = number, max(self._peak, self._in_bin)

    @property
    def messages(self) -> int:
        """How many came."""
        return self._messages

    def facts(self) -> list[str]:
        """What the stream is like, in sentences."""
        stream, view = self._stream, self._stream.newest
        stream.end()
        if view is None:
            return [f"{self._messages} messages"]
        seconds = self._span_ns / 1e9
        rate = f", {stream.events / seconds / 1e6:.3f} million/s" if seconds > 0 else ""
        peak = f" (at most {self._peak / _BIN_US:.3f})" if seconds > 1 else ""
        of_packet = (
            f", {excerpt(view.encoding)}, frame_id '{excerpt(view.frame_id)}'"
            if self._is_packet and self._stamped_by_host
            else ""
        )
        facts = [
            f"{view.width}x{view.height}{of_packet}",
            f"{self._messages} packets in {seconds:.3f} s, {stream.lost_packets} lost",
            f"{stream.events} events{rate}{peak}, {self._share(self._positive):.0%} positive",
        ]
        if self._stamped_by_host and self._is_packet and len(stream.buffer):
            offset_s = stream.clock.offset_ns / 1e9
            facts.append(f"ROS time minus sensor time {offset_s:.6f} s, drift {stream.clock.drift_ppm:+.1f} ppm")
        return facts

    def findings(self) -> list[Finding]:
        """Everything that is wrong, the worst first."""
        self._stream.end()
        if self._messages == 0:
            return [
                Finding("no_messages", "no event packet came: see that the camera is connected and its driver runs")
            ]
        found = []
        if self._swapped:
            found.append(
                Finding(
                    "byte_order",
                    f"{self._swapped} packets make sense only in the other byte order: is_bigendian is set wrongly; "
                    "correct the driver, or whatever recorded or converted them",
                )
            )
        for reason, (count, sentence) in self._reports.items():
            found.append(Finding(reason, sentence + (f" ({count} times)" if count > 1 else "")))
        return found + self._of_events() + self._of_time()

    def _share(self, count: int) -> float:
        return count / max(1, self._stream.events)

    def _of_events(self) -> list[Finding]:
        stream, view = self._stream, self._stream.newest
        if view is None:
            return []
        if stream.events == 0 and stream.packets >= _FEW_PACKETS:
            sentence = (
                f"{stream.packets} packets came, all without events: check lens cap, biases and region of interest"
            )
            return [Finding("silent_camera", sentence)]
        found = []
        outside = int(stream.values.get("events/out_of_range_events", 0))
        if outside > _SHARE_OUTSIDE * stream.events:
            sentence = f"{outside} events lie outside {view.width}x{view.height}: check width and height in the driver"
            found.append(Finding("out_of_range_events", sentence))
        if stream.events >= _MANY_EVENTS and 2 * self._max_x < view.width and 2 * self._max_y < view.height:
            found.append(
                Finding(
                    "geometry_too_large",
                    f"all events lie within {self._max_x + 1}x{self._max_y + 1} of {view.width}x{view.height}: the "
                    "size is wrong, unless a region of interest is set",
                )
            )
        if stream.events >= _MANY_EVENTS and self._positive in (0, stream.events):
            sentence = "all events have the same polarity: check the biases, and what recorded or converted them"
            found.append(Finding("one_polarity", sentence))
        overflow = stream.buffer.counters["overflow_events"]
        if overflow:
            found.append(
                Finding(
                    "buffer_overflow",
                    f"{overflow} events found no room in a second's buffer of {stream.buffer.capacity}: up to "
                    f"{self._peak / _BIN_US:.1f} million come in a second; lower the camera's rate (biases, rate "
                    "limiter), or raise buffer_max_events and buffer_max_mb",
                )
            )
        return found

    def _of_time(self) -> list[Finding]:
        stream, found = self._stream, []
        seconds = self._span_ns / 1e9
        reordered = stream.buffer.counters["reordered_packets"]
        if reordered > _FEW_PACKETS and reordered > _SHARE_REORDERED * stream.packets:
            sentence = f"{reordered} of {stream.packets} packets are not in order of time: they are sorted, at a cost"
            found.append(Finding("events_out_of_order", sentence))
        if self._longest_gap_ns > _QUIET_NS:
            gap_s = self._longest_gap_ns / 1e9
            sentence = f"nothing came for {gap_s:.1f} s in between: the scene stood still, or the camera or driver hung"
            found.append(Finding("gap", sentence))
        if seconds > 1 and self._messages / seconds > _MAX_MESSAGES_PER_S:
            sentence = f"{self._messages / seconds:.0f} messages per second: let the driver send fewer and larger ones"
            found.append(Finding("small_messages", sentence))
        drift_ppm = stream.clock.drift_ppm if self._stamped_by_host else 0.0
        if self._span_ns > _DRIFT_NEEDS_NS and abs(drift_ppm) > _MAX_DRIFT_PPM:
            found.append(
                Finding(
                    "clock_drift",
                    f"sensor time and stamps drift apart by {drift_ppm:+.0f} ppm, more than quartz does: the recording "
                    "was played too fast or slowly, or the host's clock is being corrected",
                )
            )
        if self._least_age_ns is not None and abs(self._least_age_ns) > _STAMP_AGE_NS:
            found.append(
                Finding(
                    "stamps_not_now",
                    f"stamps are {self._least_age_ns / 1e9:+.3f} s from the time of arrival: synchronise the "
                    "computers' clocks, or set use_sim_time where a recording is played",
                )
            )
        return found


def _decodes_swapped(cdr: bytes) -> bool:
    """Whether a packet that makes no sense does so in the other byte order."""
    view = parse_event_packet_cdr(cdr)
    try:
        decoder = make_decoder(view.encoding, view.width, view.height, not view.is_bigendian)
        return len(decoder.decode(view.payload, view.time_base)) > 0
    except DecodeError:
        return False


def examine_recording(path: Path) -> list[Diagnosis]:
    """One diagnosis for each event topic of a bag, or for the file. Raises RecordingError if it can't be opened."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RecordingWarning)
        recording = open_recording(path)
        diagnoses = _of_bag(recording) if isinstance(recording, Rosbag2Recording) else [_of_file(recording, path)]
    said = {str(warning.message) for warning in caught if issubclass(warning.category, RecordingWarning)}
    diagnoses[0].findings[:0] = [Finding("recording", sentence) for sentence in sorted(said)]
    return diagnoses


def _of_bag(bag: Rosbag2Recording) -> list[Diagnosis]:
    doctors = {topic: StreamDoctor(kind) for topic, kind in bag.types.items() if kind in (*PACKET_TYPES, *ARRAY_TYPES)}
    if not doctors:
        topics = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(bag.types.items()))
        raise RecordingError(f"{bag.path} has no events; it has {topics or 'nothing'}", reason="no_events")
    broken = []
    try:
        for message in bag.raw_messages():
            if message.topic in doctors:
                doctors[message.topic].add_message(message.cdr)
    except RecordingError as error:
        broken = [Finding(error.reason, str(error))]
    return [
        Diagnosis(f"{bag.path} {topic} ({bag.types[topic]})", doctor.facts(), broken + doctor.findings())
        for topic, doctor in doctors.items()
    ]


def _of_file(recording, path: Path) -> Diagnosis:  # type: ignore[no-untyped-def]
    doctor = StreamDoctor(stamped_by_host=False)
    findings = []
    try:
        for sample in recording.samples():
            if isinstance(sample, EventChunk):
                doctor.add_events(sample.stamp_ns, sample.width, sample.height, sample.events)
    except RecordingError as error:
        findings = [Finding(error.reason, str(error))]
    facts = doctor.facts()
    if recording.geometry_inferred:
        facts.append("the file does not say its size: that of the smallest usual sensor is assumed")
    return Diagnosis(f"{path} ({recording.encoding})", facts, findings + doctor.findings())


def examine(target: str, seconds: float) -> list[Diagnosis]:
    """A path that exists is a recording, a name that may be one is a topic; RecordingError for anything else."""
    path = Path(target).expanduser()
    if path.exists():
        return examine_recording(path)
    if not re.fullmatch(r"~?/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", target):
        raise RecordingError(f"{target} does not exist, and is no name of a topic", reason="no_recording")
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise RecordingError(
            f"there is no file {target}, and a topic needs ROS 2, which is not found here ({error})",
            reason="no_recording",
        ) from None
    from event_sam3d_ros.nodes.topic_doctor import examine_topic

    return [examine_topic(target, seconds)]
