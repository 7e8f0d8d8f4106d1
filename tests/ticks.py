"""A slow simulator of the protocols, written from their definitions: one tick after the other.

Times are whole ticks. Nothing here is shared with the package: no heap, no bookkeeping between
ticks beyond what the definitions name, and everything is looked up again at every step.
"""

from typing import NamedTuple

from dcasgd_jax import sim


class Push(NamedTuple):
    worker: int
    read_version: int
    time: int
    applied: bool
    batch: int
    corrupt: bool
    read_time: int


class Outcome(NamedTuple):
    pushes: list
    versions: list
    update_times: list
    updates_done: int
    finished: bool


class Reference:
    def __init__(self, protocol, num_workers, compute, upload, download, faults):
        """`compute[j, m]` and the like: ticks of worker m's j-th gradient, from the start again."""
        self.protocol = protocol
        self.workers = range(num_workers)
        if isinstance(protocol, sim.Sequential):
            self.workers = range(1)
        self.tables = (compute, upload, download)
        self.faults = faults
        self.live = set()
        self.asking = set()  # want to pull
        self.started = dict.fromkeys(self.workers, 0)
        self.delivered = dict.fromkeys(self.workers, 0)
        self.finished = dict.fromkeys(self.workers, 0)
        self.transit = []  # (arrival, worker, read_version, read_time), in order of their pulls
        self.computing = []  # (end, worker), only if a worker pulls then
        self.given = set()  # workers with a gradient in the update that is being collected
        self.collected = 0
        self.pushes = []
        self.last_applied_before_update = []  # index of the last applied push, for each update
        self.update_ticks = []
        self.opened = None  # tick of the first push of those that wait now

    @property
    def version(self):
        return len(self.last_applied_before_update)

    def run(self, num_updates, ticks):
        self.num_updates = num_updates
        for t in range(ticks):
            for kind in (sim.LateJoin, sim.Crash, sim.Restart):
                for m in self.workers:
                    self.life(t, m, kind)
            for m in self.workers:
                for gradient in [g for g in self.transit if g[:2] == (t, m)]:
                    if gradient in self.transit:
                        self.transit.remove(gradient)
                        self.arrive(t, m, *gradient[2:])
            for m in self.workers:
                if (t, m) in self.computing:
                    self.computing.remove((t, m))
                    self.pull(t, m)
            if self.version < num_updates and self.time_is_over(t):
                self.release(t)
            if self.version >= num_updates:
                return self.outcome(num_updates, True)
            if not self.live and not self.transit and t > 200:
                return self.outcome(self.version, False)
        raise AssertionError("the run hangs")

    def of(self, kind):
        return [fault for fault in self.faults if type(fault) is kind]

    def life(self, t, m, kind):
        times = [f.time for f in self.of(kind) if f.worker == m]
        if kind is sim.LateJoin and not times:
            times = [0]
        if t not in times:
            return
        if kind is sim.Crash:
            self.live.discard(m)
            self.asking.discard(m)
            self.given.discard(m)
            self.transit = [g for g in self.transit if g[1] != m]
            self.computing = [c for c in self.computing if c[1] != m]
        else:
            if self.live:
                self.finished[m] = max(self.finished[m], min(self.finished[w] for w in self.live))
            self.live.add(m)
            self.asking.add(m)
        self.serve(t)

    def arrive(self, t, m, read_version, read_time):
        if self.version >= self.num_updates:
            return
        count = self.delivered[m]
        self.delivered[m] += 1
        hit = lambda kind: any(f.worker == m and f.push == count for f in self.of(kind))
        self.finished[m] += 1
        event = len(self.pushes)
        for delivery in range(2 if hit(sim.DuplicatedPush) else 1):
            if self.version >= self.num_updates:
                return
            applied = not hit(sim.LostPush) and self.accepts(read_version)
            self.pushes.append(
                Push(m, read_version, t, applied, event, hit(sim.NaNGradient), read_time)
            )
            if applied:
                self.collected += 1
                self.opened = t if self.opened is None else self.opened
                if isinstance(self.protocol, sim.Grace):
                    self.update(t)
            if delivery == 0:
                if applied:
                    self.given.add(m)
                if not getattr(self.protocol, "overlap", False):
                    self.asking.add(m)
            self.serve(t)

    def accepts(self, read_version):
        if isinstance(self.protocol, sim.DropStale):
            return self.version - read_version < self.protocol.bound
        if isinstance(self.protocol, sim.Synchronous):
            return read_version == self.version
        return True

    def everybody_has_given(self):
        return bool(self.live) and all(m in self.given for m in self.live)

    def time_is_over(self, t):
        if self.opened is None:
            return False
        if isinstance(self.protocol, sim.Grace):
            end = self.opened + self.protocol.seconds
            if self.protocol.foresight:
                return not any(arrival <= end for arrival, *_ in self.transit)
            return t == end
        return isinstance(self.protocol, sim.Quorum) and (
            self.protocol.grace is not None and t == self.opened + self.protocol.grace
        )

    def update_is_due(self):
        if not self.collected:
            return False
        if isinstance(self.protocol, sim.Grace):
            return self.everybody_has_given()
        if isinstance(self.protocol, sim.Quorum):
            return self.collected >= self.protocol.num_pushes or self.everybody_has_given()
        if isinstance(self.protocol, sim.Buffered):
            return self.collected == self.protocol.num_pushes
        if isinstance(self.protocol, sim.Synchronous):
            wanted = len(self.workers) - self.protocol.backup_workers
            return self.collected >= wanted or self.everybody_has_given()
        return True

    def may_pull(self, m):
        if isinstance(self.protocol, sim.Synchronous | sim.Quorum | sim.Grace):
            return m not in self.given
        if isinstance(self.protocol, sim.StaleSynchronous):
            slowest = min(self.finished[w] for w in self.live)
            return self.finished[m] - slowest <= self.protocol.bound
        return True

    def serve(self, t):
        if self.update_is_due():
            self.release(t)
        for m in sorted(self.asking):
            if self.may_pull(m):
                self.asking.discard(m)
                self.pull(t, m)

    def update(self, t):
        last = max(k for k, push in enumerate(self.pushes) if push.applied)
        self.last_applied_before_update.append(last)
        self.update_ticks.append(t)

    def release(self, t):
        """The update, but of Grace, which has made its updates; whoever has waited pulls."""
        if not isinstance(self.protocol, sim.Grace):
            self.update(t)
        self.collected, self.opened = 0, None
        self.given = set()
        if getattr(self.protocol, "cancel", False):
            self.transit = [g for g in self.transit if g[1] not in self.live]
            self.asking = set(self.live)
        for m in sorted(self.asking):
            if self.may_pull(m):
                self.asking.discard(m)
                self.pull(t, m)

    def pull(self, t, m):
        j = self.started[m]
        self.started[m] += 1
        compute, upload, download = (0 if x is None else int(x[j % len(x), m]) for x in self.tables)
        for f in self.of(sim.SlowDown):
            if f.worker == m and f.start <= t + download < f.stop:
                compute *= f.factor
        end = t + download + compute
        arrival = end + upload
        if getattr(self.protocol, "overlap", False):
            arrival = max([arrival, *(a for a, w, _, _ in self.transit if w == m)])
            self.computing.append((end, m))
        self.transit.append((arrival, m, self.version, t))

    def outcome(self, num_updates, finished):
        ends = self.last_applied_before_update
        pushes = self.pushes[: ends[-1] + 1] if finished else self.pushes
        versions = [sum(end < k for end in ends) for k in range(len(pushes))]
        times = [self.update_ticks[version] for version in versions] if finished else []
        return Outcome(pushes, versions, times, num_updates, finished)
