"""Waves: cut exactly where the definition says, and not later or sooner."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import sim
from dcasgd_jax.schedules.waves import assign_waves, previous_push

from .test_schedule import hand_built


def cut(schedule, max_size):
    """One event after the other, checking every pair."""
    starts = [0]
    for k in range(1, len(schedule)):
        start = starts[-1]
        too_late = schedule.read_version[k] > schedule.version[start]
        again = schedule.worker[k] in schedule.worker[start:k]
        full = max_size is not None and k - start >= max_size
        if too_late or again or full:
            starts.append(k)
    return starts


@settings(max_examples=300, deadline=None, derandomize=True)
@given(hand_built(), st.none() | st.integers(1, 4))
def test_waves_end_at_the_first_event_that_does_not_fit(schedule, max_size):
    arrays = (schedule.worker, schedule.read_version, schedule.version)
    waves = assign_waves(*arrays, max_size)
    assert waves.dtype == np.int64
    assert waves.tolist() == cut(schedule, max_size)
    if max_size is None:
        assert schedule.waves.tolist() == waves.tolist()


def test_waves_of_known_protocols():
    make = lambda law, **settings: sim.make_schedule(law, 4, 12, seed=0, **settings)
    # Each worker has read before the others' last pushes: four to a wave.
    assert make(sim.RoundRobin()).waves.tolist() == [0, 4, 8]
    assert make(sim.GammaTime(), protocol=sim.Sequential()).waves.tolist() == list(range(12))
    synchronous = make(sim.GammaTime(), protocol=sim.Synchronous())
    assert synchronous.waves.tolist() == list(range(0, 48, 4))


def test_random_times_give_waves_as_long_as_the_birthday_problem_says():
    """Memoryless workers: a wave ends when one of M comes twice, after about sqrt(pi M / 2)."""
    schedule = sim.make_schedule(sim.ExponentialTime(), 64, 100_000, seed=0)
    length = len(schedule) / len(schedule.waves)
    # Exactly sum over k of 64!/(64-k)!/64^k, k >= 0, less the one that no longer fits.
    k = np.arange(1, 65)
    expected = np.cumprod((64 - k + 1) / 64).sum()
    # A wave's length deviates by half of its mean: 0.5/sqrt(10_000) = 0.5 %; four of those.
    assert length == pytest.approx(expected, rel=0.02)


def test_a_repeated_delivery_begins_a_new_wave():
    schedule = sim.Schedule([0, 0, 1], [0, 0, 0], batch=[0, 0, 2])
    assert schedule.waves.tolist() == [0, 1]


def test_previous_push():
    assert previous_push(np.array([2, 0, 2, 2, 0])).tolist() == [-1, -1, 0, 2, 1]
    assert previous_push(np.array([70_000, 1, 70_000])).tolist() == [-1, -1, 0]


@pytest.mark.parametrize("max_size", [0, -1])
def test_waves_hold_at_least_one_event(max_size):
    with pytest.raises(ValueError, match="max_size must be >= 1"):
        assign_waves(np.array([0]), np.array([0]), np.array([0]), max_size)
