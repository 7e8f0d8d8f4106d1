"""Workers of a parameter server in this process: whoever the test names is next."""

import functools

import calls
import compensations
import jax
import numpy as np
import optax
import own_protocols
import problems

from dcasgd_jax import sim
from dcasgd_jax.runtime import (
    bookkeeping,
    history,
    identity,
    messages,
    saving,
    server,
    shards,
    step,
)
from dcasgd_jax.sim import OneGradient

NUM_WORKERS = 3
IMAGES, LABELS = problems.softmax_batches(200)


def batches_fn(worker, number):
    row = (67 * worker + number) % len(IMAGES)
    return IMAGES[row], LABELS[row]


@functools.cache  # the same objects again, so that tests share compiled programs
def backed_up(learning_rate=0.3, **options):
    return compensations.dcasgd(learning_rate, num_workers=NUM_WORKERS, momentum=0.5, **options)


def split_for(whole, wire_dtype):
    leaves, structure = jax.tree.flatten(whole)
    shapes = tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    return split_of_shapes(structure, shapes, wire_dtype)


@functools.cache
def split_of_shapes(structure, shapes, wire_dtype):
    whole = structure.unflatten([np.zeros(shape, dtype) for shape, dtype in shapes])
    return shards.make_split(whole, 1, wire_dtype)


@functools.cache
def plain():
    return optax.sgd(0.3, momentum=0.5)


@functools.cache
def before_the_mean():
    return compensations.per_worker(2.0, NUM_WORKERS, ms_decay=0.95)


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        self.seconds += 1.0
        return self.seconds


class Clients:
    """A server and its workers; `replies` has those that hold parameters and can push."""

    def __init__(self, tx=None, params=None, num_updates=40, wire_dtype=None,
                 loss_fn=problems.softmax_loss, model_state=None, **settings):  # fmt: skip
        self.loss_fn = loss_fn
        self.params = problems.softmax_params() if params is None else params
        self.settings = bookkeeping.Settings(
            backed_up() if tx is None else tx, NUM_WORKERS, num_updates, **settings
        )
        self.whole = shards.Part(self.params, model_state)
        self.split = split_for(self.whole, wire_dtype)
        self.wire_dtype = wire_dtype
        self.server = self.new_server()
        self.replies, self.sent = {}, {}
        for worker in range(NUM_WORKERS):
            self.join(worker)

    @property
    def layout(self):
        return self.split.layouts[0]

    def new_server(self):
        return server.ParameterServer(self.whole, self.settings, self.layout, Clock())

    @functools.cached_property
    def identity(self):
        batch = batches_fn(0, 0)
        return {
            **identity.of_server(self.whole, self.settings, self.layout),
            **identity.of_loss(self.loss_fn, OneGradient(), self.whole, batch),
        }

    def saved(self):
        return saving.pack(self.server, self.identity)

    def join(self, worker):
        self.replies.pop(worker, None)
        self.server.join(worker, self.layout.describe())
        self.collect()

    def gradient(self, worker, reply=None):
        """The message with a gradient at what the worker holds."""
        reply = self.replies[worker] if reply is None else reply
        pulled = [step.on_device(self.layout.unpack(reply.payload))]
        batch = batches_fn(worker, reply.next_number)
        on_wire = self.split.model_state
        before = [] if on_wire is None else on_wire.unpack(reply.model_state)
        facts, grads, after, _ = step.gradient(
            self.loss_fn, self.split, OneGradient(), pulled, before, None, batch, np.int32(worker)
        )
        push = messages.Push(
            worker, self.layout.digest(), reply.life, reply.version, reply.next_number,
            float(facts[0]), bool(facts[1]),
        )  # fmt: skip
        gradient = [np.array(part) for part in self.layout.pack(grads[0])]
        return messages.pack_push(push), gradient, [] if on_wire is None else on_wire.pack(after)

    def push(self, worker, message=None):
        """Pushes; returns what came of it, None if the worker must wait."""
        message = self.gradient(worker) if message is None else message
        self.replies.pop(worker, None)
        self.sent[worker] = message
        self.server.push(*message)
        self.collect()
        reply = self.replies.get(worker)
        return None if reply is None else reply.outcome

    def collect(self):
        self.replies |= self.server.outbox
        self.server.outbox.clear()

    def run(self, seed=0, until=None):
        """Random workers push until version `until`, by default to the end."""
        rng = np.random.default_rng(seed)
        until = self.settings.num_updates if until is None else until
        while self.server.version < until:
            self.wake()
            if self.replies:
                self.push(int(rng.choice(sorted(self.replies))))
        return self

    def wake(self):
        """Somebody has waited for so long."""
        seconds = self.server.wake()
        self.collect()
        return seconds

    def recorded(self):
        return history.recorded(
            self.server.history.arrays(), NUM_WORKERS, whole=self.server.given_up is not None
        )

    def replay(self, **options):
        """The same in the simulator, whose snapshots know nothing of backups."""
        recorded = self.recorded()
        pushes = zip(
            recorded.schedule.worker, recorded.number, recorded.schedule.batch, strict=True
        )
        batches = [batches_fn(m, n) for k, (m, n, b) in enumerate(pushes) if b == k]
        loss_fn, per_push = self.loss_fn, self.settings.per_push
        return calls.simulate(
            loss_fn if self.wire_dtype is None else step.rounded_loss(loss_fn),
            self.params,
            self.settings.tx,
            recorded.schedule,
            iter(batches),
            engine=sim.HostEngine(),
            per_push=per_push,
            model_state=self.whole.model_state,
            **(
                {}
                if self.whole.model_state is None
                else {"model_state_policy": self.settings.model_state_policy}
            ),
            **options,
        )


PROTOCOLS = [
    sim.Asynchronous(),
    sim.DropStale(2),
    sim.StaleSynchronous(0),
    sim.StaleSynchronous(2),
    sim.Synchronous(),
    sim.Synchronous(backup_workers=1),
    sim.Buffered(2),
    sim.Quorum(3, grace=25.0),
    sim.Sampled(2, seed=0, protocol=sim.Grace(12.0)),
]
OF_A_USER = [own_protocols.AtATime(2), own_protocols.Quorum(2)]


def options_for(protocol):
    """Where a protocol mixes versions, each push is compensated before the mean."""
    if protocol.server(NUM_WORKERS).mixes_versions:
        return {"protocol": protocol, "tx": plain(), "per_push": before_the_mean()}
    return {"protocol": protocol}
