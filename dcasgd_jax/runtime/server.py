"""The parameter server: what becomes of a push, a pull, a worker that leaves. Knows no network.

One call at a time: whoever puts it on a network must hold a lock.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dcasgd_jax.runtime import admission, history, lives
from dcasgd_jax.runtime.bookkeeping import Counts, Incident, Incidents, KnownWorker, Settings
from dcasgd_jax.runtime.layout import Layout, Message, make_layout
from dcasgd_jax.runtime.messages import Outcome, Push, Reply, unpack_push
from dcasgd_jax.runtime.model import Model, Taken
from dcasgd_jax.runtime.refusals import MOST_REFUSALS, NOTED_REFUSALS, GivenUp
from dcasgd_jax.runtime.shards import Part
from dcasgd_jax.schedules import servers
from dcasgd_jax.sim import program as programs


class ParameterServer:
    """Parameters, optimizer state and backups of a live run, and the record of its pushes.

    Replies lie in `outbox` until they are taken: of a worker that must wait, none is there yet.

    Args:
      begins: The initial parameters and model state, copied.
      settings: What to do with pushes.
      layout: Of the messages. Default: every leaf as it is.
      clock: Seconds from any beginning.
      publish: As of `Model`, a copy by default.

    Raises:
      ValueError: If the protocol cannot be run live, or the optimizer does not fit; see `Model`.
    """

    def __init__(
        self,
        begins: Part,
        settings: Settings,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.monotonic,
        publish: Callable[[Message], Any] = lambda message: [np.array(part) for part in message],
    ):
        self.settings = settings
        self.layout = make_layout(begins.params) if layout is None else layout
        self._digest, self._stopped = self.layout.digest(), False
        self.outbox: dict[int, Reply] = {}
        self.counts, self.incidents = Counts(), Incidents()
        self.given_up: GivenUp | None = None
        self.history = history.History(settings.metrics)
        self.lives = lives.begin()
        self.workers = [KnownWorker() for _ in range(settings.num_workers)]
        self._protocol = admission.make_server(settings.protocol, settings.num_workers)
        self._alarm = admission.Alarm(self._protocol)
        self.model = Model(begins, settings, self.layout, publish)
        self._num_pushes = 0  # applied since the last update
        self._clock, self._started = clock, clock()

    @property
    def version(self) -> int:
        """Updates so far."""
        return self._protocol.version

    @property
    def life(self) -> int:
        """The name of this one."""
        return self.lives[-1].name

    @property
    def done(self) -> bool:
        """Whether all updates have been made, or no more are wanted or possible."""
        ended = self._stopped or self.given_up is not None
        return ended or self.version >= self.settings.num_updates

    @property
    def between_updates(self) -> bool:
        """Whether no push waits for others to be averaged with."""
        return not self._num_pushes

    @property
    def seconds(self) -> float:
        """Since the start of the run."""
        return self._clock() - self._started

    def start_clock(self) -> None:
        """Time begins now, if nothing has happened yet."""
        if not len(self.history):
            self._started = self._clock()

    def join(self, worker: int, description: list[list[Any]]) -> None:
        """A worker is new, or back, and pulls.

        Raises:
          ValueError: If it has another model or an impossible number; names the first leaf.
        """
        self._check_worker(worker)
        self.layout.check(description, f"Worker {worker}")
        if self.workers[worker].joined:
            self.counts.worker_restarts += 1
            self._tell("worker joined again", worker)
        self.workers[worker].joined = True
        self._pull_afresh(worker, Outcome.JOINED)

    def push(self, header: bytes, message: Message, model_state: Message = ()) -> None:
        """A gradient arrives, and its worker wants to pull.

        Raises:
          ValueError: If it is no gradient of this model.
        """
        push = unpack_push(header)
        self._check_worker(push.worker)
        if push.layout != self._digest:
            raise ValueError(
                f"Worker {push.worker} has another model: the names, shapes or dtypes of its "
                "parameters are not the server's."
            )
        gradient = self.layout.unpack(message)
        self.model.states.check(model_state)
        worker = self.workers[push.worker]
        if self.done:
            self._reply(push.worker, Outcome.DONE)
        elif push.number < worker.next_number:
            self._note_duplicate(push)
        elif not self._knows(push):
            self.counts.unknown_version += 1
            self._tell("push at an unknown version refused", push.worker)
            self._pull_afresh(push.worker, Outcome.UNKNOWN_VERSION)
        elif not push.finite:
            self._refuse(push)
        else:
            self._take(push, Taken(gradient, model_state), Outcome.APPLIED)

    def leave(self, worker: int) -> None:
        """A worker is gone for good: nobody waits for it any more."""
        self._check_worker(worker)
        if self.workers[worker].live and not self.done:
            self.workers[worker].live = False
            self._tell("worker lost for good", worker)
            self._protocol.leave(worker)
            self._admit({}, self.version)

    def wake(self) -> float | None:
        """Lets workers pull that have waited long enough; seconds until the next call, or None."""
        if self._alarm.ring(self.seconds) and not self.done:
            self._admit({}, self.version)
        return self._alarm.seconds(self.seconds)

    def go_on(
        self, state: programs.SimState, version: int, seconds: float, columns: dict,
        counts: Counts, before: Iterable[lives.Life],
    ) -> None:  # fmt: skip
        """Takes up a run from a checkpoint: what came after it has never been."""
        self.model.replace_state(state)
        self.counts = counts
        self.lives = lives.begin(before, version)
        self._protocol.version = version
        self._started = self._clock() - seconds
        self.history.restore(columns)
        self.counts.server_restarts += 1
        self._tell("server went on from a checkpoint", None)

    def stop(self) -> None:
        """Sends all workers home."""
        self._stopped = True
        self._send_home()

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self.settings.num_workers:
            raise ValueError(
                f"There is no worker {worker}: this run has {self.settings.num_workers} workers."
            )

    def _knows(self, push: Push) -> bool:
        """Whether the gradient was taken at what this worker's backup holds."""
        pulled = self.workers[push.worker].pulled_version
        return push.read_version == pulled and lives.contain(self.lives, push.life, pulled)

    def _note_duplicate(self, push: Push) -> None:
        """A push that is there already changes nothing, not even what its worker has pulled."""
        worker = self.workers[push.worker]
        self.counts.duplicates += 1
        self._tell("duplicate ignored", push.worker)
        if push.number == worker.next_number - 1 and worker.last_event >= 0:
            first = self.history.event(worker.last_event)
            self.history.add(
                first._replace(version=self.version, time=self.seconds, applied=False), {}
            )
        self._reply(push.worker, Outcome.DUPLICATE)

    def _refuse(self, push: Push) -> None:
        """A push that is not finite changes nothing, but may show that the run cannot go on."""
        worker = self.workers[push.worker]
        if not worker.refused:
            worker.first_refused = len(self.history), push.number
        worker.refused += 1
        self.counts.non_finite += 1
        self._tell("push that is not finite refused", push.worker)
        params_finite = self.model.params_are_finite()
        gives_up = not params_finite or worker.refused >= MOST_REFUSALS
        shows = worker.first_refused if params_finite else (len(self.history), push.number)
        noted = gives_up or worker.refused <= NOTED_REFUSALS
        self._take(push, None, Outcome.NON_FINITE, noted=noted)
        if gives_up:
            self.given_up = GivenUp(params_finite, push.worker, *shows, self.version)
            self._tell("run given up", push.worker)
            self._send_home()

    def _take(
        self, push: Push, taken: Taken | None, outcome: Outcome, *, noted: bool = True
    ) -> None:
        """A push that is new: applied, or dropped, or None for one that is refused; and noted."""
        version, seconds, worker = self.version, self.seconds, self.workers[push.worker]
        applied = taken is not None and self._protocol.push(push.worker, push.read_version)
        if taken is not None:
            worker.refused = 0
            self.model.states.take(push.worker, taken.model_state, applied=applied)
        if taken is not None and not applied:
            self.counts.dropped += 1
            outcome = Outcome.DROPPED
        self._protocol.finish(push.worker, applied)
        worker.next_number = push.number + 1
        worker.last_event = len(self.history) if noted else -1
        event = history.Event(
            worker=push.worker,
            read_version=push.read_version,
            version=version,
            time=seconds,
            applied=applied,
            batch=len(self.history),
            corrupt=taken is None,
            read_time=worker.pulled_time,
            update_time=seconds,
            number=push.number,
            loss=push.loss,
        )
        admitted = self._alarm.admit(self.seconds)
        metrics = {}
        if applied and taken is not None:
            self._num_pushes += 1
            metrics = self._receive(taken.gradient, push, version)
        if noted:
            self.history.add(event, metrics)
        self._let_pull(admitted, {push.worker: outcome}, applied=applied)

    def _receive(self, gradient: list[np.ndarray], push: Push, version: int) -> dict[str, float]:
        """Hands an applied push over; the protocol has said whether an update is due."""
        num_pushes, updates = self._num_pushes, self.version > version
        servers.check_pushes(self._protocol, num_pushes + (not updates))
        self._num_pushes = 0 if updates else num_pushes
        staleness = version - push.read_version
        return self.model.receive(gradient, push.worker, staleness, num_pushes, updates=updates)

    def _admit(self, outcomes: dict[int, Outcome], version: int) -> None:
        """Whoever may pull after a leave or a return does; a barrier may be complete without it."""
        admitted = self._alarm.admit(self.seconds)
        if self.version > version:
            self.model.update_without_push(self._num_pushes)
            self._num_pushes = 0
            self.history.note_update_without_push(self.version, self.seconds)
        self._let_pull(admitted, outcomes, applied=False)

    def _pull_afresh(self, worker: int, outcome: Outcome) -> None:
        """A worker begins anew: what it had pulled before does not count any more."""
        if self.done:
            return self._reply(worker, Outcome.DONE)
        self.outbox.pop(worker, None)
        if self.workers[worker].live:
            self._protocol.leave(worker)
        self.workers[worker].live = True
        self._protocol.join(worker)
        return self._admit({worker: outcome}, self.version)

    def _let_pull(
        self, admitted: list[int], outcomes: dict[int, Outcome], *, applied: bool
    ) -> None:
        """These workers pull the present version."""
        for m in admitted:
            worker = self.workers[m]
            worker.pulled_version, worker.pulled_time = self.version, self.seconds
            # The transformation itself notes a pull that follows its worker's own applied push.
            if not (applied and m in outcomes):
                self.model.record_pull(m)
            self._reply(m, outcomes.get(m, Outcome.APPLIED))
        if self.done:
            self._send_home()

    def _send_home(self) -> None:
        for m in range(self.settings.num_workers):
            self._reply(m, Outcome.DONE)

    def _reply(self, worker: int, outcome: Outcome) -> None:
        payload = None if outcome == Outcome.DUPLICATE else self.model.params_to_send()
        facts = self.life, self.version, self.workers[worker].next_number
        self.outbox[worker] = Reply(outcome, *facts, payload, self.model.states.of(worker))

    def _tell(self, kind: str, worker: int | None) -> None:
        self.incidents.add(Incident(self.seconds, kind, worker, self.version))
