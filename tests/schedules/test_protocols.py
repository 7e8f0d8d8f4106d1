"""Every protocol against a tick-by-tick reference, hand-written tables, bounds, bad input."""

import dataclasses

import numpy as np
import own_protocols
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ticks import Reference

from dcasgd_jax import sim

FIELDS = (
    "worker", "read_version", "version", "time", "applied", "batch", "corrupt", "read_time",
    "update_time",
)  # fmt: skip
ALWAYS_BUSY = [
    sim.Asynchronous(),
    sim.Asynchronous(overlap=True),
    sim.Buffered(1),
    sim.Buffered(5),
    sim.DropStale(1),
    sim.DropStale(6),
    sim.Sequential(),
]
WAITING = [
    sim.Synchronous(),
    sim.Synchronous(backup_workers=2),
    sim.StaleSynchronous(0),
    sim.StaleSynchronous(2),
    sim.Synchronous(backup_workers=2, cancel=True),
    sim.Quorum(3),
    sim.Quorum(3, grace=0.2),
    sim.Grace(0.2),
    sim.Grace(0.2, foresight=True),
    sim.Sampled(3, seed=0, protocol=sim.Grace(0.2, foresight=True)),
]


def protocols(num_workers):
    return st.one_of(
        st.builds(sim.Asynchronous, st.booleans()),
        st.builds(sim.Synchronous, st.integers(0, num_workers - 1), st.booleans()),
        st.builds(sim.Quorum, st.integers(1, num_workers), st.none() | st.integers(0, 4)),
        st.builds(sim.Grace, st.integers(0, 4)),
        st.builds(sim.StaleSynchronous, st.integers(0, 3)),
        st.builds(sim.Buffered, st.integers(1, 4)),
        st.builds(sim.DropStale, st.integers(1, 4)),
        st.just(sim.Sequential()),
    )


@st.composite
def tick_tables(draw, num_workers):
    rows = draw(st.integers(1, 4))
    cells = st.lists(st.integers(1, 4), min_size=num_workers, max_size=num_workers)
    return np.array(draw(st.lists(cells, min_size=rows, max_size=rows)))


@st.composite
def runs(draw):
    """Protocol, workers, updates, ticks of computing, uploading and downloading."""
    num_workers = draw(st.integers(1, 5))
    optional = st.none() | tick_tables(num_workers)
    return (
        draw(protocols(num_workers)),
        num_workers,
        draw(st.integers(1, 15)),
        (draw(tick_tables(num_workers)), draw(optional), draw(optional)),
    )


def make(protocol, num_workers, num_updates, tables, faults=()):
    compute, upload, download = (None if t is None else sim.RecordedTime(t) for t in tables)
    return sim.make_schedule(
        compute,
        num_workers,
        num_updates,
        seed=0,
        protocol=protocol,
        upload=upload,
        download=download,
        faults=faults,
    )


def assert_as_reference(schedule, outcome):
    expected = {name: [getattr(push, name) for push in outcome.pushes] for name in FIELDS[4:-1]}
    expected["worker"] = [push.worker for push in outcome.pushes]
    expected["read_version"] = [push.read_version for push in outcome.pushes]
    expected["time"] = [push.time for push in outcome.pushes]
    expected["version"] = outcome.versions
    expected["update_time"] = outcome.update_times
    assert {name: getattr(schedule, name).tolist() for name in FIELDS} == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(runs())
def test_every_protocol_does_what_its_definition_says(run):
    protocol, num_workers, num_updates, tables = run
    outcome = Reference(protocol, num_workers, *tables, faults=()).run(num_updates, ticks=5000)
    schedule = make(protocol, num_workers, num_updates, tables)
    assert_as_reference(schedule, outcome)
    assert schedule.num_updates == num_updates


