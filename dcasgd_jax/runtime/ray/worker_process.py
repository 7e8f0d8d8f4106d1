"""The workers of a run: processes that pull, compute and push."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.exceptions

from dcasgd_jax.runtime import messages, shards, step
from dcasgd_jax.runtime.layout import Message
from dcasgd_jax.runtime.messages import Outcome, Push, Reply
from dcasgd_jax.schedules.cluster import Durations
from dcasgd_jax.sim import work
from dcasgd_jax.typing import PyTree

_PATIENCE = 120.0  # seconds that a worker waits for a server that is being restarted
_PAUSE = 0.2


class Common(NamedTuple):
    """What all workers are given."""

    servers: list[Any]  # handles
    shapes: shards.Part  # of the whole model
    wire_dtype: str | None
    loss_fn: Callable[..., Any]
    worker: work.Worker
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
        self._batches_fn = common.batches_fn
        split = shards.make_split(common.shapes, len(common.servers), common.wire_dtype)
        self._digests = [layout.digest() for layout in split.layouts]
        zeros = lambda layout: [np.zeros(leaf.shape, leaf.wire_dtype) for leaf in layout.leaves]
        self._gradient = functools.partial(step.gradient, common.loss_fn, split, common.worker)
        self._first_state = functools.partial(step.worker_state, split, common.worker)
        pulled = [step.on_device(zeros(layout)) for layout in split.layouts]
        model_state = [] if split.model_state is None else zeros(split.model_state)
        batch, state = self._batches_fn(self._worker, 0), self._first_state(pulled)
        self._gradient(pulled, model_state, state, batch, np.int32(self._worker))
        self._keeps, self._state = state is not None, None  # until the first pull
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
        if self._keeps and self._state is None:
            self._state = self._first_state(pulled)
        on_wire, who = self._split.model_state, np.int32(self._worker)
        # The first server keeps the model state.
        before = [] if on_wire is None else on_wire.unpack(replies[0].model_state)
        facts, grads, after, self._state = self._gradient(pulled, before, self._state, batch, who)
        model_state = [] if on_wire is None else on_wire.pack(after)
        loss, finite = np.asarray(facts).tolist()
        if self._delays is not None:
            seconds = float(self._delays.first(self._worker, number + 1)[number])
            time.sleep(max(seconds - (time.perf_counter() - started), 0.0))
        arguments = []
        for layout, digest, part, reply in zip(
            self._split.layouts, self._digests, grads, replies, strict=True
        ):
            push = Push(self._worker, digest, reply.life, reply.version, number, loss, bool(finite))
            arguments.append(((messages.pack_push(push), layout.pack(part), model_state),))
            model_state = []
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
