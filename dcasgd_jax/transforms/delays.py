"""A delay that is known in advance, for the whole tree or leaf by leaf."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.typing import PyTree

Delay = int | PyTree | Callable[[PyTree], PyTree]


def check_delays(delay: Delay) -> None:
    """Raises, naming the leaf, unless a delay is a function or all its leaves are integers >= 0.

    Raises:
      TypeError: For a leaf that is no integer.
      ValueError: For a negative one.
    """
    if trees.is_function(delay):
        return
    for path, of_leaf in jax.tree_util.tree_leaves_with_path(delay):
        checks.check_count(f"delay{jax.tree_util.keystr(path)}", of_leaf, least=0)


def delay_of_each_leaf(delay: Delay, params: PyTree) -> PyTree:
    """A tree like `params` of Python ints."""
    if not jax.tree.leaves(params):  # an empty tree, or optax.tree.map_params' placeholder
        return params
    if trees.is_function(delay):
        delay = delay(params)  # type: ignore[operator]
        check_delays(delay)
    try:
        delays = jax.tree.broadcast(delay, params)
    except ValueError as error:
        raise ValueError(f"delay is not a prefix of the parameter tree: {error}") from None
    return jax.tree.map(lambda of_leaf: checks.check_count("delay", of_leaf, least=0), delays)


def delay_of_each_update(
    delay: Delay, updates: PyTree, params: PyTree | None, transformation: str
) -> PyTree:
    """The delay of each leaf of `updates`, as Python ints; `params` must be there to match them."""
    if isinstance(delay, int):
        return jax.tree.map(lambda _: delay, updates, is_leaf=trees.is_none)
    update_checks.check_params(params, transformation)
    return delay_of_each_leaf(delay, params)


def staleness(num_updates: jax.Array, of_leaves: PyTree) -> PyTree:
    """How late gradients are after so many updates: at most by their delay.

    A scalar if all leaves are equally late, else a tree like `of_leaves`.
    """
    late_by = lambda delay: jnp.minimum(num_updates, delay)
    different = set(jax.tree.leaves(of_leaves))
    return (
        late_by(max(different, default=0))
        if len(different) <= 1
        else jax.tree.map(late_by, of_leaves)
    )
