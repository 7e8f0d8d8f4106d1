"""The worker's part of an event: one gradient, at the version that it had read."""

import jax
import jax.numpy as jnp

from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


def batch_of(
    program: programs.Program,
    event: programs.Event,
    row: PyTree,
    shared: programs.Shared,
) -> PyTree:
    """The batch of an event: its row itself, the examples the row points to, or `batch_fn`'s."""
    if program.batch_fn is not None:
        return program.batch_fn(event.batch, event.worker)
    if shared.examples is not None:
        return jax.tree.map(lambda leaf: jnp.take(leaf, row, axis=0), shared.examples)
    return row


def gradient(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    row: PyTree,
    shared: programs.Shared,
) -> programs.Gradient:
    """Loss and gradient at what the worker has pulled; depends on nothing else on the server."""
    batch = batch_of(program, event, row, shared)
    return gradient_on_batch(program, event, pulled, batch, shared.key)


def gradient_on_batch(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    batch: PyTree,
    key: jax.Array | None,
) -> programs.Gradient:
    """Loss and gradient on a batch that is there."""
    keys = () if key is None else (jax.random.fold_in(key, event.batch),)
    if program.model_state == "none":
        model_state = None
        loss, grads = jax.value_and_grad(program.loss_fn)(pulled.params, batch, *keys)
    else:
        (loss, model_state), grads = jax.value_and_grad(program.loss_fn, has_aux=True)(
            pulled.params, pulled.model_state, batch, *keys
        )
    if program.corrupts:
        grads = jax.tree.map(lambda g: jnp.where(event.corrupt, jnp.nan, g).astype(g.dtype), grads)
    return programs.Gradient(loss, grads, model_state)
