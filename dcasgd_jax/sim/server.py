"""The server's part of an event: receive a push, and update if it is time to."""

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import rows, transforms
from dcasgd_jax.sim import offers
from dcasgd_jax.sim import program as programs

_MEASURED = ("compensation_ratio", "cosine", "below_eps")


def receive(
    program: programs.Program,
    state: programs.SimState,
    event: programs.Event,
    push: programs.Push,
) -> tuple[programs.SimState, programs.Metrics]:
    """The state after a push, and what is to be reported of it."""
    gap = _gap(state.params, push.stale_params) if "gap" in program.metrics else None
    # The snapshots stay outside the branches below, through which XLA might copy them.
    snapshots, state = state.snapshots, state._replace(snapshots=None)

    def accept(state):
        take = _add_to_mean if program.flow == "mean" else _update_with_push
        return take(program, state, event, push)

    state = _keep_of_worker(program, state, event, push.gradient)
    if program.flow == "each":
        state, measured = accept(state)
    else:
        ignore = lambda state: (state, _nothing_measured(program))
        state, measured = jax.lax.cond(event.applied, accept, ignore, state)
    metrics = programs.Metrics(loss=push.gradient.loss, gap=gap)._replace(**measured)
    return state._replace(event=state.event + 1, snapshots=snapshots), metrics


def _keep_of_worker(program, state, event, gradient):
    """What the worker keeps after its push."""
    per_worker = program.model_state == "per_worker"
    all_kept = programs.Kept(state.model_state if per_worker else None, state.worker_state)
    new = programs.Kept(gradient.model_state if per_worker else None, gradient.worker_state)
    write = lambda per_worker, row: rows.write_row(per_worker, row, event.worker)
    if program.repeats:
        of_worker = lambda per_worker: rows.read_row(per_worker, event.worker)
        last, present = jax.tree.map(of_worker, (state.last_kept, all_kept))
        # A second delivery is no second computation: what the worker keeps stays as it is.
        keep = lambda if_repeated, else_: jnp.where(event.repeats, if_repeated, else_)
        new = jax.tree.map(keep, present, new)
        taken_with = jax.tree.map(keep, last, present)
        state = state._replace(last_kept=jax.tree.map(write, state.last_kept, taken_with))
    after = jax.tree.map(write, all_kept, new)
    if per_worker:
        pushed = state.pushed.at[event.worker].set(True)
        state = state._replace(model_state=after.model_state, pushed=pushed)
    return state._replace(worker_state=after.worker_state)


def _update_with_push(program, state, event, push):
    """The server updates with this push alone."""
    grads, push_state = _transform_push(program, state, event, push)
    state = state._replace(push_state=push_state)
    state = _update(program, state, event, push, grads, event.worker, push.about_batch)
    return state, _measured(program, state)


def _add_to_mean(program, state, event, push):
    """The server adds this push to the others and, at the last one, updates with their mean."""
    grads, push_state = _transform_push(program, state, event, push)
    # As wide as the sum: in 16 bits the mean of some hundred pushes would lose them.
    total = jax.tree.map(lambda s, g: s + g.astype(s.dtype), state.gradient_sum, grads)
    state = state._replace(push_state=push_state)

    def update():
        mean = jax.tree.map(lambda s, g: (s / event.num_pushes).astype(g.dtype), total, grads)
        # The mean is of no worker in particular, nor of one batch whose curvature could be asked.
        after = _update(program, state, event, push, mean, None, {})
        after = after._replace(gradient_sum=optax.tree.zeros_like(total))
        return after, _measured(program, after)

    def wait():
        waiting = state._replace(gradient_sum=total)
        per_push = program.per_push is not None
        return waiting, _measured(program, state) if per_push else _nothing_measured(program)

    return jax.lax.cond(event.updates, update, wait)


def _transform_push(program, state, event, push):
    """The push as the per-push transformation leaves it."""
    if program.per_push is None:
        return push.gradient.grads, state.push_state
    offered = offers.arguments(
        event.worker,
        push.stale_params,
        event.staleness,
        push.about_batch,
        measures=_measures(program),
    )
    return offers.update(
        program.per_push, push.gradient.grads, state.push_state, state.params, **offered
    )


def _update(program, state, event, push, grads, worker, about_batch):
    """The next version: the params after an update with `grads`, the model state of this push."""
    stale = (None, None) if program.mixes else (push.stale_params, event.staleness)
    offered = offers.arguments(worker, *stale, about_batch, measures=_measures(program))
    updates, opt_state = offers.update(program.tx, grads, state.opt_state, state.params, **offered)
    state = state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
    if program.model_state == "server":
        state = state._replace(model_state=push.gradient.model_state)
    return state


def _measures(program) -> bool:
    return bool(set(_MEASURED) & set(program.metrics))


def _measured(program, state):
    """What the compensating transformation measured at its last update."""
    names = [name for name in _MEASURED if name in program.metrics]
    if not names:
        return {}
    measuring = state.opt_state if program.per_push is None else state.push_state
    measured = transforms.compensation_metrics(measuring)
    values: dict[str, jax.Array] = dict(zip(_MEASURED, measured, strict=True))
    return {name: values[name] for name in names}


def _nothing_measured(program):
    return {name: jnp.float32(jnp.nan) for name in _MEASURED if name in program.metrics}


def _gap(params, stale_params):
    """Root mean square of w - w_stale over all parameters, in float32."""
    moved = jax.tree.map(lambda w, stale: (w - stale).astype(jnp.float32), params, stale_params)
    count = sum(leaf.size for leaf in jax.tree.leaves(moved))
    return optax.tree.norm(moved) / jnp.sqrt(jnp.float32(max(count, 1)))
