"""The servers of a run: a process for each shard of the params."""

import threading
from typing import Any

import jax
import numpy as np
import ray
import ray.exceptions

from dcasgd_jax.runtime import messages, saving
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.layout import Message, make_layout
from dcasgd_jax.runtime.server import ParameterServer
from dcasgd_jax.runtime.shards import Part
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint
from dcasgd_jax.sim.checkpoints.store import Store

_LARGE = 100_000  # bytes from which Ray puts an argument or a result into its object store


class Server:
    """A parameter server behind Ray: threads that wait for their turn, and checkpoints."""

    def __init__(
        self,
        shapes: Part,
        settings: Settings,
        wire_dtype: str | None,
        place: saving.Place | None,
    ):
        self._settings, self._place = settings, place
        self._layout = make_layout(shapes.params, wire_dtype)
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

    def begin(self, part: Part) -> int:
        """Starts with these, or with what a checkpoint holds; returns the version.

        Raises:
          ValueError: If the checkpoint is of another run.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._server is None:
            self._server = self._make_server(part)
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

    def join(self, worker: int, description: list[list[Any]]) -> messages.Packed | None:
        """A worker is new, or back; returns parameters when it may pull."""
        with self._changed:
            self._server.join(worker, description)
            return self._answer(worker)

    def push(self, pushed: tuple[bytes, Message, Message]) -> messages.Packed | None:
        """A gradient arrives, as one argument; returns parameters when its worker may pull."""
        with self._changed:
            self._server.push(*pushed)
            return self._answer(messages.unpack_push(pushed[0]).worker)

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
                "state": jax.tree.map(np.asarray, server.model.state)._replace(
                    model_state=server.model.states.tree()
                ),
                "events": server.history.arrays(),
                "counts": server.counts,
                "seconds": server.seconds,
                "given_up": server.given_up,
            }

    def _answer(self, worker: int) -> messages.Packed | None:
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

    def _take_up(self, place: saving.Place, like: Part) -> None:
        """Goes on from the newest checkpoint, if there is one; `like` has the part's shapes."""
        server = self._make_server(like)
        with _open(place.checkpoint) as store:
            saved = store.newest(place.check)
        if saved is not None:
            saving.restore(server, saved)
            self._server, self._saved_version = server, server.version
            self._store = _open(place.checkpoint).__enter__()

    def _make_server(self, part: Part) -> ParameterServer:
        return ParameterServer(part, self._settings, self._layout, publish=_publish)


def _open(checkpoint: Checkpoint) -> Store:
    return Store(checkpoint.path, checkpoint.keep)


def _publish(message: Message) -> Any:
    """Large parameters go into the object store once for all who pull this version."""
    if sum(section.nbytes for section in message) >= _LARGE:
        return ray.put(message)
    return [np.array(section) for section in message]
