"""Delay compensation where the caller hands in the stale parameters."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import strengths
from dcasgd_jax.transforms import checks, measurement, rows
from dcasgd_jax.transforms import curvature as curvatures
from dcasgd_jax.transforms import term as terms
from dcasgd_jax.typing import PyTree, Scalar

Strength = optax.ScalarOrSchedule | strengths.StrengthRule


class CompensateDelayState(NamedTuple):
    """State of `compensate_delay`."""

    num_updates: chex.Array  # int32 scalar: what schedules are read at
    squares: curvatures.Squares  # of the adaptive strength
    rule: Any  # state of a rule for λ0; None if λ0 is a number or a schedule
    sums: measurement.CompensationSums  # of the last update that was measured

    @property
    def mean_square(self) -> PyTree | None:
        """Running mean of squared gradients, or None if the strength is not adaptive."""
        return self.squares.mean_square


def compensate_delay(
    lambda0: Strength,
    *,
    curvature: str | None = None,
    ms_decay: Scalar | None = None,
    eps: Scalar = 1e-7,
    bias_correction: bool = False,
    num_workers: int | None = None,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates stale gradients, given the parameters that they were taken at.

    .. math:: \tilde g = g + \lambda \odot g \odot g \odot (w - w_{stale})

    with :math:`\lambda = \lambda_0` (`ms_decay=None`, DC-ASGD-c) or
    :math:`\lambda = \lambda_0 / \sqrt{MS + \epsilon}` with
    :math:`MS \leftarrow m \, MS + (1 - m) g \odot g` updated first (DC-ASGD-a).
    Chain it after clipping and before weight decay, momentum and the learning rate. `curvature`
    replaces :math:`\lambda \odot g \odot g` by another guess at the Hessian.

    Args:
      lambda0: λ0 ≥ 0, or a schedule of the number of updates so far, or a rule such as
        `dc.ratio(0.5)`. The published values (0.04 constant, 2 adaptive) rarely carry over to
        other models: tune it, or set `max_pull=1`.
      curvature: "g2" and "adaptive" are the paper's, chosen by `ms_decay` if this is `None`.
        "abs": λ0 |g|, the adaptive one without memory and without ε. "fisher": λ0 times the mean
        of the squared gradients of the single samples. "hvp": λ0 times the exact product of the
        Hessian and the displacement, right up to second order with λ0 = 1.
      ms_decay: m in [0, 1), the decay of the mean square; `None` selects the constant strength.
      eps: ε ≥ 0, inside the root.
      bias_correction: Divide the mean square by 1 - m^t, as Adam does; the paper does not.
      num_workers: If given, one mean square per worker, as in the paper authors' released code;
        `update` then needs `worker=`. `None` keeps one mean square, as in the paper.
      max_pull: κ ≥ 0, the largest fraction of the way back to its stale value that one plain SGD
        step may move a weight: the curvature λ·g² is capped at κ/η. This project's addition, not
        the paper's. `None` is the paper; 0 is the inner optimizer without compensation.
      learning_rate: η ≥ 0, the learning rate (or schedule) that the chain applies afterwards; read
        only by `max_pull`, which requires it. With a momentum μ behind it pass η / (1 - μ), which
        is what an impulse comes to in the long run.

    Returns:
      A transformation with `update(updates, state, params, *, stale_params, worker=None)`.
      `stale_params` is a tree like `params`: the parameters this gradient was taken at. "fisher"
      needs `fisher_diagonal=`, a tree like `params` or a function that returns it; "hvp" needs
      `hessian_vector_product=`, a function of a tangent tree. `sim.simulate` passes both. With
      `measure_compensation=True` (a Python bool) the state also keeps the sums that
      `compensation_metrics` reads. Unknown extra arguments are ignored. Inside `optax.masked` or
      `optax.partition` set their `mask_compatible_extra_args=True`.

    Raises:
      ValueError: For a hyperparameter out of range, settings that contradict each other,
        `max_pull` without `learning_rate`, complex parameters, missing `params`, or
        `stale_params` shaped unlike `params`.
      TypeError: If `stale_params`, or something else that the settings need, is not passed to
        `update`.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithm 2. `max_pull`, "abs" and "fisher" are this project's.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(dc.compensate_delay(lambda0=2.0), optax.sgd(0.1))
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params)
      >>> print(optax.apply_updates(params, updates))  # 1 - 0.1 * (0.2 + 2 * 0.2**2 * 0.5)
      [0.976]
    """
    rule = lambda0 if isinstance(lambda0, strengths.StrengthRule) else None
    if rule is None and not callable(lambda0):
        checks.check_non_negative("lambda0", lambda0)
    settings = curvatures.make_settings(curvature, ms_decay, eps, bias_correction, num_workers)
    curvatures.check_cap(settings.kind, max_pull, learning_rate)

    def init_fn(params: PyTree) -> Any:
        checks.check_real(params)
        return CompensateDelayState(
            num_updates=jnp.zeros((), jnp.int32),
            squares=curvatures.init_squares(settings, params),
            rule=None if rule is None else rule.init(params),
            sums=measurement.zero_sums(),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        stale_params=None,
        worker=None,
        hessian_vector_product=None,
        fisher_diagonal=None,
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
        stale_rows = stale_params
        stale_params = jax.tree.map(rows.read, stale_rows, is_leaf=rows.is_row)
        checks.check_like_params("stale_params", stale_params, params)
        mean_square, squares = curvatures.update_squares(settings, state.squares, updates, worker)
        term = terms.make_term(
            settings,
            updates,
            params,
            stale_rows,
            mean_square,
            max_curvature=curvatures.max_curvature(max_pull, learning_rate, state.num_updates),
            hessian_vector_product=hessian_vector_product,
            fisher_diagonal=fisher_diagonal,
        )
        rule_state = None
        if rule is not None:
            lambda0_now, rule_state = rule.update(state.rule, term.situation())
        else:
            lambda0_now = lambda0(state.num_updates) if callable(lambda0) else lambda0
        compensated = term.compensate(lambda0_now)
        sums = state.sums
        if measure_compensation:
            sums = measurement.measure(updates, compensated, mean_square, eps)
        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return compensated, CompensateDelayState(count, squares, rule_state, sums)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
