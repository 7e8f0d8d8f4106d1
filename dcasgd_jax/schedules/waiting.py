"""Protocols in which workers wait for each other."""

import dataclasses

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import protocols, servers
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Synchronous(protocols.Protocol):
    """All workers read the same version; one barrier later the mean of their pushes is applied.

    With faults the barrier counts live workers only: if fewer are left than it wants, it takes all
    of them. A lost push counts for nothing, its worker pulls again; a push that arrives twice
    counts twice.

    Args:
      backup_workers: How many of the M workers a version does not wait for: the first
        M - `backup_workers` pushes make the update. A late push is dropped when it arrives, and its
        worker pulls the current version.
    """

    backup_workers: int = 0

    def __post_init__(self):
        checks.check_fields(self, backup_workers=0)

    def server(self, num_workers: int) -> servers.BarrierServer:
        """See `protocols.Protocol.server`."""
        if self.backup_workers >= num_workers:
            raise ValueError(
                f"Synchronous.backup_workers is {self.backup_workers}, but must be less than the "
                f"number of workers, {num_workers}."
            )
        return servers.BarrierServer(num_workers - self.backup_workers)

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `protocols.Protocol.schedule`."""
        if self.backup_workers or cluster.faults.any:
            return super().schedule(cluster, num_updates)
        return _full_barriers(cluster, num_updates)


@dataclasses.dataclass(frozen=True)
class StaleSynchronous(protocols.Protocol):
    """Every push is one update; no worker may be too far ahead of the slowest one (SSP).

    A worker that has finished c gradients pulls and starts another only if c minus the count of the
    slowest live worker is at most `bound`. A worker that joins or restarts is counted as level with
    the slowest, unless it has finished more.

    Args:
      bound: ≥ 0.
    """

    bound: int

    def __post_init__(self):
        checks.check_fields(self, bound=0)

    def server(self, num_workers: int) -> servers.ClockServer:
        """See `protocols.Protocol.server`."""
        return servers.ClockServer(self.bound, num_workers)


def _full_barriers(cluster: Cluster, num_updates: int) -> Schedule:
    """Pushes at barriers that wait for all."""
    num_workers = cluster.num_workers
    rounds = np.stack([cluster.cycle(m, num_updates) for m in range(num_workers)], axis=1)
    worker = np.argsort(rounds, axis=1, kind="stable")
    barrier = np.cumsum(rounds.max(axis=1))
    start = np.concatenate([[0.0], barrier[:-1]])
    arrival = start[:, None] + np.take_along_axis(rounds, worker, axis=1)
    version = np.repeat(np.arange(num_updates), num_workers)
    return Schedule(
        worker=worker.ravel(),
        read_version=version,
        version=version,
        time=arrival.ravel(),
        read_time=np.repeat(start, num_workers),
        num_workers=num_workers,
    )
