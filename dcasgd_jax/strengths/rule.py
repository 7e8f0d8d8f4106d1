"""What a rule for the strength λ0 is: two pure functions."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax.typing import PyTree


class Situation(NamedTuple):
    """What a rule may look at: one update, with the strength λ0 = 1; trees like the gradients."""

    grads: PyTree
    term: PyTree  # the compensation that λ0 = 1 would add, before any cap
    curvature: PyTree | None  # what the displacement is multiplied with; None for exact products
    max_curvature: Any  # the cap on λ0 times `curvature`, a scalar; None if there is none
    hessian_vector_product: Callable[[PyTree], PyTree] | None
    displacement: PyTree  # w - w_stale


class StrengthRule(NamedTuple):
    """Chooses λ0 anew at every update; goes where `lambda0` goes.

    `init(params)` returns the rule's state, `update(state, situation)` returns λ0 (a scalar, or a
    tree of scalars like the gradients) and the new state.
    """

    init: Callable[[PyTree], Any]
    update: Callable[[Any, Situation], tuple[PyTree, Any]]


def inner_products(one: PyTree, other: PyTree) -> PyTree:
    """The inner product of each pair of leaves, float32 scalars."""
    product = lambda a, b: jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32))
    return jax.tree.map(product, one, other)


def total(tree: PyTree) -> jax.Array:
    """The sum of a tree of scalars."""
    return jnp.asarray(sum(jax.tree.leaves(tree)), jnp.float32)


def quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient; 0 where the denominator is 0, so that no displacement means no strength."""
    nothing = denominator == 0
    return jnp.where(nothing, 0.0, numerator / jnp.where(nothing, 1.0, denominator))


def check_numbers(**numbers_by_name) -> None:
    """Raises ValueError for a plain number that is negative or not finite; `decay` is below 1."""
    for name, value in numbers_by_name.items():
        if not isinstance(value, numbers.Real):
            continue
        if not (math.isfinite(value) and float(value) >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
        if name == "decay" and float(value) >= 1:
            raise ValueError(f"decay must lie in [0, 1), got {value!r}.")
