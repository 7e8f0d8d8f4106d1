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
    # A sixth of the gradients are slow, six times as slow: 2.0 = (1 + 5/6) * 12/11.
    sim.MarkovTime(sim.GammaTime(100, 12 / 11), slowdown=6.0, turns_slow=0.1, recovers=0.5),
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
        sim.MarkovTime(
            sim.ExponentialTime(0.5), slowdown=[3.0, 15.0], turns_slow=0.5, recovers=0.5
        ),
        sim.MarkovTime(sim.ConstantTime([0.8, 3.2]), slowdown=2.0, turns_slow=0.1, recovers=0.3),
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


def test_times_are_positive_where_numpys_are_not():
    law = sim.GammaTime(0.001)
    times = law.times(0, 1000, np.random.default_rng(0))
    assert times.min() > 0
    assert (np.random.default_rng(0).gamma(0.001, 1000.0, 1000) == 0).any()


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


def markov_chain(uniform, turns_slow, recovers):
    """The chain, one gradient after the other."""
    slow = uniform[0] < turns_slow / (turns_slow + recovers)
    states = [slow]
    for u in uniform[1:]:
        slow = u < (1 - recovers if slow else turns_slow)
        states.append(slow)
    return states


@pytest.mark.parametrize(
    ("turns_slow", "recovers"), [(0.1, 0.3), (0.7, 0.8), (0.5, 0.5), (1.0, 1.0), (0.01, 1.0)]
)
def test_markov_workers_are_slow_when_the_chain_is(turns_slow, recovers):
    law = sim.MarkovTime(sim.ConstantTime(1.0), 3.0, turns_slow, recovers)
    _, chain = generator(5).integers(2**63, size=2)
    states = markov_chain(np.random.default_rng(chain).random(500), turns_slow, recovers)
    assert (law.times(0, 500, generator(5)) == 3.0).tolist() == states
    assert 0 < sum(states) < 500


def test_markov_spells_last_as_long_as_stated():
    law = sim.MarkovTime(sim.ConstantTime(1.0), slowdown=5.0, turns_slow=0.02, recovers=0.1)
    slow = law.times(0, 200_000, generator()) > 1
    num_spells = np.count_nonzero(np.diff(slow.astype(int)) == 1)
    # About 3300 spells, geometric with a deviation of 9.5 gradients: 1.7 %; four of those.
    assert slow.sum() / num_spells == pytest.approx(10, rel=0.07)
    # The long-run share holds from the first gradient on: 20_000 workers, deviation 1.6 %.
    first = [law.times(0, 1, generator(seed))[0] > 1 for seed in range(20_000)]
    assert np.mean(first) == pytest.approx(1 / 6, rel=0.065)


def test_a_markov_worker_is_stale_while_it_is_slow():
    slow = sim.MarkovTime(sim.GammaTime(100, 1.0), slowdown=5.0, turns_slow=0.02, recovers=0.1)
    spread = [
        sim.make_schedule(law, 8, 50_000, seed=0).staleness.std()
        for law in (sim.GammaTime(100, 1.0), slow)
    ]
    assert spread[1] > 5 * spread[0]


def test_constant_times_give_the_same_staleness_always():
    schedule = sim.make_schedule(sim.ConstantTime(), 8, 1000, seed=0)
    assert (schedule.staleness[8:] == 7).all()


def test_gamma_times_keep_staleness_near_one_less_than_the_workers():
    """A cycle lasts 1 s with a deviation of 0.1 s, in which the 7 others push about 7 times."""
    schedule = sim.make_schedule(sim.GammaTime(100, 1.0), 8, 50_000, seed=0)
    staleness = schedule.staleness[1000:]
    assert staleness.mean() == pytest.approx(7, rel=0.005)
    # Each other worker pushes 0, 1 or 2 times: never far from 7 in all, and rarely two off.
    assert (abs(staleness - 7) <= 2).mean() > 0.95
    assert staleness.std() < 1.5
    memoryless = sim.make_schedule(sim.ExponentialTime(), 8, 50_000, seed=0).staleness
    assert memoryless.std() == pytest.approx((8 * 7) ** 0.5, rel=0.03)  # of the geometric law


def test_slow_workers_are_staler():
    """A worker's staleness is what the others push in its cycle: its mean time times their rate."""
    means = np.array([1.0, 1.0, 2.0, 4.0])
    schedule = sim.make_schedule(sim.ExponentialTime(means.tolist()), 4, 200_000, seed=0)
    rate = 1 / means
    for worker in range(4):
        staleness = schedule.staleness[schedule.worker == worker]
        expected = means[worker] * (rate.sum() - rate[worker])
        # At least 18_000 geometric stalenesses, deviation about the mean: 0.8 %; four of those.
        assert staleness.mean() == pytest.approx(expected, rel=0.035)


