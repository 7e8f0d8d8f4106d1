"""Sums over all coordinates of what is computed from them, in one pass over memory."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax.transforms import rows

# So many coordinates are computed together on a CPU: few enough for its caches.
BLOCK = 16384

Operand = jax.Array | rows.Row
Function = Callable[..., tuple[jax.Array, ...]]


def sum_coordinates(
    function: Function, operands: Sequence[Operand], *, block_stride: int = 1, first_block: Any = 0
) -> tuple[jax.Array, ...]:
    """Sums of what `function` makes of each coordinate.

    On a CPU, XLA would write out whatever leads to two sums, or to a sum and to something else
    later. So large arrays are walked through there in blocks, of which nothing is kept.

    Args:
      function: Takes the same part of each operand, as arrays of one shape; returns arrays of that
        shape. What it makes of one coordinate must not depend on others.
      operands: Arrays of one shape, or rows of that shape; at least one.
      block_stride: k ≥ 1: estimate the sums of a large array from every k-th block.
      first_block: Which one of k blocks to begin with, an int32 scalar in [0, k).

    Returns:
      Float32 scalars, as many as `function` returns arrays.
    """
    operands = [operand if rows.is_row(operand) else jnp.asarray(operand) for operand in operands]
    size = math.prod(rows.shape_of(operands[0]))
    num_groups = size // (BLOCK * block_stride)
    if num_groups < 2 or any(map(_is_sharded, operands)):
        return _sum_all(function, operands)
    length = num_groups * block_stride * BLOCK

    def with_rest(sums: Sequence[jax.Array], operands) -> tuple[jax.Array, ...]:
        sums = [block_stride * total for total in sums]
        if length == size:
            return tuple(sums)
        rest = _sum_all(function, [_flat(operand)[length:] for operand in operands])
        return tuple(map(jnp.add, sums, rest))

    def in_blocks(*operands):
        step = block_stride * BLOCK
        start = jnp.asarray(first_block, jnp.int32) * BLOCK
        return with_rest(_walk(function, operands, start, step, num_groups), operands)

    def at_once(*operands):
        if block_stride == 1:
            return _sum_all(function, operands)
        shape = (num_groups, block_stride, BLOCK)
        blocks = [_flat(operand)[:length].reshape(shape) for operand in operands]
        chosen = [jax.lax.dynamic_index_in_dim(block, first_block, axis=1) for block in blocks]
        return with_rest(_sum_all(function, chosen), operands)

    return jax.lax.platform_dependent(*operands, cpu=in_blocks, default=at_once)


def _walk(function, operands, start: jax.Array, step: int, num_blocks: int) -> list[jax.Array]:
    """The sums over blocks whose first coordinates are `step` apart."""

    def of_block(number) -> list[jax.Array]:
        at = start + step * jnp.asarray(number, jnp.int32)
        parts = function(*(_block(operand, at) for operand in operands))
        return [part.astype(jnp.float32) for part in parts]

    # A sum for each place in a block, so that XLA need not add numbers one by one.
    add = lambda number, sums: jax.tree.map(jnp.add, sums, of_block(number))
    sums = jax.lax.fori_loop(1, num_blocks, add, of_block(0))
    return [jnp.sum(places) for places in sums]


def _sum_all(function, operands) -> tuple[jax.Array, ...]:
    parts = function(*map(rows.read, operands))
    return tuple(jnp.sum(part, dtype=jnp.float32) for part in parts)


def _flat(operand) -> jax.Array:
    return rows.read(operand).reshape(-1)


def _block(operand, start) -> jax.Array:
    if not isinstance(operand, rows.Row):
        return jax.lax.dynamic_slice_in_dim(operand.reshape(-1), start, BLOCK)
    flat = operand.rows.reshape(operand.rows.shape[0], -1)
    return jax.lax.dynamic_slice(flat, (jnp.asarray(operand.number, jnp.int32), start), (1, BLOCK))[
        0
    ]


def _is_sharded(operand) -> bool:
    """Whether the type of an array says over which axes of a mesh it is spread."""
    array = operand.rows if isinstance(operand, rows.Row) else operand
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)
