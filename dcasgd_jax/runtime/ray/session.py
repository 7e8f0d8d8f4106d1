"""The actors of one run: started, watched until the end, and never left behind."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import ray
import ray.cloudpickle
import ray.exceptions

from dcasgd_jax.runtime import history, saving
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.ray import results, server_process, watching, worker_process
from dcasgd_jax.runtime.refusals import GivenUp
from dcasgd_jax.runtime.shards import Part, Split
from dcasgd_jax.schedules.cluster import Durations
from dcasgd_jax.sim import work
from dcasgd_jax.typing import PyTree

_POLL = 0.25  # seconds between two looks at the run
_COLOUR = re.compile(r"\x1b\[\d*m")
_TO_STOP = 3.0  # seconds that workers are given to end by themselves
_TO_CLOSE = 30.0  # seconds that a server is given to reach a complete version and save it


@dataclasses.dataclass(frozen=True)
class Options:
    """Ray's options of the actors."""

    worker: dict[str, Any]
    server: dict[str, Any]
    max_restarts: int

    def num_cpus(self, num_workers: int, num_shards: int) -> float:
        """Logical CPUs that all actors together need."""
        return num_workers * self.worker["num_cpus"] + num_shards * self.server["num_cpus"]


@dataclasses.dataclass(frozen=True)
class Session:
    """Handles of the actors of a run."""

    settings: Settings
    parts: list[Part]  # what each server begins with
    split: Split
    wire_dtype: str | None
    servers: list[Any]
    workers: list[Any]
    common: ray.ObjectRef  # what all workers are given
    running: dict[ray.ObjectRef, int] = dataclasses.field(default_factory=dict)  # -> worker
    lost: list[int] = dataclasses.field(default_factory=list)  # workers that are gone for good

    def run(self, watcher: watching.Watcher, of_push: np.ndarray) -> results.Run:
        """Lets the workers work until the end; on Ctrl-C saves first, then stops everything."""
        try:
            watcher.note("start", num_workers=self.settings.num_workers,
                              num_updates=self.settings.num_updates,
                              protocol=repr(self.settings.protocol))  # fmt: skip
            self._begin()
            self._watch(watcher)
            finished = self._finish(watcher)
            return self._make_run(finished, of_push)
        except KeyboardInterrupt:
            self._save(watcher)
            raise
        finally:
            watcher.log.flush()
            self._send_home()
            for actor in (*self.workers, *self.servers):
                ray.kill(actor, no_restart=True)

    def _begin(self) -> None:
        """Waits until everybody is ready, so that no worker has a start on the others."""
        pairs = zip(self.servers, self.parts, strict=True)
        references = [server.begin.remote(part) for server, part in pairs]
        references += [worker.prepare.remote(self.common) for worker in self.workers]
        try:
            ray.get(references)
            ray.get([server.start_clock.remote() for server in self.servers])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"A process of the run did not start: {_cause(error)}") from error

    def _watch(self, watcher: watching.Watcher) -> None:
        """Looks at the run until every worker has come to its end."""
        pending = self.running
        for index, worker in enumerate(self.workers):
            pending[worker.run.remote(self.common)] = index
        while pending:
            ended, _ = ray.wait(list(pending), timeout=_POLL)
            for reference in ended:
                index = pending.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayActorError as error:
                    self._give_up(index, watcher, error)
            self._ask(watcher)

    def _give_up(self, worker: int, watcher: watching.Watcher, error: Exception) -> None:
        """A worker has died more often than it may."""
        self.lost.append(worker)
        if len(self.lost) == self.settings.num_workers:
            raise RuntimeError(
                f"All {len(self.lost)} workers have died for good, the last one with: "
                f"{_cause(error)}"
            ) from error
        watcher.note("worker lost", worker=worker, error=_cause(error))

    def _ask(self, watcher: watching.Watcher) -> None:
        """Asks the servers for news; one that is being restarted has none."""
        for shard, server in enumerate(self.servers):
            for worker in self.lost:  # said each time, because a restarted server has not heard it
                server.leave.remote(worker)
            try:
                news: Any = ray.get(server.news.remote(*watcher.known(shard)), timeout=10 * _POLL)
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
                continue
            except ray.exceptions.ActorDiedError as error:
                raise self._server_lost(error) from error
            watcher.add(shard, news)
        if watcher.given_up is not None:  # then the other shards need not go on either
            for server in self.servers:
                server.stop.remote()
        watcher.tell()

    def _finish(self, watcher: watching.Watcher) -> list[dict[str, Any]]:
        """What the servers have come to, saved first."""
        try:
            ray.get([server.close.remote(_TO_CLOSE) for server in self.servers])
            finished = ray.get([server.finish.remote() for server in self.servers])
        except ray.exceptions.RayActorError as error:
            raise self._server_lost(error) from error
        given_up = _why_given_up(finished)
        watcher.end_windows()
        watcher.note(
            "end",
            seconds=max(shard["seconds"] for shard in finished),
            **({} if given_up is None else {"given_up": str(given_up)}),
        )
        return finished

    def _save(self, watcher: watching.Watcher) -> None:
        """The last wish of an interrupted run."""
        try:
            closing = [server.close.remote(_TO_CLOSE) for server in self.servers]
            versions = ray.get(closing, timeout=2 * _TO_CLOSE)
            watcher.note("interrupted", saved_versions=versions)
        except ray.exceptions.RayError as error:
            watcher.note("interrupted", error=_cause(error))

    def _send_home(self) -> None:
        """Lets workers end by themselves, if they do it soon: Ray makes much of killed ones."""
        if self.running:
            for server in self.servers:
                server.stop.remote()
            ray.wait(list(self.running), num_returns=len(self.running), timeout=_TO_STOP)

    def _server_lost(self, error: Exception) -> RuntimeError:
        return RuntimeError(
            "A server has died and cannot be restarted: with checkpoint= it can, a few times, and "
            f"another call goes on from what was saved. ({_cause(error)})"
        )

    def _make_run(self, finished: list[dict[str, Any]], of_push: np.ndarray) -> results.Run:
        given_up = _why_given_up(finished)
        if given_up is not None and not all(shard["events"]["applied"].any() for shard in finished):
            raise RuntimeError(str(given_up))
        recorded = [
            history.recorded(shard["events"], self.settings.num_workers, whole=given_up is not None)
            for shard in finished
        ]
        num_events = len(recorded[0].schedule)
        columns = finished[0]["events"]
        metrics = {name: columns[name][:num_events] for name in self.settings.metrics}
        states = [shard["state"] for shard in finished]
        params = self.split.merge([state.params for state in states])
        return results.Run(
            result=results.make_result(
                params,
                states,
                recorded[0],
                metrics,
                of_push,
                finished[0]["given_up"],
                self.settings.model_state_policy,
            ),
            schedule=recorded[0].schedule,
            number=recorded[0].number,
            shards=tuple(recorded),
            counts=watching.add_counts([shard["counts"] for shard in finished]),
            seconds=max(shard["seconds"] for shard in finished),
            wire_dtype=self.wire_dtype,
            given_up=given_up,
        )