@pytest.mark.parametrize("times", ["no network", "network"])
@pytest.mark.parametrize("protocol", [*ALWAYS_BUSY, sim.Synchronous()], ids=repr)
def test_the_shortcuts_give_what_the_event_loop_gives(protocol, times):
    """A slow-down after the end changes nothing but sends the run through the loop."""
    late = [sim.SlowDown(0, start=1e9, stop=2e9, factor=2.0)]
    network = {}
    if times == "network":
        network = dict(upload=sim.ExponentialTime(0.7), download=sim.ParetoTime(2.0, 0.2))
    fast, slow = (
        sim.make_schedule(
            sim.GammaTime(3, 1.0), 6, 300, seed=2, protocol=protocol, faults=faults, **network
        )
        for faults in ((), late)
    )
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)


def test_overlap_table():
    # One tick of computing, two of uploading: pulls at 0, 1, 2, 3, 4, arrivals at 3, 4, 5, 6, 7.
    one = np.ones((1, 1))
    schedule = make(sim.Asynchronous(overlap=True), 1, 5, (one, 2 * one, None))
    assert schedule.time.tolist() == [3, 4, 5, 6, 7]
    assert schedule.read_time.tolist() == [0, 1, 2, 3, 4]
    assert schedule.read_version.tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("download", "times", "read_times", "read_versions"),
    [
        # Asks at 6, to have at 6.5 what it needs half way through 4 to 8.5: its own push is in it.
        (0.5, [5.5, 9.5, 13.5], [0, 6, 10], [0, 1, 2]),
        # Asks at 7, when it has done a gradient, and waits a second for what it needs at 9.
        (3.0, [8, 13, 18], [0, 7, 12], [0, 0, 1]),
    ],
    ids=["in time", "waits"],
)
def test_a_pull_after_a_share_of_the_computation(download, times, read_times, read_versions):
    protocol = sim.Asynchronous(overlap=True, pull_after=0.5)
    seconds = [np.full((1, 1), value) for value in (4.0, 1.0, download)]
    schedule = make(protocol, 1, 3, seconds)
    assert schedule.time.tolist() == times
    assert schedule.read_time.tolist() == read_times
    assert schedule.read_version.tolist() == read_versions


def test_a_pull_after_a_share_is_refused_where_it_would_be_ignored():
    with pytest.raises(ValueError, match=r"pull_after is for workers that go on .* overlap=True"):
        sim.Asynchronous(pull_after=0.5)
    with pytest.raises(ValueError, match=r"pull_after must lie in \[0, 1\)"):
        sim.Asynchronous(overlap=True, pull_after=1.0)
    protocol = sim.Asynchronous(overlap=True, pull_after=0.5)
    for options in (
        dict(protocol=protocol, faults=[sim.Crash(0, 1.0)]),
        dict(protocol=protocol, links=sim.Links([0, 0])),
        dict(protocol=sim.Sampled(1, seed=0, protocol=protocol)),
    ):
        with pytest.raises(ValueError, match=r"without faults and links, and stands alone"):
            sim.make_schedule(sim.ConstantTime(), 2, 5, seed=0, **options)


def test_a_gradient_does_not_overtake_the_one_before_it():
    uploads = np.array([[5], [1], [1]])
    schedule = make(sim.Asynchronous(overlap=True), 1, 3, (np.ones((1, 1)), uploads, None))
    assert schedule.time.tolist() == [6, 6, 6]
    assert schedule.read_time.tolist() == [0, 1, 2]


def test_backup_workers_table():
    # Two of three make an update; worker 2's first push comes late, at 5, and is dropped.
    compute = np.array([[1, 2, 5]])
    schedule = make(sim.Synchronous(backup_workers=1), 3, 3, (compute, None, None))
    assert schedule.worker.tolist() == [0, 1, 0, 1, 0, 2, 1]
    assert schedule.time.tolist() == [1, 2, 3, 4, 5, 5, 6]
    assert schedule.version.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert schedule.applied.tolist() == [True, True, True, True, True, False, True]
    assert schedule.num_pushes.tolist() == [2] * 7
    assert schedule.updates.tolist() == [False, True, False, True, False, False, True]


def test_stale_synchronous_table():
    # Worker 0 may be one ahead: it pulls at 0 and 1, then waits for worker 1's push at 5.
    compute = np.array([[1, 5]])
    schedule = make(sim.StaleSynchronous(1), 2, 5, (compute, None, None))
    assert schedule.worker.tolist() == [0, 0, 1, 0, 1]
    assert schedule.time.tolist() == [1, 2, 5, 6, 10]
    assert schedule.read_time.tolist() == [0, 1, 0, 5, 5]
    assert schedule.read_version.tolist() == [0, 1, 0, 3, 3]


