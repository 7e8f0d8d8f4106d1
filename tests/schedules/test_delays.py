"""Schedules made of delays: a staleness per update, a table of ages; and clear refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import sim


@st.composite
def stalenesses(draw):
    return [draw(st.integers(0, min(k, 6))) for k in range(draw(st.integers(1, 25)))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(stalenesses())
def test_prescribed_staleness_uses_the_lowest_free_worker_and_no_more_than_it_needs(staleness):
    at_once = max(
        sum(k - s <= t <= k for k, s in enumerate(staleness)) for t in range(len(staleness))
    )
    schedule = sim.Schedule.from_staleness(staleness)
    assert schedule.num_workers == at_once
    assert schedule.staleness.tolist() == staleness
    assert schedule.applied.all()
    assert schedule.num_updates == len(staleness)
    busy = {m: set() for m in range(at_once)}
    by_read = sorted(range(len(staleness)), key=lambda k: (k - staleness[k], k))
    for k in by_read:
        versions = set(range(k - staleness[k], k + 1))
        lowest = next(m for m in range(at_once) if not busy[m] & versions)
        assert schedule.worker[k] == lowest
        busy[lowest] |= versions
    if at_once > 1:
        with pytest.raises(ValueError, match=f"needs at least {at_once} workers"):
            sim.Schedule.from_staleness(staleness, num_workers=at_once - 1)


def test_prescribed_staleness_table():
    schedule = sim.Schedule.from_staleness([0, 1, 0, 3, 1], num_workers=4)
    assert schedule.read_version.tolist() == [0, 0, 2, 0, 3]
    assert schedule.worker.tolist() == [0, 1, 0, 2, 0]
    assert schedule.time.tolist() == [1, 2, 3, 4, 5]
    assert schedule.read_time.tolist() == [0, 0, 2, 0, 3]
    assert schedule.num_workers == 4


@st.composite
def records(draw):
    """A race by hand, and its table of ages: all push for update 0, later at least one for each."""
    num_workers = draw(st.integers(2, 4))
    newest = [0] * num_workers
    events = [(m, 0, 0) for m in range(num_workers)]
    table = [[0] * num_workers]
    for t in range(1, draw(st.integers(1, 15))):
        ready = [m for m in range(num_workers) if newest[m] < t]
        pushing = draw(st.sets(st.sampled_from(ready), min_size=1))
        for m in sorted(pushing):
            newest[m] = draw(st.integers(newest[m] + 1, t))
            events.append((m, newest[m], t))
        table.append([t - read for read in newest])
    return table, events


@settings(max_examples=200, deadline=None, derandomize=True)
@given(records())
def test_recorded_delays_are_rebuilt_exactly(record):
    table, events = record
    schedule = sim.Schedule.from_delays(table)
    assert schedule.num_workers == len(table[0])
    columns = (schedule.worker, schedule.read_version, schedule.version)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == events
    assert schedule.num_updates == len(table)
    assert schedule.time.tolist() == [t + 1 for _, _, t in events]
    assert schedule.read_time.tolist() == [read for _, read, _ in events]
    short = sim.Schedule.from_delays(table[:1])
    assert short.worker.tolist() == list(range(len(table[0])))


@pytest.mark.parametrize("delays", [[0, 1, 2, 0], [[0], [1], [2], [0]]])
def test_a_single_column_is_the_staleness_of_each_update(delays):
    schedule = sim.Schedule.from_delays(delays)
    assert schedule.staleness.tolist() == [0, 1, 2, 0]
    assert schedule.worker.tolist() == [0, 1, 2, 0]


def test_delays_from_csv(tmp_path):
    path = tmp_path / "delays.csv"
    path.write_text("0.000e+00,0.000e+00\n0.000e+00,1.000e+00\n1.000e+00,1.000e+00\n")
    schedule = sim.Schedule.from_delays_csv(path)
    assert schedule.worker.tolist() == [0, 1, 0, 1]
    assert schedule.read_version.tolist() == [0, 0, 1, 1]
    read = repr(sim.Schedule.from_delays_csv(path, 3))
    assert read.startswith("Schedule: 4 events, 3 updates, 2 workers")
    with pytest.raises(ValueError, match=r"delays\.csv holds 3 rows of numbers, not 4"):
        sim.Schedule.from_delays_csv(path, num_rows=4)
    path.write_text("0\n1\n1\n")
    assert sim.Schedule.from_delays_csv(path).staleness.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "delays.csv holds no rows of numbers"),
        ("0,0\n0\n", "delays.csv: line 2 has 1 cells, but the first row of numbers has 2"),
        ("O\n0\n1\n", "delays.csv: line 1, column 1 is 'O', not a number; nor is it the name"),
        ("0,0\n0,x\n", "delays.csv: line 2, column 2 is 'x', not a number"),
        ("0,0\n0.5,1\n", "delays.csv: Schedule.from_delays needs whole numbers of versions"),
        ("0,0\ninf,1\n", "delays.csv: Schedule.from_delays needs whole numbers of versions"),
        ("0,0\nnan,1\n", "delays.csv: Schedule.from_delays needs whole numbers of versions"),
        ("0,0\n2,0\n", "delays.csv: Schedule.from_delays: the delay in row 1, column 0 is 2"),
    ],
)
def test_bad_files_of_delays_are_named(tmp_path, content, message):
    path = tmp_path / "delays.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        sim.Schedule.from_delays_csv(path)


staleness, delays = sim.Schedule.from_staleness, sim.Schedule.from_delays


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: staleness([0, 2]), r"staleness\[1\] is 2, but must be in \[0, 1\]"),
        (lambda: staleness([0, -1]), r"staleness\[1\] is -1, but must be in \[0, 1"),
        (lambda: staleness([]), "whole numbers of versions, at least one"),
        (lambda: staleness([0, 0.5]), "whole numbers of versions"),
        (lambda: staleness(["a"]), "whole numbers of versions"),
        (lambda: staleness([[0, 0]]), "one staleness per update, got an array of"),
        (lambda: staleness([0, 1, 2], 2), "needs at least 3 workers: so many gradients are under"),
        (lambda: delays([[0, 1]]), r"row 0, column 1 is 1, but must be in \[0, 0\]"),
        (lambda: delays([[0, 0], [0, -1]]), "row 1, column 1 is -1"),
        (
            lambda: delays([[0, 0], [0, 0], [0, 2]]),
            "row 2, column 1 is 2 after 0, but a delay grows by at most 1",
        ),
        (lambda: delays([[0, 0], [1, 1]]), "row 1 has no new gradient"),
        (lambda: delays(np.zeros((1, 1, 2))), "needs an array"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_record_of_equal_workers_is_round_robin():
    """A table written from a schedule of ours gives that schedule again."""
    num_workers, num_updates = 3, 12
    rows = [[0] * num_workers]
    newest = [0] * num_workers
    for t, m in zip(range(1, num_updates), itertools.cycle(range(num_workers))):
        newest[m] = max(t - num_workers + 1, 1)
        rows.append([t - read for read in newest])
    schedule = delays(rows)
    assert schedule.worker[num_workers:].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert schedule.staleness[num_workers:].tolist() == [0, 1] + [2] * 9
