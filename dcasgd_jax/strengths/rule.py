"""What a rule for the strength λ0 is: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class Coordinates(NamedTuple):
    """The same coordinates of the trees of a `Situation`: a leaf, or a part of one.

    Attributes:
      grads: The gradient.
      term: The compensation that λ0 = 1 would add.
      curvature: An array; None if the curvature has none.
    """

    grads: jax.Array
    term: jax.Array
    curvature: Any = None


@document_fields
class Situation(NamedTuple):
    """What a rule may look at: one update, with the strength λ0 = 1; trees like the gradients.

    Attributes:
      grads: The stale gradient.
      term: The compensation that λ0 = 1 would add, before any cap.
      curvature: Of each coordinate that is capped; None if the curvature has none.
      max_curvature: The cap on λ0 times `curvature`, a scalar; None if there is none.
      hessian_vector_product: Of the loss at the stale params, if the server offers it; else
        None.
      displacement: w - w_stale.
      sums: `sums(*functions)` of `Coordinates` to an array: for each function a tree like the
        gradients of the sums of its arrays. What reads the trees instead makes XLA write them
        out on a CPU.
    """

    grads: PyTree
    term: PyTree
    curvature: PyTree | None
    max_curvature: Any
    hessian_vector_product: Callable[[PyTree], PyTree] | None
    displacement: PyTree
    sums: Callable[..., tuple[PyTree, ...]]


@document_fields
class StrengthRule(NamedTuple):
    """Chooses λ0 anew at every update; goes where `lambda0` goes.

    `init(params)` returns the rule's state, `update(state, situation)` returns λ0 (a scalar, or a
    tree of scalars like the gradients) and the new state.

    Attributes:
      init: `init(params)` returns the state of the rule.
      update: `update(state, situation)` returns λ0, a scalar or a tree of one per leaf, and
        the new state.
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


def average(decay: Scalar, old: PyTree, new: PyTree) -> PyTree:
    """Running means of scalars; all stay as they are where one of the new values is not finite."""
    are_finite = jnp.isfinite(total(new))
    mean = lambda old, new: jnp.where(are_finite, decay * old + (1 - decay) * new, old)
    return jax.tree.map(mean, old, new)


def total(tree: PyTree) -> jax.Array:
    """The sum of a tree of scalars."""
    return jnp.asarray(sum(jax.tree.leaves(tree)), jnp.float32)
