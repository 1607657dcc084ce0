"""Sensor time and ROS time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_sam3d_ros.errors import InputError
from event_sam3d_ros.events.clock import BACKWARD_TOLERANCE_US, BackwardTimeError, SensorClock

SECOND = 1_000_000_000


def make_stamps(drift_ppm, duration_s, rate_hz, jitter_ms, seed=0):
    """Sensor times in us, ROS times of them in ns, and stamps, each later by 2 ms and an exponential delay."""
    generator = np.random.default_rng(seed)
    t_us = np.sort(generator.integers(0, duration_s * 10**6, duration_s * rate_hz))
    true_ns = 1_700_000_000 * SECOND + 1000 * t_us + np.rint(t_us * (drift_ppm / 1000)).astype(np.int64)
    delay_ns = 2_000_000 + generator.exponential(jitter_ms * 1e6, t_us.size)
    return t_us, true_ns + 2_000_000, true_ns + delay_ns.astype(np.int64)


def errors_us(clock, t_us, true_ns, stamps_ns, every=1):
    """How far off the newest sensor time is mapped, packet by packet; a constant delay looks like an offset."""
    errors = []
    for number, (t, true, stamp) in enumerate(zip(t_us.tolist(), true_ns.tolist(), stamps_ns.tolist(), strict=True)):
        clock.update(stamp, t)
        if number % every == 0:
            errors.append((clock.to_ros_ns(t) - true) / 1000)
    return np.array(errors)


def least_delay_errors_us(t_us, true_ns, stamps_ns):
    """The same for the rule that takes the least delay since the start for the offset."""
    return (np.minimum.accumulate(stamps_ns - 1000 * t_us) + 1000 * t_us - true_ns) / 1000


def test_a_day_with_drift_and_jitter_is_mapped_within_100_microseconds_after_30_seconds():
    t_us, true_ns, stamps_ns = make_stamps(drift_ppm=50, duration_s=86_400, rate_hz=4, jitter_ms=0.5)
    clock = SensorClock()
    errors = errors_us(clock, t_us, true_ns, stamps_ns, every=2)
    assert np.abs(errors[30 * 2 :]).max() < 100
    assert abs(clock.drift_ppm - 50) < 0.5
    assert abs(clock.offset_ns - int(true_ns[-1] - 1000 * t_us[-1])) < 100_000
    assert clock.steps == 0


@pytest.mark.parametrize("drift_ppm", [-100, -20, 0, 20, 100])
@pytest.mark.parametrize("rate_hz, jitter_ms", [(500, 0.5), (100, 2.0), (30, 5.0)])
def test_the_first_seconds_are_no_worse_than_the_least_delay_so_far(drift_ppm, rate_hz, jitter_ms):
    for seed in range(4):
        packets = make_stamps(drift_ppm, 20, rate_hz, jitter_ms, seed)
        errors, simple = np.abs(errors_us(SensorClock(), *packets)), np.abs(least_delay_errors_us(*packets))
        for start in range(0, 20, 2):
            part = slice(start * rate_hz, (start + 2) * rate_hz)
            assert errors[part].max() <= max(simple[part].max(), 200)


@pytest.mark.parametrize("drift_ppm", [-300, -50, 0, 50, 300])
@pytest.mark.parametrize("rate_hz, jitter_ms", [(250, 1.0), (100, 5.0)])
def test_after_30_seconds_drift_is_known(drift_ppm, rate_hz, jitter_ms):
    clock = SensorClock()
    errors = errors_us(clock, *make_stamps(drift_ppm, 60, rate_hz, jitter_ms))
    assert np.abs(errors[30 * rate_hz :]).max() < 100
    assert abs(clock.drift_ppm - drift_ppm) < 2


def test_a_drift_that_changes_is_followed():
    t_us, true_ns, stamps_ns = make_stamps(20, 400, 50, 1.0)
    bend_ns = np.maximum(t_us - 150 * 10**6, 0) // 50  # 20 ppm more
    errors = errors_us(SensorClock(), t_us, true_ns + bend_ns, stamps_ns + bend_ns)
    assert np.abs(errors[30 * 50 : 150 * 50]).max() < 100
    assert np.abs(errors[255 * 50 :]).max() < 100


@pytest.mark.parametrize("step_ms", [-60, 60, 700])
def test_a_host_clock_that_is_set_is_noticed_once(step_ms):
    """Below BACKWARD_TOLERANCE_US, that is; larger steps back are an error."""
    t_us, true_ns, stamps_ns = make_stamps(50, 120, 100, 1.0)
    step_ns = np.where(t_us > 60 * 10**6, step_ms * 1_000_000, 0)
    clock = SensorClock()
    errors = errors_us(clock, t_us, true_ns + step_ns, stamps_ns + step_ns)
    assert clock.steps == 1
    assert np.abs(errors[68 * 100 :]).max() < 1500
    assert np.abs(errors[95 * 100 :]).max() < 100


def test_one_stamp_too_early_does_no_lasting_harm():
    t_us, true_ns, stamps_ns = make_stamps(50, 120, 100, 1.0)
    stamps_ns[6000] -= 80_000_000
    errors = errors_us(SensorClock(), t_us, true_ns, stamps_ns)
    assert np.abs(errors[30 * 100 : 6000]).max() < 100
    assert np.abs(errors[95 * 100 :]).max() < 100


def test_a_start_with_late_packets_is_no_step():
    t_us, true_ns, stamps_ns = make_stamps(0, 10, 100, 1.0)
    stamps_ns[:200] += np.linspace(500_000_000, 0, 200).astype(np.int64)
    clock = SensorClock()
    assert np.abs(errors_us(clock, t_us, true_ns, stamps_ns)[300:]).max() < 500
    assert clock.steps == 0


@given(
    st.integers(-(10**15), 10**18),
    st.lists(st.tuples(st.integers(-100_000, 3 * 10**6), st.integers(0, 10**6)), min_size=1, max_size=80),
    st.lists(st.integers(-(10**15), 10**15), min_size=2, max_size=9),
)
def test_whatever_the_stamps_the_map_rises_and_is_invertible(offset_ns, packets, times):
    """Also where times step back a little."""
    clock, t_us, newest_us = SensorClock(), 0, -(10**9)
    for pause_us, delay_us in packets:
        t_us = max(t_us + pause_us, newest_us - 100_000)
        stamp_ns = offset_ns + 1000 * (max(newest_us, t_us) + delay_us)
        clock.update(stamp_ns, t_us)
        assert abs(clock.drift_ppm) <= 500
        assert t_us // 10**6 < newest_us // 10**6 or clock.to_ros_ns(t_us) <= stamp_ns
        newest_us = max(newest_us, t_us, (stamp_ns - offset_ns) // 1000 - 100_000)
    rising = sorted(set(times))
    mapped = [clock.to_ros_ns(t) for t in rising]
    assert all(before < after for before, after in zip(mapped, mapped[1:], strict=False))
    for t, ros_ns in zip(rising, mapped, strict=True):
        assert clock.to_sensor_us(ros_ns) == t
        assert clock.to_sensor_us(ros_ns - 1) == t - 1


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
