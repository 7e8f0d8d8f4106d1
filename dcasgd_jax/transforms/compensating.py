"""Delay compensation of a gradient whose stale parameters are given."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, compensation, curvatures, strengths, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import cap, measurement, situations
from dcasgd_jax.typing import PyTree, Scalar

Strength = optax.ScalarOrSchedule | strengths.StrengthRule
ADAPTIVE = curvatures.adaptive()


@document_fields
class CompensateDelayState(NamedTuple):
    """State of `compensate_delay`.

    Attributes:
      num_updates: Int32 scalar: what schedules are read at.
      curvature: State of the curvature.
      strength: State of a rule for λ0; None if λ0 is a number or a schedule.
      sums: Of the last update that was measured.
    """

    num_updates: chex.Array
    curvature: Any
    strength: Any
    sums: measurement.CompensationSums


class Arrival(NamedTuple):
    """What reached a compensating transformation; `update(..., observe=)` is called with it."""

    grads: PyTree
    term: PyTree  # the compensation that was added to it
    max_pull: Any  # None if there is no cap
    max_curvature: Any  # the cap, max_pull / learning_rate; None if there is none


def compensate_delay(
    lambda0: Strength = 1.0,
    *,
    curvature: curvatures.Curvature = ADAPTIVE,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates stale gradients, given the parameters that they were taken at.

    .. math:: \tilde g = g + \lambda_0 \, c \odot (w - w_{stale})

    It must see the raw gradient: chain it after clipping, and before weight decay, momentum, Adam
    and the learning rate, as in `optax.chain(optax.clip_by_global_norm(1.0),
    dc.compensate_delay(), optax.sgd(0.1))`. Behind the learning rate the compensation has the wrong
    sign and size; `sim.simulate` finds that out, a loop of your own cannot.

    Args:
      lambda0: λ0 ≥ 0, or a schedule of the number of updates so far, or a rule such as
        `dc.strengths.ratio(0.5)`. The published values (0.04 for the squared gradient, 2 adaptive)
        rarely carry over to other models: tune it, or set `max_pull=1`.
      curvature: What stands in for the Hessian, of `dc.curvatures`: the paper's are `adaptive()`
        (DC-ASGD-a) and `squared_gradient()` (DC-ASGD-c).
      max_pull: κ ≥ 0, the largest fraction of the way back to its stale value that one plain SGD
        step may move a weight: the curvature λ0 c is capped at κ/η. This project's addition, not
        the paper's. `None` is the paper; 0 is the inner optimizer without compensation.
      learning_rate: η ≥ 0, the learning rate (or schedule) that the chain applies afterwards; read
        only by `max_pull`, which requires it. With a momentum μ behind it pass η / (1 - μ), which
        is what an impulse comes to in the long run.

    Returns:
      A transformation with `update(updates, state, params, *, stale_params)`; `stale_params` is a
      tree like `params`: the parameters this gradient was taken at. `sim.simulate` passes it;
      around servers that do not know it put `dc.remember_pulls` or `dc.assume_delay`. Some
      curvatures and rules need more, which they name. With `measure_compensation=True` (a Python
      bool) the state also keeps the sums that `compensation_metrics` reads; a function `observe=`
      is called with the `transforms.Arrival` that reached this place of the chain. Unknown extra
      arguments are ignored. Inside `optax.masked` or `optax.partition` set their
      `mask_compatible_extra_args=True`.

    Raises:
      ValueError: For a number out of range, `max_pull` without `learning_rate` or with a curvature
        that cannot be capped, complex parameters, missing `params`, or gradients or `stale_params`
        shaped unlike `params`.
      TypeError: If `stale_params`, or something else that the settings need, is not passed to
        `update`, or something that is no curvature is passed for one.

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithm 2. `max_pull` is this project's.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     dc.compensate_delay(2.0, curvature=dc.curvatures.squared_gradient()), optax.sgd(0.1))
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params)
      >>> print(optax.apply_updates(params, updates))  # 1 - 0.1 * (0.2 + 2 * 0.2**2 * 0.5)
      [0.976]
    """
    rule = lambda0 if isinstance(lambda0, strengths.StrengthRule) else None
    _check_called("lambda0", lambda0, strengths, "ratio(0.5)")
    if rule is None and not callable(lambda0):
        checks.check_non_negative("lambda0", lambda0)
    _check_curvature(curvature)
    cap.check(curvature, max_pull, learning_rate)

    def init_fn(params: PyTree) -> Any:
        update_checks.check_real(params)
        return CompensateDelayState(
            num_updates=jnp.zeros((), jnp.int32),
            curvature=curvature.init(params),
            strength=None if rule is None else rule.init(params),
            sums=measurement.nothing_measured(),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *positional,
        stale_params=None,
        measure_compensation=False,
        observe=None,
        **extra_args,
    ) -> Any:
        update_checks.check_keywords_only(positional)
        update_checks.check_params(params, "compensate_delay")
        _check_told(stale_params)
        update_checks.check_gradients(updates, params)
        update_checks.check_like_params("stale_params", stale_params, params)
        highest = cap.max_curvature(max_pull, learning_rate, state.num_updates)
        needed = _needed(curvature, extra_args)
        estimate, curvature_state = curvature.update(state.curvature, updates, **needed)
        moved = compensation.displacement(params, stale_params)
        rule_state = None
        if rule is None:
            lambda0_now = lambda0(state.num_updates) if callable(lambda0) else lambda0
        else:
            product = extra_args.get("hessian_vector_product")
            where = (updates, params, stale_params)
            situation = situations.make(curvature, estimate, *where, moved, highest, product)
            lambda0_now, rule_state = rule.update(state.strength, situation)
        term = curvature.term(estimate, updates, moved, lambda0_now, highest)
        if observe is not None:
            observe(Arrival(updates, term, max_pull, highest))
        compensated = compensation.add(updates, term)
        sums = state.sums
        if measure_compensation:
            floored = None if curvature.floored is None else curvature.floored(estimate)
            sums = measurement.measure(updates, compensated, floored)
        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return compensated, CompensateDelayState(count, curvature_state, rule_state, sums)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _needed(curvature: curvatures.Curvature, given: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments of a curvature, which must be there."""
    for name, what in curvature.needs:
        if given.get(name) is None:
            raise TypeError(f"The curvature {curvature.name} needs update(..., {name}=): {what}.")
    return {name: given[name] for name, _ in curvature.needs}


def _check_told(stale_params: PyTree | None) -> None:
    if stale_params is None:
        raise TypeError(
            "update() needs stale_params=: the parameters that this gradient was taken at. If "
            "nobody can say, let the optimizer remember them: dc.remember_pulls(tx, num_workers), "
            "or dc.assume_delay(tx, delay) where every gradient is equally late. If somebody does, "
            "what stands around this transformation does not pass it on (optax.MultiSteps and "
            "others that make one gradient of several): compensate before it."
        )


def _check_called(name: str, value: Any, where: Any, example: str) -> None:
    """Raises TypeError for a function that makes what is wanted and is none of it."""
    function = getattr(value, "__name__", "")
    if callable(value) and getattr(where, function, None) is value:
        module = where.__name__.rpartition(".")[2]
        raise TypeError(
            f"{name} is the function dc.{module}.{function} itself: call it, as in "
            f"{name}=dc.{module}.{example}."
        )


def _check_curvature(curvature: Any) -> None:
    _check_called("curvature", curvature, curvatures, "adaptive()")
    if not isinstance(curvature, curvatures.Curvature):
        raise TypeError(
            "curvature must be one of dc.curvatures, such as dc.curvatures.adaptive(), got "
            f"{curvature!r}."
        )