def _why_given_up(finished: list[dict[str, Any]]) -> GivenUp | None:
    """What the servers say, first one whose params are lost: the others only follow from it."""
    said = [
        shard["given_up"]._replace(shard=index)
        for index, shard in enumerate(finished)
        if shard["given_up"] is not None
    ]
    return min(said, key=lambda given_up: given_up.params_finite, default=None)


def start(
    settings: Settings,
    whole: Part,
    split: Split,
    wire_dtype: str | None,
    loss_fn: Callable[..., Any],
    worker: work.Worker,
    batches_fn: Callable[[int, int], PyTree],
    delays: Durations | None,
    places: list[saving.Place | None],
    options: Options,
) -> Session:
    """Starts a server for each part of the model, and the workers.

    Raises:
      TypeError: If something cannot be sent to them.
    """
    worker_class = ray.remote(worker_process.Worker).options(
        **options.worker,
        max_restarts=options.max_restarts,
        max_task_retries=options.max_restarts,  # `run` begins again with a pull
    )
    server_class = ray.remote(server_process.Server).options(
        **options.server,
        max_concurrency=settings.num_workers + 4,  # workers that wait, news, saving
        max_restarts=0 if places[0] is None else options.max_restarts,
        max_task_retries=0,  # a push that may have arrived is for the protocol to judge
    )
    parts, shapes, servers = split.parts(whole), _shapes(whole), []
    try:
        for part, place in zip(split.parts(shapes), places, strict=True):
            servers.append(server_class.remote(part, settings, wire_dtype, place))
        common = ray.put(
            worker_process.Common(servers, shapes, wire_dtype, loss_fn, worker, batches_fn, delays)
        )
    except TypeError as error:
        for server in servers:
            ray.kill(server)
        sent = {"loss_fn": loss_fn, "worker": worker, "batches_fn": batches_fn, "delays": delays}
        raise _unsendable({**settings._asdict(), **sent}) or error from None
    workers = [worker_class.remote(index) for index in range(settings.num_workers)]
    return Session(settings, parts, split, wire_dtype, servers, workers, common)


def _shapes(whole: Part) -> Part:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), whole)


def _unsendable(values: dict[str, Any]) -> TypeError | None:
    """Which of some values is the one that cannot be sent, and why."""
    for name, value in values.items():
        try:
            ray.cloudpickle.dumps(value)  # type: ignore[reportPrivateImportUsage]
        except Exception as error:  # whatever an object of the user's raises
            return TypeError(
                f"{name} cannot be sent to other processes ({error}): let it capture arrays and "
                "plain values only, and open files or locks where it is called."
            )
    return None


def _cause(error: Exception) -> str:
    """The line of one of Ray's errors that says why: the last one, without colours."""
    return _COLOUR.sub("", str(error)).strip().splitlines()[-1].strip()
