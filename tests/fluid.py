"""A slow simulator of transfers that share links: what is left of each, worked out at every step.

Protocols' servers are the package's (tick-by-tick tests are about them); everything that takes time
is written here from the definitions, with no queue and no clock but `now`.
"""

import dataclasses

from dcasgd_jax import sim


@dataclasses.dataclass
class Travel:
    """A gradient under way: bytes `left` on a link while `link` is given, else until a time."""

    worker: int
    read_version: int
    read_time: float
    stage: str = "pull"  # then "down", "compute", "push", "up"
    left: float = 0.0
    until: float = 0.0
    compute: float = 0.0


class Fluid:
    def __init__(self, protocol, compute, links, faults=()):
        """`compute[j][m]` are the seconds of worker m's j-th gradient."""
        self.num_workers = len(compute[0])
        self.server = protocol.server(self.num_workers)
        self.overlap = getattr(protocol, "overlap", False)
        self.compute, self.links = compute, links
        late = {f.worker for f in faults if isinstance(f, sim.LateJoin)}
        self.lives = [(f.time, type(f), f.worker) for f in faults if hasattr(f, "time")]
        self.lives += [(0.0, sim.LateJoin, m) for m in range(self.num_workers) if m not in late]
        self.lives.sort(key=lambda life: (life[0], life[2]))
        self.lost = {(f.worker, f.push) for f in faults if isinstance(f, sim.LostPush)}
        self.slow = [f for f in faults if isinstance(f, sim.SlowDown)]
        self.travels, self.pushes = [], []
        self.started, self.pushed = [0] * self.num_workers, [0] * self.num_workers
        self.now, self.alarm = 0.0, None

    def run(self, num_updates):
        while self.server.version < num_updates:
            self.step()
        return self.pushes

    def link(self, travel):
        """From where to where, if it travels."""
        here, there = self.links.region[travel.worker], self.links.server_region
        return {"pull": ("pull", there, here), "push": ("push", here, there)}.get(travel.stage)

    def rate(self, travel):
        link = self.link(travel)
        sharing = sum(self.link(other) == link for other in self.travels)
        return self.links.bandwidth[link[1]][link[2]] / sharing

    def step(self):
        ends = []
        for travel in self.travels:
            if self.link(travel):
                ends.append((self.now + travel.left / self.rate(travel), travel))
            else:
                ends.append((travel.until, travel))
        time, first = min(ends, key=lambda end: end[0], default=(float("inf"), None))
        life = self.lives[0][0] if self.lives else float("inf")
        alarm = float("inf") if self.alarm is None else self.alarm
        until = min(time, life, alarm)
        moved = [(t, self.rate(t) * (until - self.now)) for t in self.travels if self.link(t)]
        for travel, size in moved:
            travel.left -= size
        self.now = until
        if life == until:
            self.change(*self.lives.pop(0)[1:])
        elif time == until:
            self.next_stage(first)
        else:
            self.alarm = None
            self.server.wake()
            self.admit()

    def change(self, kind, worker):
        if kind is sim.Crash:
            self.travels = [t for t in self.travels if t.worker != worker]
            self.server.leave(worker)
        else:
            self.server.join(worker)
        self.admit()

    def next_stage(self, travel):
        here, there = self.links.region[travel.worker], self.links.server_region
        if travel.stage == "pull":
            travel.stage, travel.until = "down", self.now + self.links.latency[there][here]
        elif travel.stage == "down":
            for f in self.slow:
                if f.worker == travel.worker and f.start <= self.now < f.stop:
                    travel.compute *= f.factor
            travel.stage, travel.until = "compute", self.now + travel.compute
        elif travel.stage == "compute":
            travel.stage, travel.left = "push", self.links.push_bytes
            if self.overlap:
                self.server.finish(travel.worker, True)
                self.admit()
        elif travel.stage == "push":
            travel.stage, travel.until = "up", self.now + self.links.latency[here][there]
        else:
            self.travels.remove(travel)
            self.arrive(travel)

    def arrive(self, travel):
        worker, version = travel.worker, self.server.version
        lost = (worker, self.pushed[worker]) in self.lost
        self.pushed[worker] += 1
        applied = not lost and self.server.push(worker, travel.read_version)
        push = (worker, travel.read_version, version, applied, self.now, travel.read_time)
        self.pushes.append(push)
        if not self.overlap:
            self.server.finish(worker, applied)
        self.admit()

    def admit(self):
        for m in self.server.admit():
            if not self.overlap:
                self.travels = [t for t in self.travels if t.worker != m]
            compute = float(self.compute[self.started[m]][m])
            self.started[m] += 1
            travel = Travel(m, self.server.version, self.now, compute=compute)
            travel.left = self.links.pull_bytes
            self.travels.append(travel)
        if self.server.wake_in is not None:
            self.alarm, self.server.wake_in = self.now + self.server.wake_in, None
