"""From the sensor's clock to ROS time and back."""

from __future__ import annotations

from event_sam3d_ros.errors import InputError

# Drivers and sensors disorder times by some 10 ms (EVT3 bit noise: 41 ms). A step back by more is a new stream: a bag
# that loops, or a sensor whose clock was reset.
BACKWARD_TOLERANCE_US = 100_000


class BackwardTimeError(InputError):
    """Time ran backwards by more than BACKWARD_TOLERANCE_US.

    Nothing was changed. Whoever keeps the stream resets its decoder, clock and buffer, and takes the packet again.
    """

    def __init__(self, what: str, before_us: int, after_us: int) -> None:
        super().__init__(
            f"{what} ran backwards from {before_us / 1e6:.6f} s to {after_us / 1e6:.6f} s: start anew from here",
            reason="backward_time",
        )


class SensorClock:
    """Offset between a sensor's clock (microseconds) and ROS time (nanoseconds).

    A packet is stamped by the host when it arrives, after its first event happened. The delay varies but is never
    negative, so the offset is the minimum over packets of (stamp - time of the first event) since the start.
    Drift between the clocks is not followed.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all packets."""
        self._offset_ns: int | None = None
        self._newest_stamp_ns: int | None = None

    def update(self, packet_stamp_ns: int, first_event_us: int) -> None:
        """Take in one packet. Raises BackwardTimeError if its stamp is far older than the newest."""
        stamp_ns = int(packet_stamp_ns)
        newest_ns = stamp_ns if self._newest_stamp_ns is None else max(self._newest_stamp_ns, stamp_ns)
        if newest_ns - stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            raise BackwardTimeError("stamp of the event packets", newest_ns // 1000, stamp_ns // 1000)
        self._newest_stamp_ns = newest_ns
        offset_ns = stamp_ns - int(first_event_us) * 1000
        self._offset_ns = offset_ns if self._offset_ns is None else min(self._offset_ns, offset_ns)

    @property
    def offset_ns(self) -> int:
        """ROS time minus sensor time. Raises InputError (``no_events_yet``) before the first packet."""
        if self._offset_ns is None:
            raise InputError("no event packet has arrived: the sensor's clock is unknown", reason="no_events_yet")
        return self._offset_ns

    def to_ros_ns(self, t_us: int) -> int:
        """ROS time of a sensor time."""
        return int(t_us) * 1000 + self.offset_ns

    def to_sensor_us(self, ros_ns: int) -> int:
        """Sensor time of a ROS time, rounded down."""
        return (int(ros_ns) - self.offset_ns) // 1000
