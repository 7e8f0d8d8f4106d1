"""Prescribed staleness, recorded delays, replays: the same race again, and clear refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import sim

FIELDS = ("worker", "read_version", "version", "time", "applied", "batch", "corrupt", "read_time")


def play(protocol, num_workers, num_updates, law=None):
    return sim.make_schedule(law, num_workers, num_updates, seed=0, protocol=protocol)


@st.composite
def stalenesses(draw):
    return [draw(st.integers(0, min(k, 6))) for k in range(draw(st.integers(1, 25)))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(stalenesses())
def test_prescribed_staleness_uses_the_lowest_free_worker_and_no_more_than_it_needs(staleness):
    at_once = max(
        sum(k - s <= t <= k for k, s in enumerate(staleness)) for t in range(len(staleness))
    )
    schedule = play(sim.PrescribedStaleness(staleness), at_once, len(staleness))
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
            play(sim.PrescribedStaleness(staleness), at_once - 1, len(staleness))


def test_prescribed_staleness_table():
    schedule = play(sim.PrescribedStaleness([0, 1, 0, 3, 1]), 4, 5)
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
    schedule = play(sim.RecordedDelays(table), len(table[0]), len(table))
    columns = (schedule.worker, schedule.read_version, schedule.version)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == events
    assert schedule.num_updates == len(table)
    assert schedule.time.tolist() == [t + 1 for _, _, t in events]
    assert schedule.read_time.tolist() == [read for _, read, _ in events]
    short = play(sim.RecordedDelays(table), len(table[0]), 1)
    assert short.worker.tolist() == list(range(len(table[0])))


@pytest.mark.parametrize("delays", [[0, 1, 2, 0], [[0], [1], [2], [0]]])
def test_a_single_column_is_the_staleness_of_each_update(delays):
    schedule = play(sim.RecordedDelays(delays), 5, 4)
    assert schedule.staleness.tolist() == [0, 1, 2, 0]
    assert schedule.worker.tolist() == [0, 1, 2, 0]


def test_recorded_delays_from_csv(tmp_path):
    path = tmp_path / "delays.csv"
    path.write_text("0.000e+00,0.000e+00\n0.000e+00,1.000e+00\n1.000e+00,1.000e+00\n")
    schedule = play(sim.RecordedDelays.from_csv(path), 2, 3)
    assert schedule.worker.tolist() == [0, 1, 0, 1]
    assert schedule.read_version.tolist() == [0, 0, 1, 1]
    assert repr(sim.RecordedDelays.from_csv(path, 3)) == "RecordedDelays: 3 updates and 2 workers"
    with pytest.raises(ValueError, match=r"delays\.csv holds 3 rows of numbers, not 4"):
        sim.RecordedDelays.from_csv(path, num_rows=4)
    path.write_text("0\n1\n1\n")
    assert play(sim.RecordedDelays.from_csv(path), 3, 3).staleness.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "delays.csv holds no rows of numbers"),
        ("0,0\n0\n", "delays.csv: line 2 has 1 cells, but the first row of numbers has 2"),
        ("O\n0\n1\n", "delays.csv: line 1, column 1 is 'O', not a number; nor is it the name"),
        ("0,0\n0,x\n", "delays.csv: line 2, column 2 is 'x', not a number"),
        ("0,0\n0.5,1\n", "delays.csv: RecordedDelays needs whole numbers of versions"),
        ("0,0\ninf,1\n", "delays.csv: RecordedDelays needs whole numbers of versions"),
        ("0,0\nnan,1\n", "delays.csv: RecordedDelays needs whole numbers of versions"),
        ("0,0\n2,0\n", "delays.csv: RecordedDelays: the delay in row 1, column 0 is 2"),
    ],
)
def test_bad_files_of_delays_are_named(tmp_path, content, message):
    path = tmp_path / "delays.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        sim.RecordedDelays.from_csv(path)


PROTOCOLS = [
    sim.Asynchronous(overlap=True),
    sim.Synchronous(1),
    sim.StaleSynchronous(1),
    sim.Buffered(3),
    sim.DropStale(2),
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
@pytest.mark.parametrize("faulty", [False, True])
def test_a_replay_is_the_recorded_schedule(protocol, faulty):
    faults = [sim.DuplicatedPush(0, 1), sim.NaNGradient(1, 0), sim.Crash(2, 3.0)] if faulty else []
    make = lambda num_updates: sim.make_schedule(
        sim.ExponentialTime(), 4, num_updates, seed=0, protocol=protocol, faults=faults
    )
    recorded = make(40)
    for num_updates in (1, 7, 40):
        replayed = play(sim.Replay(recorded), 4, num_updates)
        for name in FIELDS:
            expected = getattr(make(num_updates), name)
            np.testing.assert_array_equal(getattr(replayed, name), expected, err_msg=name)
        assert replayed.num_updates == num_updates


def test_the_law_is_not_used():
    other = sim.ConstantTime([1.0, 2.0, 3.0])  # for another number of workers
    record = sim.Replay(sim.Schedule([0, 1], [0, 0]))
    for protocol in (sim.PrescribedStaleness([0, 1]), sim.RecordedDelays([[0, 0], [1, 0]]), record):
        with_law, without = (play(protocol, 2, 2, law=law) for law in (other, None))
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(with_law, name), getattr(without, name))


SCHEDULE = sim.Schedule([0, 1, 0], [0, 0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sim.PrescribedStaleness([0, 2]), r"staleness\[1\] is 2, but must be in \[0, 1\]"),
        (lambda: sim.PrescribedStaleness([0, -1]), r"staleness\[1\] is -1, but must be in \[0, 1"),
        (lambda: sim.PrescribedStaleness([]), "whole numbers of versions, at least one"),
        (lambda: sim.PrescribedStaleness([0, 0.5]), "whole numbers of versions"),
        (lambda: sim.PrescribedStaleness(["a"]), "whole numbers of versions"),
        (lambda: sim.PrescribedStaleness([[0, 0]]), "one staleness per update, got an array of"),
        (
            lambda: play(sim.PrescribedStaleness([0, 1]), 2, 3),
            "PrescribedStaleness holds 2 updates, but num_updates is 3",
        ),
        (lambda: play(sim.PrescribedStaleness([0, 1, 2]), 2, 3), "needs at least 3 workers"),
        (lambda: sim.RecordedDelays([[0, 1]]), r"row 0, column 1 is 1, but must be in \[0, 0\]"),
        (lambda: sim.RecordedDelays([[0, 0], [0, -1]]), "row 1, column 1 is -1"),
        (
            lambda: sim.RecordedDelays([[0, 0], [0, 0], [0, 2]]),
            "row 2, column 1 is 2 after 0, but a delay grows by at most 1",
        ),
        (lambda: sim.RecordedDelays([[0, 0], [1, 1]]), "row 1 has no new gradient"),
        (lambda: sim.RecordedDelays(np.zeros((1, 1, 2))), "needs an array"),
        (lambda: play(sim.RecordedDelays([[0, 0]]), 3, 1), "is for 2 workers, but num_workers is"),
        (lambda: play(sim.RecordedDelays([[0, 0]]), 2, 2), "holds 1 updates, but num_updates is 2"),
        (lambda: play(sim.Replay(SCHEDULE), 3, 2), "Replay is for 2 workers, but num_workers is 3"),
        (lambda: play(sim.Replay(SCHEDULE), 2, 4), "Replay holds 3 updates, but num_updates is 4"),
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
    schedule = play(sim.RecordedDelays(rows), num_workers, num_updates)
    assert schedule.worker[num_workers:].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert schedule.staleness[num_workers:].tolist() == [0, 1] + [2] * 9
