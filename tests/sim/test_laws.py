"""Worker-time laws: means, prefixes, staleness laws, bad numbers."""

import numpy as np
import pytest

from dcasgd_jax import sim

LAWS = [
    sim.ConstantTime(2.0),
    sim.RoundRobin(2.0),
    sim.ExponentialTime(2.0),
    sim.GammaTime(100, 2.0),
    sim.GammaTime(0.5, 2.0),
    sim.LognormalTime(2.0, 0.5),
    sim.ParetoTime(3.5, 2.0),
    sim.RecordedTime(np.array([1.0, 2.0, 3.0])),
]


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_mean_is_the_stated_mean(law):
    times = law.times(0, 120_000, generator())
    assert times.shape == (120_000,)
    assert times.min() > 0
    # The largest deviation here is 2.8/sqrt(120_000) = 0.4 % of the mean; three of those.
    assert times.mean() == pytest.approx(2.0, rel=0.013)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_more_times_begin_with_the_same_times(law):
    np.testing.assert_array_equal(
        law.times(1, 50, generator()), law.times(1, 1000, generator())[:50]
    )


def test_spread_of_gamma_lognormal_and_pareto():
    gamma = sim.GammaTime(100, 1.0).times(0, 50_000, generator())
    assert gamma.std() == pytest.approx(0.1, rel=0.02)
    lognormal = np.log(sim.LognormalTime(1.0, 0.5).times(0, 50_000, generator()))
    assert lognormal.std() == pytest.approx(0.5, rel=0.02)
    pareto = sim.ParetoTime(2.5, 1.0).times(0, 50_000, generator())
    shortest = 0.6
    assert pareto.min() == pytest.approx(shortest, rel=1e-3)
    assert (pareto > 2 * shortest).mean() == pytest.approx(0.5**2.5, rel=0.03)


@pytest.mark.parametrize(
    "law",
    [
        sim.ConstantTime([1.0, 4.0]),
        sim.ExponentialTime([1.0, 4.0]),
        sim.GammaTime([50, 100], [1.0, 4.0]),
        sim.GammaTime(100, [1.0, 4.0]),
        sim.LognormalTime([1.0, 4.0], 0.3),
        sim.ParetoTime(4.0, [1.0, 4.0]),
        sim.RecordedTime(np.array([[0.5, 4.0], [1.5, 4.0]])),
    ],
    ids=repr,
)
def test_one_value_per_worker_makes_workers_differ(law):
    assert law.times(0, 20_000, generator()).mean() == pytest.approx(1.0, rel=0.03)
    assert law.times(1, 20_000, generator()).mean() == pytest.approx(4.0, rel=0.03)
    schedule = sim.make_schedule(law, 2, 5000, seed=0)
    # Worker 0 is four times as fast, so it makes four of five pushes.
    assert (schedule.worker == 0).mean() == pytest.approx(0.8, abs=0.02)


def test_recorded_times_start_again_when_they_run_out():
    law = sim.RecordedTime(np.array([[1.0, 9.0], [2.0, 9.0]]))
    assert law.times(0, 5, generator()).tolist() == [1, 2, 1, 2, 1]


def test_exponential_times_give_a_geometric_staleness_law():
    """Each push comes from any of M workers with probability 1/M: P(s) = (1/M)(1 - 1/M)^s."""
    num_workers = 8
    schedule = sim.make_schedule(sim.ExponentialTime(), num_workers, 200_000, seed=3)
    staleness = schedule.staleness[1000:]
    share = np.bincount(staleness, minlength=40)[:40] / len(staleness)
    geometric = (1 / num_workers) * (1 - 1 / num_workers) ** np.arange(40)
    # Binomial error of the largest cell: sqrt(0.125 * 0.875 / 199_000) = 7.4e-4; four of those.
    np.testing.assert_allclose(share, geometric, atol=3e-3)


@pytest.mark.parametrize("law", [*LAWS, sim.ExponentialTime([1, 2, 3, 4, 5, 6, 7, 8])], ids=repr)
@pytest.mark.parametrize("num_workers", [8])
def test_mean_staleness_is_one_less_than_the_workers(law, num_workers):
    """Staleness plus the ages still in flight at the end sum to T(M-1): exact, for any law."""
    num_events = 4000
    schedule = sim.make_schedule(law, num_workers, num_events, seed=1)
    last_push = [np.flatnonzero(schedule.worker == m) for m in range(num_workers)]
    read = [int(pushes[-1]) + 1 if len(pushes) else 0 for pushes in last_push]
    in_flight = sum(num_events - r for r in read)
    assert schedule.staleness.sum() + in_flight == num_events * (num_workers - 1)
    steady = schedule.staleness[num_events // 10 :].mean()
    assert steady == pytest.approx(num_workers - 1, rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sim.ConstantTime(0.0), "ConstantTime.seconds must be positive"),
        (lambda: sim.ExponentialTime(-1.0), "ExponentialTime.mean must be positive"),
        (lambda: sim.GammaTime(float("nan"), 1.0), "GammaTime.shape must be positive"),
        (lambda: sim.GammaTime(100, float("inf")), "GammaTime.mean must be positive"),
        (lambda: sim.LognormalTime(1.0, 0.0), "LognormalTime.sigma must be positive"),
        (lambda: sim.ParetoTime(1.0, 1.0), "alpha must be > 1"),
        (lambda: sim.ParetoTime([2.0, 0.9], 1.0), "alpha must be > 1"),
        (lambda: sim.ExponentialTime([]), "a number or one number per worker"),
        (lambda: sim.RoundRobin([1.0, 2.0]), "one compute time for all"),
        (lambda: sim.RecordedTime(np.array([1.0, -2.0])), r"time at \[1\] is -2"),
        (lambda: sim.RecordedTime(np.array([[1.0, np.nan]])), r"time at \[0, 1\] is nan"),
        (lambda: sim.RecordedTime(np.zeros((0, 3))), "needs an array"),
        (
            lambda: sim.make_schedule(sim.ExponentialTime([1.0, 2.0]), 3, 5, seed=0),
            "ExponentialTime.mean has 2 values, but there are 3 workers",
        ),
        (
            lambda: sim.make_schedule(sim.RecordedTime(np.ones((4, 2))), 3, 5, seed=0),
            "2 columns, but there are 3 workers",
        ),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
