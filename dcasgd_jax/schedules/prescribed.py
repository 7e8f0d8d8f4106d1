"""Protocols that follow a prescription or a record instead of worker-time laws."""

import dataclasses
import heapq
import os
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import tables
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.events import Events
from dcasgd_jax.schedules.schedule import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class PrescribedStaleness:
    """The k-th push reads version k - `staleness[k]` and makes update k; one second each.

    A worker is busy from the version it reads to its push. Each read is given to the free worker
    with the lowest index, which needs as few workers as possible.

    Args:
      staleness: `[num_pushes]`, versions, each in `[0, k]`; at least one for each update.

    Raises:
      ValueError: If a push cannot be that stale; the first one is named.
    """

    staleness: Sequence[int] | np.ndarray

    def __post_init__(self):
        staleness = _versions("PrescribedStaleness", self.staleness)
        if staleness.ndim != 1:
            raise ValueError(
                "PrescribedStaleness needs one staleness per update, got an array of shape "
                f"{staleness.shape}."
            )
        for k in np.flatnonzero((staleness < 0) | (staleness > np.arange(len(staleness))))[:1]:
            raise ValueError(
                f"PrescribedStaleness: staleness[{k}] is {staleness[k]}, but must be in [0, {k}]: "
                f"the server has made {k} updates then."
            )
        object.__setattr__(self, "staleness", staleness)

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `protocols.ServerProtocol.events`."""
        cluster.refuse_times_and_faults("PrescribedStaleness")
        _check_length("PrescribedStaleness", len(self.staleness), num_updates)
        version = np.arange(num_updates)
        read_version = version - np.asarray(self.staleness)[:num_updates]
        worker = _lowest_free_worker(read_version)
        needed = int(worker.max()) + 1
        if needed > cluster.num_workers:
            raise ValueError(
                f"PrescribedStaleness needs at least {needed} workers: so many gradients are under "
                f"way at once, but num_workers is {cluster.num_workers}."
            )
        return Events(worker, read_version, version, version + 1.0, read_time=read_version * 1.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecordedDelays:
    """A run rebuilt from recorded delays, one second per update.

    With one column per worker, row t holds how many versions old the newest gradient of each worker
    is at update t. A worker has pushed for update t if its gradient was taken at another version
    than that of row t-1; all have for row 0, which is all zero. Pushes for the same update are
    averaged.

    With a single column, it holds the staleness of each update, as in `PrescribedStaleness`.

    Args:
      delays: `[num_updates, num_workers]`, or `[num_updates]`; versions.

    Raises:
      ValueError: If this cannot be a record; names row and column, from 0.

    Example:
      >>> from dcasgd_jax import sim
      >>> record = sim.RecordedDelays([[0, 0], [0, 1], [1, 1]])
      >>> schedule = sim.make_schedule(None, 2, 3, seed=0, protocol=record)
      >>> schedule.worker.tolist(), schedule.version.tolist(), schedule.read_version.tolist()
      ([0, 1, 0, 1], [0, 0, 1, 2], [0, 0, 1, 1])
    """

    delays: Sequence[Sequence[int]] | Sequence[int] | np.ndarray

    def __post_init__(self):
        delays = _versions("RecordedDelays", self.delays)
        if delays.ndim == 2 and delays.shape[1] == 1:
            delays = delays[:, 0]
        object.__setattr__(self, "delays", delays)
        if delays.ndim == 1:
            PrescribedStaleness(delays)
            return
        if delays.ndim != 2:
            raise ValueError(
                "RecordedDelays needs an array [num_updates, num_workers] or [num_updates], got "
                f"shape {delays.shape}."
            )
        row = np.arange(len(delays))[:, None]
        read = row - delays
        for t, m in np.argwhere((delays < 0) | (read < 0))[:1]:
            raise ValueError(
                f"RecordedDelays: the delay in row {t}, column {m} is {delays[t, m]}, but must be "
                f"in [0, {t}]: the server has made {t} updates then."
            )
        for t, m in np.argwhere(np.diff(read, axis=0) < 0)[:1]:
            raise ValueError(
                f"RecordedDelays: the delay in row {t + 1}, column {m} is {delays[t + 1, m]} after "
                f"{delays[t, m]}, but a delay grows by at most 1 from row to row."
            )
        for t in np.flatnonzero(~_pushes(read).any(axis=1))[:1]:
            raise ValueError(
                f"RecordedDelays: row {t} has no new gradient: all delays are 1 more than before."
            )

    @classmethod
    def from_csv(cls, path: str | os.PathLike, num_rows: int | None = None) -> "RecordedDelays":
        """Reads delays in versions: one row per update, one column per worker, header optional.

        The first row is a header if each of its cells is a name: a letter first, and nothing that
        looks like a mistyped number (O.5, l0, x1.5).

        Args:
          path: The file.
          num_rows: Updates that must be there, to notice a file that was cut off between two rows.
            Default: any number; how many were read is in the `repr` of the result.

        Raises:
          ValueError: If the file is no such table; names the file.
        """
        values = tables.read_table(path, num_rows).values
        try:
            return cls(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        """How many there are."""
        updates, *workers = np.shape(self.delays)
        of = f" and {workers[0]} workers" if workers else ""
        return f"RecordedDelays: {updates:,} updates{of}"

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `protocols.ServerProtocol.events`."""
        delays = np.asarray(self.delays)
        if delays.ndim == 1:
            return PrescribedStaleness(delays).events(cluster, num_updates)
        cluster.refuse_times_and_faults("RecordedDelays")
        _check_length("RecordedDelays", len(delays), num_updates)
        _check_num_workers("RecordedDelays", delays.shape[1], cluster)
        read = np.arange(num_updates)[:, None] - delays[:num_updates]
        version, worker = np.nonzero(_pushes(read))
        read_version = read[version, worker]
        return Events(worker, read_version, version, version + 1.0, read_time=read_version * 1.0)


