"""Quorums, graces and cancelled stragglers: tables worked out by hand, faults, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ticks import Reference

from dcasgd_jax import sim

from .test_protocols import assert_as_reference, make, runs

INF = float("inf")


def of_times(*columns):
    """One column of compute times for each worker."""
    return (np.array(columns).T, None, None)


def columns(schedule, *names):
    return [getattr(schedule, name).tolist() for name in names]


def test_a_quorum_mixes_versions_and_lets_only_those_wait_that_have_pushed():
    # Workers 0 and 1 make the first update at 2; worker 2 has read version 0 and counts for the
    # second, at 4 with worker 0.
    schedule = make(sim.Quorum(2), 3, 3, of_times([1, 2, 2], [2, 5, 5], [3, 9, 9]))
    worker, version, read, time = columns(schedule, "worker", "version", "read_version", "time")
    assert worker == [0, 1, 2, 0, 0, 1]
    assert version == [0, 0, 1, 1, 2, 2]
    assert read == [0, 0, 0, 1, 2, 1]
    assert time == [1, 2, 3, 4, 6, 7]
    assert columns(schedule, "update_time") == [[2, 2, 4, 4, 7, 7]]
    assert schedule.read_time.tolist() == [0, 0, 0, 2, 4, 2]


def test_a_grace_makes_an_update_of_fewer():
    # The grace of the first update ends at 3, before worker 1 comes; at 10 the second begins.
    schedule = make(sim.Quorum(3, grace=2), 3, 2, of_times([1, 7], [8, 8], [2.5, 8]))
    assert columns(schedule, "worker", "version") == [[0, 2, 1, 0], [0, 0, 1, 1]]
    assert columns(schedule, "time", "update_time") == [[1, 2.5, 8, 10], [3, 3, 10, 10]]
    assert schedule.read_time.tolist() == [0, 0, 0, 3]
    assert schedule.num_pushes.tolist() == [2, 2, 2, 2]


def test_a_push_at_the_end_of_the_grace_is_in_time():
    schedule = make(sim.Quorum(3, grace=2), 3, 1, of_times([1], [3], [9]))
    assert columns(schedule, "worker", "update_time") == [[0, 1], [3, 3]]


def test_a_grace_that_a_quorum_has_ended_does_not_end_the_next_one():
    # The first update is made at 2, its grace would end at 4; that of the second ends at 6.
    schedule = make(sim.Quorum(2, grace=3), 2, 2, of_times([1, 1], [2, 9]))
    assert columns(schedule, "time", "update_time") == [[1, 2, 3], [2, 2, 6]]


def test_graces_of_zero_take_what_comes_at_one_instant():
    compute = of_times([1, 2], [1, 3], [2, 9])
    quorum = make(sim.Quorum(3, grace=0), 3, 2, compute)
    assert columns(quorum, "worker", "update_time") == [[0, 1, 2], [1, 1, 2]]
    grace = make(sim.Grace(0), 3, 4, compute)
    assert columns(grace, "worker", "read_version", "version") == [
        [0, 1, 2, 0],
        [0, 0, 0, 2],
        [0, 1, 2, 3],
    ]


def test_who_has_pushed_waits_for_the_grace_and_all_pull_together():
    schedule = make(sim.Grace(2), 3, 5, of_times([1, 4], [2, 4], [9, 9]))
    assert columns(schedule, "worker", "time") == [[0, 1, 0, 1, 2], [1, 2, 7, 7, 9]]
    assert columns(schedule, "read_version", "read_time") == [[0, 0, 2, 2, 0], [0, 0, 3, 3, 0]]
    np.testing.assert_array_equal(schedule.update_time, schedule.time)


def test_nobody_waits_for_a_grace_when_all_have_pushed():
    schedule = make(sim.Grace(100), 2, 4, of_times([1, 1], [2, 1]))
    assert columns(schedule, "time", "read_time") == [[1, 2, 3, 3], [0, 0, 2, 2]]


@st.composite
def runs_with_foresight(draw):
    _, num_workers, num_updates, tables = draw(runs())
    protocol = sim.Grace(draw(st.integers(0, 4)), foresight=True)
    lost = draw(st.sets(st.integers(0, 5), max_size=3))
    return protocol, num_workers, num_updates, tables, [sim.LostPush(0, push) for push in lost]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(runs_with_foresight())
def test_with_foresight_nobody_waits_in_vain(run):
    """The reference looks at what is under way; the package looks back when the time is over."""
    protocol, num_workers, num_updates, tables, faults = run
    outcome = Reference(protocol, num_workers, *tables, faults).run(num_updates, ticks=5000)
    assert_as_reference(make(protocol, num_workers, num_updates, tables, faults), outcome)


def test_cancelled_stragglers_begin_anew_at_each_update():
    compute = of_times([1, 1, 3], [2, 5, 1], [7, 1, 1])
    cancelled = make(sim.Synchronous(1, cancel=True), 3, 3, compute)
    # Worker 2 is stopped at 2 and its second gradient takes 1 s; then worker 1 is, and so on.
    assert columns(cancelled, "worker", "time") == [[0, 1, 0, 2, 1, 2], [1, 2, 3, 3, 4, 4]]
    assert columns(cancelled, "read_version", "read_time") == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 2, 2, 3, 3],
    ]
    assert cancelled.applied.all()
    late = make(sim.Synchronous(1), 3, 3, compute)
    assert columns(late, "worker", "time") == [[0, 1, 0, 1, 2, 1, 2], [1, 2, 3, 7, 7, 8, 8]]


def test_a_cancelled_push_is_stopped_on_its_way():
    tables = (np.array([[1.0, 1.0]]), np.array([[1.0, 5.0]]), None)
    schedule = make(sim.Synchronous(1, cancel=True), 2, 5, tables)
    assert schedule.worker.tolist() == [0] * 5
    assert schedule.time.tolist() == [2, 4, 6, 8, 10]


def test_the_second_delivery_of_a_push_comes_late_behind_the_update():
    schedule = make(
        sim.Synchronous(1, cancel=True), 2, 2, of_times([1], [9]), [sim.DuplicatedPush(0, 0)]
    )
    assert columns(schedule, "applied", "batch") == [[True, False, True], [0, 0, 2]]


@pytest.mark.parametrize("protocol", [sim.Quorum(3), sim.Quorum(3, grace=90)], ids=repr)
def test_a_quorum_larger_than_the_living_takes_all_of_them(protocol):
    """Worker 2 dies in its computation, all of which is lost; the two others wait no longer."""
    schedule = make(protocol, 3, 2, of_times([1], [2], [9]), [sim.Crash(2, 4)])
    assert columns(schedule, "worker", "time") == [[0, 1, 0, 1], [1, 2, 5, 6]]
    assert columns(schedule, "read_time", "update_time") == [[0, 0, 4, 4], [4, 4, 6, 6]]


def test_a_crash_ends_a_grace_for_the_dead():
    schedule = make(sim.Grace(90), 3, 4, of_times([1], [2], [9]), [sim.Crash(2, 4)])
    assert columns(schedule, "worker", "read_time") == [[0, 1, 0, 1], [0, 0, 4, 4]]


def test_a_grace_goes_on_when_all_who_wait_have_died():
    faults = [sim.Crash(0, 2), sim.Crash(1, 2)]
    schedule = make(sim.Quorum(3, grace=3), 3, 2, of_times([1], [1], [20]), faults)
    assert columns(schedule, "worker", "update_time") == [[0, 1, 2], [4, 4, 20]]


@pytest.mark.parametrize("protocol", [sim.Quorum(2, grace=1), sim.Grace(1)], ids=repr)
def test_a_run_that_nobody_is_left_to_finish_ends_and_says_what_has_happened(protocol):
    faults = [sim.Crash(0, 1.5), sim.Crash(1, 3)]
    with pytest.raises(ValueError, match=r"crashed, the last one at 3\.0 s, after 1 of 9 updates"):
        make(protocol, 2, 9, of_times([1], [50]), faults)


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: sim.Quorum(0), ValueError, "Quorum.num_pushes must be an integer >= 1, got 0"),
        (lambda: sim.Quorum(2, grace=-1), ValueError, r"Quorum.grace must be a time >= 0.* got -1"),
        (lambda: sim.Quorum(2, grace="1"), TypeError, "Quorum.grace must be a number of seconds"),
        (lambda: sim.Grace(-0.5), ValueError, r"Grace.seconds must be a time >= 0.* got -0.5"),
        (lambda: sim.Grace(INF), ValueError, r"Grace.seconds must be a time >= 0.* got inf"),
        (lambda: sim.Grace(True), TypeError, "Grace.seconds must be a number of seconds"),
        (lambda: sim.Grace(1, foresight=1), TypeError, "Grace.foresight must be True or False"),
        (lambda: sim.Synchronous(1, cancel=1), TypeError, "Synchronous.cancel must be True or"),
        (
            lambda: make(sim.Quorum(3), 2, 1, of_times([1], [1])),
            ValueError,
            "Quorum.num_pushes is 3, but there are 2 workers, and each waits after one push",
        ),
    ],
)
def test_bad_numbers_are_named(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()
