"""The event loop: plays any server on any cluster, one happening at a time.

The protocols in which no worker ever waits have vectorised shortcuts when nothing goes wrong; this
loop is for the others, and the shortcuts are tested against it.

Of several happenings at one instant, crashes and the like come first, then pushes by worker
index, each followed by the pulls that it allows, then the pulls of workers that do not wait for
their push to arrive, then the end of a time that the server has given itself.
"""

import heapq
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcasgd_jax.schedules import faults, journeys, network, servers
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.schedule import Schedule


def play(
    cluster: Cluster,
    num_updates: int,
    server: servers.ProtocolServer,
    *,
    workers: Iterable[int] | None = None,
    overlap: bool = False,
    foresight: bool = False,
) -> Schedule:
    """Plays a server on a cluster until it has made its updates.

    Args:
      cluster: Times and faults.
      num_updates: Server updates ≥ 1.
      server: A fresh server.
      workers: Who takes part. Default: all workers.
      overlap: Whether a worker pulls at the end of its computation, not at the push's arrival.
      foresight: Whether a server that waits in vain knows so at the last push, and has its
        workers pull then. For one whose updates are made in `push`.

    Returns:
      The schedule, up to the push that makes the last update.

    Raises:
      ValueError: If all workers have crashed for good before that, the server averages pushes but
        does not say so, or foresight is asked for over links.

    Example:
      >>> from dcasgd_jax.sim import ConstantTime
      >>> from dcasgd_jax.schedules import cluster, event_loop, servers
      >>> both = cluster.Cluster(ConstantTime([1.0, 2.5]), 2, seed=0)
      >>> event_loop.play(both, 4, servers.ProtocolServer()).worker.tolist()
      [0, 0, 1, 0]
    """
    return _Play(cluster, num_updates, server, workers, overlap=overlap, foresight=foresight).run()


_PATIENCE = 10_000  # gradients without an update, for each worker and each push of a mean


