"""Accelerated gradients whose momentum goes on while a gradient is under way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import prediction, sending
from dcasgd_jax.typing import PyTree, Scalar

Coefficient = Callable[[chex.Numeric], Any] | Scalar


@document_fields
class AccelerateState(NamedTuple):
    """State of `accelerate`.

    Attributes:
      num_updates: Int32 scalar.
      step: Like params, at least float32: x_k - x_{k-1}.
    """

    num_updates: chex.Array
    step: PyTree


def nesterov_coefficient(count: chex.Numeric) -> jax.Array:
    r"""Nesterov's coefficients for convex problems, :math:`a_k = k / (k + 3)`.

    The usual closed form, not Nesterov's recursion :math:`a_k = (t_{k+1} - 1) / t_{k+2}` with
    :math:`t_{k+1} = (1 + \sqrt{1 + 4 t_k^2}) / 2`, which tends to it.

    Args:
      count: k, updates so far.

    Returns:
      A scalar in [0, 1).

    Example:
      >>> from dcasgd_jax import rivals
      >>> float(rivals.nesterov_coefficient(1))
      0.25
    """
    k = jnp.asarray(count, jnp.result_type(float))
    return k / (k + 3)


def accelerate(
    coefficient: Coefficient = nesterov_coefficient,
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's accelerated gradient in its two-sequence form; comes last in a chain.

    .. math:: x_{k+1} = x_k + a_k (x_k - x_{k-1}) + u

    where u are the updates that come in, :math:`-\eta g`. The params are x. The gradient belongs
    at :math:`y_k = x_k + a_k (x_k - x_{k-1})`, which workers are given by
    `send=rivals.sends.momentum_compensation(delay)`.

    Args:
      coefficient: a, a number in [0, 1) or a function of the number of updates so far.

    Returns:
      A transformation with `update(updates, state, params=None)`. Unknown extra arguments are
      ignored.

    Raises:
      ValueError: For a coefficient out of range.

    Source: Fang, Huang and Lin, *Accelerating Asynchronous Algorithms for Convex Optimization by
    Momentum Compensation*, AAAI 2018.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(optax.scale_by_learning_rate(0.1), rivals.accelerate(0.5))
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(2), state)
      >>> print(updates)  # 0.5 * -0.1 - 0.1 * 1
      [-0.15 -0.15]
    """
    _check_coefficient(coefficient)

    def init_fn(params: PyTree) -> Any:
        return AccelerateState(jnp.zeros((), jnp.int32), trees.zeros_to_accumulate(params))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        factor = _at(coefficient, state.num_updates)
        step = trees.map_accumulators(lambda d, u: factor * d + u, state.step, updates)
        new = AccelerateState(jnp.asarray(optax.safe_increment(state.num_updates)), step)
        return trees.map_updates(lambda u, d: d, updates, step), new

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def momentum_compensation(
    delay: int, coefficient: Coefficient = nesterov_coefficient
) -> prediction.Send:
    r"""Sends where the momentum alone will have carried the server when the gradient arrives.

    .. math:: \hat w = x_j + \Big(\sum_{i=j}^{j+\tau} \prod_{l=j}^{i} a_l\Big) (x_j - x_{j-1})

    The recursion of `accelerate` rolled forward with zero gradients, with the coefficients of the
    updates to come: the y of the update that the gradient will be used in. The delay must be
    known beforehand; where it varies, its mean is the natural guess. Delay 0 is Nesterov's own y;
    on a server with stale gradients it is Nesterov without compensation.

    Args:
      delay: τ ≥ 0, server updates between the pull and the arrival of its gradient; with M workers
        in turn M - 1.
      coefficient: That of `accelerate`.

    Returns:
      `send(params, opt_state)` for `sim.simulate`.

    Raises:
      ValueError: For a hyperparameter out of range, or (at the first call) a `tx` without
        `accelerate`.

    Source: Fang, Huang and Lin, *Accelerating Asynchronous Algorithms for Convex Optimization by
    Momentum Compensation*, AAAI 2018 (AAGD).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals, sim
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 4, num_updates=100, seed=0)
      >>> tx = optax.chain(optax.scale_by_learning_rate(0.02), rivals.accelerate())
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> server = sim.Server(tx, send=rivals.sends.momentum_compensation(delay=3))
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((100, 3)))
      >>> print(jnp.round(result.params, 1))
      [1. 1. 1.]
    """
    delay = checks.check_count("delay", delay, least=0)
    _check_coefficient(coefficient)

    def send(params, opt_state):
        state = sending.find_state(opt_state, [AccelerateState], "momentum_compensation")
        distance, product = 0.0, 1.0
        for ahead in range(delay + 1):
            product = product * _at(coefficient, state.num_updates + ahead)
            distance = distance + product
        return sending.move(params, state.step, distance, "momentum_compensation")

    return send


def _at(coefficient: Coefficient, count: jax.Array) -> Any:
    return coefficient(count) if callable(coefficient) else coefficient


def _check_coefficient(coefficient: Coefficient) -> None:
    if not callable(coefficient):
        checks.check_fraction("coefficient", coefficient)
