"""The gradient over all examples, taken piece by piece."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree


@functools.partial(jax.jit, static_argnames=("loss_fn", "batch_size"))
def full_gradient(
    loss_fn: Callable[..., Any], params: PyTree, examples: PyTree, batch_size: int
) -> tuple[jax.Array, PyTree]:
    r"""Loss and gradient of the mean over all examples.

    .. math:: \nabla f = \sum_i \frac{n_i}{n} \nabla f_{B_i}

    Args:
      loss_fn: `loss_fn(params, batch)`, the mean over the examples of the batch.
      params: Arrays.
      examples: A tree of arrays `[num_examples, ...]`.
      batch_size: Examples at once, in `[1, num_examples]`; the last piece may be smaller.

    Returns:
      The loss, and a tree like `params`; sums are taken in float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((w - x) ** 2)
      >>> value, grads = full_gradient(loss, jnp.asarray(1.0), jnp.arange(5.0), batch_size=2)
      >>> float(value), float(grads)
      (3.0, -2.0)
    """
    num_examples: int = jax.tree.leaves(examples)[0].shape[0]
    whole, rest = divmod(num_examples, batch_size)

    def weighted(examples, share):
        parts = jax.value_and_grad(loss_fn)(params, examples)
        return jax.tree.map(lambda leaf: leaf * share, trees.widened(parts))

    def add(total, start):
        take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, batch_size)
        part = weighted(jax.tree.map(take, examples), batch_size / num_examples)
        return jax.tree.map(jnp.add, total, part), None

    tail = jax.tree.map(lambda leaf: leaf[whole * batch_size :], examples)
    take_first = lambda leaf: leaf[:batch_size]
    shapes = jax.eval_shape(weighted, jax.tree.map(take_first, examples), 1.0)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, total, jnp.arange(whole) * batch_size)
    if rest:
        total = jax.tree.map(jnp.add, total, weighted(tail, rest / num_examples))
    loss, grads = total
    return loss, jax.tree.map(lambda total, w: total.astype(w.dtype), grads, params)
