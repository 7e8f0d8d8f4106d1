"""One update with a gradient at a view of past params; `svrg` runs the same step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import rows
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import chain_order, offers, preconditions, step, worker
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.shared_memory import blocks as blocks_of
from dcasgd_jax.sim.shared_memory.reads import ReadVersions
from dcasgd_jax.typing import PyTree


class Program(NamedTuple):
    """What is compiled."""

    loss_fn: Callable[..., Any]
    tx: optax.GradientTransformation
    per_push: optax.GradientTransformation | None = None
    eval_fn: Callable[..., PyTree] | None = None


class Anchor(NamedTuple):
    """What variance reduction compares every gradient with."""

    params: PyTree  # x̃
    full_gradient: PyTree  # the mean over all examples, at x̃


class Shared(NamedTuple):
    """Inputs that all events share."""

    blocks: PyTree  # see `blocks.make_blocks`
    rows: PyTree  # leaf [num_batches, ...], batches, or rows that point into the examples
    examples: PyTree | None
    anchor: Anchor | None = None


class State(NamedTuple):
    """What goes from event to event."""

    params: PyTree
    opt_state: PyTree
    gradient_state: Any  # of `per_push`; None without one
    snapshots: PyTree  # leaf [num_slots, ...], the versions that may still be read


class Event(NamedTuple):
    """One update; int32 and bool scalars, or NumPy arrays with a leading axis of events."""

    worker: Any
    current_slot: Any
    read_slots: Any  # [num_blocks]
    staleness: Any  # of the oldest block
    batch: Any
    applied: Any  # None if all are
    evaluates: Any


class Report(NamedTuple):
    """What one event reports."""

    loss: jax.Array
    norm: jax.Array  # of the direction that is handed to `tx`
    evaluation: PyTree | None


def make_events(reads: Schedule | ReadVersions, first_batch: int, evaluates: np.ndarray) -> Event:
    """The reads as the compiled step sees them."""
    if isinstance(reads, Schedule):
        return Event(
            worker=reads.worker,
            current_slot=reads.slots.current,
            read_slots=reads.slots.read[:, None],
            staleness=reads.staleness,
            batch=reads.batch + np.int32(first_batch),
            applied=None if reads.applied.all() else reads.applied,
            evaluates=evaluates,
        )
    versions, num_slots = np.arange(len(reads), dtype=np.int32), count_slots(reads)
    return Event(
        worker=reads.worker,
        current_slot=versions % num_slots,
        read_slots=reads.read_version % num_slots,
        staleness=reads.staleness.max(axis=1),
        batch=versions + np.int32(first_batch),
        applied=None,
        evaluates=evaluates,
    )


def count_slots(reads: Schedule | ReadVersions) -> int:
    """Copies of the params that are kept: as many as may still be read."""
    return reads.num_slots if isinstance(reads, Schedule) else int(reads.staleness.max()) + 1


def initial_state(program: Program, params: PyTree, opt_state: PyTree, num_slots: int) -> State:
    """State before the first event, in memory of its own."""
    params = step.copy_tree(params)
    of_gradient = None if program.per_push is None else program.per_push.init(params)
    return State(
        params=params,
        opt_state=step.copy_tree(program.tx.init(params) if opt_state is None else opt_state),
        gradient_state=step.copy_tree(of_gradient),
        snapshots=jax.tree.map(lambda leaf: rows.repeat_row(leaf, num_slots), params),
    )


def check_states(
    program: Program, params: PyTree, opt_state: PyTree, num_workers: int, *, or_more: bool
) -> None:
    """Rows per worker must fit the workers, and compensations stand where raw gradients arrive."""
    start = jax.eval_shape(lambda p: initial_state(program, p, opt_state, 1), params)
    states = (start.opt_state, start.gradient_state)
    offers.check_num_workers(states, num_workers, or_more=or_more)
    chain_order.check_server(params, program.tx, opt_state, program.per_push)


def make_shared(batches: PyTree, num_batches: int, blocks: PyTree, most: int) -> Shared:
    """The batches on the device, once it is clear that there are enough, and at most `most`."""
    if callable(batches) or sources.iterates(batches):
        raise TypeError("batches must be a tree of arrays [num_batches, ...] or sim.Indexed.")
    examples = None
    if isinstance(batches, sources.Indexed):
        preconditions.check_batches(batches.rows, num_batches)
        preconditions.check_rows(batches.rows, batches.examples)
        batches, examples = batches.rows, jax.tree.map(jnp.asarray, batches.examples)
    else:
        preconditions.check_batches(batches, num_batches, most=most)
    return Shared(blocks, jax.tree.map(jnp.asarray, batches), examples)


def batch_of(shared: Shared, batch: jax.Array) -> PyTree:
    """The examples of one event."""
    row = jax.tree.map(lambda leaf: rows.read_row(leaf, batch), shared.rows)
    if shared.examples is None:
        return row
    return jax.tree.map(lambda leaf: jnp.take(leaf, row, axis=0), shared.examples)


def run_event(program: Program, state: State, event: Event, shared: Shared) -> tuple[State, Report]:
    """Reads a view, takes the gradient there, and updates all blocks at once."""
    snapshots = jax.tree.map(
        lambda slots, leaf: rows.write_row(slots, leaf, event.current_slot),
        state.snapshots,
        state.params,
    )
    view = blocks_of.gather(snapshots, shared.blocks, event.read_slots)
    batch = batch_of(shared, event.batch)
    loss, grads = jax.value_and_grad(program.loss_fn)(view, batch)
    offered = offered_arguments(program, event, view, batch)
    gradient_state = state.gradient_state
    if program.per_push is not None:
        grads, gradient_state = offers.update(
            program.per_push, grads, gradient_state, state.params, **offered
        )
    if shared.anchor is not None:
        grads = reduce_variance(program, grads, shared.anchor, batch)
    updates, opt_state = offers.update(program.tx, grads, state.opt_state, state.params, **offered)
    new = optax.apply_updates(state.params, updates), opt_state, gradient_state
    if event.applied is not None:
        keep = lambda new, old: jnp.where(event.applied, new, old)
        new = jax.tree.map(keep, new, (state.params, state.opt_state, state.gradient_state))
    params, opt_state, gradient_state = new
    state = State(params, opt_state, gradient_state, snapshots)
    return state, Report(loss, optax.tree.norm(grads), evaluate(program, state.params, event))


def reduce_variance(program: Program, grads: PyTree, anchor: Anchor, batch: PyTree) -> PyTree:
    """The direction v = ∇f_B(x_read) - ∇f_B(x̃) + ∇f(x̃), with one batch B."""
    at_anchor = jax.grad(program.loss_fn)(anchor.params, batch)
    return jax.tree.map(lambda g, a, mu: g - a + mu, grads, at_anchor, anchor.full_gradient)


def offered_arguments(program: Program, event: Any, view: PyTree, batch: PyTree) -> dict[str, Any]:
    """What transformations may ask about a gradient; curvatures cost nothing unless asked for."""
    plain = programs.Program(program.loss_fn, program.tx)
    about_batch = worker.about_batch(plain, event, programs.Pulled(view), batch, None)
    return offers.arguments(event.worker, view, event.staleness, about_batch)


def evaluate(program: Program, params: PyTree, event: Any) -> PyTree | None:
    """What `eval_fn` says of the params after an event that asks for it, else zeros."""
    if program.eval_fn is None:
        return None
    shapes = jax.eval_shape(program.eval_fn, params)
    zeros = lambda _: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(event.evaluates, program.eval_fn, zeros, params)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_events(
    program: Program, state: State, events: Event, shared: Shared
) -> tuple[State, Report]:
    """All events in one `lax.scan`; the reports have a leading axis of events."""
    body = lambda state, event: run_event(program, state, event, shared)
    return jax.lax.scan(body, state, events)
