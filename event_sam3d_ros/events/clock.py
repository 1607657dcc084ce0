"""From the sensor's clock to ROS time and back."""

from __future__ import annotations

import numpy as np
from numba import njit

from event_sam3d_ros.errors import InputError

# Drivers and sensors disorder times by some 10 ms (EVT3 bit noise: 41 ms). A step back by more is a new stream: a bag
# that loops, or a sensor whose clock was reset.
BACKWARD_TOLERANCE_US = 100_000

_SLOT_US = 1_000_000
# 100 s: long enough for a drift of a fraction of a ppm, short enough to follow one that changes with temperature.
_SLOTS = 100
# Over a few seconds jitter can look like a drift. A slope counts if it leaves less than this share of the distances
# that no slope leaves, for each second of the span; after 20 s it counts anyway.
_SHARE_PER_SLOT = 1 / 40
_SETTLED_SLOTS = 20
# Quartz is within 100 ppm, a host's clock that ntpd slews within 500 ppm.
_MAX_DRIFT_PPB = 500_000
# Stamps that leave the line by more, downwards once or upwards for some slots in a row, come of a clock that was set.
_STEP_NS = 20_000_000
_STEP_SLOTS = 5


class BackwardTimeError(InputError):
    """Time ran backwards by more than BACKWARD_TOLERANCE_US.

    Nothing was changed. Whoever keeps the stream resets its decoder, clock and buffer, and takes the packet again.
    """

    def __init__(self, what: str, before_us: int, after_us: int) -> None:
        super().__init__(
            f"{what} ran backwards from {before_us / 1e6:.6f} s to {after_us / 1e6:.6f} s",
            reason="backward_time",
        )