def test_recorded_times_from_csv(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("\ufefffast,slow\n1,2.5\n\n 1.5 ,3e0\n", encoding="utf-8")
    law = sim.RecordedTime.from_csv(path)
    assert law.times(0, 3, generator()).tolist() == [1.0, 1.5, 1.0]
    assert law.times(1, 3, generator()).tolist() == [2.5, 3.0, 2.5]
    path.write_text("1,2.5\n1.5,3\n")
    np.testing.assert_array_equal(sim.RecordedTime.from_csv(path).times_seconds, law.times_seconds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "times.csv holds no rows of numbers"),
        ("fast,slow\n", "times.csv holds no rows of numbers"),
        ("fast,slow\n1,2\n1\n", "line 3 has 1 cells, but the first row of numbers has 2"),
        ("1,2\n\n1,2,3\n", "line 3 has 3 cells, but the first row of numbers has 2"),
        ("1,2\n1,quick\n", "line 2, column 2 is 'quick', not a number"),
        ("fast,2\n1,2\n", "line 1, column 1 is 'fast', not a number"),
        ("1,2\n1,\n", "line 2, column 2 is '', not a number"),
        ("O.5,l.0\n1,2\n", "line 1, column 1 is 'O.5', not a number; nor is it the name of a col"),
        ("O\n1\n", "line 1, column 1 is 'O', not a number; nor"),
        ("fast,I0\n1,2\n", "line 1, column 2 is 'I0', not a number; nor"),
        ("fast,x2.5\n1,2\n", "line 1, column 2 is 'x2.5', not a number; nor"),
        ("0.5s,0.7s\n1,2\n", "line 1, column 1 is '0.5s', not a number; nor"),
        (",fast\n0,2\n", "line 1, column 1 is '', not a number; nor"),
        ("1_5,1_6\n1,2\n", "line 1, column 1 is '1_5', not a number; nor"),
        ("1,2\n1_5,2\n", "line 2, column 1 is '1_5', not a number"),
        ("fast,slow\n1\n2\n", "the header has 2 cells, but line 2 has 1; give every column a name"),
        ("fast,slow\n1,2\n1,-2.5\n", "line 3, column 2 is -2.5; compute times must be positive"),
        ("1,2\nnan,2\n", r"line 2, column 1 is nan; compute times must be positive and finite\.$"),
        ("1,2\ninf,2\n", r"line 2, column 1 is inf; compute times must be positive and finite\.$"),
        ("0.5,0\n1,2\n", r"line 1, column 2 is 0; compute times must be positive and finite\.$"),
        (
            "0,0\n0,1\n1,0\n",
            r"line 1, column 1 is 0; .* look like delays in versions; see sim.Schedule.from_delays",
        ),
    ],
)
def test_bad_files_of_times_are_named(tmp_path, content, message):
    path = tmp_path / "times.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        sim.RecordedTime.from_csv(path)


@pytest.mark.parametrize("header", ["fast,slow", "w0,w1", "# Zeit,λ (s)", "loss,Oslo", "a_1,b-2"])
def test_names_make_a_header(tmp_path, header):
    path = tmp_path / "times.csv"
    path.write_text(f"{header}\n1,2\n3,4\n", encoding="utf-8")
    assert sim.RecordedTime.from_csv(path).times_seconds.tolist() == [[1, 2], [3, 4]]


def test_how_many_rows_were_read_is_said_and_checked(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("fast,slow\n1,2\n3,4\n")
    law = sim.RecordedTime.from_csv(path, num_rows=2)
    assert repr(law) == "RecordedTime: 2 gradients of 2 workers"
    one_column = sim.RecordedTime(np.ones(3))
    assert repr(one_column) == "RecordedTime: 3 gradients of all workers alike"
    with pytest.raises(ValueError, match=r"times\.csv holds 2 rows of numbers, not 3: was it cut"):
        sim.RecordedTime.from_csv(path, num_rows=3)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "times.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"times\.csv is not a CSV file"):
        sim.RecordedTime.from_csv(path)
    with pytest.raises(FileNotFoundError):
        sim.RecordedTime.from_csv(tmp_path / "missing.csv")


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
        (lambda: sim.MarkovTime(sim.GammaTime(), 0.5), "MarkovTime.slowdown must be >= 1, got 0.5"),
        (lambda: sim.MarkovTime(sim.GammaTime(), 2, 1.5), "turns_slow is a probability and must"),
        (lambda: sim.MarkovTime(sim.GammaTime(), 2, 0.0), "MarkovTime.turns_slow must be positive"),
        (lambda: sim.MarkovTime(sim.GammaTime(), 2, 0.5, [0.5, 2]), "recovers is a probability"),
        (
            lambda: sim.make_schedule(sim.MarkovTime(sim.GammaTime(), [2, 3]), 3, 5, seed=0),
            "MarkovTime.slowdown has 2 values, but there are 3 workers",
        ),
        (
            lambda: sim.make_schedule(sim.MarkovTime(sim.GammaTime([2, 3])), 3, 5, seed=0),
            "GammaTime.shape has 2 values, but there are 3 workers",
        ),
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