class _Play:
    """One run: the heap of what is to happen, and the record of what has."""

    def __init__(self, cluster, num_updates, server, workers, *, overlap, foresight):
        if foresight and cluster.links is not None:
            raise ValueError(
                "Over sim.Links nobody knows when a push will come: foresight=True cannot be had."
            )
        self._cluster: Cluster = cluster
        self._num_updates: int = num_updates
        self._server: servers.ProtocolServer = server
        self._overlap: bool = overlap
        self._foresight: bool = foresight
        takes_part = set(range(cluster.num_workers) if workers is None else workers)
        self._lives = [life for life in cluster.faults.life if life.worker in takes_part]
        self._heap: journeys.Heap = [
            (life.time, journeys.LIFE, index, 0, None) for index, life in enumerate(self._lives)
        ]
        heapq.heapify(self._heap)
        make = journeys.LawJourneys if cluster.links is None else network.LinkJourneys
        self._journeys: Any = make(cluster, self._heap, overlap=overlap)
        self._serial = 0
        self._alarm = -1  # serial number of the one that is to ring
        self._rings = 0
        self._life = [0] * cluster.num_workers
        self._busy = [False] * cluster.num_workers
        self._pushed = [0] * cluster.num_workers
        self._update_times: list[float] = []
        self._worker: list[int] = []
        self._read_version: list[int] = []
        self._version: list[int] = []
        self._time: list[float] = []
        self._applied: list[bool] = []
        self._read_time: list[float] = []
        self._batch: list[int] = []
        self._corrupt: list[int] = []  # events

    def run(self) -> Schedule:
        server, heap, lives = self._server, self._heap, self._life
        num_updates = self._num_updates
        patience = _PATIENCE * (len(lives) + server.pushes_per_update)
        version, arrived, look = 0, 0, patience
        while server.version < num_updates:
            if not heap:
                raise self._nothing_is_under_way()
            if self._serial > look:
                if server.version == version:
                    raise self._no_update(patience, len(self._worker) - arrived)
                version, arrived = server.version, len(self._worker)
                look = self._serial + patience
            time, kind, worker, serial, gradient = heapq.heappop(heap)
            if kind == journeys.LIFE:
                self._change_life(time, self._lives[worker])
            elif kind == journeys.ALARM:
                self._ring(time, serial)
            elif kind == journeys.SENT:
                self._journeys.sent(time, worker, serial)
            elif gradient.life != lives[worker]:
                continue
            elif kind == journeys.COMPUTED:
                self._journeys.computed(time, gradient)
            elif kind == journeys.PULL:
                server.finish(worker, True)
                self._admit(time)
            else:
                self._arrive(time, gradient)
        return self._schedule()

    def _arrive(self, time: float, gradient: journeys.Gradient) -> None:
        """A gradient arrives, or would."""
        plan, worker = self._cluster.faults, gradient.worker
        event = len(self._worker)
        push = (worker, self._pushed[worker]) if plan.any else ()
        self._pushed[worker] += 1
        lost = push in plan.lost
        self._record(time, gradient, event, lost)
        self._busy[worker] = False
        if not self._overlap:
            self._server.finish(worker, self._applied[-1])
        self._admit(time)
        again = push in plan.duplicated and self._server.version < self._num_updates
        if again:
            self._record(time, gradient, event, lost)
            self._admit(time)
        if push in plan.corrupt:
            self._corrupt.extend([event, event + 1] if again else [event])

    def _record(self, time: float, gradient: journeys.Gradient, batch: int, lost: bool) -> None:
        """Hands a gradient to the server, unless it is lost, and notes what becomes of it."""
        worker, _, _, read_version, read_time = gradient
        self._worker.append(worker)
        self._read_version.append(read_version)
        self._version.append(self._server.version)
        self._time.append(time)
        self._read_time.append(read_time)
        self._batch.append(batch)
        self._applied.append(not lost and self._server.push(worker, read_version))

    def _admit(self, time: float) -> None:
        """Whoever may pull now does, and a gradient gets under way."""
        server = self._server
        admitted = server.admit()
        while server.version > len(self._update_times):
            self._update_times.append(time)
        for worker in admitted:
            if self._busy[worker] and not self._overlap:
                self._lose_gradients(worker, time)
            self._busy[worker] = True
            self._serial += 1
            life = self._life[worker]
            self._journeys.begin(
                journeys.Gradient(worker, self._serial, life, server.version, time)
            )
        if server.wake_in is not None:
            if not 0 <= server.wake_in < math.inf:
                raise ValueError(
                    f"{type(server).__name__}.wake_in is {server.wake_in}, but must be a time >= 0 "
                    "in seconds, or None."
                )
            self._serial += 1
            self._alarm = self._serial
            ring = (time + server.wake_in, journeys.ALARM, 0, self._serial, None)
            heapq.heappush(self._heap, ring)
            server.wake_in = None

    def _ring(self, time: float, serial: int) -> None:
        """The time that the server has given itself is over."""
        self._rings += 1
        if serial == self._alarm:
            self._server.wake()
            self._admit_without_push(self._time[-1] if self._foresight else time)

    def _change_life(self, time: float, life: faults.LifeEvent) -> None:
        """A worker joins, crashes or restarts."""
        if life.kind == faults.CRASH:
            self._lose_gradients(life.worker, time)
            self._server.leave(life.worker)
        else:
            self._server.join(life.worker)
        self._admit_without_push(time)

    def _lose_gradients(self, worker: int, time: float) -> None:
        """Whatever this worker computes or sends is thrown away."""
        self._life[worker] += 1
        self._busy[worker] = False
        self._journeys.drop(worker, time)

    def _admit_without_push(self, time: float) -> None:
        """Lets workers pull; an update may be made although no push has arrived."""
        version = self._server.version
        self._admit(time)
        if self._server.version > version:
            # In a schedule an update follows an applied push, so unused pushes since the last one
            # count as later; they change nothing.
            event = len(self._worker) - 1
            while not self._applied[event]:
                self._version[event] = self._server.version
                event -= 1

    def _nothing_is_under_way(self) -> ValueError:
        """Everybody has crashed, or a server of a user's own lets nobody pull."""
        after = f"after {self._server.version} of {self._num_updates} updates"
        crashes = [life.time for life in self._lives if life.kind == faults.CRASH]
        if not crashes:
            return ValueError(
                f"{type(self._server).__name__} lets nobody pull, and no gradient is under way, "
                f"{after}: its admit() must name a worker in the end."
            )
        return ValueError(
            f"Every worker has crashed, the last one at {max(crashes)} s, {after}; let one restart "
            "(sim.Restart)."
        )

    def _no_update(self, begun: int, arrived: int) -> ValueError:
        """A server of a user's own that would never be done, or links that carry nothing."""
        after = f"after {self._server.version} of {self._num_updates} updates"
        if self._overlap and 2 * arrived < begun:
            return ValueError(
                f"{begun:,} gradients have begun and {arrived:,} have arrived without an update, "
                f"{after}: with overlap=True workers send more than their links carry, and what is "
                "under way only grows. Give sim.Links more bandwidth or smaller push_bytes, more "
                "time to a gradient, or take overlap=False."
            )
        return ValueError(
            f"{type(self._server).__name__} has made no update for {begun:,} gradients"
            f"{' and wakes' if self._rings else ''}, {after}: its push() or admit() must raise "
            "version in the end."
        )

    def _schedule(self) -> Schedule:
        end = len(self._worker)
        while not self._applied[end - 1]:  # only after an update that no push has brought about
            end -= 1
        corrupt = np.zeros(len(self._worker), bool)
        corrupt[self._corrupt] = True
        version = np.array(self._version[:end])
        schedule = Schedule(
            num_workers=self._cluster.num_workers,
            worker=np.array(self._worker[:end]),
            read_version=np.array(self._read_version[:end]),
            version=version,
            time=np.array(self._time[:end]),
            applied=np.array(self._applied[:end]),
            batch=np.array(self._batch[:end]),
            corrupt=corrupt[:end],
            read_time=np.array(self._read_time[:end]),
            update_time=np.array(self._update_times)[version],
        )
        servers.check_pushes(self._server, int(schedule.num_pushes.max()))
        return schedule
