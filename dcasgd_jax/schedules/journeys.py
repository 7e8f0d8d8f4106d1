"""The way of a gradient from its worker's pull to its arrival, where laws say how long it is."""

import heapq
from typing import NamedTuple

from dcasgd_jax.schedules.cluster import Cluster

# What can happen, in this order at one instant.
LIFE, COMPUTED, SENT, ARRIVAL, PULL, ALARM = range(6)

# Of happenings: (time, kind, worker, serial number, gradient). In the worker's place those of kind
# LIFE and SENT have an index; those of no gradient have None.
Heap = list[tuple]


class Gradient(NamedTuple):
    """A gradient under way."""

    worker: int
    serial: int  # of equal arrivals of one worker the older gradient comes first
    life: int  # gradients of an earlier life are lost
    read_version: int
    read_time: float


class LawJourneys:
    """Nobody's journey depends on another's: each is known when it begins."""

    def __init__(self, cluster: Cluster, heap: Heap, *, overlap: bool):
        self._heap = heap
        self._overlap = overlap
        self._stopwatch = Stopwatch(cluster)
        self._last_arrival = [0.0] * cluster.num_workers

    def begin(self, gradient: Gradient) -> None:
        """A worker has pulled."""
        worker, time = gradient.worker, gradient.read_time
        computed, upload = self._stopwatch.next(worker, time)
        if not self._overlap:
            arrival = time + (computed + upload)
        else:
            end = time + computed
            heapq.heappush(self._heap, (end, PULL, worker, gradient.serial, gradient))
            # A gradient does not overtake the one before it.
            arrival = max(end + upload, self._last_arrival[worker])
            self._last_arrival[worker] = arrival
        heapq.heappush(self._heap, (arrival, ARRIVAL, worker, gradient.serial, gradient))

    def drop(self, worker: int, time: float) -> None:
        """What this worker has under way is lost."""
        del time
        self._last_arrival[worker] = 0.0


class Stopwatch:
    """How long each worker's next gradient takes."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._started = [0] * cluster.num_workers
        self._drawn: list[tuple[list[float], ...]] = [([], [], [])] * cluster.num_workers

    def next(self, worker: int, pull_time: float) -> tuple[float, float]:
        """Seconds from this pull until the gradient is computed, and from then until it arrives."""
        index = self._started[worker]
        self._started[worker] = index + 1
        if index == len(self._drawn[worker][0]):
            self._draw(worker, 2 * index + 16)
        computed, upload, download = self._drawn[worker]
        if worker not in self._cluster.faults.slow_downs:
            return computed[index], upload[index]
        compute = float(self._cluster.compute.first(worker, index + 1)[index])
        compute *= self._cluster.faults.slow_down(worker, pull_time + download[index])
        return download[index] + compute, upload[index]

    def _draw(self, worker: int, count: int) -> None:
        cluster = self._cluster
        self._drawn[worker] = (
            cluster.until_computed(worker, count).tolist(),
            cluster.upload(worker, count).tolist(),
            cluster.download(worker, count).tolist(),
        )
