"""Weight prediction: workers are sent where the weights will be when their gradients arrive."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import sending, spikes
from dcasgd_jax.typing import PyTree, Scalar

Send = Callable[[PyTree, PyTree], PyTree]


def velocity_prediction(horizon: int, learning_rate: optax.ScalarOrSchedule | None = None) -> Send:
    r"""Sends where the velocity would carry the weights in `horizon` updates, if it stayed.

    .. math:: \hat w = w - v \sum_{i=0}^{T-1} \eta_{t+i}

    With the summing velocity of `optax.trace` (`optax.sgd(..., momentum=)`) this is the velocity
    form of linear weight prediction, with the averaging one of `optax.ema(..., debias=False)` it is
    SpecTrain. A learning rate η of the one is η (1 - μ) of the other.

    Args:
      horizon: T ≥ 1, server updates between the pull and the arrival of its gradient: the delay;
        with M workers in turn M - 1.
      learning_rate: η of `tx`, a number or the schedule. Default: what `optax.inject_hyperparams`
        keeps in the state.

    Returns:
      `send(params, opt_state)` for `sim.simulate`; finds the one velocity in `opt_state`, of
      `optax.trace`, `optax.ema` or `rivals.spike_compensation`.

    Raises:
      ValueError: For a hyperparameter out of range, or (at the first call) a state without the
        velocity, with several, or without a learning rate that was left open.

    Source: Kosson et al., *Pipelined Backpropagation at Scale*, MLSys 2021 (LWP); Chen et al.,
    *Efficient and Robust Parallel DNN Training through Model Parallelism on Multi-GPU Platform*,
    2018 (SpecTrain).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals, sim
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 4, num_updates=100, seed=0)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> send = rivals.sends.velocity_prediction(horizon=3, learning_rate=0.01)
      >>> server = sim.Server(optax.sgd(0.01, momentum=0.9), send=send)
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((100, 3)))
      >>> print(jnp.round(result.params, 1))
      [1. 1. 1.]
    """
    horizon = checks.check_count("horizon", horizon)
    _check_rate(learning_rate)

    def send(params, opt_state):
        rates = sending.next_rates(learning_rate, opt_state, horizon, "velocity_prediction")
        velocity = _velocity(opt_state, "velocity_prediction")
        return sending.move(params, velocity, -jnp.sum(rates), "velocity_prediction")

    return send


def multi_step_nesterov(
    horizon: int, momentum: Scalar, learning_rate: optax.ScalarOrSchedule | None = None
) -> Send:
    r"""Sends where the decaying velocity would carry the weights without further gradients.

    .. math:: \hat w = w - v \sum_{i=0}^{s-1} \eta_{t+i} \mu^{i+1}
                     = w - \eta v \, (\mu - \mu^{s+1}) / (1 - \mu)

    The second form is that of a constant learning rate: multi-step Nesterov, whose s = 1 is
    Nesterov's own look-ahead.

    Args:
      horizon: s ≥ 1, as in `velocity_prediction`.
      momentum: μ in [0, 1), that of `tx`.
      learning_rate: As in `velocity_prediction`.

    Returns:
      `send(params, opt_state)` for `sim.simulate`, as of `velocity_prediction`.

    Raises:
      ValueError: As of `velocity_prediction`.

    Source: Eliad et al., *Fine-tuning Giant Neural Networks on Commodity Hardware with Automatic
    Pipeline Model Parallelism*, ATC 2021 (FTPipe).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> send = rivals.sends.multi_step_nesterov(horizon=2, momentum=0.5, learning_rate=0.1)
      >>> print(send(jnp.ones(2), optax.TraceState(jnp.ones(2))))  # 1 - 0.1 * (0.5 + 0.25)
      [0.925 0.925]
    """
    horizon = checks.check_count("horizon", horizon)
    checks.check_fraction("momentum", momentum)
    _check_rate(learning_rate)

    def send(params, opt_state):
        rates = sending.next_rates(learning_rate, opt_state, horizon, "multi_step_nesterov")
        distance = sum(rates[i] * momentum ** (i + 1) for i in range(horizon))
        velocity = _velocity(opt_state, "multi_step_nesterov")
        return sending.move(params, velocity, -distance, "multi_step_nesterov")

    return send


@document_fields
class RememberStepState(NamedTuple):
    """State of `remember_step`.

    Attributes:
      step: Like params, at least float32: the last updates that came through.
    """

    step: PyTree


def remember_step() -> optax.GradientTransformationExtraArgs:
    """Keeps the last updates, for `step_prediction`; at the end of a chain the params' last step.

    Returns:
      A transformation that changes nothing.

    Example:
      >>> import optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(optax.adam(1e-3), rivals.remember_step())
    """

    def init_fn(params: PyTree) -> Any:
        return RememberStepState(trees.zeros_to_accumulate(params))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        keep = lambda old, new: new
        return updates, RememberStepState(trees.map_accumulators(keep, state.step, updates))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def step_prediction(horizon: int, *, future_rates: optax.ScalarOrSchedule | None = None) -> Send:
    r"""Sends the weights `horizon` last steps further: for any optimizer, such as Adam or Muon.

    .. math:: \hat w = w + T (w_t - w_{t-1})

    The weight form of linear weight prediction. For plain momentum it is the velocity form; with
    anything between velocity and step (spike compensation, normalisation) it is not.

    Args:
      horizon: T ≥ 1, as in `velocity_prediction`.
      future_rates: A learning rate or schedule η, for `remember_step` *before*
        `optax.scale_by_learning_rate(η)` in the chain: the remembered direction d is then followed
        with the rates to come, :math:`w - d \sum_i \eta_{t+i}`. Default: `remember_step` comes
        last, and the last step is repeated as it was.

    Returns:
      `send(params, opt_state)` for `sim.simulate`.

    Raises:
      ValueError: For a horizon that is no integer ≥ 1, or (at the first call) a `tx` without
        `remember_step`.

    Source: Kosson et al., *Pipelined Backpropagation at Scale*, MLSys 2021 (LWP, weight form); the
    optimizer's own step as in Guan et al., *XPipe: Efficient Pipeline Model Parallelism for
    Multi-GPU DNN Training*, 2019.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals, sim
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 4, num_updates=100, seed=0)
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> tx = optax.chain(optax.adam(0.1), rivals.remember_step())
      >>> server = sim.Server(tx, send=rivals.sends.step_prediction(horizon=3))
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((100, 3)))
      >>> print(jnp.round(result.params, 1))
      [1. 1. 1.]
    """
    horizon = checks.check_count("horizon", horizon)
    _check_rate(future_rates, "future_rates")

    def send(params, opt_state):
        distance: Any = horizon
        if future_rates is not None:
            rates = sending.next_rates(future_rates, opt_state, horizon, "step_prediction")
            distance = -jnp.sum(rates)
        last = sending.find_state(opt_state, [RememberStepState], "step_prediction")
        return sending.move(params, last.step, distance, "step_prediction")

    return send


def roll_forward(tx: optax.GradientTransformation, horizon: int) -> Send:
    """Sends where `tx` itself would carry the weights in `horizon` updates with zero gradients.

    Whatever `tx` does without gradients it does here: velocities and Adam's moments decay, bias
    corrections and learning rates go on as scheduled, weights decay. For heavy ball it is
    `multi_step_nesterov`. Costs `horizon` updates per pull.

    Args:
      tx: The transformation that is given to `sim.simulate`.
      horizon: As in `velocity_prediction`.

    Returns:
      `send(params, opt_state)` for `sim.simulate`. Compensations are told that nothing is stale,
      and per-worker transformations that the pushes are worker 0's.

    Raises:
      ValueError: For a horizon that is no integer ≥ 1, or (at the first call) the state of another
        optimizer.

    Source: as momentum compensation in Fang, Huang and Lin, *Accelerating Asynchronous Algorithms
    for Convex Optimization by Momentum Compensation*, AAAI 2018, but for any transformation.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.sgd(0.1, momentum=0.5)
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
      >>> print(rivals.sends.roll_forward(tx, horizon=2)(params, state))  # 1 - 0.1 * (0.5 + 0.25)
      [0.925 0.925]
    """
    horizon = checks.check_count("horizon", horizon)
    with_extra_args = optax.with_extra_args_support(tx)

    def send(params, opt_state):
        made_by_tx = jax.eval_shape(tx.init, params)
        if jax.tree.structure(opt_state) != jax.tree.structure(made_by_tx):
            raise ValueError(
                "roll_forward got the state of another optimizer than its tx: give it the one that "
                "the server has."
            )
        zeros = optax.tree.zeros_like(params)

        def update(_, carry):
            params, opt_state = carry
            told = {"stale_params": params, "staleness": jnp.int32(0), "worker": jnp.int32(0)}
            updates, opt_state = with_extra_args.update(zeros, opt_state, params, **told)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, horizon, update, (params, opt_state))[0]

    return send


def _velocity(opt_state: PyTree, whose: str) -> PyTree:
    kinds = (optax.TraceState, optax.EmaState, spikes.SpikeCompensationState)
    state = sending.find_state(opt_state, kinds, whose)
    return state[-1]  # of each kind the velocity is the last field


def _check_rate(learning_rate, name: str = "learning_rate") -> None:
    if not callable(learning_rate):
        checks.check_non_negative(name, learning_rate)
