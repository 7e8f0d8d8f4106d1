"""The processes of a run: a server for each shard, and the workers."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import ray
import ray.exceptions

from dcasgd_jax.runtime import messages, saving, shards, step
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.layout import Message, make_layout
from dcasgd_jax.runtime.messages import Outcome, Push, Reply
from dcasgd_jax.runtime.server import ParameterServer
from dcasgd_jax.schedules.cluster import Durations
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint
from dcasgd_jax.sim.checkpoints.store import Store
from dcasgd_jax.typing import PyTree

Answer = tuple[bytes, Any]  # a header, and parameters as `_publish` makes them
_LARGE = 100_000  # bytes from which Ray puts an argument or a result into its object store

_PATIENCE = 120.0  # seconds that a worker waits for a server that is being restarted
_PAUSE = 0.2


class Server:
    """A parameter server behind Ray: threads that wait for their turn, and checkpoints."""

    def __init__(
        self,
        shapes: PyTree,
        settings: Settings,
        wire_dtype: str | None,
        place: saving.Place | None,
    ):
        self._settings, self._place = settings, place
        self._layout = make_layout(shapes, wire_dtype)
        self._changed = threading.Condition()
        self._tickets = [0] * settings.num_workers
        self._store: Store | None = None
        self._saved_version = -1
        self._server: Any = None  # until `begin`, unless there is a checkpoint
        self._refusal: ValueError | None = None
        if place is not None and place.checkpoint.path.exists():
            try:
                zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
                self._take_up(place, zeros)
            except ValueError as error:
                self._refusal = error  # for `begin`, where Ray leaves it what it is

    def begin(self, params: PyTree) -> int:
        """Starts with these, or with what a checkpoint holds; returns the version.

        Raises:
          ValueError: If the checkpoint is of another run.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._server is None:
            self._server = self._make_server(params)
            if self._place is not None:
                # Complete before anything can go wrong: a new process in place of this finds it.
                with _open(self._place.checkpoint) as store:
                    store.save(0, saving.pack(self._server, self._place.run))
                self._saved_version = 0
                self._store = _open(self._place.checkpoint).__enter__()
        return self._server.version

    def start_clock(self) -> None:
        """The workers are ready: the run begins now, unless it has begun before."""
        with self._changed:
            self._server.start_clock()

    def join(self, worker: int, description: list[list[Any]]) -> Answer | None:
        """A worker is new, or back; returns parameters when it may pull."""
        with self._changed:
            self._server.join(worker, description)
            return self._answer(worker)

    def push(self, pushed: tuple[bytes, Message]) -> Answer | None:
        """A gradient arrives, as one argument; returns parameters when its worker may pull."""
        header, message = pushed
        with self._changed:
            self._server.push(header, message)
            return self._answer(messages.unpack_push(header).worker)

    def leave(self, worker: int) -> None:
        """A worker is gone for good."""
        with self._changed:
            self._server.leave(worker)
            self._changed.notify_all()

    def news(self, life: int, num_events: int, num_incidents: int) -> dict[str, Any]:
        """What has happened since: the pushes and incidents after those known from this life."""
        server = self._server
        with self._changed:
            if life != server.life:
                num_events = min(num_events, len(server.history))
                num_incidents = 0
            return {
                "life": server.life,
                "version": server.version,
                "seconds": server.seconds,
                "counts": server.counts,
                "first_event": num_events,
                "events": server.history.arrays(num_events),
                "incidents": server.incidents.since(num_incidents),
                "num_incidents": server.incidents.total,
                "given_up": server.given_up,
            }

    def stop(self) -> None:
        """Sends all workers home."""
        with self._changed:
            self._server.stop()
            self._changed.notify_all()

    def close(self, seconds: float) -> int:
        """Saves at the next version that is complete, or not if none is in time; returns it."""
        with self._changed:
            # A run that is over does not complete the version that it is at any more.
            until = lambda: self._server.between_updates or self._server.done
            self._changed.wait_for(until, seconds)
            if self._store is not None and self._server.between_updates:
                self._save()
            store, self._store = self._store, None
        if store is not None:
            store.__exit__(None, None, None)  # waits until all is written
        return self._saved_version

    def finish(self) -> dict[str, Any]:
        """Everything that the run has come to."""
        with self._changed:
            server = self._server
            return {
                "state": jax.tree.map(np.asarray, server.model.state),
                "events": server.history.arrays(),
                "counts": server.counts,
                "seconds": server.seconds,
                "given_up": server.given_up,
            }

    def _answer(self, worker: int) -> Answer | None:
        """Waits for the reply; None if the worker has called again meanwhile, after a restart."""
        if self._store is not None and self._is_due(self._server.version):
            self._save()
        self._tickets[worker] += 1
        ticket = self._tickets[worker]
        self._changed.notify_all()
        outbox = self._server.outbox
        answered = lambda: worker in outbox or ticket != self._tickets[worker]
        while not self._changed.wait_for(answered, self._server.wake()):
            self._changed.notify_all()  # workers have waited for as long as the protocol lets them
        if ticket != self._tickets[worker]:
            return None
        return messages.pack_reply(outbox.pop(worker))

    def _is_due(self, version: int) -> bool:
        if not self._server.between_updates or version == self._saved_version:
            return False
        assert self._place is not None
        return self._server.done or version - self._saved_version >= self._place.checkpoint.every

    def _save(self) -> None:
        version = self._server.version
        if version != self._saved_version and self._store is not None and self._place is not None:
            self._store.save(version, saving.pack(self._server, self._place.run))
            self._saved_version = version

    def _take_up(self, place: saving.Place, like: PyTree) -> None:
        """Goes on from the newest checkpoint, if there is one; `like` has the params' shapes."""
        server = self._make_server(like)
        with _open(place.checkpoint) as store:
            saved = store.newest(place.check)
        if saved is not None:
            saving.restore(server, saved)
            self._server, self._saved_version = server, server.version
            self._store = _open(place.checkpoint).__enter__()

    def _make_server(self, params: PyTree) -> ParameterServer:
        return ParameterServer(params, self._settings, self._layout, publish=_publish)


