"""Sums over all coordinates of what is computed from them, in one pass over memory."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# So many coordinates are computed together on a CPU: few enough for its caches.
BLOCK = 16384

Function = Callable[..., tuple[jax.Array, ...]]


def sum_coordinates(function: Function, operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Sums of what `function` makes of each coordinate.

    On a CPU, XLA would write out whatever leads to two sums, or to a sum and to something else
    later. So large arrays are walked through there in blocks, of which nothing is kept.

    Args:
      function: Takes the same part of each operand, as arrays of one shape; returns arrays of that
        shape. What it makes of one coordinate must not depend on others.
      operands: Arrays of one shape, at least one.

    Returns:
      Float32 scalars, as many as `function` returns arrays.
    """
    operands = [jnp.asarray(operand) for operand in operands]
    size = math.prod(operands[0].shape)
    num_blocks = size // BLOCK
    if num_blocks < 2 or any(map(_is_split, operands)):
        return _sum_all(function, operands)
    length = num_blocks * BLOCK

    def in_blocks(*operands):
        flat = [operand.reshape(-1) for operand in operands]
        sums = _walk(function, flat, num_blocks)
        if length == size:
            return tuple(sums)
        rest = _sum_all(function, [operand[length:] for operand in flat])
        return tuple(map(jnp.add, sums, rest))

    at_once = lambda *operands: _sum_all(function, operands)
    return jax.lax.platform_dependent(*operands, cpu=in_blocks, default=at_once)


def _walk(function: Function, flat: Sequence[jax.Array], num_blocks: int) -> list[jax.Array]:
    """The sums over the blocks."""

    def of_block(number) -> list[jax.Array]:
        start = jnp.asarray(number, jnp.int32) * BLOCK
        parts = [jax.lax.dynamic_slice_in_dim(operand, start, BLOCK) for operand in flat]
        return [part.astype(jnp.float32) for part in function(*parts)]

    # A sum for each place in a block, so that XLA need not add numbers one by one.
    add = lambda number, sums: jax.tree.map(jnp.add, sums, of_block(number))
    sums = jax.lax.fori_loop(1, num_blocks, add, of_block(0))
    return [jnp.sum(places) for places in sums]


def _sum_all(function: Function, operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jnp.sum(part, dtype=jnp.float32) for part in function(*operands))


def _is_split(array: jax.Array) -> bool:
    """Whether the type of an array says over which axes of a mesh it is spread."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)