@dataclasses.dataclass(frozen=True)
class Replay:
    """The events of another schedule again, up to the number of updates asked for.

    Args:
      schedule: Any schedule for the same number of workers.
    """

    schedule: Schedule

    def __post_init__(self):
        is_schedule = lambda value: isinstance(value, Schedule)
        checks.check_kind("Replay.schedule", self.schedule, is_schedule, "a sim.Schedule")

    def events(self, cluster: Cluster, num_updates: int) -> Events:
        """See `protocols.ServerProtocol.events`."""
        cluster.refuse_times_and_faults("Replay")
        _check_length("Replay", self.schedule.num_updates, num_updates)
        _check_num_workers("Replay", self.schedule.num_workers, cluster)
        num_events = int(np.flatnonzero(self.schedule.updates)[num_updates - 1]) + 1
        return Events(*(getattr(self.schedule, name)[:num_events] for name in Events._fields))


def _versions(name: str, values) -> np.ndarray:
    """A read-only int64 copy of `values`."""
    given = np.array(values)
    whole = given.size and given.dtype.kind in "iuf" and np.isfinite(given).all()
    if not whole or not np.all(given == np.floor(given)):
        raise ValueError(f"{name} needs whole numbers of versions, at least one.")
    versions = given.astype(np.int64)
    versions.setflags(write=False)
    return versions


def _check_length(name: str, num_recorded: int, num_updates: int) -> None:
    if num_updates > num_recorded:
        raise ValueError(
            f"{name} holds {num_recorded} updates, but num_updates is {num_updates}; ask for fewer."
        )


def _check_num_workers(name: str, num_recorded: int, cluster: Cluster) -> None:
    if num_recorded != cluster.num_workers:
        raise ValueError(
            f"{name} is for {num_recorded} workers, but num_workers is {cluster.num_workers}."
        )


def _pushes(read: np.ndarray) -> np.ndarray:
    """Where a worker's newest gradient is a new one; bool, of the shape of `read`."""
    return np.diff(read, axis=0, prepend=-1) > 0


def _lowest_free_worker(read_version: np.ndarray) -> np.ndarray:
    """Worker of each push, as if there were always enough; int64 [num_events]."""
    by_read = iter(np.argsort(read_version, kind="stable").tolist())
    worker = [-1] * len(read_version)
    free: list[int] = []
    hired = 0
    for version, readers in enumerate(np.bincount(read_version, minlength=len(worker)).tolist()):
        if version:  # the push that made this version has set its worker free
            heapq.heappush(free, worker[version - 1])
        for _ in range(readers):
            if not free:
                free.append(hired)
                hired += 1
            worker[next(by_read)] = heapq.heappop(free)
    return np.array(worker)
