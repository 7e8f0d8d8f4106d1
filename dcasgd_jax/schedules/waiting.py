"""Protocols in which workers wait for each other."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

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
      cancel: Whether late workers are stopped instead: at each update whoever still computes or
        sends throws that away, pulls and begins anew, and no push of it is in the schedule. A
        worker's next compute time is drawn for each gradient that it begins. Such is the K-sync SGD
        of `Dutta et al. (2018) <https://arxiv.org/abs/1803.01113>`_, K = M - `backup_workers`. Not
        in a live run.

    Example:
      The first 6 of 8 memoryless workers take 1/8 + ... + 1/3 = 1.218 s:

      >>> from dcasgd_jax import sim
      >>> protocol = sim.Synchronous(backup_workers=2, cancel=True)
      >>> law = sim.ExponentialTime()
      >>> schedule = sim.make_schedule(law, 8, 20_000, seed=0, protocol=protocol)
      >>> print(f"{schedule.update_time[-1] / 20_000:.2f} s")
      1.22 s
    """

    backup_workers: int = 0
    cancel: bool = False

    def __post_init__(self):
        checks.check_fields(self, backup_workers=0)
        is_one = lambda value: isinstance(value, bool)
        checks.check_kind("Synchronous.cancel", self.cancel, is_one, "True or False")

    @property
    def runs_live(self) -> bool:
        """Not if it cancels: a live worker is not interrupted."""
        return not self.cancel

    def server(self, num_workers: int) -> servers.BarrierServer:
        """See `protocols.Protocol.server`."""
        if self.backup_workers >= num_workers:
            raise ValueError(
                f"Synchronous.backup_workers is {self.backup_workers}, but must be less than the "
                f"number of workers, {num_workers}."
            )
        return servers.BarrierServer(num_workers - self.backup_workers, cancel=self.cancel)

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `protocols.Protocol.schedule`."""
        if self.backup_workers or not cluster.undisturbed:
            return super().schedule(cluster, num_updates)
        return _full_barriers(cluster, num_updates)


@dataclasses.dataclass(frozen=True)
class Quorum(protocols.Protocol):
    """An update with the mean of a few pushes of any version; who has pushed waits for it.

    The update is made when `num_pushes` are in, `grace` seconds after the first of them, or when
    all live workers wait, whichever comes first. Those that wait pull then; the others compute on,
    and their pushes count for a later update. Without grace it is the K-async SGD of `Dutta et al.
    (2018) <https://arxiv.org/abs/1803.01113>`_; `Buffered`, in which nobody waits, is their
    K-batch-async SGD. `Schedule.update_time` says when each update is made.

    Pushes that arrive at the very instant at which the grace ends are in time. A lost push counts
    for nothing and its worker pulls again at once; a push that arrives twice counts twice.

    Args:
      num_pushes: Pushes that make an update, from 1 to the number of workers. If fewer workers are
        alive, all of them are enough.
      grace: Seconds ≥ 0 after the first push of an update, or None: no limit.

    Example:
      >>> from dcasgd_jax import sim
      >>> law = sim.ConstantTime([1.0, 1.2, 3.0])
      >>> protocol = sim.Quorum(3, grace=0.5)
      >>> schedule = sim.make_schedule(law, 3, 3, seed=0, protocol=protocol)
      >>> schedule.time.tolist(), schedule.update_time.tolist()
      ([1.0, 1.2, 2.5, 2.7, 3.0, 4.0, 4.2], [1.5, 1.5, 3.0, 3.0, 3.0, 4.5, 4.5])
    """

    num_pushes: int
    grace: float | None = None

    def __post_init__(self):
        checks.check_fields(self, num_pushes=1)
        if self.grace is not None:
            _check_seconds(self, "grace")

    @property
    def runs_sharded(self) -> bool:
        """Only with a grace, which ends every wait."""
        return self.grace is not None

    def server(self, num_workers: int) -> servers.QuorumServer:
        """See `protocols.Protocol.server`."""
        if self.num_pushes > num_workers:
            raise ValueError(
                f"Quorum.num_pushes is {self.num_pushes}, but there are {num_workers} workers, and "
                "each waits after one push: ask for fewer, or use Buffered(num_pushes)."
            )
        return servers.QuorumServer(self.num_pushes, self.grace)


@dataclasses.dataclass(frozen=True)
class Grace(protocols.Protocol):
    """Every push is one update, but who has pushed waits for others, and they pull together.

    They pull `seconds` after the first push since the last time that workers pulled, or when all
    live workers wait. A lost push does not begin the time, and its worker pulls again at once.
    This is asynchronous DiLoCo (`Liu et al., 2024 <https://arxiv.org/abs/2401.09135>`_).

    Args:
      seconds: ≥ 0. With 0 only those wait whose pushes arrive at the same instant.
      foresight: Whether the server knows when nobody else will come in time, and lets the workers
        pull at the last push, as in that paper's notebook. Not in a live run.

    Example:
      >>> from dcasgd_jax import sim
      >>> law = sim.ConstantTime([1.0, 1.2, 3.0])
      >>> def pulls(protocol):
      ...     schedule = sim.make_schedule(law, 3, 4, seed=0, protocol=protocol)
      ...     return schedule.read_time.round(2).tolist()
      >>> pulls(sim.Grace(0.5)), pulls(sim.Grace(0.5, foresight=True))
      ([0.0, 0.0, 1.5, 1.5], [0.0, 0.0, 1.2, 1.2])
    """

    seconds: float
    foresight: bool = False

    def __post_init__(self):
        _check_seconds(self, "seconds")
        is_one = lambda value: isinstance(value, bool)
        checks.check_kind("Grace.foresight", self.foresight, is_one, "True or False")

    @property
    def runs_live(self) -> bool:
        """Not with foresight."""
        return not self.foresight

    @property
    def playing(self) -> Mapping[str, Any]:
        """See `protocols.Protocol.playing`."""
        return {"foresight": self.foresight}

    def server(self, num_workers: int) -> servers.GraceServer:
        """See `protocols.Protocol.server`."""
        del num_workers
        return servers.GraceServer(self.seconds)


def _check_seconds(owner: protocols.Protocol, field: str) -> None:
    """A finite number >= 0, which becomes a float."""
    name, value = f"{type(owner).__name__}.{field}", getattr(owner, field)
    checks.check_kind(name, value, checks.is_number, "a number of seconds")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a time >= 0 in seconds, got {value}.")
    object.__setattr__(owner, field, float(value))


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