def test_buffered_table():
    compute = np.array([[1, 2, 4]])
    schedule = make(sim.Buffered(3), 3, 2, (compute, None, None))
    assert schedule.worker.tolist() == [0, 0, 1, 0, 0, 1]
    assert schedule.version.tolist() == [0, 0, 0, 1, 1, 1]
    assert schedule.read_version.tolist() == [0, 0, 0, 0, 1, 1]
    assert schedule.num_pushes.tolist() == [3] * 6


def test_drop_stale_table():
    # Worker 1's push of version 0 meets version 3.
    compute = np.array([[1, 3.5]])
    schedule = make(sim.DropStale(2), 2, 4, (compute, None, None))
    assert schedule.worker.tolist() == [0, 0, 0, 1, 0]
    assert schedule.applied.tolist() == [True, True, True, False, True]
    assert schedule.version.tolist() == [0, 1, 2, 3, 3]
    assert schedule.num_updates == 4


LAW = sim.ParetoTime(1.5, 1.0)


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_drop_stale_applies_what_is_fresh_enough_and_nothing_else(bound):
    schedule = sim.make_schedule(LAW, 8, 2000, seed=0, protocol=sim.DropStale(bound))
    np.testing.assert_array_equal(schedule.applied, schedule.staleness < bound)
    assert not schedule.applied.all()
    assert schedule.num_updates == 2000


@pytest.mark.parametrize("backup_workers", [0, 1, 7])
def test_synchronous_pushes_are_fresh_and_as_many_as_asked(backup_workers):
    protocol = sim.Synchronous(backup_workers)
    schedule = sim.make_schedule(LAW, 8, 500, seed=0, protocol=protocol)
    assert not schedule.staleness[schedule.applied].any()
    assert (schedule.num_pushes == 8 - backup_workers).all()
    assert schedule.applied.all() == (backup_workers == 0)
    assert schedule.num_updates == 500


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_stale_synchronous_clocks_differ_by_at_most_one_more_than_the_bound(bound):
    schedule = sim.make_schedule(LAW, 8, 4000, seed=0, protocol=sim.StaleSynchronous(bound))
    clocks = np.cumsum(schedule.worker[:, None] == np.arange(8), axis=0)
    apart = clocks.max(axis=1) - clocks.min(axis=1)
    assert apart.max() == bound + 1


def test_backup_workers_shorten_the_wait():
    seconds = [
        sim.make_schedule(LAW, 8, 300, seed=0, protocol=sim.Synchronous(backup)).time[-1]
        for backup in (0, 1, 4)
    ]
    assert seconds[0] > seconds[1] > seconds[2]


@pytest.mark.parametrize("protocol", [*ALWAYS_BUSY, *WAITING], ids=repr)
def test_protocols_are_deterministic_and_begin_alike_however_long(protocol):
    make = lambda num_updates, seed: sim.make_schedule(
        LAW, 4, num_updates, seed=seed, protocol=protocol, upload=LAW
    )
    short, again, long, other = make(20, 1), make(20, 1), make(150, 1), make(20, 2)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(short, name), getattr(again, name))
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[: len(short)])
    assert not np.array_equal(short.time, other.time)


@pytest.mark.parametrize("protocol", [*ALWAYS_BUSY, *WAITING], ids=repr)
def test_one_worker_and_one_update(protocol):
    if isinstance(protocol, sim.Synchronous):
        protocol = sim.Synchronous()
    if isinstance(protocol, sim.Quorum):
        protocol = sim.Quorum(1, protocol.grace)
    schedule = sim.make_schedule(LAW, 1, 1, seed=0, protocol=protocol)
    assert schedule.num_updates == 1
    assert schedule.applied.all()
    assert not schedule.staleness.any()


