"""Leaves over several servers: each has a part of the model, and versions of its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dcasgd_jax.runtime.layout import Layout, make_layout, make_layout_of_model_state
from dcasgd_jax.typing import PyTree


class Part(NamedTuple):
    """What a server begins with; of all of them together, what the model does."""

    params: PyTree
    model_state: PyTree | None = None  # of the whole model; the first server has it


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it is a static argument of jit
class Split:
    """Which server has which leaf."""

    structure: Any
    owner: tuple[int, ...]  # shard of each leaf
    layouts: tuple[Layout, ...]
    model_state: Layout | None = None

    def parts(self, whole: Part) -> list[Part]:
        """What each server begins with."""
        shards = range(len(self.layouts))
        states = [whole.model_state, *[None] * (len(self.layouts) - 1)]
        return [Part(self.subtree(whole.params, shard), states[shard]) for shard in shards]

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


def make_split(whole: Part, num_shards: int, wire_dtype: str | None = None) -> Split:
    """Deals the params out, the largest first, each to the shard with the fewest bytes so far.

    Raises:
      ValueError: If there are fewer leaves than shards.
    """
    leaves, structure = jax.tree.flatten(whole.params)
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
    subtrees = [split.subtree(whole.params, shard) for shard in range(num_shards)]
    made = tuple(make_layout(subtree, wire_dtype) for subtree in subtrees)
    state = whole.model_state
    of_state = None if state is None else make_layout_of_model_state(state)
    return dataclasses.replace(split, layouts=made, model_state=of_state)
