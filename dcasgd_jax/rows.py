"""Arrays with a leading axis of workers, slots or ages: one row read and written in place."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.typing import PyTree, Scalar


def read_row(rows: jax.Array, index: Scalar) -> jax.Array:
    """Row `index` of `rows`."""
    return jax.lax.dynamic_index_in_dim(rows, index, axis=0, keepdims=False)


def write_row(rows: jax.Array, row: chex.Array, index: Scalar) -> jax.Array:
    """`rows` with row `index` replaced; in place when `rows` is donated.

    Raises:
      ValueError: If the row has another shape, of which only a part would be written.
    """
    if jnp.shape(row) != jnp.shape(rows)[1:]:
        raise ValueError(
            f"What is kept has rows of shape {jnp.shape(rows)[1:]}, but got {jnp.shape(row)}."
        )
    return jax.lax.dynamic_update_index_in_dim(rows, row.astype(rows.dtype), index, axis=0)


def repeat_row(row: chex.Array, count: int) -> jax.Array:
    """`count` copies of `row` along a new leading axis, in fresh memory, sharded like `row`."""
    return jnp.stack([jnp.asarray(row)] * count)


class PerWorker(NamedTuple):
    """What a state keeps for each worker: every leaf has a row for each.

    Whoever runs a transformation finds these nodes in its state and refuses a run of another
    number of workers: a traced index out of range would read somebody else's row.
    """

    rows: PyTree  # leaf [num_workers, ...]

    @property
    def num_workers(self) -> int | None:
        """How many rows every leaf has; None if there is no leaf."""
        return next((leaf.shape[0] for leaf in jax.tree.leaves(self.rows)), None)

    def read(self, worker: Scalar) -> PyTree:
        """The rows of one worker."""
        return jax.tree.map(lambda leaf: read_row(leaf, worker), self.rows)

    def write(self, worker: Scalar, tree: PyTree) -> "PerWorker":
        """With the rows of one worker replaced; in place when they are donated."""
        write = lambda leaf, row: write_row(leaf, jnp.asarray(row), worker)
        return PerWorker(jax.tree.map(write, self.rows, tree))

    def check(self, num_workers: int) -> None:
        """Raises ValueError unless there is a row for each of `num_workers`."""
        if self.num_workers not in (None, num_workers):
            raise ValueError(
                f"This optimizer state has rows for {self.num_workers} workers, but the optimizer "
                f"was made for num_workers={num_workers}: start from its own init, or make it for "
                f"{self.num_workers}."
            )


def repeat_for_workers(tree: PyTree, num_workers: int) -> PerWorker:
    """The same for every worker, in fresh memory."""
    return PerWorker(jax.tree.map(lambda leaf: repeat_row(leaf, num_workers), tree))


class Ring(NamedTuple):
    """The last few values of every leaf, each leaf with a length of its own."""

    rows: PyTree  # leaf [delay + 1, ...]; None where the delay is 0
    newest: jax.Array  # int32 [num_leaves], the row of each leaf that was written last


def init_ring(tree: PyTree, delays: PyTree) -> Ring:
    """A ring in which every row of a leaf is a copy of it; `delays` holds one int per leaf."""
    return Ring(
        rows=jax.tree.map(
            lambda leaf, delay: repeat_row(leaf, delay + 1) if delay else None, tree, delays
        ),
        newest=jnp.asarray(np.zeros(len(jax.tree.leaves(tree)), np.int32)),
    )


def ring_delays(ring: Ring, tree: PyTree) -> PyTree:
    """The delay of each leaf of `tree`, as Python ints."""
    return jax.tree.map(lambda _, rows: 0 if rows is None else rows.shape[0] - 1, tree, ring.rows)


def rotate_ring(ring: Ring, tree: PyTree) -> tuple[PyTree, Ring]:
    """Puts `tree` in, returns what was put in `delay` calls ago (the first row at the start)."""
    leaves, structure = jax.tree.flatten(tree)
    ring_rows: list[Any] = structure.flatten_up_to(ring.rows)
    newest = list(ring.newest)
    old_leaves = list(leaves)
    for i, (leaf, rows) in enumerate(zip(leaves, ring_rows, strict=True)):
        if rows is not None:
            num_rows: int = jnp.shape(rows)[0]
            newest[i] = (newest[i] + 1) % num_rows
            # Write, then read: the other order (one row less) makes XLA copy the whole ring.
            ring_rows[i] = write_row(rows, jnp.asarray(leaf), newest[i])
            oldest = read_row(ring_rows[i], (newest[i] + 1) % num_rows)
            old_leaves[i] = oldest.astype(jnp.result_type(leaf))
    return structure.unflatten(old_leaves), Ring(
        structure.unflatten(ring_rows), jnp.stack(newest) if newest else ring.newest
    )
