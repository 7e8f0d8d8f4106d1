"""Delay compensation where the caller hands in the stale parameters."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import compensation
from dcasgd_jax.transforms import checks, measurement, rows
from dcasgd_jax.typing import PyTree, Scalar


class CompensateDelayState(NamedTuple):
    """State of `compensate_delay`."""

    num_updates: chex.Array  # int32 scalar: what schedules are read at
    mean_square: PyTree | None  # like params, or [num_workers, ...]; None if λ is constant
    sums: measurement.CompensationSums  # of the last update that was measured


def compensate_delay(
    lambda0: optax.ScalarOrSchedule,
    *,
    ms_decay: Scalar | None = None,
    eps: Scalar = 1e-7,
    num_workers: int | None = None,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates stale gradients, given the parameters that they were taken at.

    .. math:: \tilde g = g + \lambda \odot g \odot g \odot (w - w_{stale})

    with :math:`\lambda = \lambda_0` (`ms_decay=None`, DC-ASGD-c) or
    :math:`\lambda = \lambda_0 / \sqrt{MS + \epsilon}` with
    :math:`MS \leftarrow m \, MS + (1 - m) g \odot g` updated first (DC-ASGD-a).
    Chain it after clipping and before weight decay, momentum and the learning rate.

    Args:
      lambda0: λ0 ≥ 0, or a schedule of the number of updates so far. The published values (0.04
        constant, 2 adaptive) rarely carry over to other models: tune it, or set `max_pull=1`.
      ms_decay: m in [0, 1), the decay of the mean square; `None` selects the constant strength.
      eps: ε ≥ 0, inside the root.
      num_workers: If given, one mean square per worker, as in the paper authors' released code;
        `update` then needs `worker=`. `None` keeps one mean square, as in the paper.
      max_pull: κ ≥ 0, the largest fraction of the way back to its stale value that one plain SGD
        step may move a weight: the curvature λ·g² is capped at κ/η. This project's addition, not
        the paper's. `None` is the paper; 0 is the inner optimizer without compensation.
      learning_rate: η ≥ 0, the learning rate (or schedule) that the chain applies afterwards; read
        only by `max_pull`, which requires it.

    Returns:
      A transformation with `update(updates, state, params, *, stale_params, worker=None)`.
      `stale_params` is a tree like `params`: the parameters this gradient was taken at. With
      `measure_compensation=True` (a Python bool) the state also keeps the sums that
      `compensation_metrics` reads. Unknown extra arguments are ignored. Inside `optax.masked` or
      `optax.partition` set their `mask_compatible_extra_args=True`.

    Raises:
      ValueError: For a hyperparameter out of range, `max_pull` without `learning_rate`, complex
        parameters, missing `params`, or `stale_params` shaped unlike `params`.
      TypeError: If `stale_params` (or `worker`, with `num_workers`) is not passed to `update`.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithm 2.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(dc.compensate_delay(lambda0=2.0), optax.sgd(0.1))
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params)
      >>> print(optax.apply_updates(params, updates))  # 1 - 0.1 * (0.2 + 2 * 0.2**2 * 0.5)
      [0.976]
    """
    if not callable(lambda0):
        checks.check_non_negative("lambda0", lambda0)
    if not callable(learning_rate):
        checks.check_non_negative("learning_rate", learning_rate)
    checks.check_non_negative("eps", eps)
    checks.check_non_negative("max_pull", max_pull, finite=False)
    checks.check_ms_decay(ms_decay)
    if num_workers is not None:
        num_workers = checks.check_num_workers(num_workers)
    if max_pull is not None and learning_rate is None:
        raise ValueError(
            "max_pull caps the curvature at max_pull / learning_rate: pass learning_rate=, the "
            "value or schedule that the rest of the chain applies."
        )

    def init_fn(params: PyTree) -> Any:
        checks.check_real(params)
        mean_square = None
        if ms_decay is not None:
            mean_square = jax.tree.map(lambda p: _zero_square(p, num_workers), params)
        return CompensateDelayState(
            num_updates=jnp.zeros((), jnp.int32),
            mean_square=mean_square,
            sums=measurement.zero_sums(),
        )

    def strength_at(count, updates, mean_square, worker):
        """λ for this update, the mean square it comes from (None: constant), and that to keep."""
        lambda0_now = lambda0(count) if callable(lambda0) else lambda0
        if ms_decay is None:
            return lambda0_now, None, None
        if num_workers is None:
            mean_square = current = compensation.update_mean_square(mean_square, updates, ms_decay)
        else:
            row = checks.checked_worker(worker, num_workers)
            current = jax.tree.map(lambda per_worker: rows.read_row(per_worker, row), mean_square)
            current = compensation.update_mean_square(current, updates, ms_decay)
            mean_square = jax.tree.map(
                lambda per_worker, new: rows.write_row(per_worker, new, row), mean_square, current
            )
        return compensation.adaptive_strength(current, lambda0_now, eps), current, mean_square

    def max_curvature_at(count):
        if max_pull is None:
            return None
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        # At rate 0 nothing moves, so any curvature obeys the cap; 0/0 must not become NaN.
        return jnp.where(max_pull == 0, 0.0, max_pull / jnp.asarray(rate, jnp.result_type(float)))

    def update_fn(
        updates,
        state,
        params=None,
        *,
        stale_params=None,
        worker=None,
        measure_compensation=False,
        **extra_args,
    ) -> Any:
        del extra_args
        checks.check_params(params, "compensate_delay")
        if stale_params is None:
            raise TypeError(
                "update() needs stale_params=: the parameters that this gradient was taken at. "
                "If the server keeps them per worker, use compensate_worker_delay instead."
            )
        checks.check_like_params("stale_params", stale_params, params)
        strength, current_square, mean_square = strength_at(
            state.num_updates, updates, state.mean_square, worker
        )
        compensated = compensation.compensated_gradient(
            updates,
            params,
            stale_params,
            strength,
            max_curvature=max_curvature_at(state.num_updates),
        )
        sums = state.sums
        if measure_compensation:
            sums = measurement.measure(updates, compensated, current_square, eps)
        return compensated, CompensateDelayState(
            jnp.asarray(optax.safe_increment(state.num_updates)), mean_square, sums
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _zero_square(param, num_workers: int | None) -> jax.Array:
    """Zero mean square for one parameter; built from it so that it inherits its sharding."""
    wide = jnp.zeros_like(param, dtype=jnp.promote_types(jnp.result_type(param), jnp.float32))
    return wide if num_workers is None else rows.repeat_row(wide, num_workers)
