"""Blocks of the parameters: which elements are read and written in one operation."""

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import rows, update_checks
from dcasgd_jax.typing import PyTree


def make_blocks(blocks: PyTree | None, params: PyTree, num_blocks: int) -> PyTree:
    """The block of every element, checked: int32 arrays, scalar or of the rank of their leaf.

    Args:
      blocks: A tree like `params` of integers, or of integer arrays that broadcast to their leaf
        without new axes; `None` makes every leaf a block, in the order of `jax.tree.leaves`.
      params: Arrays.
      num_blocks: Blocks that the reads or operations speak of.

    Raises:
      ValueError: If the blocks do not fit the params, or are not in `[0, num_blocks)`.
    """
    leaves, structure = jax.tree.flatten(params)
    if blocks is None:
        if len(leaves) != num_blocks:
            raise ValueError(
                f"The reads are of {num_blocks} blocks, but params have {len(leaves)} leaves: pass "
                "blocks=, a tree like params that says which block each element belongs to."
            )
        return structure.unflatten([np.int32(j) for j in range(num_blocks)])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    scalars = lambda tree: jax.tree.map(lambda _: 0, tree)
    update_checks.check_like_params("blocks", scalars(blocks), scalars(params))
    checked = []
    for name, given, leaf in zip(names, jax.tree.leaves(blocks), leaves, strict=True):
        block = np.asarray(given)
        fits = block.ndim in (0, jnp.ndim(leaf)) and all(
            size in (1, wanted)
            for size, wanted in zip(block.shape, jnp.shape(leaf)[: block.ndim], strict=True)
        )
        if not np.issubdtype(block.dtype, np.integer) or not fits:
            raise ValueError(
                f"blocks{name} is {block.dtype}{list(block.shape)}, but must be integers that "
                f"broadcast to the parameter's shape {jnp.shape(leaf)} with as many axes."
            )
        if ((block < 0) | (block >= num_blocks)).any():
            raise ValueError(f"blocks{name} holds blocks that are not in [0, {num_blocks}).")
        checked.append(block.astype(np.int32))
    return structure.unflatten(checked)


def one_block(params: PyTree) -> PyTree:
    """All parameters in block 0: consistent reads."""
    return jax.tree.map(lambda _: np.int32(0), params)


def gather(slots: PyTree, blocks: PyTree, read_slots: jax.Array) -> PyTree:
    """A view: of every leaf `[num_slots, ...]`, each element from the slot of its block."""

    def view(versions, block):
        slot = read_slots[block]
        if slot.ndim == 0:
            return rows.read_row(versions, slot)
        return jnp.take_along_axis(versions, slot[None], axis=0)[0]

    return jax.tree.map(view, slots, blocks)


def put(blocks: PyTree, block: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`old` with the elements of one block taken from `new`."""
    return jax.tree.map(
        lambda of, new, old: jnp.where(of == block, new.astype(old.dtype), old), blocks, new, old
    )
