"""Protocols as a user would write them: the package does not know them."""

import dataclasses

from dcasgd_jax import sim


class QueueServer(sim.ProtocolServer):
    def __init__(self, places):
        super().__init__()
        self.places, self.queue, self.computing = places, [], set()

    def finish(self, worker, applied):
        self.computing.discard(worker)
        self.queue.append(worker)

    def join(self, worker):
        self.queue.append(worker)

    def leave(self, worker):
        self.computing.discard(worker)
        self.queue = [waiting for waiting in self.queue if waiting != worker]

    def admit(self):
        free = self.places - len(self.computing)
        admitted, self.queue = self.queue[:free], self.queue[free:]
        self.computing.update(admitted)
        return admitted


@dataclasses.dataclass(frozen=True)
class AtATime(sim.Protocol):
    """At most so many workers compute at a time, the others stand in a queue."""

    places: int

    def server(self, num_workers):
        return QueueServer(min(self.places, num_workers))


class QuorumServer(sim.ProtocolServer):
    mixes_versions = True

    def __init__(self, num_pushes):
        super().__init__()
        self.pushes_per_update = num_pushes
        self.pushed = set()

    def push(self, worker, read_version):
        if worker in self.pushed:
            return False
        self.pushed.add(worker)
        if len(self.pushed) == self.pushes_per_update:
            self.version += 1
            self.pushed.clear()
        return True


@dataclasses.dataclass(frozen=True)
class Quorum(sim.Protocol):
    """An update is the mean of one push each of so many workers; nobody counts twice."""

    num_workers: int

    def server(self, num_workers):
        if self.num_workers > num_workers:
            raise ValueError(
                f"{self.num_workers} workers make a quorum, but there are {num_workers}."
            )
        return QuorumServer(self.num_workers)


class SilentServer(sim.ProtocolServer):
    def __init__(self):
        super().__init__()
        self.count = 0

    def push(self, worker, read_version):
        self.count += 1
        self.version = self.count // 2
        return True


@dataclasses.dataclass(frozen=True)
class Silent(sim.Protocol):
    """Averages two pushes, but does not say so."""

    def server(self, num_workers):
        return SilentServer()
