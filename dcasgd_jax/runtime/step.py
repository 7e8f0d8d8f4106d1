"""The compiled work: the server's update, which is the simulator's, and the worker's gradient."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import transforms, trees
from dcasgd_jax.runtime import shards
from dcasgd_jax.runtime.layout import Layout
from dcasgd_jax.sim import offers, server, work
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import step as sim_step
from dcasgd_jax.sim import worker as sim_worker
from dcasgd_jax.typing import PyTree

_LARGE = 2**16  # bytes
_WHY = "a live server has neither the batch nor the loss: they are on the worker"


def initial_state(program: programs.Program, params: PyTree, num_workers: int) -> programs.SimState:
    """The state before the first push, in memory of its own; the snapshots are the workers'."""
    state = sim_step.initial_state(program, params, None, None, 1, num_workers)
    return state._replace(snapshots=programs.Pulled(None, None))


def make_event(
    program: programs.Program, worker: int, staleness: int, num_pushes: int, updates: bool
) -> programs.Event:
    """A push that is applied, as the compiled step sees it."""
    event = programs.Event(
        event=None, worker=np.int32(worker), current_slot=None, read_slot=None,
        staleness=np.int32(staleness), batch=None,
    )  # fmt: skip
    if program.flow == "each":
        return event
    return event._replace(
        applied=np.bool_(True), updates=np.bool_(updates), num_pushes=np.int32(num_pushes)
    )


def receive(
    program: programs.Program,
    layout: Layout,
    state: programs.SimState,
    event: programs.Event,
    gradient: Sequence[jax.Array],
) -> tuple[programs.SimState, programs.Metrics, list[jax.Array] | None]:
    """Takes a push, and updates if the event says so; also the params for the wire, if cast."""
    # Behind a barrier every push that counts was taken at the present version.
    at_barrier = program.flow == "mean" and not program.mixes
    push = programs.Push(
        gradient=programs.Gradient(jnp.zeros(()), layout.from_wire(gradient), None),
        stale_params=state.params if at_barrier else None,
        about_batch=work.refused(_WHY),
    )
    state, metrics = server.receive(program, state, event, push)
    return state, metrics, layout.to_wire(state.params) if layout.casts else None


@functools.partial(jax.jit, donate_argnames="state")
def record_pull(state: PyTree, worker: jax.Array, params: PyTree) -> PyTree:
    """`dc.record_pull`, in place."""
    return transforms.record_pull(state, worker, params)


compiled_receive = jax.jit(receive, static_argnames=("program", "layout"), donate_argnames="state")
params_are_finite = jax.jit(
    lambda params: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()
)
to_wire = jax.jit(lambda layout, params: layout.to_wire(params), static_argnums=0)


@functools.lru_cache(maxsize=64)  # also: equal programs of equal ones, which share compiled code
def with_memory(program: programs.Program, layout: Layout, num_workers: int) -> programs.Program:
    """The program, whose compensating transformation is told what each worker pulled.

    A server sends params away and keeps none, so `remember_pulls` stands around what compensates:
    outermost, where it sees every push, also one that something inside throws away.

    Raises:
      ValueError: If averaged pushes of several versions are to be compensated after the mean, or a
        transformation asks for what a server does not have.
    """
    params = layout.shapes()
    name = "tx"
    if program.flow == "mean":
        name = "tx" if program.per_push is None else "per_push"
        why = "The pushes of one update may have read different versions"
        why = why if program.mixes else "Updates take the mean of several pushes"
        offers.check_mean(program.tx, params, why, has_stale_point=not program.mixes)
    tx = getattr(program, name)
    state = jax.eval_shape(tx.init, params)
    guesses = (transforms.RememberPullsState, transforms.AssumeDelayState)
    outermost = isinstance(state, transforms.RememberPullsState)
    if not outermost and trees.find_states(state, transforms.CompensateDelayState, *guesses):
        wrapped = transforms.remember_pulls(tx, num_workers)
        program = program._replace(**{name: wrapped})
    _try_out(program, layout, params, num_workers)
    return program


