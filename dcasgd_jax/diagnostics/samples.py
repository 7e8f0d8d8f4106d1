"""Gradients of the single samples of a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation
from dcasgd_jax.diagnostics import vectors
from dcasgd_jax.typing import PyTree


def with_key(loss_fn: Callable[..., jax.Array], key: jax.Array | None) -> Callable[..., jax.Array]:
    """`loss_fn(params, batch)`, whether it takes a key or not."""
    if key is None:
        return loss_fn
    return lambda params, batch: loss_fn(params, batch, key)


def sample_gradients(
    loss: Callable[..., jax.Array], params: PyTree, batch: PyTree
) -> tuple[PyTree, int]:
    """The gradient of each sample, taken as a batch of one, and how many there are.

    Returns:
      A tree like `params` with the samples as leading axis, and their number.

    Raises:
      ValueError: If the arrays of the batch do not share a leading axis.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            "The gradient of each sample is needed, but the arrays of the batch do not share a "
            f"leading axis of samples: their leading axes are {sorted(sizes)}."
        )
    ((count,),) = sizes
    gradient_of = lambda sample: jax.grad(loss)(
        params, jax.tree.map(lambda leaf: leaf[None], sample)
    )
    return vectors.widened(jax.vmap(gradient_of)(batch)), count


def squares(grads: PyTree) -> PyTree:
    """Every entry squared."""
    zeros = jax.tree.map(jnp.zeros_like, grads)
    return compensation.update_mean_square(zeros, grads, ms_decay=0.0)


def mean_squared_gradient(loss: Callable[..., jax.Array], params: PyTree, batch: PyTree) -> PyTree:
    """The mean over the samples of their squared gradients: the diagonal of the Fisher matrix.

    Those that are not a number do not count: a sample of weight 0 is 0/0 alone.
    """
    grads, _ = sample_gradients(loss, params, batch)
    return jax.tree.map(lambda square: jnp.nanmean(square, axis=0), squares(grads))
