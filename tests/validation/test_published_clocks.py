"""Clocks that others have published: how long updates take, against the page `validation`."""

import pathlib

import numpy as np
import pytest

from dcasgd_jax import sim

PAGE = (pathlib.Path(__file__).parents[2] / "notebooks/validation.md").read_text(encoding="utf-8")

# google-deepmind/asyncdiloco, AsyncLocalSGDToyExample.ipynb: 20 local steps of each worker.
LOCAL_STEPS = sim.ConstantTime([20 * seconds for seconds in (0.58, 0.75, 1.51, 3.33)])
SYNCHRONOUS = [66.6, 133.2, 199.8, 266.4, 333.0]  # after each round
ASYNCHRONOUS = [209.0, 406.4, 603.8, 801.4, 999.0, 1207.8, 1404.2, 1600.6, 1800.2, 1998.6]

# Dutta et al. (2018), Section 3: 8 learners whose times are exponential of mean 1.
DUTTA = [
    (sim.Synchronous(), 100_000, 2.718),
    (sim.Asynchronous(), 400_000, 0.125),
    (sim.Buffered(3), 100_000, 0.375),
    (sim.Synchronous(backup_workers=2, cancel=True), 40_000, 1.218),
    (sim.Quorum(6), 40_000, 1.218),
]


def test_the_clock_of_synchronous_diloco():
    schedule = sim.make_schedule(LOCAL_STEPS, 4, 5, seed=0, protocol=sim.Synchronous())
    np.testing.assert_allclose(schedule.update_time[3::4], SYNCHRONOUS, rtol=0, atol=0.005)


def test_the_clock_of_asynchronous_diloco_with_half_a_second_of_grace():
    protocol = sim.Grace(0.5, foresight=True)
    schedule = sim.make_schedule(LOCAL_STEPS, 4, 400, seed=0, protocol=protocol)
    np.testing.assert_allclose(schedule.update_time[39::40], ASYNCHRONOUS, rtol=0, atol=0.005)


def test_a_long_grace_makes_asynchronous_diloco_synchronous():
    """The notebook's sanity check: 1000 s of grace, and all pull together."""
    protocol = sim.Grace(1000.0, foresight=True)
    schedule = sim.make_schedule(LOCAL_STEPS, 4, 20, seed=0, protocol=protocol)
    np.testing.assert_allclose(schedule.update_time[3::4], SYNCHRONOUS, rtol=0, atol=0.005)


@pytest.mark.parametrize(
    "protocol", [sim.Asynchronous(), sim.Grace(0.5), sim.Quorum(2, grace=0.5)], ids=repr
)
def test_other_clocks_than_that_one_are_told_apart(protocol):
    """No grace, a grace that is waited out, and a mean instead of one update per push."""
    schedule = sim.make_schedule(LOCAL_STEPS, 4, 400, seed=0, protocol=protocol)
    ours = schedule.update_time[39:400:40]
    assert np.abs(ours - ASYNCHRONOUS).max() > 1


@pytest.mark.parametrize(("protocol", "num_updates", "published"), DUTTA, ids=str)
def test_seconds_per_update_with_exponential_times(protocol, num_updates, published):
    schedule = sim.make_schedule(sim.ExponentialTime(), 8, num_updates, seed=0, protocol=protocol)
    seconds = schedule.update_time[-1] / num_updates
    np.testing.assert_allclose(seconds, published, rtol=0.01)


@pytest.mark.parametrize("wanted", [1, 4, 7])
def test_the_first_k_of_exponential_times_are_an_order_statistic(wanted):
    """1/P + 1/(P-1) + ... over k terms, with stragglers stopped or counted for a later update."""
    expected = sum(1 / k for k in range(8 - wanted + 1, 9))
    for protocol in (sim.Synchronous(8 - wanted, cancel=True), sim.Quorum(wanted)):
        schedule = sim.make_schedule(sim.ExponentialTime(), 8, 10_000, seed=1, protocol=protocol)
        np.testing.assert_allclose(schedule.update_time[-1] / 10_000, expected, rtol=0.03)


def test_stragglers_that_compute_on_take_a_fifth_longer_and_more():
    protocol = sim.Synchronous(backup_workers=2)
    schedule = sim.make_schedule(sim.ExponentialTime(), 8, 10_000, seed=0, protocol=protocol)
    assert schedule.update_time[-1] / 10_000 > 1.2 * 1.218


# Wu et al. (2022), repository Delay-data, BCD_Davis_RCV1.csv: 2001 delays of 8 real workers.
RECORDED_MEAN, RECORDED = 6.98, {0: 0.001, 5: 0.034, 6: 0.120, 7: 0.682, 8: 0.105, 9: 0.016}


def test_recorded_staleness_is_that_of_even_workers_not_of_memoryless_ones():
    shares = {}
    for law in (sim.GammaTime(400), sim.ExponentialTime()):
        staleness = sim.make_schedule(law, 8, 100_000, seed=0).staleness[100:]
        np.testing.assert_allclose(staleness.mean(), RECORDED_MEAN, rtol=0.01)
        shares[law] = np.bincount(staleness) / len(staleness)
    even, memoryless = shares.values()
    wanted = np.array(list(RECORDED.values()))
    np.testing.assert_allclose(even[list(RECORDED)], wanted, rtol=0, atol=0.035)
    assert memoryless[0] > 100 * RECORDED[0]
    assert memoryless[7] < 0.1 * RECORDED[7]


def test_the_page_has_these_numbers():
    for number in (RECORDED_MEAN, *RECORDED.values()):
        assert f"{number:.3g}" in PAGE
    for seconds in (*SYNCHRONOUS[:3], *ASYNCHRONOUS, *(published for *_, published in DUTTA)):
        assert str(seconds) in PAGE
    assert pathlib.Path(__file__).name in PAGE
