"""Pushes of workers that never wait, sorted at once instead of played one by one."""

import math
from collections.abc import Callable

import numpy as np

from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.schedule import Schedule


def overlapping_schedule(cluster: Cluster, num_updates: int) -> Schedule:
    """Pushes of workers that pull when a computation ends."""

    def arrivals(worker: int, count: int) -> np.ndarray:
        computed = np.cumsum(cluster.until_computed(worker, count))
        return np.maximum.accumulate(computed + cluster.upload(worker, count))

    worker, time = first_pushes(cluster, num_updates, arrivals)
    read_time = np.zeros(num_updates)
    for m in range(cluster.num_workers):
        mine = np.flatnonzero(worker == m)
        if len(mine):
            read_time[mine[1:]] = np.cumsum(cluster.until_computed(m, len(mine)))[:-1]
    return Schedule(
        worker=worker,
        read_version=np.searchsorted(time, read_time, "right"),
        version=np.arange(num_updates),
        time=time,
        read_time=read_time,
        num_workers=cluster.num_workers,
    )


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