def test_network_times_leave_compute_times_alone():
    law = sim.GammaTime(10, 1.0)
    plain = sim.make_schedule(law, 2, 100, seed=3, protocol=sim.Sequential())
    sent = sim.make_schedule(
        law,
        2,
        100,
        seed=3,
        protocol=sim.Sequential(),
        upload=sim.ConstantTime(2.0),
        download=sim.ConstantTime(1.0),
    )
    np.testing.assert_allclose(np.diff(sent.time), np.diff(plain.time) + 3.0, rtol=1e-9)
    same_law = sim.make_schedule(law, 2, 100, seed=3, protocol=sim.Sequential(), upload=law)
    up = np.diff(same_law.time) - np.diff(plain.time)
    down = sim.make_schedule(law, 2, 100, seed=3, protocol=sim.Sequential(), download=law)
    down = np.diff(down.time) - np.diff(plain.time)
    for one, other in ((up, np.diff(plain.time)), (down, np.diff(plain.time)), (up, down)):
        # 99 independent pairs: the correlation's deviation is 0.1; three of those.
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


def make_own(protocol, times, **settings):
    settings = {"num_updates": 8, "seed": 0, **settings}
    return sim.make_schedule(sim.ConstantTime(times), len(times), protocol=protocol, **settings)


def test_a_protocol_of_ones_own_is_played_event_by_event():
    # Two of three compute at a time: 2 takes the place of 0 at 1 s, 0 waits for that of 1 at 2 s.
    schedule = make_own(own_protocols.AtATime(2), [1, 2, 4], num_updates=5)
    assert schedule.worker.tolist() == [0, 1, 0, 1, 2]
    assert schedule.time.tolist() == [1, 2, 3, 5, 5]
    assert schedule.read_time.tolist() == [0, 0, 2, 3, 1]
    assert schedule.read_version.tolist() == [0, 0, 2, 3, 1]
    crashed = make_own(own_protocols.AtATime(2), [1, 2, 4], faults=[sim.Crash(2, 1.5)])
    assert not (crashed.worker == 2).any()
    alone = make_own(own_protocols.AtATime(1), [1, 1, 1])
    assert alone.worker.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert not alone.staleness.any()


def test_a_protocol_of_ones_own_that_averages_and_drops():
    # Two different workers make an update; the second push of worker 0 for it is dropped.
    schedule = make_own(own_protocols.Quorum(2), [1, 2.4], num_updates=2)
    assert schedule.worker.tolist() == [0, 0, 1, 0, 0, 1]
    assert schedule.applied.tolist() == [True, False, True, True, False, True]
    assert schedule.version.tolist() == [0, 0, 0, 1, 1, 1]
    assert schedule.read_version.tolist() == [0, 0, 0, 0, 1, 1]
    assert schedule.num_pushes.tolist() == [2] * 6
    with pytest.raises(ValueError, match="3 workers make a quorum, but there are 2"):
        make_own(own_protocols.Quorum(3), [1, 1])


def test_a_protocol_of_ones_own_may_have_something_faster_than_the_loop():
    @dataclasses.dataclass(frozen=True)
    class TakeTurns(sim.Protocol):
        def server(self, num_workers):
            raise AssertionError("not asked for")

        def schedule(self, cluster, num_updates):
            k = np.arange(num_updates)
            read_version = np.maximum(k - cluster.num_workers + 1, 0)
            return sim.Schedule(k % cluster.num_workers, read_version)

    schedule = make_own(TakeTurns(), [1, 1, 1])
    round_robin = make_own(sim.Asynchronous(), [1, 1, 1])
    np.testing.assert_array_equal(schedule.worker, round_robin.worker)
    np.testing.assert_array_equal(schedule.read_version, round_robin.read_version)


@dataclasses.dataclass(frozen=True)
class Of(sim.Protocol):
    """Whatever server one has."""

    make: type[sim.ProtocolServer]

    def server(self, num_workers):
        return self.make()


class DropsAll(sim.ProtocolServer):
    def push(self, worker, read_version):
        return False


class LetsNobodyPull(sim.ProtocolServer):
    def admit(self):
        return []


class WakesForEver(LetsNobodyPull):
    def join(self, worker):
        self.wake()

    def wake(self):
        self.wake_in = 1.0


