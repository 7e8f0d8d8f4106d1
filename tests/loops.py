"""Plain Python loops that drive a JAX transformation the way the oracle drives its server."""

import jax
import jax.numpy as jnp
import optax
import oracle


def softmax_loss(params, batch):
    X, y = batch
    logits = X @ params["W"] + params["b"][None, :]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


_softmax_grad = jax.jit(jax.grad(softmax_loss))


def softmax_grad_fn():
    """`grad_fn(params, event)` of the problem of tests/data, by automatic differentiation."""
    problem = oracle.Problem()
    return lambda params, event: _softmax_grad(params, problem.batch(event))


def run_workers(tx, params, order, grad_fn, update_kwargs, *, project=lambda params: params):
    """Event loop of asynchronous training: params before and after every event, and the state.

    `update_kwargs(worker, stale_params)` says what `tx.update` is told: nothing more than that.
    """
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    held = dict.fromkeys(order, params)
    trace = [params]
    for event, worker in enumerate(order):
        grads = grad_fn(held[worker], event)
        updates, state = tx.update(grads, state, params, **update_kwargs(worker, held[worker]))
        params = project(optax.apply_updates(params, updates))
        held[worker] = params
        trace.append(params)
    return trace, state


def by_argument(worker, stale_params):
    del worker
    return {"stale_params": stale_params}


def by_argument_and_worker(worker, stale_params):
    return {"stale_params": stale_params, "worker": worker}


def by_worker(worker, stale_params):
    del stale_params
    return {"worker": worker}


def by_age(worker, stale_params):
    del worker, stale_params
    return {}


def run_plain(tx, params, num_steps, grad_fn, **extra_args):
    """Ordinary training loop, jitted: every gradient is taken at the current params."""
    update = jax.jit(tx.update)
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    trace = [params]
    for step in range(num_steps):
        updates, state = update(grad_fn(params, step), state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        trace.append(params)
    return trace, state
