"""An inner optimizer that is run, or left as if nothing had been pushed."""

import jax
import optax

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree


def update_if(
    applied: jax.Array,
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    inner_state: optax.OptState,
    params: PyTree | None,
    /,
    **extra_args,
) -> tuple[PyTree, optax.OptState]:
    """`inner.update` if `applied`; otherwise zero updates and `inner_state` as it is.

    Args:
      applied: Boolean scalar.
      inner: The optimizer.
      updates: Gradients; where one is `None`, `inner` sees zeros and the update is `None`.
      inner_state: State of `inner`.
      params: Parameters, or `None`.
      **extra_args: Handed to `inner`.

    Returns:
      (updates, inner state). Nothing is computed for a skip, except under `jax.vmap`.
    """
    pushed = updates if params is None else trees.fill_missing(updates, params)

    def apply(inner_state):
        return inner.update(pushed, inner_state, params, **extra_args)

    def skip(inner_state):
        shapes, _ = jax.eval_shape(apply, inner_state)
        return optax.tree.zeros_like(shapes), inner_state

    new_updates, inner_state = jax.lax.cond(applied, apply, skip, inner_state)
    return trees.drop_filled(new_updates, given=updates), inner_state
