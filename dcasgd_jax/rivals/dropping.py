"""Gradients that are too stale are thrown away."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import gate, versions
from dcasgd_jax.typing import PyTree


@document_fields
class DropStaleState(NamedTuple):
    """State of `drop_stale`.

    Attributes:
      versions: Its version is the number of gradients that were applied.
      applied: Bool scalar: whether the last gradient was.
      inner_state: State of the wrapped transformation.
    """

    versions: versions.Versions
    applied: chex.Array
    inner_state: optax.OptState


def drop_stale(
    inner: optax.GradientTransformation, bound: int, *, num_workers: int | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Ringmaster ASGD: `inner` sees a gradient only if its staleness is below a bound.

    .. math:: w \leftarrow w - \gamma g \text{ if } \delta < R, \text{ else } w

    A dropped gradient makes zero updates and leaves the state of `inner` alone, so that its
    momentum and schedules do not advance. Its worker goes on from the current parameters.

    There are two ways to count δ. The paper's counts *applied* updates; it is used if
    `num_workers` is given, whatever `staleness` the loop reports. Without, δ is that `staleness`,
    which in a loop (or a simulator schedule such as `sim.Asynchronous`) that takes every push for
    a version counts the dropped ones too, and so drops more. The protocol `sim.DropStale` counts
    as the paper does and drops in the schedule; with it this transformation is not needed.

    Args:
      inner: Any optimizer. What remembers pulls, `dc.remember_pulls`, belongs around this
        transformation, not inside: it must see every push.
      bound: R ≥ 1 in server versions. A gradient is applied if δ < R: 1 keeps only fresh ones.
      num_workers: M ≥ 1: count the applied updates since each worker's last push here, and hand
        that to `inner` as `staleness`. A worker is taken to pull right after each push of its own.
        `None`: believe the `staleness` passed to `update`.

    Returns:
      A transformation with `update(updates, state, params=None, *, staleness)`, or
      `update(..., *, worker)` if `num_workers` is given; `worker` is an integer in
      `[0, num_workers)`. Extra arguments go on to `inner`. `state.applied` tells whether the last
      gradient was applied. Call it inside `jax.jit`: one by one, JAX compiles the choice again at
      every call.

    Raises:
      ValueError: For a hyperparameter out of range, a plain negative `staleness` or a plain
        `worker` out of range.
      TypeError: If `staleness` (or `worker`) is not passed or no integer.

    Source: Maranjyan, Tyurin and Richtárik, *Ringmaster ASGD: The First Asynchronous SGD with
    Optimal Time Complexity*, ICML 2025, the variant without stops.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.drop_stale(optax.sgd(0.1), bound=2)
      >>> state = tx.init(jnp.ones(2))
      >>> for staleness in (1, 2):
      ...     updates, state = tx.update(jnp.ones(2), state, staleness=staleness)
      ...     print(updates, state.applied)
      [-0.1 -0.1] True
      [0. 0.] False
    """
    bound = checks.check_count("bound", bound)
    if num_workers is not None:
        num_workers = checks.check_count("num_workers", num_workers)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        return DropStaleState(
            versions=versions.init_versions(num_workers),
            applied=jnp.zeros((), bool),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates, state, params=None, *positional, staleness=None, worker=None, **extra_args
    ) -> Any:
        update_checks.check_keywords_only(positional)
        staleness, row = versions.staleness_of(state.versions, num_workers, worker, staleness)
        applied = staleness < bound
        extra_args["staleness"] = staleness
        if worker is not None:
            extra_args["worker"] = worker
        updates, inner_state = gate.update_if(
            applied, inner, updates, state.inner_state, params, **extra_args
        )
        counted = versions.after_push(state.versions, row, applied)
        return updates, DropStaleState(counted, applied, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
