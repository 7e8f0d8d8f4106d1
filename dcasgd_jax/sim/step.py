"""One event of a simulated run: read, gradient, push, update. Every engine runs this step."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dcasgd_jax import rows, trees
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import server, work, worker
from dcasgd_jax.typing import PyTree


def initial_state(
    program: programs.Program,
    params: PyTree,
    opt_state: PyTree,
    model_state: PyTree,
    num_slots: int,
    num_workers: int,
) -> programs.SimState:
    """State before the first event, in memory of its own: engines donate it.

    What is compiled here depends on shapes alone, so that runs of other programs share it.
    """
    params, model_state = copy_tree(params), copy_tree(model_state)
    opt_state = copy_tree(program.tx.init(params) if opt_state is None else opt_state)
    push_state = None if program.per_push is None else copy_tree(program.per_push.init(params))
    pulled = programs.Pulled(params, model_state if program.model_state == "server" else None)
    per_worker = program.model_state == "per_worker"
    model_state = repeat_tree(model_state, num_workers) if per_worker else model_state
    worker_state = repeat_tree(program.worker.init(params), num_workers)
    state = programs.SimState(
        event=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        snapshots=repeat_tree(pulled, num_slots),
        push_state=push_state,
        gradient_sum=trees.zeros_to_accumulate(params) if program.flow == "mean" else None,
        model_state=model_state,
        pushed=jnp.zeros(num_workers, bool) if per_worker else None,
        worker_state=worker_state,
    )
    return state._replace(last_kept=copy_tree(kept(program, state)) if program.repeats else None)


def kept(program: programs.Program, state: programs.SimState) -> programs.Kept:
    """What the workers keep between their pushes."""
    per_worker = program.model_state == "per_worker"
    return programs.Kept(state.model_state if per_worker else None, state.worker_state)


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
    """Copies every array, and makes strongly typed ones of Python numbers."""

    def copy(leaf):
        leaf = jnp.asarray(leaf)
        return jax.lax.convert_element_type(jnp.copy(leaf), leaf.dtype)

    return jax.tree.map(copy, tree)


@functools.partial(jax.jit, static_argnames="count")
def repeat_tree(tree: PyTree, count: int) -> PyTree:
    """`count` copies of every leaf along a new leading axis."""
    return jax.tree.map(lambda leaf: rows.repeat_row(leaf, count), tree)


def run_event(
    program: programs.Program,
    state: programs.SimState,
    event: programs.Event,
    row: PyTree,
    shared: programs.Shared,
) -> tuple[programs.SimState, programs.Metrics]:
    """One push: the gradient at the version that the worker read, then the server's part."""
    # A version is stored at the event after its update, before the read: outside a loop XLA copies
    # all slots when one is read first and written later.
    state = store_version(program, state, event)
    pulled = read_version(program, state, event)
    batch = worker.batch_of(program, event, row, shared)
    gradient = worker.gradient_on_batch(program, event, pulled, batch, shared.key)
    about_batch = worker.about_batch(program, event, pulled, batch, shared.key)
    push = programs.Push(gradient, pulled.params, about_batch)
    return server.receive(program, state, event, push)


def store_version(program, state, event) -> programs.SimState:
    """Puts the server's version, as it is sent, into its slot."""
    sent = state.params if program.send is None else program.send(state.params, state.opt_state)
    on_server = state.model_state if program.model_state == "server" else None
    snapshots = jax.tree.map(
        lambda slots, leaf: rows.write_row(slots, leaf, event.current_slot),
        state.snapshots,
        programs.Pulled(sent, on_server),
    )
    return state._replace(snapshots=snapshots)


def read_version(program, state, event) -> programs.Pulled:
    """What the event's worker had pulled."""
    pulled = jax.tree.map(lambda slots: rows.read_row(slots, event.read_slot), state.snapshots)
    return with_kept(program, pulled, kept_by_worker(program, state, event), event)


def with_kept(
    program: programs.Program,
    pulled: programs.Pulled,
    of_worker: programs.Kept,
    event: programs.Event,
) -> programs.Pulled:
    """What a worker begins with: what it pulled, and what it has kept."""
    pulled = pulled._replace(worker_state=of_worker.worker_state)
    if program.model_state == "per_worker":
        pulled = pulled._replace(model_state=of_worker.model_state)
    if program.worker.eager:
        pulled = work.go_ahead(program.worker.eager, pulled, event.own_push_missing)
    return pulled


def kept_by_worker(program, state, event) -> programs.Kept:
    """With what an event's worker computes; a second delivery is computed with the same again."""
    of_worker = lambda per_worker: rows.read_row(per_worker, event.worker)
    present = jax.tree.map(of_worker, kept(program, state))
    if not program.repeats:
        return present
    last = jax.tree.map(of_worker, state.last_kept)
    return jax.tree.map(lambda was, now: jnp.where(event.repeats, was, now), last, present)


def model_state_to_evaluate(state: programs.SimState) -> PyTree:
    """The model state of the server; where each worker has its own, the mean of those in use."""
    return state.model_state if state.pushed is None else used_mean(state.model_state, state.pushed)


def used_mean(model_states: PyTree, pushed: ArrayLike) -> PyTree:
    """The mean over the workers that have pushed; of integers the first such worker's.

    The state of one that has not is the initial one, which says nothing of the model.
    """
    pushed = jnp.asarray(pushed)
    used = pushed | ~pushed.any()

    def mean(per_worker):
        if not jnp.issubdtype(per_worker.dtype, jnp.inexact):
            return per_worker[jnp.argmax(used)]
        return per_worker.mean(axis=0, where=used.reshape(-1, *[1] * (per_worker.ndim - 1)))

    return jax.tree.map(mean, model_states)


def evaluate(program: programs.Program, state: programs.SimState) -> PyTree:
    """What `eval_fn` says of the server's present version."""
    if program.eval_fn is None:
        raise ValueError("There is no eval_fn to evaluate with.")
    if program.model_state == "none":
        return program.eval_fn(state.params)
    return program.eval_fn(state.params, model_state_to_evaluate(state))