class SensorClock:
    """Offset and drift between a sensor's clock (microseconds) and ROS time (nanoseconds), from packet stamps alone.

    A packet is stamped by the host when it arrives, after its first event happened: the delay varies but is never
    negative. So the relation of the clocks is a line on which no packet lies below: of all such lines the one with the
    least sum of distances, which is the edge of the lower convex hull beneath the mean time (Moon, Skelly, Towsley,
    "Estimation and removal of clock skew from network delay measurements", INFOCOM 1999). Of each second of sensor time
    the packet of least delay is kept, for the last 100 that had any. Until a slope explains the stamps much better than
    none (10 to 20 s, less where the drift is large against the jitter), the drift counts as zero and the offset is the
    least delay so far.

    Either clock may be set while the stream goes on. Stamps 20 ms below the line are believed at once, stamps so far
    above it after five seconds in which none was nearer; what is older is forgotten then. ``steps`` counts this.

    Each fit is a strictly rising map of times, and exactly invertible. Between fits it changes as packets come, most
    at the beginning: mapping one time before and after a packet can give two results.

    A packet costs a comparison, and one pass over the 100 where it begins a second or lies below the line.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.reset()

    def reset(self) -> None:
        """Forget all packets."""
        # Of each second's packet of least delay: time of its first event in us, and its stamp minus that time in ns.
        self._slots = np.empty((2, 0), np.int64)
        self._newest_stamp_ns: int | None = None
        self._drift_ppb = 0
        self._fit: tuple[int, int] | None = None  # sensor time and offset of a point on the line

    def update(self, packet_stamp_ns: int, first_event_us: int) -> None:
        """Take in one packet. Raises BackwardTimeError if its stamp is far older than the newest."""
        stamp_ns, t_us = int(packet_stamp_ns), int(first_event_us)
        newest_ns = stamp_ns if self._newest_stamp_ns is None else max(self._newest_stamp_ns, stamp_ns)
        if newest_ns - stamp_ns > BACKWARD_TOLERANCE_US * 1000:
            raise BackwardTimeError("stamp of the event packets", newest_ns // 1000, stamp_ns // 1000)
        self._newest_stamp_ns = newest_ns
        offset_ns = stamp_ns - 1000 * t_us
        above_ns = 0 if self._fit is None else stamp_ns - self.to_ros_ns(t_us)
        if above_ns < -_STEP_NS:
            self._step(keep=0)
        elif self._slots.size and t_us // _SLOT_US <= (newest := int(self._slots[0, -1]) // _SLOT_US):
            # Disorder may lead back into the second before, which is closed: there are packets enough.
            if t_us // _SLOT_US == newest and offset_ns < self._slots[1, -1]:
                self._slots[:, -1] = t_us, offset_ns
                if above_ns < 0:
                    self._refit()
            return
        elif above_ns > _STEP_NS and self._stepped_up():
            self._step(keep=_STEP_SLOTS)
        recent = self._slots[:, 1:] if self._slots.shape[1] == _SLOTS else self._slots
        self._slots = np.concatenate((recent, np.array(((t_us,), (offset_ns,)))), axis=1)
        self._refit()

    @property
    def offset_ns(self) -> int:
        """ROS time minus sensor time, now. Raises InputError (``no_events_yet``) before the first packet."""
        self._line()
        t_us = int(self._slots[0, -1])
        return self.to_ros_ns(t_us) - 1000 * t_us

    @property
    def drift_ppm(self) -> float:
        """How much faster ROS time runs than the sensor's clock, in parts per million."""
        return self._drift_ppb / 1000

    def to_ros_ns(self, t_us: int) -> int:
        """ROS time of a sensor time."""
        reference_us, offset_ns = self._line()
        # 1 ppb of 1 us is 1e-6 ns.
        return 1000 * int(t_us) + offset_ns + (int(t_us) - reference_us) * self._drift_ppb // 1_000_000

    def to_sensor_us(self, ros_ns: int) -> int:
        """Sensor time of a ROS time: the last one that `to_ros_ns` does not map to later."""
        reference_us, offset_ns = self._line()
        elapsed_ns = int(ros_ns) - 1000 * reference_us - offset_ns
        return reference_us + (1_000_000 * (elapsed_ns + 1) - 1) // (1_000_000_000 + self._drift_ppb)

    def _line(self) -> tuple[int, int]:
        if self._fit is None:
            raise InputError("no event packet has arrived: the sensor's clock is unknown", reason="no_events_yet")
        return self._fit

    def _stepped_up(self) -> bool:
        latest = self._slots[:, -_STEP_SLOTS:].T.tolist()
        return len(latest) == _STEP_SLOTS and all(
            1000 * t_us + offset_ns - self.to_ros_ns(t_us) > _STEP_NS for t_us, offset_ns in latest
        )

    def _step(self, keep: int) -> None:
        """Forget all but some slots."""
        count = self._slots.shape[1]
        # At the beginning it is no news that a packet was less late than those before.
        self.steps += count > _STEP_SLOTS
        self._slots = self._slots[:, count - keep :]

    def _refit(self) -> None:
        touching, self._drift_ppb = _line_below(*self._slots)
        t_us, offset_ns = self._slots[:, touching].tolist()
        self._fit = t_us, offset_ns


@njit(cache=True, nogil=True)
def _line_below(t_us, offset_ns):  # type: ignore[no-untyped-def]
    """The line of least sum of distances below all points, slope limited: index of a point on it, and slope in ppb."""
    size = t_us.size
    x, y = (t_us - t_us[0]).astype(np.float64), (offset_ns - offset_ns[0]).astype(np.float64)
    touching = y.argmin()
    if size < 3:
        return touching, 0
    # Lower convex hull, from left to right.
    hull, n = np.empty(size, np.int64), 0
    for i in range(size):
        while n > 1:
            left, middle = hull[n - 2], hull[n - 1]
            if (y[middle] - y[left]) * (x[i] - x[left]) < (y[i] - y[left]) * (x[middle] - x[left]):
                break
            n -= 1
        hull[n], n = i, n + 1
    right = 1
    while x[hull[right]] < x.mean():
        right += 1
    left, right = hull[right - 1], hull[right]
    slope = 1e6 * (y[right] - y[left]) / (x[right] - x[left])
    slope_ppb = int(np.rint(min(max(slope, -_MAX_DRIFT_PPB), _MAX_DRIFT_PPB)))
    heights = y - x * (slope_ppb * 1e-6)
    share = (heights - heights.min()).sum() / max((y - y.min()).sum(), 1.0)
    if size < _SETTLED_SLOTS and share > size * _SHARE_PER_SLOT:
        return touching, 0
    return heights.argmin(), slope_ppb