def _open(checkpoint: Checkpoint) -> Store:
    return Store(checkpoint.path, checkpoint.keep)


def _publish(message: Message) -> Any:
    """Large parameters go into the object store once for all who pull this version."""
    if sum(section.nbytes for section in message) >= _LARGE:
        return ray.put(message)
    return [np.array(section) for section in message]


class Common(NamedTuple):
    """What all workers are given."""

    servers: list[Any]  # handles
    shapes: PyTree  # of the parameters
    wire_dtype: str | None
    loss_fn: Callable[..., Any]
    batches_fn: Callable[[int, int], PyTree]
    delays: Durations | None


class Worker:
    """Pulls, computes and pushes until all servers say that the run is over."""

    def __init__(self, worker: int):
        self._worker = worker

    def prepare(self, common: Common) -> None:
        """Gets everything ready, compiled too, before the first pull."""
        if hasattr(self, "_split"):
            return
        self._servers, self._delays = common.servers, common.delays
        self._loss_fn, self._batches_fn = common.loss_fn, common.batches_fn
        split = shards.make_split(common.shapes, len(common.servers), common.wire_dtype)
        self._digests = [layout.digest() for layout in split.layouts]
        zeros = [
            [np.zeros(leaf.shape, leaf.wire_dtype) for leaf in layout.leaves]
            for layout in split.layouts
        ]
        step.gradient(
            self._loss_fn,
            split,
            list(map(step.on_device, zeros)),
            self._batches_fn(self._worker, 0),
        )
        self._split = split

    def run(self, common: Common) -> int:
        """Works; returns the number of gradients computed by this process."""
        self.prepare(common)
        replies = self._join()
        computed = 0
        while any(reply.outcome != Outcome.DONE for reply in replies):
            pulled: list[Any] = [None]
            # Unless the server has died before they were read.
            with contextlib.suppress(ray.exceptions.ObjectLostError):
                pulled = [self._fetch(reply) for reply in replies]
            if any(message is None for message in pulled):
                replies = self._join()
                continue
            replies = self._push(replies, pulled)
            computed += 1
        return computed

    def _join(self) -> list[Reply]:
        descriptions = [layout.describe() for layout in self._split.layouts]
        return self._call("join", [(self._worker, text) for text in descriptions])

    def _push(self, replies: list[Reply], params: list[Message]) -> list[Reply]:
        """One gradient, at the parameters that came with the replies."""
        number = max(reply.next_number for reply in replies)
        started = time.perf_counter()
        pulled = [
            step.on_device(layout.unpack(message))
            for layout, message in zip(self._split.layouts, params, strict=True)
        ]
        batch = self._batches_fn(self._worker, number)
        facts, grads = step.gradient(self._loss_fn, self._split, pulled, batch)
        loss, finite = np.asarray(facts).tolist()
        if self._delays is not None:
            seconds = float(self._delays.first(self._worker, number + 1)[number])
            time.sleep(max(seconds - (time.perf_counter() - started), 0.0))
        arguments = []
        for layout, digest, part, reply in zip(
            self._split.layouts, self._digests, grads, replies, strict=True
        ):
            push = Push(self._worker, digest, reply.life, reply.version, number, loss, bool(finite))
            arguments.append(((messages.pack_push(push), layout.pack(part)),))
        return self._call("push", arguments)

    def _fetch(self, reply: Reply) -> Any:
        """The message with parameters that came with a reply; None if none did."""
        return ray.get(reply.payload) if isinstance(reply.payload, ray.ObjectRef) else reply.payload

    def _call(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Reply]:
        """Calls all servers at once; again those that die meanwhile, when they are back."""
        send = lambda shard: getattr(self._servers[shard], method).remote(*arguments[shard])
        references = [send(shard) for shard in range(len(self._servers))]
        replies = []
        for shard, reference in enumerate(references):
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    replies.append(messages.unpack_reply(ray.get(reference)))
                    break
                except ray.exceptions.RayActorError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_PAUSE)
                    reference = send(shard)
        return replies
