"""What a server offers a transformation, and what the transformation's state must fit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import rows, transforms, trees
from dcasgd_jax.typing import PyTree


def arguments(
    worker: Any,
    stale_params: PyTree | None,
    staleness: Any,
    about_batch: Mapping[str, Any],
    *,
    measures: bool = False,
) -> dict[str, Any]:
    """The extra arguments of an update: all that this server knows of a push.

    Args:
      worker: Whose push it is, an int32 scalar; None for a mean, which is nobody's.
      stale_params: The params that its gradient was taken at; None if no single ones exist or the
        server does not keep them.
      staleness: In versions, an int32 scalar; None where there is no one staleness.
      about_batch: What can be asked about the batch, see `work.Worker.about`.
      measures: Whether compensations shall be measured.
    """
    known = {"worker": worker, "stale_params": stale_params, "staleness": staleness}
    offered = {name: value for name, value in known.items() if value is not None}
    measured = {"measure_compensation": True} if measures else {}
    return {**offered, **about_batch, **measured}


def update(
    tx: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree, **offered: Any
) -> tuple[PyTree, PyTree]:
    """`tx.update` with what is offered, whether or not `tx` takes extra arguments.

    What was measured before is forgotten where it measures: an update that `tx` skips repeats none.
    """
    if offered.get("measure_compensation"):
        state = transforms.forget_measurement(state)
    return optax.with_extra_args_support(tx).update(grads, state, params, **offered)


def check_num_workers(states: PyTree, num_workers: int, *, or_more: bool = False) -> None:
    """Every state with a row per worker must have one for each: a traced index would clamp.

    Args:
      states: Of transformations.
      num_workers: M.
      or_more: Whether only the workers that push are known, of which there may be more.

    Raises:
      ValueError: If some `rows.PerWorker` in `states` has another number of rows.
    """
    for kept in trees.find_states(states, rows.PerWorker):
        count = num_workers if kept.num_workers is None else kept.num_workers
        if count < num_workers or (count > num_workers and not or_more):
            raise ValueError(
                f"The optimizer was made for num_workers={kept.num_workers}, but there are "
                f"{num_workers} workers: make it with num_workers={num_workers}."
            )


def check_mean(
    tx: optax.GradientTransformation, params: PyTree, why: str, *, has_stale_point: bool
) -> None:
    """`tx` gets a mean, which is no worker's, and may have no stale point.

    Args:
      tx: What gets it.
      params: Arrays, or their shapes and dtypes.
      why: It gets one; begins the message.
      has_stale_point: Whether all gradients of a mean were taken at the same params.

    Raises:
      ValueError: If `tx` needs what a mean has not, or would make up a stale point.
    """
    move = "out of tx and pass it as per_push=, which transforms each push before the mean is taken"
    no_point = (
        "so the mean has no single stale point to compensate: take the compensating "
        f"transformation {move}."
    )
    nobody = f"and a mean is of no worker in particular: take what asks for the worker {move}."
    stale = (params, jnp.int32(0)) if has_stale_point else (None, None)

    def one_update(params, stale):
        state, (stale_params, staleness) = tx.init(params), stale
        offered = arguments(None, stale_params, staleness, {})
        return state, update(tx, params, state, params, **offered)

    try:
        state, _ = jax.eval_shape(one_update, params, stale)
    except TypeError as error:
        if "stale" in str(error):
            raise ValueError(f"{why}, {no_point} ({error})") from error
        if "worker" in str(error):
            raise ValueError(f"{why}, {nobody} ({error})") from error
        raise
    guessing = (transforms.RememberPullsState, transforms.AssumeDelayState)
    if not has_stale_point and trees.find_states(state, *guessing):
        raise ValueError(f"{why}, {no_point}")
