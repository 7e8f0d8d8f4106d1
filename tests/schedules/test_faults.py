"""Faults: every protocol with random faults against the reference, tables, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ticks import Reference

from dcasgd_jax import sim

from .test_protocols import LAW, assert_as_reference, make, runs

PROTOCOLS = [
    sim.Asynchronous(),
    sim.Asynchronous(overlap=True),
    sim.Buffered(3),
    sim.DropStale(3),
    sim.Synchronous(),
    sim.Synchronous(2),
    sim.StaleSynchronous(1),
]


@st.composite
def faults_of_one_worker(draw, worker):
    """A life of joins, crashes and restarts, one after the other, and whatever else."""
    faults: list = []
    time = 0
    if draw(st.booleans()):
        time = draw(st.integers(0, 8))
        faults.append(sim.LateJoin(worker, time))
    for kind in (sim.Crash, sim.Restart, sim.Crash, sim.Restart)[: draw(st.integers(0, 4))]:
        again = kind is sim.Crash and sim.Restart in map(type, faults)
        time += draw(st.integers(1 if again else 0, 8))  # at one instant a restart comes last
        faults.append(kind(worker, time))
    few = st.integers(0, 6)
    lost = draw(st.sets(few, max_size=3))
    faults += [sim.LostPush(worker, push) for push in lost]
    faults += [sim.DuplicatedPush(worker, push) for push in draw(st.sets(few, max_size=3)) - lost]
    faults += [sim.NaNGradient(worker, push) for push in draw(st.sets(few, max_size=2))]
    for start in draw(st.lists(st.integers(0, 20), max_size=2)):
        stop = start + draw(st.integers(1, 10))
        faults.append(sim.SlowDown(worker, start, stop, draw(st.integers(1, 3))))
    return faults


@st.composite
def faulty_runs(draw):
    protocol, num_workers, num_updates, tables = draw(runs())
    faults = [draw(faults_of_one_worker(m)) for m in range(num_workers) if draw(st.booleans())]
    order = draw(st.permutations([fault for some in faults for fault in some]))
    return protocol, num_workers, num_updates, tables, order


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(faulty_runs())
def test_every_protocol_with_faults_does_what_the_definitions_say(run):
    """Also: nothing hangs, whatever goes wrong; a run that nobody can finish says so."""
    protocol, num_workers, num_updates, tables, faults = run
    reference = Reference(protocol, num_workers, *tables, faults)
    outcome = reference.run(num_updates, ticks=5000)
    if outcome.finished:
        schedule = make(protocol, num_workers, num_updates, tables, faults)
        assert_as_reference(schedule, outcome)
        assert schedule.num_updates == num_updates
    else:
        counted = [f.time for f in faults if isinstance(f, sim.Crash)]
        if isinstance(protocol, sim.Sequential):
            counted = [f.time for f in faults if isinstance(f, sim.Crash) and f.worker == 0]
        words = f"the last one at {float(max(counted))} s, after {outcome.updates_done} of"
        with pytest.raises(ValueError, match=words):
            make(protocol, num_workers, num_updates, tables, faults)


ONES = (np.ones((1, 2)), None, None)


def test_a_crashed_worker_pushes_no_more_and_a_restarted_one_pulls_afresh():
    faults = [sim.Crash(1, 2.5), sim.Restart(1, 5.25)]
    schedule = make(sim.Asynchronous(), 2, 12, ONES, faults)
    assert schedule.worker.tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]
    assert schedule.time.tolist() == [1, 1, 2, 2, 3, 4, 5, 6, 6.25, 7, 7.25, 8]
    assert schedule.read_version[8] == 7  # the server's version at 5.25 s
    assert schedule.read_time[8] == 5.25


def test_a_push_that_arrives_at_the_instant_of_a_crash_is_lost():
    schedule = make(sim.Asynchronous(), 2, 3, ONES, [sim.Crash(1, 2)])
    assert schedule.worker.tolist() == [0, 1, 0]
    assert schedule.time.tolist() == [1, 1, 2]


def test_a_late_worker_pulls_first_when_it_joins():
    schedule = make(sim.Asynchronous(), 2, 4, ONES, [sim.LateJoin(1, 2.5)])
    assert schedule.worker.tolist() == [0, 0, 0, 1]
    assert (schedule.read_version[3], schedule.read_time[3], schedule.time[3]) == (2, 2.5, 3.5)


def test_a_slow_down_takes_hold_of_computations_that_start_in_its_window():
    slow = sim.SlowDown(0, start=1, stop=3, factor=4)
    schedule = make(sim.Sequential(), 2, 4, ONES, [slow])
    assert schedule.time.tolist() == [1, 5, 6, 7]
    twice = make(sim.Sequential(), 2, 4, ONES, [slow, sim.SlowDown(0, 0, np.inf, 2)])
    assert twice.time.tolist() == [2, 10, 12, 14]


def test_a_slow_down_leaves_the_network_alone():
    tables = (np.ones((1, 1)), 2 * np.ones((1, 1)), 3 * np.ones((1, 1)))
    slow = sim.SlowDown(0, start=3, stop=4, factor=10)  # computing starts after the download
    assert make(sim.Asynchronous(), 1, 2, tables, [slow]).time.tolist() == [15, 21]


def test_a_lost_push_is_computed_but_not_applied():
    schedule = make(sim.Asynchronous(), 2, 4, ONES, [sim.LostPush(1, 0)])
    assert schedule.applied.tolist() == [True, False, True, True, True]
    assert schedule.version.tolist() == [0, 1, 1, 2, 3]
    assert schedule.read_version.tolist() == [0, 0, 1, 1, 2]


def test_a_lost_push_of_a_barrier_is_computed_again():
    schedule = make(sim.Synchronous(), 2, 2, ONES, [sim.LostPush(0, 0)])
    assert schedule.worker.tolist() == [0, 1, 0, 0, 1]
    assert schedule.time.tolist() == [1, 1, 2, 3, 3]
    assert schedule.applied.tolist() == [False, True, True, True, True]
    assert schedule.version.tolist() == [0, 0, 0, 1, 1]


def test_a_duplicated_push_is_applied_twice_and_repeats_its_batch():
    schedule = make(sim.Asynchronous(), 2, 4, ONES, [sim.DuplicatedPush(0, 0)])
    assert schedule.worker.tolist() == [0, 0, 1, 0]
    assert schedule.batch.tolist() == [0, 0, 2, 3]
    assert schedule.version.tolist() == [0, 1, 2, 3]
    assert schedule.read_version.tolist() == [0, 0, 0, 1]  # pulled between the two deliveries


def test_a_corrupt_gradient_is_marked_in_every_delivery():
    faults = [sim.NaNGradient(1, 1), sim.NaNGradient(0, 0), sim.DuplicatedPush(0, 0)]
    schedule = make(sim.Asynchronous(), 2, 6, ONES, faults)
    assert schedule.worker.tolist() == [0, 0, 1, 0, 1, 0]
    assert schedule.corrupt.tolist() == [True, True, False, False, True, False]


def test_a_barrier_takes_all_that_are_left():
    compute = np.array([[1, 2, 9]])
    schedule = make(sim.Synchronous(), 3, 3, (compute, None, None), [sim.Crash(2, 4)])
    # The crash completes the first update at 4; workers 0 and 1 pull then.
    assert schedule.time.tolist() == [1, 2, 5, 6, 7, 8]
    assert schedule.read_time.tolist() == [0, 0, 4, 4, 6, 6]
    assert schedule.num_pushes.tolist() == [2] * 6


def test_clocks_do_not_count_the_dead():
    compute = np.array([[1, 50]])
    alive = make(sim.StaleSynchronous(0), 2, 3, (compute, None, None))
    assert alive.time.tolist() == [1, 50, 51]
    dead = make(sim.StaleSynchronous(0), 2, 3, (compute, None, None), [sim.Crash(1, 10)])
    assert dead.time.tolist() == [1, 11, 12]


def test_the_last_update_may_be_a_crash_away_from_its_last_push():
    compute = np.array([[1, 2, 50]])
    faults = [sim.LostPush(1, 0), sim.Crash(1, 2.5), sim.Crash(2, 3)]
    schedule = make(sim.Synchronous(1), 3, 1, (compute, None, None), faults)
    assert schedule.worker.tolist() == [0]  # the lost push at 2 came after it
    assert schedule.num_updates == 1


def test_a_barrier_waits_while_everybody_is_down():
    compute = np.array([[1, 50]])
    faults = [sim.Crash(0, 2), sim.Crash(1, 3), sim.Restart(0, 10)]
    schedule = make(sim.Synchronous(), 2, 1, (compute, None, None), faults)
    assert schedule.time.tolist() == [1, 11]
    assert schedule.num_pushes.tolist() == [2, 2]


def test_a_restarted_worker_does_not_queue_behind_what_it_lost():
    uploads = np.array([[50], [1], [1], [1]])
    faults = [sim.Crash(0, 1.5), sim.Restart(0, 3)]
    tables = (np.ones((1, 1)), uploads, None)
    schedule = make(sim.Asynchronous(overlap=True), 1, 2, tables, faults)
    assert schedule.time.tolist() == [5, 6]


def test_clocks_begin_again_at_the_first_who_is_back():
    faults = [sim.Crash(0, 0.5), sim.Crash(1, 3.5), sim.Restart(0, 5), sim.Restart(1, 5)]
    schedule = make(sim.StaleSynchronous(0), 2, 8, ONES, faults)
    # Worker 1 is three gradients ahead, and waits for worker 0.
    assert schedule.worker.tolist() == [1, 1, 1, 0, 0, 0, 0, 1]
    assert schedule.time.tolist() == [1, 2, 3, 6, 7, 8, 9, 9]


def test_a_worker_that_crashes_while_it_waits_does_not_go_on():
    compute = np.array([[1, 5]])
    schedule = make(sim.StaleSynchronous(0), 2, 3, (compute, None, None), [sim.Crash(0, 2)])
    assert schedule.worker.tolist() == [0, 1, 1]
    assert schedule.time.tolist() == [1, 5, 10]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_a_run_that_nobody_can_finish_says_when_and_where_it_stopped(protocol):
    faults = [sim.Crash(m, 3.0 + m) for m in range(4)]
    with pytest.raises(ValueError, match=r"last one at 6.0 s, after \d+ of 500 updates"):
        sim.make_schedule(sim.GammaTime(), 4, 500, seed=0, protocol=protocol, faults=faults)
    faults.append(sim.Restart(2, 100.0))
    schedule = sim.make_schedule(sim.GammaTime(), 4, 500, seed=0, protocol=protocol, faults=faults)
    assert schedule.num_updates == 500
    assert set(schedule.worker[schedule.time > 6].tolist()) == {2}
    assert schedule.read_time[schedule.time > 6].min() == 100.0


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_a_fault_after_the_end_changes_nothing(protocol):
    faults = [sim.Crash(0, 1e6), sim.LostPush(1, 10**6), sim.NaNGradient(1, 10**6)]
    plain, faulty = (
        sim.make_schedule(LAW, 4, 100, seed=0, protocol=protocol, faults=f) for f in ((), faults)
    )
    np.testing.assert_array_equal(plain.worker, faulty.worker)
    np.testing.assert_array_equal(plain.time, faulty.time)
    np.testing.assert_array_equal(plain.applied, faulty.applied)
    assert not faulty.corrupt.any()


@pytest.mark.parametrize(
    ("make_fault", "message"),
    [
        (lambda: sim.Crash(-1, 1.0), "Crash.worker must be an integer >= 0, got -1"),
        (lambda: sim.Crash(0.5, 1.0), "Crash.worker must be an integer"),
        (lambda: sim.Crash(0, -1.0), "Crash.time must be a time >= 0 in seconds, got -1"),
        (lambda: sim.Restart(0, float("nan")), "Restart.time must be a time >= 0"),
        (lambda: sim.LateJoin(0, float("inf")), "LateJoin.time must be a time >= 0"),
        (lambda: sim.SlowDown(0, -1, 2, 2), "SlowDown.start must be a time >= 0"),
        (lambda: sim.SlowDown(0, 2, 2, 2), "SlowDown.stop must be later than start, got 2 to 2"),
        (lambda: sim.SlowDown(0, 3, 2, 2), "SlowDown.stop must be later than start"),
        (lambda: sim.SlowDown(0, 0, float("nan"), 2), "SlowDown.stop must be a time"),
        (lambda: sim.SlowDown(0, 1, 2, 0), "SlowDown.factor must be positive and finite, got 0"),
        (lambda: sim.SlowDown(0, 1, 2, float("nan")), "SlowDown.factor must be positive"),
        (lambda: sim.LostPush(0, -1), "LostPush.push must be an integer >= 0, got -1"),
        (lambda: sim.DuplicatedPush(0, 1.5), "DuplicatedPush.push must be an integer"),
        (lambda: sim.NaNGradient(True, 1), "NaNGradient.worker must be an integer"),
    ],
)
def test_impossible_faults_are_named(make_fault, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_fault()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([sim.Crash(2, 1.0)], r"Crash\(worker=2, time=1.0\) is about a worker that is not in \[0"),
        ([sim.NaNGradient(5, 1)], r"NaNGradient\(worker=5, push=1\) is about a worker"),
        ([sim.Crash(0, 1.0), sim.Crash(0, 3.0)], "0 crashes at 3.0 s, but has not restarted since"),
        ([sim.Restart(1, 3.0)], "Worker 1 restarts at 3.0 s without a crash before it"),
        ([sim.Crash(0, 5.0), sim.Restart(0, 3.0)], "Worker 0 restarts at 3.0 s without a crash"),
        (
            [sim.Crash(0, 1.0), sim.Restart(0, 3.0), sim.Restart(0, 4.0)],
            "Worker 0 restarts at 4.0 s without a crash",
        ),
        ([sim.LateJoin(0, 5.0), sim.Crash(0, 3.0)], "0 crashes at 3.0 s, before it joins"),
        ([sim.LateJoin(0, 5.0), sim.LateJoin(0, 6.0)], "0 joins at 6.0 s, but something has"),
        ([sim.LostPush(0, 3), sim.DuplicatedPush(0, 3)], "Push 3 of worker 0 is both lost and"),
        (["crash"], "A fault must be one of sim.Crash and its neighbours, got 'crash'"),
    ],
)
def test_faults_that_contradict_each_other_are_named(faults, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sim.make_schedule(LAW, 2, 5, seed=0, faults=faults)
