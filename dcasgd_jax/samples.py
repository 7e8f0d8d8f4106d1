"""Gradients of the single samples of a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, trees
from dcasgd_jax.typing import PyTree


def with_key(loss_fn: Callable[..., jax.Array], key: jax.Array | None) -> Callable[..., jax.Array]:
    """`loss_fn(params, batch)`, whether it takes a key or not."""
    if key is None:
        return loss_fn
    return lambda params, batch: loss_fn(params, batch, key)


def check_samples(batch: PyTree) -> int:
    """How many samples a batch has.

    Raises:
      ValueError: If its arrays do not share a leading axis, with something along it.
    """
    needed = "The gradient of each sample is needed, but "
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name, shape = f"batch{jax.tree_util.keystr(path)}", jnp.shape(leaf)
        if not shape:
            raise ValueError(f"{needed}{name} is a scalar, without a leading axis of samples.")
        sizes[name] = shape[0]
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"{needed}the arrays of the batch do not share a leading axis of samples: the lengths "
            f"are {sizes}."
        )
    return next(iter(sizes.values()))


def sample_gradients(
    loss: Callable[..., jax.Array], params: PyTree, batch: PyTree
) -> tuple[PyTree, int]:
    """The gradient of each sample, taken as a batch of one, and how many there are.

    Returns:
      A tree like `params`, of at least float32, with the samples as leading axis; their number.

    Raises:
      ValueError: As `check_samples` does.
    """
    count = check_samples(batch)
    gradient_of = lambda sample: jax.grad(loss)(
        params, jax.tree.map(lambda leaf: leaf[None], sample)
    )
    return trees.widened(jax.vmap(gradient_of)(batch)), count


def squares(grads: PyTree) -> PyTree:
    """Every entry squared, in float32 or wider."""
    return compensation.update_mean_square(trees.zeros_to_accumulate(grads), grads, ms_decay=0.0)


def mean_squared_gradient(loss: Callable[..., jax.Array], params: PyTree, batch: PyTree) -> PyTree:
    """The mean over the samples of their squared gradients: the diagonal of the Fisher matrix.

    Those that are not a number do not count: a sample of weight 0, which fills a batch up, is 0/0
    alone and no sample. Needs memory for the gradients of all samples.
    """
    grads, _ = sample_gradients(loss, params, batch)
    return jax.tree.map(lambda square: jnp.nanmean(square, axis=0), squares(grads))
