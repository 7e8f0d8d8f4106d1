"""What curvatures that know directions share: leaves as matrices, and the size of a batch."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dcasgd_jax import checks, update_checks

_WHAT = (
    "the number of terms in the mean that this gradient is (images, or tokens that are not "
    "masked). sim.simulate passes it where an array of the batch has one entry per example, such "
    "as a label, and none can be tokens. Or write the number into the curvature"
)


def check_batch_size(batch_size: int | None) -> None:
    """Raises where `batch_size` is neither None nor a count."""
    if batch_size is not None:
        checks.check_count("batch_size", batch_size)


def needs(batch_size: int | None) -> tuple[tuple[str, str], ...]:
    """For `Curvature.needs`: the batch size, where it comes with each push."""
    return (("batch_size", _WHAT),) if batch_size is None else ()


def num_terms(of_curvature: int | None, batch_size: Any = None) -> Any:
    """The number of terms: that of the curvature, else the one that came with the push."""
    if of_curvature is not None:
        return of_curvature
    return update_checks.checked_batch_size(batch_size)


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


def memory_bytes() -> float:
    """What the first device can hold, or this machine; infinite where nobody says."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device and "bytes_limit" in of_device:
        return of_device["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


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
