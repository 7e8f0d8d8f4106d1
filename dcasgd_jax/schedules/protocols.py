"""Protocols: who waits for whom, and which pushes a server uses.

A protocol is a value given to `make_schedule` or to a live run. It turns the times of a cluster
into a schedule, in NumPy, and knows nothing of gradients.

Pushes that arrive at the same instant are served by worker index; each worker's pull, where it need
not wait, comes right after its push.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import always_busy, event_loop, servers
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.schedules.waves import previous_push


class Protocol(abc.ABC):
    """A rule of who waits for whom; one of your own is a frozen dataclass that inherits from this.

    It makes a server, which decides everything. `make_schedule` plays it event by event, and
    `runtime.ray.train` asks the same server in a live run, whose checkpoints know the protocol by
    its `repr`. A server that waits for a time sets `wake_in` (see `ProtocolServer`).

    Example:
      At most so many workers compute at a time, the others stand in a queue:

      >>> import dataclasses
      >>> from dcasgd_jax import sim
      >>> class QueueServer(sim.ProtocolServer):
      ...     def __init__(self, places):
      ...         super().__init__()
      ...         self.places, self.queue, self.computing = places, [], set()
      ...     def finish(self, worker, applied):
      ...         self.computing.discard(worker)
      ...         self.queue.append(worker)
      ...     def join(self, worker):
      ...         self.queue.append(worker)
      ...     def leave(self, worker):
      ...         self.computing.discard(worker)
      ...         self.queue = [waiting for waiting in self.queue if waiting != worker]
      ...     def admit(self):
      ...         free = self.places - len(self.computing)
      ...         admitted, self.queue = self.queue[:free], self.queue[free:]
      ...         self.computing.update(admitted)
      ...         return admitted
      >>> @dataclasses.dataclass(frozen=True)
      ... class AtATime(sim.Protocol):
      ...     num_workers: int
      ...     def server(self, num_workers):
      ...         return QueueServer(min(self.num_workers, num_workers))
      >>> schedule = sim.make_schedule(sim.ConstantTime(), 4, 8, seed=0, protocol=AtATime(2))
      >>> schedule.worker.tolist(), schedule.staleness.tolist()
      ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1, 1])
    """

    @property
    def runs_live(self) -> bool:
        """Whether live workers can follow it: all take part, and each pulls after its push."""
        return True

    @property
    def runs_sharded(self) -> bool:
        """Whether several live servers can, each of which sees the pushes in an order of its own.

        They could not if workers might wait for one another, each at another server.
        """
        return True

    @property
    def playing(self) -> Mapping[str, Any]:
        """What `schedule` tells the event loop besides the server: nothing."""
        return {}

    @abc.abstractmethod
    def server(self, num_workers: int) -> servers.ProtocolServer:
        """A fresh server for `num_workers` workers; ValueError if it cannot serve so many."""

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """The pushes that make the first `num_updates` updates, simulated on a cluster.

        Plays the server event by event; a protocol may replace this by something faster.
        """
        server = self.server(cluster.num_workers)
        return event_loop.play(cluster, num_updates, server, **self.playing)


def check_protocol(protocol: object) -> None:
    """Raises TypeError unless this is a protocol."""
    is_one = lambda value: isinstance(value, Protocol)
    checks.check_kind("protocol", protocol, is_one, "a protocol, such as sim.Synchronous()")


@dataclasses.dataclass(frozen=True)
class Asynchronous(Protocol):
    """Every push is one update; the worker pulls right after it and is never idle.

    Args:
      overlap: Whether a worker pulls as soon as its computation ends, while its gradient is still
        on its way up. It then reads the version after all pushes that have arrived at or before
        that instant, usually without its own. A worker's gradients do not overtake each other.
      pull_after: With `overlap`: the share in [0, 1) of its next computation that a worker does
        before it needs the params that it pulls, as with `sim.LocalSteps(merge_after=)`; it asks
        for them as late as they still come in time, and waits where they cannot. Neither with
        faults nor over `links`.

    Raises:
      ValueError: For a share out of range, or one without `overlap`.
    """

    overlap: bool = False
    pull_after: float = 0.0

    def __post_init__(self):
        checks.check_fraction("Asynchronous.pull_after", self.pull_after)
        if self.pull_after and not self.overlap:
            raise ValueError(
                "Asynchronous.pull_after is for workers that go on while their gradient travels: "
                "say overlap=True."
            )

    @property
    def runs_live(self) -> bool:
        """Not with overlap: a live worker pulls when its push has arrived."""
        return not self.overlap

    @property
    def playing(self) -> Mapping[str, Any]:
        """See `Protocol.playing`; ValueError with `pull_after`, which is not played."""
        if self.pull_after:
            raise ValueError(
                "Asynchronous(pull_after=) is for a cluster without faults and links, and stands "
                "alone: leave those out, or pull_after."
            )
        return {"overlap": self.overlap}

    def server(self, num_workers: int) -> servers.ProtocolServer:
        """See `Protocol.server`."""
        del num_workers
        return servers.ProtocolServer()

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `Protocol.schedule`."""
        if not cluster.undisturbed:
            return super().schedule(cluster, num_updates)
        if self.overlap:
            return always_busy.overlapping_schedule(cluster, num_updates, self.pull_after)
        worker, time = always_busy.first_pushes(cluster, num_updates)
        return Schedule(
            worker=worker,
            read_version=previous_push(worker) + 1,
            version=np.arange(num_updates, dtype=np.int32),
            time=time,
            num_workers=cluster.num_workers,
        )


