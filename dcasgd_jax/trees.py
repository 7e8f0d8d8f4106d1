"""Arithmetic on trees of updates: `None` leaves, accumulators, 16-bit dtypes, states inside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax.typing import PyTree


def is_none(leaf) -> bool:
    """Whether a leaf has no value."""
    return leaf is None


def is_function(value: Any) -> bool:
    """Whether a value is a function, and not a tree whose type can be called as well.

    Modules of several libraries are trees of parameters with a `__call__`.
    """
    return callable(value) and jax.tree.leaves(value) == [value]


def wide_dtype(*arrays) -> jnp.dtype:
    """The dtype to compute in: that of the arrays together, but never less than float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def widened(tree: PyTree) -> PyTree:
    """The tree in float32, or wider where it is."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, wide_dtype(leaf)), tree)


def zeros_to_accumulate(params: PyTree) -> PyTree:
    """Zeros shaped like `params`, of at least float32; they inherit the params' sharding."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p)), params)


def find_states(tree: PyTree, *kinds: type) -> list[Any]:
    """Every node of these types in a tree, at any depth, but none inside another."""
    is_one = lambda node: isinstance(node, kinds)
    return list(filter(is_one, jax.tree.leaves(tree, is_leaf=is_one)))


def map_states(function: Callable[[Any], Any], tree: PyTree, kind: type) -> PyTree:
    """The tree with every node of a type, as `find_states` finds them, replaced."""
    is_one = lambda node: isinstance(node, kind)
    replace = lambda node: function(node) if is_one(node) else node
    return jax.tree.map(replace, tree, is_leaf=is_one)


def quotient(numerator, denominator, otherwise: float = 0.0) -> jax.Array:
    """The quotient, or `otherwise` where it would be divided by zero."""
    is_zero = jnp.asarray(denominator) == 0
    return jnp.where(is_zero, otherwise, numerator / jnp.where(is_zero, 1.0, denominator))


def map_updates(function: Callable, updates: PyTree, *trees: PyTree) -> PyTree:
    """`function(update, ...)` of every leaf, computed wide and rounded back; `None` stays `None`.

    Args:
      function: Takes an update of at least float32 and the leaves of `trees`.
      updates: A tree of floating-point arrays or `None`.
      *trees: Trees with a leaf (or `None`) wherever `updates` has an array.

    Returns:
      A tree like `updates`, with its dtypes.
    """

    def apply(update, *rest):
        if update is None:
            return None
        update = jnp.asarray(update)
        return jnp.asarray(function(update.astype(wide_dtype(update)), *rest)).astype(update.dtype)

    return jax.tree.map(apply, updates, *trees, is_leaf=is_none)


def map_columns(function: Callable, updates: PyTree, *columns: PyTree) -> list[PyTree]:
    """Trees of the results of `function(update, ...)`, which takes `None` as any other leaf.

    Args:
      function: Takes an update and what each of `columns` has in its place, which may be a tree or
        `None`; returns a tuple.
      updates: A tree of arrays or `None`.
      *columns: Trees with something wherever `updates` has a leaf.

    Returns:
      A tree like `updates` for each result; none at all where `updates` has no leaf.
    """
    structure = jax.tree.structure(updates, is_leaf=is_none)
    leaves = zip(*map(structure.flatten_up_to, (updates, *columns)), strict=True)
    results = [function(*of_leaf) for of_leaf in leaves]
    return [structure.unflatten(column) for column in zip(*results, strict=True)]


def map_accumulators(function: Callable, accumulators: PyTree, updates: PyTree) -> PyTree:
    """`function(accumulator, update)` in the accumulator's dtype; kept where there is no update."""

    def apply(update, accumulator):
        if update is None:
            return accumulator
        new = function(accumulator, jnp.asarray(update).astype(accumulator.dtype))
        return new.astype(accumulator.dtype)

    return jax.tree.map(apply, updates, accumulators, is_leaf=is_none)


def fill_missing(updates: PyTree, params: PyTree) -> PyTree:
    """`updates` with zeros in place of `None`, for an optimizer whose state has every parameter."""
    fill = lambda g, p: jnp.zeros_like(p) if g is None and p is not None else g
    return jax.tree.map(fill, updates, params, is_leaf=is_none)


def drop_filled(updates: PyTree, given: PyTree) -> PyTree:
    """`updates` with `None` wherever `given` has it."""
    return jax.tree.map(lambda g, u: None if g is None else u, given, updates, is_leaf=is_none)