class WakesYesterday(LetsNobodyPull):
    def join(self, worker):
        self.wake_in = -1.0


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (DropsAll, r"DropsAll has made no update for 30,000 gradients, after 0 of 5"),
        (LetsNobodyPull, r"LetsNobodyPull lets nobody pull, and no gradient is under way, after 0"),
        (
            WakesForEver,
            r"WakesForEver has made no update for 30,000 gradients and wakes, after 0 of 5",
        ),
        (WakesYesterday, r"WakesYesterday.wake_in is -1.0, but must be a time >= 0"),
    ],
)
def test_a_server_that_would_never_be_done_is_refused(server, message):
    with pytest.raises(ValueError, match=message):
        sim.make_schedule(sim.ConstantTime(), 2, 5, seed=0, protocol=Of(server))


def test_a_server_must_say_that_it_averages():
    with pytest.raises(
        ValueError, match="SilentServer takes 2 pushes for one update, but its push"
    ):
        make_own(own_protocols.Silent(), [1, 1])


@pytest.mark.parametrize(
    ("protocol", "pushes_per_update", "mixes_versions", "runs_live"),
    [
        (sim.Asynchronous(), 1, False, True),
        (sim.Asynchronous(overlap=True), 1, False, False),
        (sim.Buffered(1), 1, False, True),
        (sim.Buffered(3), 3, True, True),
        (sim.DropStale(2), 1, False, True),
        (sim.Sequential(), 1, False, False),
        (sim.Synchronous(), 4, False, True),
        (sim.Synchronous(1), 3, False, True),
        (sim.Synchronous(1, cancel=True), 3, False, False),
        (sim.StaleSynchronous(1), 1, False, True),
        (sim.Quorum(1), 1, False, True),
        (sim.Quorum(3, grace=0.5), 3, True, True),
        (sim.Grace(0.5), 1, False, True),
        (sim.Grace(0.5, foresight=True), 1, False, False),
        (sim.Sampled(2, 0, sim.Buffered(3)), 3, True, True),
        (sim.Sampled(2, 0, sim.Grace(0.5, foresight=True)), 1, False, False),
    ],
    ids=str,
)
def test_what_protocols_say_of_their_servers(
    protocol, pushes_per_update, mixes_versions, runs_live
):
    server = protocol.server(4)
    assert (server.pushes_per_update, server.mixes_versions) == (pushes_per_update, mixes_versions)
    assert protocol.runs_live == runs_live
    schedule = sim.make_schedule(LAW, 4, 30, seed=0, protocol=protocol)
    assert schedule.num_pushes.max() == pushes_per_update
    update = schedule.version[schedule.applied]
    reads = schedule.read_version[schedule.applied]
    several = any(len(set(reads[update == k])) > 1 for k in range(30))
    assert several == mixes_versions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sim.Synchronous(-1), "Synchronous.backup_workers must be an integer >= 0, got -1"),
        (lambda: sim.Synchronous(1.0), "Synchronous.backup_workers must be an integer"),
        (lambda: sim.StaleSynchronous(-1), "StaleSynchronous.bound must be an integer >= 0"),
        (lambda: sim.StaleSynchronous(True), "StaleSynchronous.bound must be an integer"),
        (lambda: sim.Buffered(0), "Buffered.num_pushes must be an integer >= 1, got 0"),
        (lambda: sim.DropStale(0), "DropStale.bound must be an integer >= 1, got 0"),
        (
            lambda: sim.make_schedule(LAW, 3, 5, seed=0, protocol=sim.Synchronous(3)),
            "backup_workers is 3, but must be less than the number of workers, 3",
        ),
        (lambda: sim.make_schedule(None, 3, 5, seed=0), "law must be a worker-time law.* got None"),
        (
            lambda: sim.make_schedule(LAW, 3, 5, seed=0, upload=sim.ConstantTime([1.0, 2.0])),
            "ConstantTime.seconds has 2 values, but there are 3 workers",
        ),
        (
            lambda: sim.make_schedule(LAW, 3, 5, seed=0, download=sim.ConstantTime([1.0, 2.0])),
            "ConstantTime.seconds has 2 values, but there are 3 workers",
        ),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
