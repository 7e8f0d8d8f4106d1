"""Pushes of workers that never wait, sorted at once instead of played one by one."""

import math
from collections.abc import Callable

import numpy as np

from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.schedule import Schedule


def overlapping_schedule(cluster: Cluster, num_updates: int, pull_after: float = 0.0) -> Schedule:
    """Pushes of workers that pull when a computation ends, or after a share of the next one."""

    def arrivals(worker: int, count: int) -> np.ndarray:
        computed = np.cumsum(_busy(cluster, worker, count, pull_after)[0])
        return np.maximum.accumulate(computed + cluster.upload(worker, count))

    worker, time = first_pushes(cluster, num_updates, arrivals)
    read_time = np.zeros(num_updates)
    for m in range(cluster.num_workers):
        mine = np.flatnonzero(worker == m)
        if len(mine):
            seconds, until_pull = _busy(cluster, m, len(mine), pull_after)
            read_time[mine[1:]] = np.cumsum(seconds)[:-1] + until_pull[1:]
    return Schedule(
        worker=worker,
        read_version=np.searchsorted(time, read_time, "right"),
        version=np.arange(num_updates),
        time=time,
        read_time=read_time,
        num_workers=cluster.num_workers,
    )


def _busy(
    cluster: Cluster, worker: int, count: int, pull_after: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each computation with what it waits for the params, and until it pulls them."""
    download = cluster.download(worker, count)
    compute = cluster.compute.first(worker, count)
    alone = pull_after * compute
    alone[:1] = 0.0  # the first one begins with what it pulls
    return compute + np.maximum(download - alone, 0.0), np.maximum(alone - download, 0.0)


def first_pushes(
    cluster: Cluster,
    num_pushes: int,
    arrivals_of: Callable[[int, int], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Workers and times of the first pushes of always-busy workers, in order of arrival."""
    if arrivals_of is None:
        arrivals_of = lambda m, count: np.cumsum(cluster.cycle(m, count))
    expected = num_pushes // cluster.num_workers
    # Equal workers stay within four deviations of memoryless ones: seldom a second round.
    counts = [expected + 4 * math.isqrt(expected) + 16] * cluster.num_workers
    while True:
        arrivals = [arrivals_of(m, count) for m, count in enumerate(counts)]
        arrival = np.concatenate(arrivals)
        horizon = np.partition(arrival, num_pushes - 1)[num_pushes - 1]
        short = [m for m, a in enumerate(arrivals) if a[-1] < horizon]
        if not short:
            break
        for m in short:
            counts[m] = min(2 * counts[m], num_pushes + 16)
    worker = np.repeat(np.arange(cluster.num_workers, dtype=np.int32), counts)
    # A stable sort leaves equal arrivals in order of their workers, and merges sorted runs fast.
    order = np.argsort(arrival, kind="stable")[:num_pushes]
    return worker[order], arrival[order]
