"""Whether the sensor times of an event packet fit its stamp: if not, it is damaged, or a clock was set."""

from __future__ import annotations

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.clock import SensorClock

# A sensor's clock and its packets' stamps agree to a few ms; further apart they are not of one stream.
PLAUSIBLE_NS = 1_000_000_000


def time_jump(clock: SensorClock, stamp_ns: int, advance_ns: int, first_us: int, last_us: int) -> DecodeError | None:
    """The reason (``time_jump``) why a packet does not go on from those that ``clock``, which has some, was fitted to.

    The stamp has to lie in the packet's times, for drivers stamp at their beginning and some recordings at their end,
    and these may span as much as stamps went on; both to within PLAUSIBLE_NS.

    ``advance_ns``: from the newest stamp before to this one, or from this one to the next. ``first_us``, ``last_us``:
    least and greatest sensor time in the packet.
    """
    first_ns, last_ns = clock.to_ros_ns(first_us) - stamp_ns, clock.to_ros_ns(last_us) - stamp_ns
    ahead_ns = max(first_ns, 0) + min(last_ns, 0)
    if abs(ahead_ns) >= PLAUSIBLE_NS:
        return DecodeError(
            f"sensor time and stamp of an event packet have moved apart by {ahead_ns / 1e9:.3f} s", reason="time_jump"
        )
    span_ns, advance_ns = 1000 * (last_us - first_us), max(advance_ns, 0)
    if span_ns >= advance_ns + PLAUSIBLE_NS:
        return DecodeError(
            f"sensor time and stamp of an event packet have moved apart: its times span {span_ns / 1e9:.3f} s, stamps "
            f"went on by {advance_ns / 1e9:.3f} s",
            reason="time_jump",
        )
    return None