def _try_out(program, layout: Layout, params: PyTree, num_workers: int) -> None:
    """Traces a push of worker 0."""
    event = make_event(program, 0, 0, 1, True)
    arrays = [jax.ShapeDtypeStruct(leaf.shape, leaf.wire_dtype) for leaf in layout.leaves]
    state = jax.eval_shape(lambda p: initial_state(program, p, num_workers), params)
    offers.check_num_workers((state.opt_state, state.push_state), num_workers)
    jax.eval_shape(functools.partial(receive, program, layout), state, event, arrays)


@functools.partial(jax.jit, static_argnames=("loss_fn", "split", "worker"))
def gradient(
    loss_fn: Callable[..., Any],
    split: shards.Split,
    worker: work.Worker,
    pulled: Sequence[Sequence[jax.Array]],
    model_state: Sequence[jax.Array],
    state: work.WorkerState | None,
    batch: PyTree,
    index: Any,
) -> tuple[jax.Array, list[list[jax.Array]], list[jax.Array], work.WorkerState | None]:
    """What a worker pushes, and what it keeps.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, model_state, batch)`.
      split: Of the model.
      worker: What it does.
      pulled: The leaves of the parameters from every shard, as they travelled.
      model_state: The leaves of the model state, if there is one.
      state: What it has kept.
      batch: A tree of arrays.
      index: Which worker it is, an int32 scalar.

    Returns:
      The loss and whether all of the push is finite, as two floats; the gradient's leaves for all
      shards; the leaves of the new model state; what the worker keeps.
    """
    on_wire = split.model_state
    before = None if on_wire is None else on_wire.from_wire(model_state)
    begins = work.Pulled(split.from_wire(pulled), before, state)
    computed = compute(loss_fn, worker, begins, batch, index)
    grads = split.to_wire(computed.grads)
    after = [] if on_wire is None else on_wire.to_wire(computed.model_state)
    # Of what is sent: a number may become infinite on the wire.
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((grads, after))]
    loss = computed.loss
    facts = jnp.stack([loss, jnp.all(jnp.stack(finite)).astype(loss.dtype)])
    return facts, grads, after, computed.worker_state


def begin(worker: work.Worker, whole: shards.Part) -> work.Pulled:
    """What a worker begins its first push with."""
    return work.Pulled(whole.params, whole.model_state, worker.init(whole.params))


def compute(loss_fn, worker, begins: work.Pulled, batch, index) -> work.Gradient:
    """The worker's part, as in the simulator: a live loss has no key."""
    loss = sim_worker.as_workers_call(loss_fn, has_state=begins.model_state is not None)
    return worker.run(loss, begins, batch, None, index)


@functools.partial(jax.jit, static_argnames=("split", "worker"))
def worker_state(
    split: shards.Split, worker: work.Worker, pulled: Sequence[Sequence[jax.Array]]
) -> work.WorkerState | None:
    """What a worker has kept before its first push."""
    return worker.init(split.from_wire(pulled))


def on_device(arrays: Sequence[np.ndarray]) -> list[jax.Array | np.ndarray]:
    """Arrays that nobody changes any more, for compiled functions.

    Large ones are taken where they are if that is the device's memory; of small ones a copy is
    cheaper, which the compiled function makes itself.
    """
    put = functools.partial(jax.device_put, may_alias=True)
    return [put(array) if array.nbytes >= _LARGE else array for array in arrays]


@functools.lru_cache(maxsize=16)
def rounded_loss(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss at parameters as they are after bfloat16 on the wire; its gradient is so, too."""

    def loss_of_rounded(params: PyTree, *others: PyTree):
        round_off = lambda leaf: jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7)
        return loss_fn(jax.tree.map(round_off, params), *others)

    return loss_of_rounded
