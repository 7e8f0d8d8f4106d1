"""Trees of arrays as vectors: lengths, angles, best multiples, without leaving float32's range."""

import jax
import jax.numpy as jnp

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree


def norm(vector: PyTree) -> jax.Array:
    """The Euclidean length."""
    direction, scale = _split(vector)
    return scale * jnp.sqrt(_inner(direction, direction))


def cosine(one: PyTree, other: PyTree) -> jax.Array:
    """Of the angle between two vectors; nan if one of them is zero."""
    (one, _), (other, _) = _split(one), _split(other)
    lengths = jnp.sqrt(_inner(one, one)) * jnp.sqrt(_inner(other, other))
    return jnp.clip(trees.quotient(_inner(one, other), lengths, jnp.nan), -1.0, 1.0)


def best_multiple(vector: PyTree, other: PyTree) -> tuple[jax.Array, jax.Array]:
    """The λ that makes λ * `other` closest to `vector`, and the share of |vector|² it takes away.

    λ is 0 if `other` is zero; the share is nan if `vector` is zero.
    """
    (vector, scale), (other, other_scale) = _split(vector), _split(other)
    multiple = trees.quotient(_inner(vector, other), _inner(other, other), 0.0)
    left = jax.tree.map(lambda a, b: a - multiple * b, vector, other)
    share = 1 - trees.quotient(_inner(left, left), _inner(vector, vector), jnp.nan)
    return multiple * trees.quotient(scale, other_scale, 0.0), jnp.maximum(share, 0.0)


def _inner(one: PyTree, other: PyTree) -> jax.Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)
    return jnp.asarray(sum(jax.tree.leaves(products)))


def _split(vector: PyTree) -> tuple[PyTree, jax.Array]:
    """The vector divided by its largest entry, and that entry: squares of it stay in range."""
    largest = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(vector)]
    scale = jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())
    return jax.tree.map(lambda leaf: trees.quotient(leaf, scale, 0.0), vector), scale
