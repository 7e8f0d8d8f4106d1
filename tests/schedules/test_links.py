"""Links: an oracle that follows every byte, tables worked out by hand, conservation, bad input."""

import dataclasses

import numpy as np
import pytest
from fluid import Fluid

from dcasgd_jax import sim
from dcasgd_jax.schedules.cluster import Cluster

REGIONS = [0, 0, 1, 1, 2, 2]
LATENCY = [[0.01, 0.2, 0.3], [0.25, 0.03, 0.4], [0.35, 0.1, 0.02]]
BANDWIDTH = [[9.0, 3.1, 2.3], [2.9, 7.0, 1.1], [1.7, 4.3, 8.0]]
LINKS = sim.Links(REGIONS, LATENCY, BANDWIDTH, push_bytes=1.3, pull_bytes=2.1, server_region=1)
COMPUTE = np.random.default_rng(0).gamma(3, 0.3, size=(200, 6))
PROTOCOLS = [
    sim.Asynchronous(),
    sim.Asynchronous(overlap=True),
    sim.Buffered(3),
    sim.DropStale(3),
    sim.Synchronous(),
    sim.Synchronous(2),
    sim.Synchronous(2, cancel=True),
    sim.StaleSynchronous(1),
    sim.Quorum(4, grace=0.4),
    sim.Grace(0.3),
    sim.Sampled(3, seed=0, protocol=sim.Buffered(2)),
]
FAULTS = {
    "none": [],
    "lives": [sim.LateJoin(1, 2.0), sim.Crash(2, 1.05), sim.Restart(2, 6.0), sim.Crash(5, 2.4)],
    "pushes": [sim.LostPush(0, 1), sim.LostPush(3, 0), sim.SlowDown(4, 1.0, 7.0, 3.0)],
}
INF = float("inf")


def make(protocol, num_updates, links, compute=COMPUTE, **settings):
    return sim.make_schedule(
        sim.RecordedTime(compute), len(links.region), num_updates, seed=0,
        protocol=protocol, links=links, **settings,
    )  # fmt: skip


def two(**settings):
    return sim.Links(**{"region": [1, 1], **settings})


def of_times(*columns):
    return np.array(columns, float).T


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_every_protocol_over_links_does_what_the_bytes_do(protocol, faults):
    expected = Fluid(protocol, COMPUTE, LINKS, FAULTS[faults]).run(40)
    schedule = make(protocol, 40, LINKS, faults=FAULTS[faults])
    used = max(k for k, push in enumerate(expected) if push[3])
    worker, read_version, version, applied, time, read_time = zip(
        *expected[: used + 1], strict=True
    )
    assert schedule.worker.tolist() == list(worker)
    assert schedule.read_version.tolist() == list(read_version)
    assert schedule.applied.tolist() == list(applied)
    # One that is lost counts as later than an update that no push has brought about.
    assert schedule.version[schedule.applied].tolist() == np.array(version)[list(applied)].tolist()
    np.testing.assert_allclose(schedule.time, time, rtol=1e-12)
    np.testing.assert_allclose(schedule.read_time, read_time, rtol=1e-12)


def test_two_pushes_that_meet_share_the_link_while_both_are_on_it():
    """Alone 2 s each. From 1 to 2 the first is alone, to 4 both share, to 5 the second is alone."""
    links = two(bandwidth=50.0, push_bytes=100.0)
    schedule = make(sim.Asynchronous(), 2, links, of_times([1, 99], [2, 99]))
    assert schedule.time.tolist() == [4, 5]


def test_the_latency_takes_no_bandwidth_and_comes_after_it():
    latency = [[0, 0.25], [0.5, 0]]
    links = two(latency=latency, bandwidth=50.0, push_bytes=100.0)
    schedule = make(sim.Asynchronous(), 2, links, of_times([1, 99], [2, 99]))
    assert schedule.time.tolist() == [0.25 + 4 + 0.5, 0.25 + 5 + 0.5]


