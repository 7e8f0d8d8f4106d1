"""Leaves as matrices, turned by orthogonal ones, whose eigenvectors are computed seldom."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_ALWAYS_FIRST = 3  # pushes whose basis is too young to be kept


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


def lying(matrix: jax.Array) -> jax.Array:
    """A matrix with its shorter side as the rows: itself, or its transpose."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def like(matrix: jax.Array, leaf: Any) -> jax.Array:
    """A matrix as the leaf that it is of, spread as that is."""
    made = matrix.reshape(jnp.shape(leaf))
    spec = jax.typeof(jnp.asarray(leaf)).sharding.spec
    split = any(axis is not None for axis in spec)
    return jax.sharding.reshard(made, PartitionSpec(*spec)) if split else made


def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in the precision of its operands, on every device."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def block_length(length: int, longest: int) -> int:
    """The largest divisor of a side's length that is at most `longest`."""
    return next(size for size in range(min(length, longest), 0, -1) if length % size == 0)


def row_blocks(matrix: jax.Array, factor: jax.Array) -> jax.Array:
    """[rows, columns] as [blocks, length, columns], cut as a factor [blocks, length, length] is."""
    return matrix.reshape(*factor.shape[:2], matrix.shape[1])


def turn(leaf: jax.Array, left: jax.Array, right: jax.Array | None = None) -> jax.Array:
    """`left @ leaf @ right`, shaped like the leaf.

    Args:
      leaf: Seen as a matrix.
      left: The blocks of a block diagonal matrix, [blocks, length, length]; a side with blocks of
        length 1 stays as it is.
      right: Likewise, of the other side; `None` leaves it.
    """
    turned = matrix(leaf)
    if left.shape[-1] > 1:
        turned = _turn_rows(left, turned)
    if right is not None and right.shape[-1] > 1:
        turned = _turn_rows(right.mT, turned.T).T
    return like(turned, leaf)


def _turn_rows(blocks: jax.Array, matrix: jax.Array) -> jax.Array:
    return multiply(blocks, row_blocks(matrix, blocks)).reshape(matrix.shape)


def is_due(count: jax.Array, every: int) -> jax.Array:
    """Whether a basis is computed anew: at the first three pushes, then at every `every`-th."""
    return (count < _ALWAYS_FIRST) | (count % every == 0)


# Functions of the module, so that outside of jit they are compiled once and not at every call.
def _eigenvectors(is_due: jax.Array, moment: jax.Array, basis: jax.Array) -> jax.Array:
    new = jax.lax.platform_dependent(moment, cpu=_one_by_one, default=_all_at_once)
    return jnp.where(is_due[..., None, None, None], new, basis)


def _all_at_once(moments: jax.Array) -> jax.Array:
    return jnp.linalg.eigh(moments)[1]


def _one_by_one(moments: jax.Array) -> jax.Array:
    """On the CPU a batch can wait for ever for threads that other batches hold, which wait too."""
    side = moments.shape[-1]
    return jax.lax.map(_all_at_once, moments.reshape(-1, side, side)).reshape(moments.shape)


def _keep(is_due: jax.Array, moment: jax.Array, basis: jax.Array) -> jax.Array:
    del is_due, moment
    return basis


@jax.custom_batching.custom_vmap
def refreshed(is_due: jax.Array, moment: jax.Array, basis: jax.Array) -> jax.Array:
    """The bases that are due, anew; arguments [...] and two [..., blocks, length, length]."""
    return jax.lax.cond(jnp.any(is_due), _eigenvectors, _keep, is_due, moment, basis)


@refreshed.def_vmap
def _refresh_batch(axis_size, is_batched, *arguments):
    """One condition for the batch: one for each member would compute eigenvectors at every push."""
    repeat = lambda leaf: jnp.broadcast_to(leaf, (axis_size, *jnp.shape(leaf)))
    pairs = zip(arguments, is_batched, strict=True)
    return refreshed(*(leaf if batched else repeat(leaf) for leaf, batched in pairs)), True
