"""Members of a sweep: what is one for all of them, and what each has for itself."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.typing import PyTree


class PerMember:
    """One value for each member of a sweep; a bare value is one for all of them.

    Explicit, because a list of values is itself a tree of parameters or batches.

    Args:
      values: In the order of the members, at least one.

    Example:
      >>> from dcasgd_jax import sim
      >>> schedules = sim.PerMember(
      ...     sim.make_schedule(sim.GammaTime(), 4, 100, seed=seed) for seed in range(3))
      >>> len(schedules)
      3
    """

    def __init__(self, values: Iterable[Any]):
        self.values = tuple(values)

    def __len__(self) -> int:
        """Number of members."""
        return len(self.values)

    def __repr__(self) -> str:
        """How many values there are; they may be large."""
        return f"PerMember({len(self)} values)"


def grid(**axes: Iterable[Any]) -> dict[str, np.ndarray]:
    """Every combination of some values, the last name fastest.

    Args:
      axes: Names and the values of each.

    Returns:
      For each name an array `[num_members]`, as `sim.sweep` takes its hyperparameters.

    Example:
      >>> from dcasgd_jax import sim
      >>> members = sim.grid(learning_rate=[0.1, 0.2], seed=range(2))
      >>> seeds = members.pop("seed")
      >>> members["learning_rate"].tolist(), seeds.tolist()
      ([0.1, 0.1, 0.2, 0.2], [0, 1, 0, 1])
    """
    values = {name: list(values) for name, values in axes.items()}
    empty = [name for name, of_name in values.items() if not of_name]
    if empty:
        raise ValueError(f"The grid has no values for {empty[0]}: give at least one.")
    columns = zip(*itertools.product(*values.values()), strict=True)
    return {name: np.asarray(column) for name, column in zip(values, columns, strict=True)}


def count(hyperparams: Mapping[str, Any], **given: Any) -> int:
    """How many members there are; ValueError unless everything that is per member agrees."""
    lengths = {f"hyperparams[{name!r}]": _length(name, v) for name, v in hyperparams.items()}
    lengths |= {name: len(value) for name, value in given.items() if isinstance(value, PerMember)}
    if not lengths:
        raise ValueError(
            "A sweep of what? Pass hyperparams={name: values}, or wrap what differs between "
            "members in sim.PerMember([...])."
        )
    if len(set(lengths.values())) > 1:
        raise ValueError(f"These must have one value per member, but have {lengths}.")
    num_members = next(iter(lengths.values()))
    if not num_members:
        raise ValueError(f"The sweep has no members: {', '.join(lengths)} is empty.")
    return num_members


def _length(name: str, values: Any) -> int:
    if not np.ndim(values):
        raise ValueError(f"hyperparams[{name!r}] is a scalar: pass one value per member.")
    return len(values)


def spread(given: Any, num_members: int) -> list[Any]:
    """The value of each member."""
    return list(given.values) if isinstance(given, PerMember) else [given] * num_members


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gathered:
    """One tree per member; what is the same for all members is kept once.

    A value that all share stays without an axis of members, so that a branch on it remains a
    branch and a slice at it remains a slice in the vectorized program.
    """

    own: list[Any]  # leaf [num_members, ...]
    common: list[Any]
    is_own: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})

    def member(self, own: list[Any]) -> PyTree:
        """The tree of the member with these leaves of its own."""
        mine, common = iter(own), iter(self.common)
        leaves = [next(mine) if is_own else next(common) for is_own in self.is_own]
        return jax.tree.unflatten(self.structure, leaves)


def check_alike(what: str, trees: Sequence[PyTree]) -> None:
    """Raises ValueError unless the trees of all members have one structure, shapes and dtypes."""
    structure = jax.tree.structure(trees[0])
    for member, tree in enumerate(trees):
        if jax.tree.structure(tree) != structure:
            raise ValueError(
                f"The {what} of all members must have one structure, but member {member} has "
                f"{jax.tree.structure(tree)} and member 0 {structure}."
            )
    for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
        shapes = sorted({np.shape(leaf) for leaf in leaves})
        if len(shapes) > 1:
            raise ValueError(
                f"The {what} of all members must have one shape, got {shapes[0]} and {shapes[1]}."
            )
        dtypes = sorted({str(jax.dtypes.result_type(leaf)) for leaf in leaves})
        if len(dtypes) > 1:
            raise ValueError(
                f"The {what} of all members must have one dtype, got {dtypes[0]} and {dtypes[1]}: "
                "convert them, or sweep them apart."
            )


def gather(what: str, trees: Sequence[PyTree]) -> Gathered:
    """Stacks the trees of all members, except for leaves that are the same for all."""
    check_alike(what, trees)
    own, common, is_own = [], [], []
    for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
        is_own.append(not all(_same(leaf, leaves[0]) for leaf in leaves[1:]))
        if not is_own[-1]:
            common.append(leaves[0])
            continue
        on_device = any(isinstance(leaf, jax.Array) for leaf in leaves)
        own.append(jnp.stack(leaves) if on_device else np.stack(leaves))
    return Gathered(own, common, tuple(is_own), jax.tree.structure(trees[0]))


def _same(leaf: Any, other: Any) -> bool:
    """Whether two leaves are one; what is on the device is not compared number by number."""
    if leaf is other:
        return True
    if isinstance(leaf, jax.Array) or isinstance(other, jax.Array):
        return False
    leaf, other = np.asarray(leaf), np.asarray(other)
    if (leaf.dtype, leaf.shape) != (other.dtype, other.shape):
        return False
    # Byte by byte: 0.0 and -0.0 are equal numbers, but not one.
    as_bytes = lambda array: np.ascontiguousarray(array).view(np.uint8)
    return np.array_equal(as_bytes(leaf), as_bytes(other))
