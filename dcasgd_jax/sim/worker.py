"""The worker's part of an event: one gradient, at the version that it had read."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import compensation, trees
from dcasgd_jax.sim import preconditions
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
    keys = _keys(event, key)
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


def about_batch(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    batch: PyTree,
    key: jax.Array | None,
) -> dict[str, Any]:
    """What transformations may ask about the batch of a push; costs nothing unless one does.

    Returns:
      Extra arguments: `hessian_vector_product(tangent)`, the Hessian of the event's loss, at the
      params, model state and key of its gradient, times a tree like the params; and
      `fisher_diagonal()`, the mean of the squared gradients of the batch's samples, each taken as
      a batch of one with the event's key, in float32 or wider; it needs memory for the gradients
      of all samples. And what `size_of_batch` says.
    """
    keys = _keys(event, key)

    def loss(params, batch):
        if program.model_state == "none":
            return program.loss_fn(params, batch, *keys)
        return program.loss_fn(params, pulled.model_state, batch, *keys)[0]

    def hessian_vector_product(tangent: PyTree) -> PyTree:
        preconditions.check_tangent(tangent, pulled.params)
        tangent = jax.tree.map(lambda t, w: jnp.asarray(t, w.dtype), tangent, pulled.params)
        gradient_at = jax.grad(lambda params: loss(params, batch))
        return jax.jvp(gradient_at, (pulled.params,), (tangent,))[1]

    def fisher_diagonal() -> PyTree:
        preconditions.check_samples(batch, has_model_state=program.model_state != "none")

        def squared_gradient(sample):
            alone = jax.tree.map(lambda leaf: leaf[None], sample)
            return _squares(jax.grad(loss)(pulled.params, alone))

        return jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(squared_gradient)(batch))

    return {
        "hessian_vector_product": hessian_vector_product,
        "fisher_diagonal": fisher_diagonal,
        **size_of_batch(batch),
    }


def size_of_batch(batch: PyTree) -> dict[str, int]:
    """`batch_size`, the number of examples, where the shapes say it: an extra argument, or none.

    That is where one array has one entry for each example, such as a label, and all arrays begin
    with the same axis. Arrays of signed integers with more axes may be tokens, of which each is a
    term of the loss: then nothing is said, because a wrong size would be a wrong curvature.

    Args:
      batch: A tree of arrays, or their shapes and dtypes.
    """
    leaves = [(np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in jax.tree.leaves(batch)]
    vectors = {shape for shape, _ in leaves if len(shape) == 1}
    firsts = {shape[:1] for shape, _ in leaves}
    may_be_tokens = any(
        len(shape) > 1 and jnp.issubdtype(dtype, jnp.signedinteger) for shape, dtype in leaves
    )
    if len(vectors) != 1 or firsts != vectors or may_be_tokens:
        return {}
    ((size,),) = vectors
    return {"batch_size": size} if size else {}


def _keys(event: programs.Event, key: jax.Array | None) -> tuple[jax.Array, ...]:
    """The event's random key, if there is one: the last arguments of the loss."""
    return () if key is None else (jax.random.fold_in(key, event.batch),)


def refused(why: str) -> dict[str, Callable[..., PyTree]]:
    """The same functions where there is no answer."""

    def refuse(name):
        raise ValueError(f"A transformation asks for {name}, but {why}.")

    return {
        "hessian_vector_product": lambda tangent: refuse("hessian_vector_product"),
        "fisher_diagonal": lambda: refuse("fisher_diagonal"),
    }


def _squares(grads: PyTree) -> PyTree:
    """Squared gradients, in float32 or wider."""
    return compensation.update_mean_square(trees.zeros_to_accumulate(grads), grads, ms_decay=0.0)
