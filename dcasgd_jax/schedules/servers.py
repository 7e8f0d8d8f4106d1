"""Servers: what becomes of a push and who may pull, one class per protocol.

`event_loop.play` tells a server what happens; a server knows versions and workers, but no times.
"""

from collections.abc import Iterable


class Server:
    """Plain asynchronous training: every push is one update, and nobody waits."""

    def __init__(self):
        self.version = 0
        self._asking: list[int] = []

    def push(self, worker: int, read_version: int) -> bool:
        """A gradient arrives; returns whether it is applied."""
        del worker, read_version
        self.version += 1
        return True

    def finish(self, worker: int, applied: bool) -> None:
        """The worker of the gradient that was pushed last wants to pull again."""
        del applied
        self._asking.append(worker)

    def join(self, worker: int) -> None:
        """A worker comes to life and wants to pull."""
        self._asking.append(worker)

    def leave(self, worker: int) -> None:
        """A worker crashes."""
        del worker

    def admit(self) -> Iterable[int]:
        """Makes the update that may be due, then names the workers that may pull now."""
        asking, self._asking = self._asking, []
        return asking


class BufferedServer(Server):
    """An update for every few pushes, whatever versions they were taken at."""

    def __init__(self, num_pushes: int):
        super().__init__()
        self._missing = self._num_pushes = num_pushes

    def push(self, worker: int, read_version: int) -> bool:
        """See `Server.push`."""
        self._missing -= 1
        if not self._missing:
            self.version += 1
            self._missing = self._num_pushes
        return True


class DroppingServer(Server):
    """Every push is one update, unless it is too stale."""

    def __init__(self, bound: int):
        super().__init__()
        self._bound = bound

    def push(self, worker: int, read_version: int) -> bool:
        """See `Server.push`."""
        applied = self.version - read_version < self._bound
        self.version += applied
        return applied


class BarrierServer(Server):
    """Collects gradients of its current version; who has given one waits for the update."""

    def __init__(self, num_pushes: int):
        super().__init__()
        self._num_pushes = num_pushes
        self._collected = 0
        self._live: set[int] = set()
        self._waiting: set[int] = set()

    def push(self, worker: int, read_version: int) -> bool:
        """See `Server.push`."""
        applied = read_version == self.version
        self._collected += applied
        return applied

    def finish(self, worker: int, applied: bool) -> None:
        """See `Server.finish`."""
        if applied:
            self._waiting.add(worker)
        else:
            self._asking.append(worker)

    def join(self, worker: int) -> None:
        """See `Server.join`."""
        self._live.add(worker)
        self._asking.append(worker)

    def leave(self, worker: int) -> None:
        """See `Server.leave`."""
        self._live.discard(worker)
        self._waiting.discard(worker)

    def admit(self) -> Iterable[int]:
        """See `Server.admit`."""
        everybody_waits = 0 < len(self._waiting) == len(self._live)
        if self._collected >= self._num_pushes or (self._collected and everybody_waits):
            self.version += 1
            self._collected = 0
            self._asking.extend(sorted(self._waiting))
            self._waiting.clear()
        return super().admit()


class ClockServer(Server):
    """Every push is one update; a worker too far ahead of the slowest one waits for it."""

    def __init__(self, bound: int, num_workers: int):
        super().__init__()
        self._bound = bound
        self._clock = [0] * num_workers
        self._at_clock: dict[int, int] = {}  # live workers at each clock
        self._live: set[int] = set()
        self._slowest = 0
        self._waiting: set[int] = set()

    def finish(self, worker: int, applied: bool) -> None:
        """See `Server.finish`."""
        before = self._clock[worker]
        self._clock[worker] = before + 1
        self._at_clock[before + 1] = self._at_clock.get(before + 1, 0) + 1
        self._remove_from(before)
        self._asking.append(worker)

    def join(self, worker: int) -> None:
        """See `Server.join`; who comes late begins at the clock of the slowest."""
        if self._live:
            self._clock[worker] = max(self._clock[worker], self._slowest)
        else:
            self._slowest = self._clock[worker]
        clock = self._clock[worker]
        self._live.add(worker)
        self._at_clock[clock] = self._at_clock.get(clock, 0) + 1
        self._asking.append(worker)

    def leave(self, worker: int) -> None:
        """See `Server.leave`."""
        self._live.discard(worker)
        self._waiting.discard(worker)
        self._remove_from(self._clock[worker])

    def _remove_from(self, clock: int) -> None:
        """One worker fewer is at this clock; whoever waited for it asks again."""
        self._at_clock[clock] -= 1
        if not self._at_clock[clock]:
            del self._at_clock[clock]
            if clock == self._slowest and self._live:
                self._slowest = min(self._at_clock)
                self._asking.extend(sorted(self._waiting))
                self._waiting.clear()

    def admit(self) -> Iterable[int]:
        """See `Server.admit`."""
        asking, self._asking = self._asking, []
        limit = self._slowest + self._bound
        admitted = [m for m in asking if self._clock[m] <= limit]
        if len(admitted) < len(asking):
            self._waiting.update(set(asking).difference(admitted))
        return admitted
