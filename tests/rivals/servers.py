"""Event loops that play the published algorithms' servers around a JAX transformation, float64."""

import jax
import loops
import numpy as np
import optax
import oracle

PROBLEM = oracle.Problem()


def run(tx, order, told, gradient=None):
    """Params before and after every event, and the states.

    A worker pulls right after its own push. `told(event, worker, staleness)` are the extra
    arguments of `tx.update`, where every event is counted as a version.
    """
    gradient = gradient or loops.softmax_grad_fn()
    update = jax.jit(tx.update)
    params = jax.tree.map(jax.numpy.asarray, PROBLEM.params)
    state, held, read = tx.init(params), dict.fromkeys(order, params), dict.fromkeys(order, 0)
    trace, states = [params], []
    for event, worker in enumerate(order):
        grads = gradient(held[worker], event)
        kwargs = jax.tree.map(np.int32, told(event, worker, event - read[worker]))
        updates, state = update(grads, state, params, **kwargs)
        params = optax.apply_updates(params, updates)
        held[worker], read[worker] = params, event + 1
        trace.append(params)
        states.append(state)
    return trace, states


def staleness(event, worker, value):
    del event, worker
    return {"staleness": value}


def worker(event, value, staleness):
    del event, staleness
    return {"worker": value}


def nothing(event, worker, staleness):
    del event, worker, staleness
    return {}


def full_losses(trace):
    """The loss on all 24 rows at each element of a trace."""
    losses = []
    for params in trace:
        params = {name: np.asarray(leaf) for name, leaf in params.items()}
        logits = PROBLEM.X @ params["W"] + params["b"]
        logits -= logits.max(axis=1, keepdims=True)
        normalised = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(-normalised[np.arange(len(PROBLEM.y)), PROBLEM.y].mean())
    return np.array(losses)


def theta(params):
    return oracle.flatten([params])[0]
