"""Servers: what becomes of a push and who may pull, one class per protocol.

The simulated event loop and the live runtime tell the same server what happens; it knows versions
and workers, but no times and no gradients.
"""

import math
from collections.abc import Iterable


class ProtocolServer:
    """What a protocol decides at the server; as it stands: every push is one update, nobody waits.

    Made by `Protocol.server`, for one run. Of each gradient that arrives it is told in this order:
    `push`, `finish`, `admit`; of one that is lost on its way, `finish` and `admit` only. After
    `join`, `leave` and `wake` comes `admit`. A server of one's own is a subclass that replaces what
    differs.

    Attributes:
      version: Updates so far; a subclass adds 1 in `push` or in `admit` when an update is due.
      pushes_per_update: Pushes that an update waits for while all workers live. More than 1: an
        update is the mean of the pushes applied since the last one.
      mixes_versions: Whether the pushes of one update may have read different versions.
      wake_in: Seconds from now after which `wake` is to be called, or None; read after `admit` and
        set back to None. Of several the last one counts.
    """

    pushes_per_update: int = 1
    mixes_versions: bool = False
    wake_in: float | None = None

    def __init__(self):
        self.version: int = 0
        self._asking: list[int] = []

    def push(self, worker: int, read_version: int) -> bool:
        """A gradient arrives, taken at `read_version`; returns whether it is applied."""
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
        """A worker crashes; it wants nothing any more, until it joins again."""
        del worker

    def wake(self) -> None:
        """The time that `wake_in` has asked for is over."""

    def admit(self) -> Iterable[int]:
        """Makes the update that may be due, then names the workers that may pull now.

        A worker that is named while it computes throws its gradient away and begins anew; only in
        the simulator, as a live one is not interrupted.
        """
        asking, self._asking = self._asking, []
        return asking


class BufferedServer(ProtocolServer):
    """An update for every few pushes, whatever versions they were taken at."""

    def __init__(self, num_pushes: int):
        super().__init__()
        self._missing = self.pushes_per_update = num_pushes
        self.mixes_versions = num_pushes > 1

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        self._missing -= 1
        if not self._missing:
            self.version += 1
            self._missing = self.pushes_per_update
        return True


class DroppingServer(ProtocolServer):
    """Every push is one update, unless it is too stale."""

    def __init__(self, bound: int):
        super().__init__()
        self._bound = bound

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        applied = self.version - read_version < self._bound
        self.version += applied
        return applied


class BarrierServer(ProtocolServer):
    """Collects gradients of its current version; who has given one waits for the update."""

    def __init__(self, num_pushes: int, *, cancel: bool = False):
        super().__init__()
        self.pushes_per_update = num_pushes
        self._wanted: float = num_pushes
        self._cancel = cancel
        self._collected = 0
        self._live: set[int] = set()
        self._waiting: set[int] = set()

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        applied = read_version == self.version
        self._collected += applied
        return applied

    def finish(self, worker: int, applied: bool) -> None:
        """See `ProtocolServer.finish`."""
        if applied:
            self._waiting.add(worker)
        else:
            self._asking.append(worker)

    def join(self, worker: int) -> None:
        """See `ProtocolServer.join`."""
        self._live.add(worker)
        self._asking.append(worker)

    def leave(self, worker: int) -> None:
        """See `ProtocolServer.leave`."""
        self._live.discard(worker)
        self._waiting.discard(worker)

    def admit(self) -> Iterable[int]:
        """See `ProtocolServer.admit`."""
        if self._collected and self._is_complete():
            self._update()
            self._collected = 0
            self._asking = sorted(self._live if self._cancel else {*self._asking, *self._waiting})
            self._waiting.clear()
        return super().admit()

    def _is_complete(self) -> bool:
        """Whether nobody needs to wait any more: the pushes are there, or no more can come."""
        everybody_waits = 0 < len(self._waiting) == len(self._live)
        return self._collected >= self._wanted or everybody_waits

    def _update(self) -> None:
        self.version += 1


class QuorumServer(BarrierServer):
    """Collects gradients of any version, for a time at most; who has given one waits."""

    def __init__(self, num_pushes: int, grace: float | None):
        super().__init__(num_pushes)
        self.mixes_versions = num_pushes > 1
        self._grace = grace
        self._over = False  # the time

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        if not self._collected:
            self._over = False
            self.wake_in = self._grace
        self._collected += 1
        return True

    def wake(self) -> None:
        """See `ProtocolServer.wake`."""
        self._over = True

    def _is_complete(self) -> bool:
        return self._over or super()._is_complete()


class GraceServer(QuorumServer):
    """Every push is one update; who has pushed waits for others, and they pull together."""

    def __init__(self, grace: float):
        super().__init__(1, grace)
        self._wanted = math.inf

    def push(self, worker: int, read_version: int) -> bool:
        """See `ProtocolServer.push`."""
        self.version += 1
        return super().push(worker, read_version)

    def _update(self) -> None:
        pass  # made at each push


class ClockServer(ProtocolServer):
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
        """See `ProtocolServer.finish`."""
        before = self._clock[worker]
        self._clock[worker] = before + 1
        self._at_clock[before + 1] = self._at_clock.get(before + 1, 0) + 1
        self._remove_from(before)
        self._asking.append(worker)

    def join(self, worker: int) -> None:
        """See `ProtocolServer.join`; who comes late begins at the clock of the slowest."""
        if self._live:
            self._clock[worker] = max(self._clock[worker], self._slowest)
        else:
            self._slowest = self._clock[worker]
        clock = self._clock[worker]
        self._live.add(worker)
        self._at_clock[clock] = self._at_clock.get(clock, 0) + 1
        self._asking.append(worker)

    def leave(self, worker: int) -> None:
        """See `ProtocolServer.leave`."""
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
        """See `ProtocolServer.admit`."""
        asking, self._asking = self._asking, []
        limit = self._slowest + self._bound
        admitted = [m for m in asking if self._clock[m] <= limit]
        if len(admitted) < len(asking):
            self._waiting.update(set(asking).difference(admitted))
        return admitted


def check_pushes(server: ProtocolServer, num_pushes: int) -> None:
    """Raises ValueError if pushes are averaged by a server that has not said so."""
    if num_pushes > 1 and server.pushes_per_update == 1:
        raise ValueError(
            f"{type(server).__name__} takes {num_pushes} pushes for one update, but its "
            "pushes_per_update is 1: set it to the number of pushes that an update waits for."
        )
