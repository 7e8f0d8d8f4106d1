"""The compensation of one push: what `compensate_delay` and `compensate_updates` have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import (
    checks,
    compensation,
    curvatures,
    preconditioners,
    strengths,
    update_checks,
)
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import cap, measurement, scaled_coordinates, situations
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
      preconditioner: State of the preconditioner of `compensate_updates`; None without.
      sums: Of the last update that was measured.
    """

    num_updates: chex.Array
    curvature: Any
    strength: Any
    preconditioner: Any
    sums: measurement.CompensationSums


class Arrival(NamedTuple):
    """What reached a compensating transformation; `update(..., observe=)` is called with it."""

    grads: PyTree
    term: PyTree  # the compensation that belongs to it
    max_pull: Any  # None if there is no cap
    max_curvature: Any  # the cap, max_pull / learning_rate; None if there is none


class Compensation(NamedTuple):
    """How a gradient is compensated; made by `make`.

    Attributes:
      init: `init(params)` returns a `CompensateDelayState`.
      term: `term(grads, state, params, **told)` returns the compensation of a gradient, in at least
        float32, and the next state; `told` is what `update` was given.
    """

    init: Callable[..., CompensateDelayState]
    term: Callable[..., tuple[PyTree, CompensateDelayState]]


def make(
    lambda0: Strength,
    curvature: curvatures.Curvature,
    max_pull: Scalar | None,
    learning_rate: optax.ScalarOrSchedule | None,
    whose: str,
    preconditioner: preconditioners.Preconditioner | None = None,
) -> Compensation:
    """The compensation with these settings, which it checks; `whose` is named in messages.

    With a preconditioner the term is one of updates: of what the learning rate is multiplied with
    after the division.
    """
    rule = lambda0 if isinstance(lambda0, strengths.StrengthRule) else None
    _check_called("lambda0", lambda0, strengths, "ratio(0.5)")
    if rule is None and not callable(lambda0):
        checks.check_non_negative("lambda0", lambda0)
    _check_kind("curvature", curvature, curvatures.Curvature, curvatures, "adaptive()")
    if preconditioner is not None:
        kind = preconditioners.Preconditioner
        _check_kind("preconditioner", preconditioner, kind, preconditioners, "adam()")
    cap.check(curvature, max_pull, learning_rate)

    def init(params: PyTree) -> CompensateDelayState:
        update_checks.check_real(params)
        return CompensateDelayState(
            num_updates=jnp.zeros((), jnp.int32),
            curvature=curvature.init(params),
            strength=None if rule is None else rule.init(params),
            preconditioner=None if preconditioner is None else preconditioner.init(params),
            sums=measurement.nothing_measured(),
        )

    def compute_term(
        grads,
        state,
        params,
        *,
        stale_params=None,
        measure_compensation=False,
        observe=None,
        **told,
    ):
        update_checks.check_params(params, whose)
        _check_stale_params(stale_params)
        update_checks.check_gradients(grads, params)
        update_checks.check_like_params("stale_params", stale_params, params)
        push, leave, divided_state = scaled_coordinates.enter(
            preconditioner,
            state.preconditioner,
            scaled_coordinates.Push(grads, params, stale_params, told),
        )
        highest = cap.max_curvature(max_pull, learning_rate, state.num_updates)
        needed = _needed(curvature, push.told)
        estimate, curvature_state = curvature.update(state.curvature, push.grads, **needed)
        moved = compensation.displacement(push.params, push.stale_params)
        rule_state = None
        if rule is None:
            lambda0_now = cap.at_count(lambda0, state.num_updates)
        else:
            situation = situations.make(curvature, estimate, push, moved, highest)
            lambda0_now, rule_state = rule.update(state.strength, situation)
        term = curvature.term(estimate, push.grads, moved, lambda0_now, highest)
        sums = state.sums
        if measure_compensation:
            floored = None if curvature.floored is None else curvature.floored(estimate)
            sums = measurement.measure(push.grads, compensation.add(push.grads, term), floored)
        term = leave(term)
        if observe is not None:
            observe(Arrival(grads, term, max_pull, highest))
        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return term, CompensateDelayState(count, curvature_state, rule_state, divided_state, sums)

    return Compensation(init, compute_term)


def _needed(curvature: curvatures.Curvature, told: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments of a curvature, which must be there."""
    for name, what in curvature.needs:
        if told.get(name) is None:
            raise TypeError(f"The curvature {curvature.name} needs update(..., {name}=): {what}.")
    return {name: told[name] for name, _ in curvature.needs}


def _check_stale_params(stale_params: PyTree | None) -> None:
    if stale_params is None:
        raise TypeError(
            "update() needs stale_params=: the parameters that this gradient was taken at. If "
            "nobody can say, let the optimizer remember them: dc.remember_pulls(tx, num_workers), "
            "with send= if workers are sent something else than the parameters, "
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


def _check_kind(name: str, value: Any, kind: type, where: Any, example: str) -> None:
    _check_called(name, value, where, example)
    if not isinstance(value, kind):
        room = where.__name__.rpartition(".")[2]
        raise TypeError(
            f"{name} must be one of dc.{room}, such as dc.{room}.{example}, got {value!r}."
        )
