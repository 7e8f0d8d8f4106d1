"""The cap of a compensation: how far back one step may pull, given the learning rate."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, curvatures
from dcasgd_jax.typing import Scalar


def at_count(value: Any, count: jax.Array) -> Any:
    """A number, or what a schedule says after so many updates."""
    return value(count) if callable(value) else value


def max_curvature(max_pull: Scalar | None, learning_rate: Any, count: jax.Array) -> Any:
    """The cap on the curvature at the present learning rate; None if there is none."""
    if max_pull is None:
        return None
    rate = at_count(learning_rate, count)
    # At rate 0 nothing moves, so any curvature obeys the cap; 0/0 must not become NaN.
    return jnp.where(max_pull == 0, 0.0, max_pull / jnp.asarray(rate, jnp.result_type(float)))


def check(curvature: curvatures.Curvature, max_pull: Any, learning_rate: Any) -> None:
    """Raises ValueError for a cap that cannot be computed."""
    if not callable(learning_rate):
        checks.check_non_negative("learning_rate", learning_rate)
    checks.check_non_negative("max_pull", max_pull, finite=False)
    if max_pull is None:
        return
    if learning_rate is None:
        raise ValueError(
            "max_pull caps the curvature at max_pull / learning_rate: pass learning_rate=, the "
            "value or schedule that the rest of the chain applies."
        )
    no_cap = isinstance(max_pull, numbers.Real) and math.isinf(float(max_pull))
    if curvature.diagonal is None and not no_cap:
        raise ValueError(
            f"max_pull caps the curvature of each coordinate, and {curvature.name} has none: pass "
            "max_pull=None."
        )


def effective_learning_rate(
    learning_rate: optax.ScalarOrSchedule, momentum: Scalar | None
) -> optax.ScalarOrSchedule:
    r"""What momentum makes of a learning rate, once an impulse has been repeated to its end.

    .. math:: \eta / (1 - \mu)

    Args:
      learning_rate: η, a number or a schedule.
      momentum: μ in [0, 1), of the summing form; `None` for none.

    Returns:
      A number or a schedule.

    Example:
      >>> from dcasgd_jax.transforms import cap
      >>> cap.effective_learning_rate(0.25, momentum=0.5)
      0.5
    """
    if momentum is None:
        return learning_rate
    if callable(learning_rate):
        return lambda count: learning_rate(count) / (1 - momentum)
    return learning_rate / (1 - momentum)  # type: ignore[return-value]
