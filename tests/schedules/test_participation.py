"""Workers drawn at random, and workers that are there in windows of time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import sim

LAW = sim.GammaTime(3, 1.0)
INF = float("inf")


def make(protocol, num_workers=10, num_updates=400, law=LAW, **settings):
    return sim.make_schedule(law, num_workers, num_updates, seed=0, protocol=protocol, **settings)


def most_at_once(start, end):
    """The most intervals [start, end) that hold at one time."""
    changes = sorted([*((t, 1) for t in start), *((t, -1) for t in end)])
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize(
    "protocol",
    [
        sim.Asynchronous(),
        sim.Buffered(3),
        sim.DropStale(3),
        sim.StaleSynchronous(1),
        sim.Synchronous(),
        sim.Synchronous(6),
        sim.Quorum(2, grace=0.5),
        sim.Grace(0.5),
    ],
    ids=repr,
)
def test_so_many_compute_at_once_and_no_more(protocol):
    schedule = make(sim.Sampled(4, seed=0, protocol=protocol))
    assert most_at_once(schedule.read_time, schedule.time) == 4
    assert set(schedule.worker.tolist()) == set(range(10))


@pytest.mark.parametrize(
    "protocol", [sim.Asynchronous(), sim.Buffered(3), sim.Synchronous(2)], ids=repr
)
def test_with_places_for_all_nothing_is_drawn(protocol):
    plain, sampled = make(protocol), make(sim.Sampled(10, seed=0, protocol=protocol))
    for name in ("worker", "read_version", "version", "time", "read_time", "update_time"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(sampled, name), err_msg=name)


def test_every_idle_worker_is_drawn_as_often_as_any_other():
    schedule = make(sim.Sampled(4, seed=1), num_updates=20_000, law=sim.ExponentialTime())
    share = np.bincount(schedule.worker, minlength=10) / len(schedule)
    np.testing.assert_allclose(share, 0.1, atol=0.01)
    # Of 7 idle ones, itself among them, the worker that has just pushed begins again.
    again = schedule.read_time == np.append(-1, schedule.time)[schedule.previous_push + 1]
    assert abs(again.mean() - 1 / 7) < 4 * np.sqrt(6 / 49 / len(schedule))


def test_the_draws_have_a_seed_of_their_own():
    one, same, other = (
        make(sim.Sampled(4, seed=seed, protocol=sim.Buffered(2))).worker.tolist()
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_staleness_of_a_buffer_is_that_of_its_places_and_not_of_its_workers():
    """While a gradient is computed, the c - 1 others push: (c - 1) / K updates on average."""
    protocol = sim.Sampled(16, seed=0, protocol=sim.Buffered(5))
    schedule = make(protocol, num_workers=100, num_updates=4000)
    assert abs(schedule.staleness.mean() - 3) < 0.05


def test_a_crash_gives_the_place_back_and_the_dead_are_not_drawn():
    faults = [sim.Crash(m, 5.0) for m in range(6)] + [sim.Restart(0, 50.0)]
    schedule = make(sim.Sampled(3, seed=0), faults=faults)
    after = schedule.time > 5
    assert most_at_once(schedule.read_time[after], schedule.time[after]) == 3
    assert set(schedule.worker[after & (schedule.time < 50)].tolist()) == {6, 7, 8, 9}
    assert set(schedule.worker[schedule.time > 60].tolist()) == {0, 6, 7, 8, 9}


def test_who_is_stopped_keeps_the_place():
    protocol = sim.Synchronous(backup_workers=8, cancel=True)
    schedule = make(sim.Sampled(4, seed=0, protocol=protocol))
    assert schedule.applied.all()
    assert not schedule.staleness.any()
    assert (schedule.num_pushes == 2).all()
    assert most_at_once(schedule.read_time, schedule.time) <= 4
    # Always four compute: two that were stopped and two that were drawn when the others pushed.
    started = np.unique(schedule.read_time)
    assert np.isin(schedule.update_time[:-2], started).mean() > 0.9
    # So with equal times and as many places as pushes nobody is ever drawn twice at once.
    two = sim.Sampled(2, seed=0, protocol=sim.Synchronous(backup_workers=2, cancel=True))
    equal = sim.make_schedule(sim.ConstantTime(1.0), 4, 400, seed=0, protocol=two)
    np.testing.assert_array_equal(np.unique(equal.update_time), np.arange(1.0, 401.0))
    assert len(set(equal.worker.tolist())) == 4


def test_overlap_gives_the_place_back_when_the_computation_ends():
    protocol = sim.Sampled(4, seed=0, protocol=sim.Asynchronous(overlap=True))
    schedule = make(protocol, upload=sim.ConstantTime(5.0))
    computed = schedule.time - 5
    assert most_at_once(schedule.read_time, computed - 1e-9) == 4
    assert most_at_once(schedule.read_time, schedule.time) > 4


def test_sequential_stays_sequential():
    assert set(make(sim.Sampled(4, seed=0, protocol=sim.Sequential())).worker) == {0}


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: sim.Sampled(0, 0), ValueError, "Sampled.concurrency must be an integer >= 1"),
        (lambda: sim.Sampled(2, -1), ValueError, "Sampled.seed must be an integer >= 0"),
        (lambda: sim.Sampled(2, 0, sim.Buffered), TypeError, "protocol must be a protocol"),
    ],
)
def test_bad_values_are_named(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()


def test_windows_become_joins_crashes_and_restarts():
    windows = [[2, 7, INF], [0, 0, 4], [2, 3, 5], [0, 4, 6], [3, 0, INF], [1, 0, 2], [1, 8, 9]]
    assert sim.availability(windows) == [
        sim.Crash(0, 6),
        sim.Crash(1, 2),
        sim.Restart(1, 8),
        sim.Crash(1, 9),
        sim.LateJoin(2, 3),
        sim.Crash(2, 5),
        sim.Restart(2, 7),
    ]


def test_a_table_in_a_file_says_the_same(tmp_path):
    path = tmp_path / "there.csv"
    path.write_text("worker,start,stop\n1,5,8\n\n1,9,inf\n0,0,10\n")
    assert sim.availability(path) == sim.availability([[0, 0, 10], [1, 5, 8], [1, 9, INF]])


@st.composite
def all_windows(draw):
    windows = []
    for worker in range(1, 4):
        times = sorted(draw(st.sets(st.integers(0, 40), max_size=6)))
        windows += [
            [worker, start, stop] for start, stop in zip(times[::2], times[1::2], strict=False)
        ]
    return draw(st.permutations(windows))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(all_windows())
def test_every_gradient_is_begun_and_pushed_in_one_window(windows):
    schedule = make(sim.Buffered(2), 4, 60, faults=sim.availability(windows) if windows else [])
    there = {worker for worker, _, _ in windows}
    for worker, start, end in zip(schedule.worker, schedule.read_time, schedule.time, strict=True):
        if worker in there:
            assert any(m == worker and a <= start and end < b for m, a, b in windows)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([[0, 0, 5], [0, 4, 9]], r"row 1: the window of worker 0 overlaps that of .*row 0"),
        ([[0, 0, 5], [1, 5, 5]], "row 1: from 5 to 5 s is no window"),
        ([[0, -1, 5]], "row 0: from -1 to 5 s is no window"),
        ([[0, float("nan"), 5]], "row 0: from nan to 5 s is no window"),
        ([[0.5, 0, 5]], "row 0: 0.5 is no worker"),
        ([[-1, 0, 5]], "row 0: -1 is no worker"),
        ([[0, 5]], r"needs rows of worker, start and stop.* shape \(1, 2\)"),
        ([0, 1, 5], r"needs rows of worker, start and stop.* shape \(3,\)"),
        ([["a", 1, 5]], "availability needs rows of numbers"),
    ],
)
def test_bad_windows_are_named(windows, message):
    with pytest.raises(ValueError, match=message):
        sim.availability(windows)


def test_a_bad_row_of_a_file_is_named(tmp_path):
    path = tmp_path / "there.csv"
    path.write_text("worker,start,stop\n1,5,8\n\n1,7,inf\n")
    with pytest.raises(ValueError, match=r"there\.csv: line 4: the window of worker 1 overlaps"):
        sim.availability(path)
    path.write_text("1,5,8\n1,x,9\n")
    with pytest.raises(ValueError, match=r"there\.csv: line 2, column 2 is 'x', not a number"):
        sim.availability(path)


def test_windows_of_a_worker_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match=r"worker=7.* not in \[0, 4\)"):
        make(sim.Asynchronous(), 4, 9, faults=sim.availability([[7, 1, 2]]))
