"""What a rule for the strength λ0 is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree


class Coordinates(NamedTuple):
    """The same coordinates of the trees of a `Situation`: a leaf, or a part of one."""

    grads: jax.Array
    term: jax.Array
    curvature: Any = None  # an array; None if the curvature has none


class Situation(NamedTuple):
    """What a rule may look at: one update, with the strength λ0 = 1; trees like the gradients."""

    grads: PyTree
    term: PyTree  # the compensation that λ0 = 1 would add, before any cap
    curvature: PyTree | None  # of each coordinate that is capped; None if the curvature has none
    max_curvature: Any  # the cap on λ0 times `curvature`, a scalar; None if there is none
    hessian_vector_product: Callable[[PyTree], PyTree] | None
    displacement: PyTree  # w - w_stale
    # sums(*functions) of `Coordinates` to an array: for each function a tree like the gradients of
    # the sums of its arrays. What reads the trees instead makes XLA write them out on a CPU.
    sums: Callable[..., tuple[PyTree, ...]]


class StrengthRule(NamedTuple):
    """Chooses λ0 anew at every update; goes where `lambda0` goes.

    `init(params)` returns the rule's state, `update(state, situation)` returns λ0 (a scalar, or a
    tree of scalars like the gradients) and the new state.
    """

    init: Callable[[PyTree], Any]
    update: Callable[[Any, Situation], tuple[PyTree, Any]]


def inner_products(one: PyTree, other: PyTree) -> PyTree:
    """The inner product of each pair of leaves, float32 scalars; 0 where one is `None`."""

    def product(a, b):
        if a is None or b is None:
            return jnp.zeros((), jnp.float32)
        return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32))

    return jax.tree.map(product, one, other, is_leaf=trees.is_none)


def total(tree: PyTree) -> jax.Array:
    """The sum of a tree of scalars."""
    return jnp.asarray(sum(jax.tree.leaves(tree)), jnp.float32)
