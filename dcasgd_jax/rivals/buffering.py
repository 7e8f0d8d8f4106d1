"""A server that waits for a few pushes before it updates."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import gate, versions
from dcasgd_jax.rivals import staleness as rules
from dcasgd_jax.typing import PyTree

_HALF_POWER = rules.polynomial_staleness(0.5)


@document_fields
class FedBuffState(NamedTuple):
    """State of `fedbuff`.

    Attributes:
      versions: Its version is the number of updates that were made.
      num_buffered: Int32 scalar in [0, buffer_size).
      total: Like params, at least float32: the weighted sum; outdated if none is buffered.
      inner_state: State of the wrapped transformation.
    """

    versions: versions.Versions
    num_buffered: chex.Array
    total: PyTree
    inner_state: optax.OptState


def fedbuff(
    inner: optax.GradientTransformation,
    buffer_size: int,
    *,
    rule: rules.StalenessRule = _HALF_POWER,
    num_workers: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FedBuff: one update with the weighted sum of K pushes, divided by K.

    .. math:: \bar u = \frac{1}{K} \sum_{i=1}^{K} s(\tau_i) \, u_i, \qquad
              s(\tau) = (1 + \tau)^{-1/2}

    The weights are not normalised: a buffer of stale pushes makes a smaller step. While the buffer
    fills the updates are zero and `inner` is left alone. In the simulator use instead the protocol
    `sim.Buffered(K)` with `sim.Server(tx, per_push=scale_by_staleness(rule))`: the same.

    Args:
      inner: The server's optimizer, for example `optax.sgd(server_learning_rate)`.
      buffer_size: K ≥ 1 pushes per update.
      rule: s(τ), as in `scale_by_staleness`.
      num_workers: M ≥ 1: count the updates since each worker's last push here; a worker is taken to
        pull right after each push of its own. `None`: believe the `staleness` passed to `update`,
        which must be counted in updates, not in pushes.

    Returns:
      A transformation with `update(updates, state, params=None, *, staleness)`, or
      `update(..., *, worker)` if `num_workers` is given. `updates` are gradients, or a client's
      parameters at the start minus those at the end of its local steps. `inner` gets the extra
      arguments of the K-th push except `stale_params`, `staleness` and `worker`, which do not
      describe a mean. Call it inside `jax.jit`.

    Raises:
      ValueError: For a hyperparameter out of range, a plain negative `staleness` or a plain
        `worker` out of range.
      TypeError: If `staleness` (or `worker`) is not passed or no integer.

    Source: Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS
    2022.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.fedbuff(optax.sgd(1.0), buffer_size=2)
      >>> state = tx.init(jnp.ones(()))
      >>> for staleness in (0, 3):
      ...     updates, state = tx.update(jnp.ones(()), state, staleness=staleness)
      ...     print(updates)  # the second: -(1 + 1 / sqrt(4)) / 2
      0.0
      -0.75
    """
    buffer_size = checks.check_count("buffer_size", buffer_size)
    if num_workers is not None:
        num_workers = checks.check_count("num_workers", num_workers)
    checks.check_rule(rule)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        return FedBuffState(
            versions=versions.init_versions(num_workers),
            num_buffered=jnp.zeros((), jnp.int32),
            total=trees.zeros_to_accumulate(params),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *positional,
        staleness=None,
        worker=None,
        stale_params=None,
        **extra_args,
    ) -> Any:
        update_checks.check_keywords_only(positional)
        del stale_params
        staleness, row = versions.staleness_of(state.versions, num_workers, worker, staleness)
        # Emptied when it is needed again: two passes over it at one push make XLA copy it.
        empty = state.num_buffered == 0
        kept = jax.tree.map(lambda t: jnp.where(empty, jnp.zeros_like(t), t), state.total)
        add = lambda total, u: total + jnp.asarray(rule(staleness), u.dtype) * u
        total = trees.map_accumulators(add, kept, updates)
        is_full = state.num_buffered + 1 >= buffer_size

        pushed = updates

        def update_with_mean(updates, state, params=None, **extra_args) -> Any:
            del updates
            mean = trees.map_updates(lambda _, total: total / buffer_size, pushed, total)
            mean = mean if params is None else trees.fill_missing(mean, params)
            return inner.update(mean, state, params, **extra_args)

        averaging = optax.GradientTransformationExtraArgs(inner.init, update_with_mean)
        updates, inner_state = gate.update_if(
            is_full, averaging, pushed, state.inner_state, params, **extra_args
        )
        return updates, FedBuffState(
            versions=versions.after_push(state.versions, row, is_full),
            num_buffered=jnp.where(is_full, 0, state.num_buffered + 1),
            total=total,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
