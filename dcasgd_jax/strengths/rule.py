"""What a rule for the strength λ0 is: two pure functions."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dcasgd_jax.typing import PyTree


class Coordinates(NamedTuple):
    """The same coordinates of the trees of a `Situation`: a leaf, or a part of one."""

    grads: jax.Array
    term: jax.Array
    curvature: Any  # an array; None for exact products


class Sums(Protocol):
    """Sums over the coordinates of each leaf, all in one pass over memory."""

    def __call__(
        self,
        *functions: Callable[[Coordinates], jax.Array],
        block_stride: int = 1,
        first_block: Any = 0,
    ) -> tuple[PyTree, ...]:
        """For each function a tree like the gradients: the sum of `function(coordinates)`.

        Args:
          *functions: Return an array; what they make of one coordinate must not depend on others.
          block_stride: k ≥ 1: estimate the sums of a large leaf from every k-th block of 16,384
            coordinates.
          first_block: Which one of k blocks to begin with, an int32 scalar in [0, k).

        Returns:
          Trees of float32 scalars.
        """
        ...


class Situation(NamedTuple):
    """What a rule may look at: one update, with the strength λ0 = 1; trees like the gradients."""

    grads: PyTree
    term: PyTree  # the compensation that λ0 = 1 would add, before any cap
    curvature: PyTree | None  # what the displacement is multiplied with; None for exact products
    max_curvature: Any  # the cap on λ0 times `curvature`, a scalar; None if there is none
    hessian_vector_product: Callable[[PyTree], PyTree] | None
    displacement: PyTree  # w - w_stale
    sums: Sums  # over coordinates; what reads the trees instead makes XLA write them out


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


def check_block_stride(block_stride) -> None:
    """Raises ValueError unless `block_stride` is a Python int >= 1."""
    if not isinstance(block_stride, int) or block_stride < 1:
        raise ValueError(f"block_stride must be a Python int >= 1, got {block_stride!r}.")
