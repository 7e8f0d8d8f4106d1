"""One event of a simulated run: read, gradient, push, update. Every engine runs this step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import transforms
from dcasgd_jax.transforms import rows
from dcasgd_jax.typing import PyTree


class Program(NamedTuple):
    """What is compiled: equal programs share one compilation, also across calls of `simulate`."""

    loss_fn: Callable[..., jax.Array]
    tx: optax.GradientTransformation
    batch_fn: Callable[[jax.Array, jax.Array], PyTree] | None
    averages: bool  # some updates take the mean of several pushes
    measure_compensation: bool


class SimState(NamedTuple):
    """Everything a run needs to go on from an event."""

    event: jax.Array  # int32 scalar, events done
    params: PyTree
    opt_state: PyTree
    snapshots: PyTree  # leaf [num_slots, ...], the versions that may still be read
    gradient_sum: PyTree | None  # of the pushes since the last update; None if each push updates


class Event(NamedTuple):
    """One event of the schedule as the step sees it; int32 (and one bool) scalars."""

    worker: Any
    current_slot: Any
    read_slot: Any
    staleness: Any
    updates: Any  # whether the server updates after this push
    num_pushes: Any  # pushes that this update averages


class Metrics(NamedTuple):
    """What one event reports."""

    loss: Any
    compensation_ratio: Any  # None if it was not asked for; nan where no update was made


@functools.partial(jax.jit, static_argnames=("program", "num_slots"))
def initial_state(program: Program, params: PyTree, opt_state: PyTree, num_slots: int) -> SimState:
    """State before the first event, in memory of its own: engines donate it."""
    params = copy_tree(params)
    opt_state = copy_tree(program.tx.init(params) if opt_state is None else opt_state)
    return SimState(
        event=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        snapshots=jax.tree.map(lambda p: rows.repeat_row(p, num_slots), params),
        gradient_sum=optax.tree.zeros_like(params) if program.averages else None,
    )


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
    """Copies every array, and makes strongly typed ones of Python numbers."""

    def copy(leaf):
        leaf = jnp.asarray(leaf)
        return jax.lax.convert_element_type(jnp.copy(leaf), leaf.dtype)

    return jax.tree.map(copy, tree)


def run_event(
    program: Program, state: SimState, event: Event, batch: PyTree, key: jax.Array | None
) -> tuple[SimState, Metrics]:
    """One push: the gradient at the version that the worker read, then the server's part."""
    # A version is stored at the event after its update, before the read: outside a loop XLA copies
    # all slots when one is read first and written later.
    snapshots = jax.tree.map(
        lambda slots, p: rows.write_row(slots, p, event.current_slot), state.snapshots, state.params
    )
    stale_params = jax.tree.map(lambda slots: rows.read_row(slots, event.read_slot), snapshots)
    if program.batch_fn is not None:
        batch = program.batch_fn(state.event, event.worker)
    keys = () if key is None else (jax.random.fold_in(key, state.event),)
    loss, grads = jax.value_and_grad(program.loss_fn)(stale_params, batch, *keys)

    push = _push_to_mean if program.averages else _push
    params, opt_state, gradient_sum, ratio = push(program, state, event, grads, stale_params)
    state = SimState(state.event + 1, params, opt_state, snapshots, gradient_sum)
    return state, Metrics(loss=loss, compensation_ratio=ratio)


def _push(program, state, event, grads, stale_params):
    """The server updates with this push."""
    params, opt_state, ratio = _update(
        program, state, grads, stale_params, event.staleness, event.worker
    )
    return params, opt_state, None, ratio


def _push_to_mean(program, state, event, grads, stale_params):
    """The server adds this push to the others and, at the last one, updates with their mean."""
    total = jax.tree.map(jnp.add, state.gradient_sum, grads)

    def update():
        mean = jax.tree.map(lambda g: (g / event.num_pushes).astype(g.dtype), total)
        # The mean comes from no worker in particular: for the transformations it is worker 0's.
        return *_update(program, state, mean, stale_params, event.staleness, jnp.int32(0)), (
            optax.tree.zeros_like(total)
        )

    def wait():
        ratio = jnp.float32(jnp.nan) if program.measure_compensation else None
        return state.params, state.opt_state, ratio, total

    params, opt_state, ratio, gradient_sum = jax.lax.cond(event.updates, update, wait)
    return params, opt_state, gradient_sum, ratio


def _update(program, state, grads, stale_params, staleness, worker):
    tx = optax.with_extra_args_support(program.tx)
    measure = {"measure_compensation": True} if program.measure_compensation else {}
    updates, opt_state = tx.update(
        grads,
        state.opt_state,
        state.params,
        stale_params=stale_params,
        staleness=staleness,
        worker=worker,
        **measure,
    )
    ratio = transforms.compensation_ratio(opt_state) if program.measure_compensation else None
    return optax.apply_updates(state.params, updates), opt_state, ratio
