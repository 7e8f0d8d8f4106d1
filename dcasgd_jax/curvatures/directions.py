"""A leaf seen as a matrix [inputs, outputs], and turned into the basis of another curvature."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a leaf as a matrix: the last axis is the output; vectors are one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return math.prod(shape[:-1]), shape[-1]


def matrix(leaf: Any) -> jax.Array:
    """A leaf as a matrix, whole on every device where its type says over which it is spread."""
    leaf = jnp.asarray(leaf)
    spec = jax.typeof(leaf).sharding.spec
    if any(axis is not None for axis in spec):
        leaf = jax.sharding.reshard(leaf, PartitionSpec(*[None] * leaf.ndim))
    return leaf.reshape(sides(leaf.shape))


def like(matrix: jax.Array, leaf: Any) -> jax.Array:
    """A matrix as the leaf that it is of, spread as that is."""
    made = matrix.reshape(jnp.shape(leaf))
    spec = jax.typeof(jnp.asarray(leaf)).sharding.spec
    split = any(axis is not None for axis in spec)
    return jax.sharding.reshard(made, PartitionSpec(*spec)) if split else made


def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in the precision of its operands, on every device."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def turn(leaf: jax.Array, left: jax.Array, right: jax.Array | None = None) -> jax.Array:
    """`left @ leaf @ right`, shaped like the leaf; a side with a 1x1 factor stays as it is."""
    turned = matrix(leaf)
    if left.shape[0] > 1:
        turned = multiply(left, turned)
    if right is not None and right.shape[0] > 1:
        turned = multiply(turned, right)
    return like(turned, leaf)
