"""Protocols: who pushes when, and which version each push was computed from.

A protocol is a value given to `make_schedule`: any object with the method of `ServerProtocol`. It
turns the times of a cluster into events, in NumPy, and knows nothing of gradients.

Pushes that arrive at the same instant are served by worker index; each worker's pull, where it need
not wait, comes right after its push.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import event_loop, servers
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.events import Events
from dcasgd_jax.schedules.waves import previous_push


class ServerProtocol(Protocol):
    """What `make_schedule` needs of a protocol."""

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """The pushes that make the first `num_updates` server updates."""
        ...


@dataclasses.dataclass(frozen=True)
class Asynchronous:
    """Every push is one update; the worker pulls right after it and is never idle.

    Args:
      overlap: Whether a worker pulls as soon as its computation ends, while its gradient is still
        on its way up. It then reads the version after all pushes that have arrived at or before
        that instant, usually without its own. A worker's gradients do not overtake each other.
    """

    overlap: bool = False

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        if cluster.faults.any:
            return event_loop.play(cluster, num_updates, servers.Server(), overlap=self.overlap)
        if self.overlap:
            return _overlapping_events(cluster, num_updates)
        worker, time = _first_pushes(cluster, num_updates)
        return Events(
            worker=worker,
            read_version=previous_push(worker) + 1,
            version=np.arange(num_updates, dtype=np.int32),
            time=time,
        )


@dataclasses.dataclass(frozen=True)
class Buffered:
    """An update with the mean of every few pushes, whatever versions they read; nobody waits.

    Args:
      num_pushes: Pushes per update, ≥ 1; a worker may push more than once to the same update.
    """

    num_pushes: int

    def __post_init__(self):
        checks.check_fields(self, num_pushes=1)

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        if cluster.faults.any:
            return event_loop.play(cluster, num_updates, servers.BufferedServer(self.num_pushes))
        worker, time = _first_pushes(cluster, num_updates * self.num_pushes)
        return Events(
            worker=worker,
            read_version=(previous_push(worker) + 1) // self.num_pushes,
            version=np.arange(len(worker)) // self.num_pushes,
            time=time,
        )


@dataclasses.dataclass(frozen=True)
class DropStale:
    """Every push is one update, unless it is too stale: that one is ignored (Ringmaster ASGD).

    A worker pulls the current version right after its push, used or not.

    Args:
      bound: ≥ 1; a push is applied if its staleness is less. 1 keeps only fresh gradients.
    """

    bound: int

    def __post_init__(self):
        checks.check_fields(self, bound=1)

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        if cluster.faults.any:
            return event_loop.play(cluster, num_updates, servers.DroppingServer(self.bound))
        num_pushes = num_updates
        while True:
            worker, time = _first_pushes(cluster, num_pushes)
            read_version, version, applied = self._drop(worker.tolist(), cluster.num_workers)
            enough = int(np.searchsorted(np.cumsum(applied), num_updates)) + 1
            if enough <= num_pushes:
                kept = slice(enough)
                return Events(
                    worker[kept], read_version[kept], version[kept], time[kept], applied[kept]
                )
            num_pushes *= 2

    def _drop(self, workers: list[int], num_workers: int) -> tuple[np.ndarray, ...]:
        """The version that each push read and meets, and whether it is applied."""
        bound = self.bound
        current = 0
        last_read = [0] * num_workers
        read, version = [], []
        for worker in workers:
            version.append(current)
            read.append(last_read[worker])
            current += current - last_read[worker] < bound
            last_read[worker] = current
        staleness = np.array(version) - np.array(read)
        return np.array(read), np.array(version), staleness < bound


@dataclasses.dataclass(frozen=True)
class Sequential:
    """Worker 0 does everything, every gradient is fresh: plain SGD on one machine."""

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        if cluster.faults.any:
            return event_loop.play(cluster, num_updates, servers.Server(), workers=[0])
        version = np.arange(num_updates)
        return Events(
            worker=np.zeros(num_updates, np.int64),
            read_version=version,
            version=version,
            time=np.cumsum(cluster.cycle(0, num_updates)),
        )


def _overlapping_events(cluster: Cluster, num_updates: int) -> Events:
    """Events of workers that pull when a computation ends."""

    def arrivals(worker: int, count: int) -> np.ndarray:
        computed = np.cumsum(cluster.until_computed(worker, count))
        return np.maximum.accumulate(computed + cluster.upload(worker, count))

    worker, time = _first_pushes(cluster, num_updates, arrivals)
    read_time = np.zeros(num_updates)
    for m in range(cluster.num_workers):
        mine = np.flatnonzero(worker == m)
        if len(mine):
            read_time[mine[1:]] = np.cumsum(cluster.until_computed(m, len(mine)))[:-1]
    return Events(
        worker=worker,
        read_version=np.searchsorted(time, read_time, "right"),
        version=np.arange(num_updates),
        time=time,
        read_time=read_time,
    )


def _first_pushes(
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