@pytest.mark.parametrize(
    ("links", "ends"),
    [
        (two(bandwidth=100.0, push_bytes=200.0), [4, 5]),
        (two(bandwidth=100.0, push_bytes=200.0, region=[1, 2]), [3, 4]),
        (two(bandwidth=100.0, push_bytes=200.0, region=[0, 0]), [4, 5]),
        (two(bandwidth=[[INF, INF], [100, INF]], push_bytes=200.0, region=[0, 1]), [1, 4]),
        (two(bandwidth=[[INF, 100], [INF, INF]], push_bytes=200.0), [1, 2]),
        (two(bandwidth=[[INF, 100], [INF, INF]], pull_bytes=200.0), [5, 6]),
        (two(bandwidth=100.0), [1, 2]),
    ],
    ids=["one link", "two links", "one region", "region 1 only", "down only", "pull", "no bytes"],
)
def test_only_transfers_in_one_direction_of_one_link_share(links, ends):
    schedule = make(sim.Asynchronous(), 2, links, of_times([1, 99], [2, 99]))
    assert schedule.time.tolist() == ends


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_equal_transfers_at_once_take_as_many_times_as_long(num_workers):
    links = sim.Links([0] * num_workers, bandwidth=4.0, push_bytes=8.0)
    schedule = make(sim.Synchronous(), 3, links, np.ones((1, num_workers)))
    assert schedule.update_time[::num_workers].tolist() == [
        k * (1 + 2 * num_workers) for k in (1, 2, 3)
    ]


def test_a_link_that_is_never_idle_carries_its_bandwidth():
    links = sim.Links([0] * 20, bandwidth=10.0, push_bytes=5.0)
    law = sim.ExponentialTime(0.1)
    schedule = sim.make_schedule(law, 20, 4000, seed=0, links=links)
    carried = 10.0 * (schedule.time[-1] - schedule.time[1999])
    assert abs(carried - 2000 * 5.0) <= 20 * 5.0  # but for what is on its way, of 20 at most
    assert np.diff(schedule.time).min() > 0


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_links_of_endless_bandwidth_are_laws_of_constant_times(protocol, faults):
    links = dataclasses.replace(LINKS, bandwidth=INF)
    times = np.array(LATENCY)
    upload, download = (
        sim.ConstantTime([float(table[r][1]) for r in REGIONS]) for table in (times, times.T)
    )
    over_links = make(protocol, 40, links, faults=FAULTS[faults])
    of_laws = sim.make_schedule(
        sim.RecordedTime(COMPUTE), 6, 40, seed=0, protocol=protocol,
        upload=upload, download=download, faults=FAULTS[faults],
    )  # fmt: skip
    for name in ("worker", "read_version", "version", "applied", "batch"):
        assert getattr(over_links, name).tolist() == getattr(of_laws, name).tolist(), name
    for name in ("time", "read_time", "update_time"):
        np.testing.assert_allclose(getattr(over_links, name), getattr(of_laws, name), rtol=1e-9)


def test_what_a_crashed_worker_sends_leaves_the_link_at_once():
    """Alone 2 s each; both from 1 on. After the crash at 3 the other has 1 s left."""
    links = two(bandwidth=50.0, push_bytes=100.0)
    schedule = make(
        sim.Asynchronous(), 2, links, of_times([1, 1], [1, 1]), faults=[sim.Crash(1, 3)]
    )
    assert schedule.worker.tolist() == [0, 0]
    assert schedule.time.tolist() == [4, 7]


def test_what_a_stopped_worker_sends_leaves_the_link_at_once():
    """Worker 1 is stopped at 4, after half of its push; both begin anew."""
    links = two(bandwidth=50.0, push_bytes=100.0)
    schedule = make(sim.Synchronous(1, cancel=True), 2, links, of_times([1, 1], [2, 7]))
    assert schedule.worker.tolist() == [0, 0]
    assert schedule.time.tolist() == [4, 7]


def test_one_region_by_default_costs_nothing():
    plain = sim.make_schedule(sim.ExponentialTime(), 4, 50, seed=0)
    free = sim.make_schedule(sim.ExponentialTime(), 4, 50, seed=0, links=sim.Links([0] * 4))
    assert free.worker.tolist() == plain.worker.tolist()
    np.testing.assert_allclose(free.time, plain.time, rtol=1e-12)


