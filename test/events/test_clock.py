"""Sensor time and ROS time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock

SECOND = 1_000_000_000


@given(st.integers(-(10**15), 10**18), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1))
def test_offset_is_the_smallest_delay_seen(offset_ns, packets):
    """Stamps rise here: each packet begins later than the one before was stamped."""
    clock, t_us, delays = SensorClock(), 0, []
    for pause_us, delay_us in packets:
        t_us += pause_us + 1_000_000
        delays.append(delay_us * 1000)
        clock.update(offset_ns + t_us * 1000 + delays[-1], t_us)
        assert clock.offset_ns == offset_ns + min(delays)


@given(st.integers(-(10**15), 10**18), st.integers(0, 10**15))
def test_there_and_back(offset_ns, t_us):
    clock = SensorClock()
    clock.update(offset_ns, 0)
    assert clock.to_ros_ns(t_us) == offset_ns + 1000 * t_us
    assert clock.to_sensor_us(clock.to_ros_ns(t_us)) == t_us
    assert clock.to_sensor_us(clock.to_ros_ns(t_us) + 999) == t_us
    assert clock.to_sensor_us(clock.to_ros_ns(t_us) - 1) == t_us - 1


def test_unknown_before_the_first_packet_and_after_reset():
    clock = SensorClock()
    for _ in range(2):
        with pytest.raises(InputError, match="no event packet") as error:
            clock.to_sensor_us(0)
        assert error.value.reason == "no_events_yet"
        clock.update(SECOND, 5)
        assert clock.to_ros_ns(5) == SECOND
        clock.reset()


def test_stamps_far_back_are_reported_and_change_nothing():
    clock = SensorClock()
    clock.update(10 * SECOND, 0)
    clock.update(10 * SECOND - BACKWARD_TOLERANCE_US * 1000, 0)
    offset_ns = clock.offset_ns
    with pytest.raises(BackwardTimeError, match=r"backwards from 10.000000 s to 9.899999 s") as error:
        clock.update(10 * SECOND - BACKWARD_TOLERANCE_US * 1000 - 1, 0)
    assert error.value.reason == "backward_time"
    assert clock.offset_ns == offset_ns
    clock.reset()
    clock.update(0, 0)
    assert clock.offset_ns == 0
