"""Leaves over several servers: each has a part of the model, and versions of its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dcasgd_jax.runtime import layout as layouts
from dcasgd_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it is a static argument of jit
class Split:
    """Which server has which leaf."""

    structure: Any
    owner: tuple[int, ...]  # shard of each leaf
    layouts: tuple[layouts.Layout, ...]

    def subtree(self, tree: PyTree, shard: int) -> PyTree:
        """The tree with None for the leaves of other shards: names of leaves stay what they are."""
        leaves = self.structure.flatten_up_to(tree)
        kept = [x if s == shard else None for x, s in zip(leaves, self.owner, strict=True)]
        return self.structure.unflatten(kept)

    def merge(self, subtrees: Sequence[PyTree]) -> PyTree:
        """The whole tree of all subtrees."""
        leaves = [iter(jax.tree.leaves(subtree)) for subtree in subtrees]
        return self.structure.unflatten([next(leaves[shard]) for shard in self.owner])

    def from_wire(self, arrays: Sequence[Sequence[jax.Array | np.ndarray]]) -> PyTree:
        """The whole tree of the leaves from all shards; traceable."""
        parts = zip(self.layouts, arrays, strict=True)
        return self.merge([layout.from_wire(leaves) for layout, leaves in parts])

    def to_wire(self, tree: PyTree) -> list[list[jax.Array]]:
        """The leaves for all shards; traceable."""
        shards = enumerate(self.layouts)
        return [layout.to_wire(self.subtree(tree, shard)) for shard, layout in shards]


def make_split(params: PyTree, num_shards: int, wire_dtype: str | None = None) -> Split:
    """Deals the leaves out, the largest first, each to the shard with the fewest bytes so far.

    Raises:
      ValueError: If there are fewer leaves than shards.
    """
    leaves, structure = jax.tree.flatten(params)
    if not 1 <= num_shards <= max(len(leaves), 1):
        raise ValueError(
            f"num_shards is {num_shards}, but must be in [1, {len(leaves)}]: leaves are not cut."
        )
    sizes = [np.size(leaf) * jax.dtypes.result_type(leaf).itemsize for leaf in leaves]
    load, owner = [0] * num_shards, [0] * len(leaves)
    for index in sorted(range(len(leaves)), key=lambda index: -sizes[index]):
        owner[index] = load.index(min(load))
        load[owner[index]] += max(sizes[index], 1)
    split = Split(structure, tuple(owner), ())
    made = [
        layouts.make_layout(split.subtree(params, shard), wire_dtype) for shard in range(num_shards)
    ]
    return dataclasses.replace(split, layouts=tuple(made))
