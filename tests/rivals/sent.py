"""Runs of the simulator with `send` on the problem of tests/data, version by version."""

import functools

import calls
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle

from dcasgd_jax import rows, sim

PROBLEM = oracle.Problem()
NUM_EVENTS = 24
THETA = oracle.flatten([PROBLEM.params])[0]


def schedule_of(order):
    """Every worker pulls right after its own push."""
    last, read = {}, []
    for event, worker in enumerate(order):
        read.append(last.get(worker, 0))
        last[worker] = event + 1
    return sim.Schedule(order, read)


def delayed(tau):
    """Every gradient is `tau` versions old, or taken at version 0."""
    return schedule_of([event % (tau + 1) for event in range(NUM_EVENTS)])


@functools.cache
def remember_sent():
    """Keeps the stale params of every event in its state."""

    def init(params):
        return 0, jax.tree.map(lambda p: jnp.zeros((NUM_EVENTS, *jnp.shape(p)), p.dtype), params)

    def update(grads, state, params=None, *, stale_params, **extra_args):
        del params, extra_args
        event, sent = state
        write = lambda leaf, new: rows.write_row(leaf, new, event)
        return grads, (event + 1, jax.tree.map(write, sent, stale_params))

    return optax.GradientTransformationExtraArgs(init, update)


def on_server(send):
    """For a `send` that must have the state of the server's whole optimizer: here, a stage."""
    return lambda params, opt_state: send(params, opt_state[1])


def batches(full_batch=False):
    if full_batch:
        return tuple(np.stack([leaf] * NUM_EVENTS) for leaf in (PROBLEM.X, PROBLEM.y))
    every = [PROBLEM.batch(event) for event in range(NUM_EVENTS)]
    return tuple(np.stack(leaves) for leaves in zip(*every, strict=True))


def run(schedule, tx, send, *, full_batch=False, dtype=np.float64, **options):
    """The params of every version, theta [25, 15], and what each event's worker was sent [24, 15].

    Also the result itself.
    """
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    inputs, labels = batches(full_batch)
    result = calls.simulate(
        loops.softmax_loss, params, optax.chain(remember_sent(), tx), schedule,
        (inputs.astype(dtype), labels), send=send, eval_fn=identity, eval_versions=1, **options,
    )  # fmt: skip
    theta = theta_of_rows(result.evaluations.values)
    return np.concatenate([THETA[None], theta]), theta_of_rows(result.opt_state[0][1]), result


def identity(params):
    return params


def theta_of_rows(tree):
    """Leaves [T, ...] as theta [T, 15]."""
    return np.concatenate([np.reshape(tree[k], (len(tree[k]), -1)) for k in ("W", "b")], axis=1)


def as_trace(theta):
    return [oracle.unflatten(row) for row in theta]


def gradient(theta, event):
    """The gradient of event's batch, of the whole data if event is None; NumPy [15]."""
    if event is not None:
        return oracle.flatten([PROBLEM.grad(oracle.unflatten(theta), event)])[0]
    every = [gradient(theta, k) for k in range(len(PROBLEM.batch_rows))]
    return np.mean(every, axis=0)  # batches are of one size and cover the data once
