"""Whether the sensor times of an event packet fit its stamp: if not, it is damaged, or a clock was set."""

from __future__ import annotations

from event_sam3d_ros.errors import DecodeError
from event_sam3d_ros.events.clock import SensorClock

# A sensor's clock and its packets' stamps agree to a few ms; further apart they are not of one stream.
PLAUSIBLE_NS = 1_000_000_000


def time_jump(clock: SensorClock, stamp_ns: int, first_us: int, last_us: int) -> DecodeError | None:
    """The reason (``time_jump``) why a packet does not go on from those that ``clock``, which has some, was fitted to.

    ``first_us``, ``last_us``: least and greatest sensor time in the packet.
    """
    ahead_ns = max((clock.to_ros_ns(time_us) - stamp_ns for time_us in (first_us, last_us)), key=abs)
    if abs(ahead_ns) < PLAUSIBLE_NS:
        return None
    return DecodeError(
        f"sensor time and stamp of an event packet have moved apart by {ahead_ns / 1e9:.3f} s", reason="time_jump"
    )
