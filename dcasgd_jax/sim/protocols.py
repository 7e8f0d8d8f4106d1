"""Protocols: who pushes when, and which version each push was computed from.

A protocol is a value given to `make_schedule`. It turns compute times into events, in NumPy, and
knows nothing of gradients.
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from dcasgd_jax.sim import laws


class Events(NamedTuple):
    """Pushes in the order in which the server receives them; all arrays are [num_events]."""

    worker: np.ndarray  # who pushes
    read_version: np.ndarray  # the version its gradient was taken at
    version: np.ndarray  # the server's version when the push arrives
    time: np.ndarray  # when it arrives, simulated seconds


class ComputeTimes:
    """Compute times of every worker, drawn from a law as far as they are asked for.

    Each worker has a random stream of its own: whatever the protocol and however long the run,
    worker m's j-th gradient takes the same time.
    """

    def __init__(self, law: laws.WorkerTimeLaw, num_workers: int, seed: int):
        self._law = law
        self._seed = seed
        self._drawn = [np.zeros(0)] * num_workers

    def first(self, worker: int, count: int) -> np.ndarray:
        """Seconds that the first `count` gradients of `worker` take; float64 [count]."""
        if len(self._drawn[worker]) < count:
            generator = np.random.default_rng([self._seed, worker])
            self._drawn[worker] = self._law.times(worker, count, generator)
        return self._drawn[worker][:count]


class ServerProtocol(Protocol):
    """What `make_schedule` needs of a protocol."""

    def events(self, times: ComputeTimes, num_workers: int, num_updates: int) -> Events:
        """The pushes that make the first `num_updates` server updates."""
        ...


@dataclasses.dataclass(frozen=True)
class Asynchronous:
    """Every push is one update; the worker pulls right after it and is never idle.

    Pushes that arrive at the same instant are served by worker index.
    """

    def events(self, times: ComputeTimes, num_workers: int, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        arrivals = _first_arrivals(times, num_workers, num_updates)
        workers = np.concatenate([np.full(len(a), m) for m, a in enumerate(arrivals)])
        arrival = np.concatenate(arrivals)
        order = np.lexsort((workers, arrival))[:num_updates]
        worker = workers[order]
        return Events(
            worker=worker,
            read_version=_previous_push(worker) + 1,
            version=np.arange(num_updates),
            time=arrival[order],
        )


@dataclasses.dataclass(frozen=True)
class Synchronous:
    """All workers read the same version; one barrier later the mean of their pushes is applied."""

    def events(self, times: ComputeTimes, num_workers: int, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        rounds = np.stack([times.first(m, num_updates) for m in range(num_workers)], axis=1)
        worker = np.argsort(rounds, axis=1, kind="stable")
        barrier = np.cumsum(rounds.max(axis=1))
        start = np.concatenate([[0.0], barrier[:-1]])
        arrival = start[:, None] + np.take_along_axis(rounds, worker, axis=1)
        version = np.repeat(np.arange(num_updates), num_workers)
        return Events(
            worker=worker.ravel(), read_version=version, version=version, time=arrival.ravel()
        )


@dataclasses.dataclass(frozen=True)
class Sequential:
    """Worker 0 does everything, every gradient is fresh: plain SGD on one machine."""

    def events(self, times: ComputeTimes, num_workers: int, num_updates: int) -> Events:
        """See `ServerProtocol.events`."""
        del num_workers
        version = np.arange(num_updates)
        return Events(
            worker=np.zeros(num_updates, np.int64),
            read_version=version,
            version=version,
            time=np.cumsum(times.first(0, num_updates)),
        )


def _first_arrivals(times: ComputeTimes, num_workers: int, num_pushes: int) -> list[np.ndarray]:
    """Arrival times of always-busy workers, at least up to the `num_pushes`-th of all."""
    counts = [num_pushes // num_workers + 16] * num_workers
    while True:
        arrivals = [np.cumsum(times.first(m, count)) for m, count in enumerate(counts)]
        arrival = np.concatenate(arrivals)
        horizon = np.partition(arrival, num_pushes - 1)[num_pushes - 1]
        short = [m for m, a in enumerate(arrivals) if a[-1] < horizon]
        if not short:
            return arrivals
        for m in short:
            counts[m] = min(2 * counts[m], num_pushes + 16)


def _previous_push(worker: np.ndarray) -> np.ndarray:
    """Index of the same worker's previous push, -1 if there is none; int64 [num_events]."""
    by_worker = np.argsort(worker, kind="stable")
    same = worker[by_worker[1:]] == worker[by_worker[:-1]]
    previous = np.full(len(worker), -1)
    previous[by_worker[1:][same]] = by_worker[:-1][same]
    return previous
