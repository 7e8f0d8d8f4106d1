"""Workers that do not take part all the time: drawn at random, or there in windows of time."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import faults, protocols, servers, tables


@dataclasses.dataclass(frozen=True)
class Sampled(protocols.Protocol):
    """More workers than compute at once: whoever may begin is drawn at random.

    At most `concurrency` workers compute or send. When one's push arrives, or it crashes, its place
    goes to one of all that the protocol would let pull then, itself included, each as likely as any
    other; it pulls at that moment. So does the server of `FedBuff (Nguyen et al., 2022)
    <https://arxiv.org/abs/2106.06639>`_, with `Buffered`. A worker that the protocol stops
    (`Synchronous(cancel=True)`) keeps its place; one that sends while it computes the next gradient
    (`Asynchronous(overlap=True)`) gives it away as it begins to send.

    Args:
      concurrency: Places, ≥ 1. With as many as there are workers nothing is drawn.
      seed: Integer ≥ 0, of the draws.
      protocol: Who waits for whom. Default: `Asynchronous()`.

    Example:
      >>> from dcasgd_jax import sim
      >>> protocol = sim.Sampled(10, seed=0, protocol=sim.Buffered(5))
      >>> schedule = sim.make_schedule(sim.GammaTime(), 100, 400, seed=0, protocol=protocol)
      >>> len(set(schedule.worker.tolist())), round(float(schedule.staleness.mean()), 1)
      (100, 1.8)
    """

    concurrency: int
    seed: int
    protocol: protocols.Protocol = dataclasses.field(default_factory=protocols.Asynchronous)

    def __post_init__(self):
        checks.check_fields(self, concurrency=1, seed=0)
        protocols.check_protocol(self.protocol)

    @property
    def runs_live(self) -> bool:
        """As the protocol below."""
        return self.protocol.runs_live

    @property
    def runs_sharded(self) -> bool:
        """No: each server would draw other workers, and none of them has all parameters."""
        return False

    @property
    def playing(self) -> Mapping[str, Any]:
        """See `protocols.Protocol.playing`."""
        return self.protocol.playing

    def server(self, num_workers: int) -> servers.ProtocolServer:
        """See `protocols.Protocol.server`."""
        inner = self.protocol.server(num_workers)
        return SampledServer(inner, self.concurrency, np.random.default_rng(self.seed))


class SampledServer(servers.ProtocolServer):
    """Another server, whose admitted workers stand in for a draw."""

    def __init__(
        self, inner: servers.ProtocolServer, concurrency: int, generator: np.random.Generator
    ):
        self._inner = inner  # before `version` is set
        super().__init__()
        self.pushes_per_update = inner.pushes_per_update
        self.mixes_versions = inner.mixes_versions
        self._concurrency = concurrency
        self._generator = generator
        self._idle: list[int] = []  # may pull
        self._are_idle: set[int] = set()  # the same
        self._computing: set[int] = set()

    @property
    def version(self) -> int:
        """Updates so far."""
        return self._inner.version

    @version.setter
    def version(self, version: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._inner.version = version

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        return self._inner.push(worker, read_version)

    def finish(self, worker: int, applied: bool) -> None:
        """See `ProtocolServer.finish`."""
        self._computing.discard(worker)
        self._inner.finish(worker, applied)

    def join(self, worker: int) -> None:
        """See `ProtocolServer.join`."""
        self._inner.join(worker)

    def leave(self, worker: int) -> None:
        """See `ProtocolServer.leave`."""
        self._computing.discard(worker)
        if worker in self._are_idle:
            self._are_idle.discard(worker)
            self._idle.remove(worker)
        self._inner.leave(worker)

    def wake(self) -> None:
        """See `ProtocolServer.wake`."""
        self._inner.wake()

    def admit(self) -> Iterable[int]:
        """See `ProtocolServer.admit`."""
        admitted = []
        for worker in self._inner.admit():
            if worker in self._computing:
                admitted.append(worker)
            elif worker not in self._are_idle:  # a barrier that stops workers names all
                self._idle.append(worker)
                self._are_idle.add(worker)
        self.wake_in, self._inner.wake_in = self._inner.wake_in, None
        idle = self._idle
        while idle and len(self._computing) < self._concurrency:
            drawn = int(self._generator.integers(len(idle)))
            idle[drawn], idle[-1] = idle[-1], idle[drawn]
            worker = idle.pop()
            self._are_idle.discard(worker)
            self._computing.add(worker)
            admitted.append(worker)
        return admitted


def availability(
    windows: Sequence[Sequence[float]] | np.ndarray | str | os.PathLike,
) -> list[faults.LateJoin | faults.Crash | faults.Restart]:
    """Faults that make workers be there only in windows of time, for `make_schedule(faults=)`.

    A worker joins at the start of its first window and restarts at that of each later one; at a
    window's end it leaves as in a `Crash`: the gradient under way, all of its local steps, is lost.
    Workers that no row names are there all the time. Windows of a worker that touch are one.

    Args:
      windows: Rows of worker, start and stop in simulated seconds, in any order, `[num_windows,
        3]`; or the path of a CSV file of such rows, header optional. A stop of `inf` is no end.

    Returns:
      The faults, by worker and time.

    Raises:
      ValueError: For a row that is no window, or overlaps another one; it is named.

    Example:
      >>> from dcasgd_jax import sim
      >>> sim.availability([[0, 0, 10], [1, 5, 8], [1, 9, float("inf")]])
      [Crash(worker=0, time=10.0), LateJoin(worker=1, time=5.0), Crash(worker=1, time=8.0), ...]
    """
    names, rows = _windows(windows)
    by_worker: dict[int, list[tuple[float, float, str]]] = {}
    for name, (worker, start, stop) in zip(names, rows.tolist(), strict=True):
        if not (worker >= 0 and worker.is_integer()):
            raise ValueError(f"{name}: {worker:g} is no worker, which are integers from 0.")
        if not 0 <= start < stop or start == np.inf:
            raise ValueError(
                f"{name}: from {start:g} to {stop:g} s is no window; it needs 0 <= start < stop."
            )
        by_worker.setdefault(int(worker), []).append((start, stop, name))
    changes = []
    for worker, theirs in sorted(by_worker.items()):
        changes += _changes(worker, sorted(theirs))
    return changes


def _windows(windows: Any) -> tuple[list[str], np.ndarray]:
    """What to call each row in an error, and the rows [num_windows, 3]."""
    if isinstance(windows, str | os.PathLike):
        table = tables.read_table(windows)
        rows, names = table.values, [f"{windows}: line {line}" for line in table.lines]
        caller = f"{windows}"
    else:
        caller = "availability"
        try:
            rows = np.asarray(windows, np.float64)
        except (TypeError, ValueError):
            raise ValueError("availability needs rows of numbers: worker, start, stop.") from None
        names = [f"availability: row {row}" for row in range(len(np.atleast_1d(rows)))]
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(
            f"{caller}: needs rows of worker, start and stop, [num_windows, 3], got an array of "
            f"shape {rows.shape}."
        )
    return names, rows


def _changes(
    worker: int, windows: list[tuple[float, float, str]]
) -> list[faults.LateJoin | faults.Crash | faults.Restart]:
    """One worker's joins and crashes, of its windows in order of time."""
    changes: list[faults.LateJoin | faults.Crash | faults.Restart] = []
    last_stop, last_name = None, ""
    for start, stop, name in windows:
        if last_stop is None:
            if start > 0:
                changes.append(faults.LateJoin(worker, start))
        elif start < last_stop:
            raise ValueError(f"{name}: the window of worker {worker} overlaps that of {last_name}.")
        elif start == last_stop:
            changes.pop()  # the end of the window before
        else:
            changes.append(faults.Restart(worker, start))
        if stop < np.inf:
            changes.append(faults.Crash(worker, stop))
        last_stop, last_name = stop, name
    return changes