@dataclasses.dataclass(frozen=True)
class Buffered(Protocol):
    """An update with the mean of every few pushes, whatever versions they read; nobody waits.

    Args:
      num_pushes: Pushes per update, ≥ 1; a worker may push more than once to the same update.
    """

    num_pushes: int

    def __post_init__(self):
        checks.check_fields(self, num_pushes=1)

    def server(self, num_workers: int) -> servers.BufferedServer:
        """See `Protocol.server`."""
        del num_workers
        return servers.BufferedServer(self.num_pushes)

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `Protocol.schedule`."""
        if not cluster.undisturbed:
            return super().schedule(cluster, num_updates)
        worker, time = always_busy.first_pushes(cluster, num_updates * self.num_pushes)
        return Schedule(
            worker=worker,
            read_version=(previous_push(worker) + 1) // self.num_pushes,
            version=np.arange(len(worker)) // self.num_pushes,
            time=time,
            num_workers=cluster.num_workers,
        )


@dataclasses.dataclass(frozen=True)
class DropStale(Protocol):
    """Every push is one update, unless it is too stale: that one is ignored (Ringmaster ASGD).

    A worker pulls the current version right after its push, used or not.

    Args:
      bound: ≥ 1; a push is applied if its staleness is less. 1 keeps only fresh gradients.
    """

    bound: int

    def __post_init__(self):
        checks.check_fields(self, bound=1)

    def server(self, num_workers: int) -> servers.DroppingServer:
        """See `Protocol.server`."""
        del num_workers
        return servers.DroppingServer(self.bound)

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `Protocol.schedule`."""
        if not cluster.undisturbed:
            return super().schedule(cluster, num_updates)
        num_pushes = num_updates
        while True:
            worker, time = always_busy.first_pushes(cluster, num_pushes)
            read_version, version, applied = self._drop(worker.tolist(), cluster.num_workers)
            enough = int(np.searchsorted(np.cumsum(applied), num_updates)) + 1
            if enough <= num_pushes:
                kept = slice(enough)
                columns = (worker, read_version, version, time, applied)
                return Schedule(*(c[kept] for c in columns), num_workers=cluster.num_workers)
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
class Sequential(Protocol):
    """Worker 0 does everything, every gradient is fresh: plain SGD on one machine."""

    @property
    def runs_live(self) -> bool:
        """No: a live run has work for all of its workers."""
        return False

    @property
    def playing(self) -> Mapping[str, Any]:
        """See `Protocol.playing`."""
        return {"workers": [0]}

    def server(self, num_workers: int) -> servers.ProtocolServer:
        """See `Protocol.server`."""
        del num_workers
        return servers.ProtocolServer()

    def schedule(self, cluster: Cluster, num_updates: int) -> Schedule:
        """See `Protocol.schedule`."""
        if not cluster.undisturbed:
            return super().schedule(cluster, num_updates)
        version = np.arange(num_updates)
        return Schedule(
            worker=np.zeros(num_updates, np.int64),
            read_version=version,
            version=version,
            time=np.cumsum(cluster.cycle(0, num_updates)),
            num_workers=cluster.num_workers,
        )