def test_a_table_of_regions_is_read_from_files(tmp_path):
    latency, bandwidth = tmp_path / "latency.csv", tmp_path / "bandwidth.csv"
    latency.write_text("europe,asia\n0.001,0.2\n0.25,0.002\n")
    bandwidth.write_text("1e9,1e7\n2e7,inf\n")
    links = sim.Links.from_csv([0, 1], latency, bandwidth, push_bytes=100, server_region=1)
    assert links == sim.Links(
        [0, 1], [[0.001, 0.2], [0.25, 0.002]], [[1e9, 1e7], [2e7, INF]], 100, 0, 1
    )
    bandwidth.write_text("1e9,1e7\n")
    with pytest.raises(ValueError, match=r"bandwidth\.csv has 1 rows and 2 columns"):
        sim.Links.from_csv([0, 1], latency, bandwidth)
    bandwidth.write_text("1e9,1e7\n0,inf\n")
    with pytest.raises(ValueError, match=r"bandwidth\.csv: .*from region 1 to region 0 is 0"):
        sim.Links.from_csv([0, 1], latency, bandwidth)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(push_bytes=-1), ValueError, "Links.push_bytes must be >= 0 and finite, got -1"),
        (dict(pull_bytes=INF), ValueError, "Links.pull_bytes must be >= 0 and finite, got inf"),
        (dict(push_bytes="1"), TypeError, "Links.push_bytes must be a number of bytes"),
        (dict(region=[0, -1]), ValueError, r"Links.region\[1\] must be an integer >= 0"),
        (dict(region=0), TypeError, "Links.region must be one region per worker, got 0"),
        (dict(server_region=-1), ValueError, "Links.server_region must be an integer >= 0"),
        (dict(region=[0, 2], latency=[[0, 1], [1, 0]]), ValueError, "of 2 regions, .* region 2"),
        (dict(server_region=2, latency=[[0, 1], [1, 0]]), ValueError, "of 2 regions, .* region 2"),
        (dict(latency=[[0, 1]]), ValueError, r"Links.latency must be .* got shape \(1, 2\)"),
        (dict(latency=[[0, 1], [1]]), TypeError, "Links.latency must be a number or a table"),
        (dict(latency=[[0, -1], [1, 0]]), ValueError, "latency from region 0 to region 1 is -1"),
        (dict(bandwidth=[[1, 1], [0, 1]]), ValueError, "bandwidth from region 1 to region 0 is 0"),
        (dict(bandwidth=float("nan")), ValueError, "bandwidth from region 0 to region 0 is nan"),
        (
            dict(latency=np.zeros((2, 2)), bandwidth=np.ones((3, 3))),
            ValueError,
            "Links.latency is of 2 regions, but bandwidth is of another number, 3",
        ),
    ],
)
def test_bad_links_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        two(**settings)


def test_what_does_not_go_together_is_refused():
    law = sim.ConstantTime()
    with pytest.raises(ValueError, match=r"Links.region has 2 values, but there are 3 workers"):
        sim.make_schedule(law, 3, 1, seed=0, links=two())
    with pytest.raises(TypeError, match=r"links must be sim.Links\(...\)"):
        sim.make_schedule(law, 2, 1, seed=0, links=0.5)
    for name in ("upload", "download"):
        with pytest.raises(ValueError, match="links=, or upload= and download=, but not both"):
            sim.make_schedule(law, 2, 1, seed=0, links=two(), **{name: law})
    with pytest.raises(ValueError, match="foresight=True cannot be had"):
        make(sim.Grace(1, foresight=True), 1, LINKS)


def test_links_that_carry_less_than_is_sent_are_named():
    """Shared by ever more pushes, the link brings the next one ever later, and memory fills up."""
    few = sim.Links([0] * 4, [[0.0]], [[1.0]], push_bytes=20.0, pull_bytes=0.0)
    make = lambda overlap: sim.make_schedule(
        sim.ExponentialTime(), 4, 20, seed=0, links=few, protocol=sim.Asynchronous(overlap=overlap)
    )
    with pytest.raises(ValueError, match=r"50,000 gradients have begun and 0 have .*overlap=True"):
        make(True)
    assert len(make(False)) == 20


def test_a_shortcut_of_ones_own_cannot_take_links_for_no_network():
    cluster = Cluster(sim.ConstantTime(), 2, 0, links=two(bandwidth=1.0, push_bytes=1.0))
    for ask in (cluster.cycle, cluster.until_computed, cluster.upload, cluster.download):
        with pytest.raises(ValueError, match="how long a transfer takes depends on who else sends"):
            ask(0, 1)


def test_the_first_updates_are_what_a_shorter_run_makes():
    whole = make(sim.Quorum(3, grace=0.3), 30, LINKS)
    for name in ("worker", "version", "time", "update_time"):
        shorter = getattr(make(sim.Quorum(3, grace=0.3), 11, LINKS), name)
        np.testing.assert_array_equal(getattr(whole.first(11), name), shorter)
