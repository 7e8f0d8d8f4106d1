"""A table of the last gradient of every worker: the server steps with their mean."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, rows, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class LastGradientsState(NamedTuple):
    """State of `last_gradients`.

    Attributes:
      table: The last gradient of each worker, leaf [num_workers, ...], at least float32.
      seen: Bool [num_workers], who has pushed.
    """

    table: rows.PerWorker
    seen: chex.Array


def last_gradients(num_workers: int) -> optax.GradientTransformationExtraArgs:
    r"""The mean of the last gradients of all workers: nobody is forgotten between two pushes.

    .. math:: G_m \leftarrow g, \qquad u = \frac{1}{|S|} \sum_{i \in S} G_i

    with S the workers that have pushed so far. Where workers have different data, asynchronous SGD
    is drawn to those that push often; here each has the same weight, and the price is that every
    update repeats gradients as old as their worker's last push. This is the incremental aggregated
    gradient (IAG, PIAG without a proximal step), and the table on which Ringleader ASGD is built;
    its rounds, in which every worker counts exactly once, need a protocol besides.

    Args:
      num_workers: M ≥ 1. The state holds M gradients, and every update reads all of them.

    Returns:
      A transformation with `update(updates, state, params=None, *, worker)`; unknown extra
      arguments are ignored.

    Raises:
      ValueError: For a plain `worker` out of range, or a state for another number of workers.
      TypeError: If `worker` is not passed to `update`.

    Source: Blatt, Hero and Gauchman, *A Convergent Incremental Gradient Method with a Constant Step
    Size*, SIAM J. Optim. 2007; Aytekin, Feyzmahdavian and Johansson, *Analysis and Implementation
    of an Asynchronous Optimization Algorithm for the Parameter Server*, 2016 (PIAG).

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.last_gradients(num_workers=2)
      >>> state = tx.init(jnp.zeros(1))
      >>> for worker, gradient in ((0, 1.0), (1, 3.0), (0, 5.0)):
      ...     updates, state = tx.update(jnp.array([gradient]), state, worker=worker)
      ...     print(updates)  # 1, then (1 + 3) / 2, then (5 + 3) / 2
      [1.]
      [2.]
      [4.]
    """
    num_workers = checks.check_count("num_workers", num_workers)

    def init_fn(params: PyTree) -> Any:
        zeros = trees.zeros_to_accumulate(params)
        return LastGradientsState(
            table=rows.repeat_for_workers(zeros, num_workers),
            seen=jnp.zeros(num_workers, bool),
        )

    def update_fn(updates, state, params=None, *positional, worker=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        state.table.check(num_workers)
        row = update_checks.checked_worker(worker, num_workers)
        last = trees.map_accumulators(lambda before, g: g, state.table.read(row), updates)
        table, seen = state.table.write(row, last), state.seen.at[row].set(True)
        count = jnp.sum(seen)
        # Rows of those who have not pushed are zeros.
        mean = jax.tree.map(lambda leaf: leaf.sum(axis=0) / count.astype(leaf.dtype), table.rows)
        direct = trees.map_updates(lambda g, m: m, updates, mean)
        return direct, LastGradientsState(table, seen)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
