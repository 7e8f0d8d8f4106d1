"""Delay compensation where every gradient is a known number of updates late."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from dcasgd_jax.transforms import checks, explicit, rows
from dcasgd_jax.typing import PyTree, Scalar

Delay = int | PyTree | Callable[[PyTree], PyTree]


class CompensateFixedDelayState(NamedTuple):
    """State of `compensate_fixed_delay`."""

    past_params: rows.Ring  # each leaf now and up to `delay` updates ago
    compensation: PyTree  # a CompensateDelayState


def compensate_fixed_delay(
    lambda0: explicit.Strength,
    delay: Delay,
    *,
    curvature: str | None = None,
    ms_decay: Scalar | None = None,
    eps: Scalar = 1e-7,
    bias_correction: bool = False,
    max_pull: Scalar | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Compensates gradients that arrive exactly `delay` updates late.

    .. math:: \tilde g_t = g + \lambda \odot g \odot g \odot (w_t - w_{\max(t - \tau, 0)})

    For pipelines and round-robin servers, where the age is known and no worker need be named.
    To *inject* staleness into an ordinary training loop use `delay_gradients`.

    Args:
      lambda0: λ0 ≥ 0, a schedule or a rule, as in `compensate_delay`.
      delay: τ ≥ 0 in updates: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these. The state holds
        τ + 1 copies of a leaf whose τ > 0.
      curvature: As in `compensate_delay`.
      ms_decay: As in `compensate_delay`.
      eps: As in `compensate_delay`.
      bias_correction: As in `compensate_delay`.
      max_pull: As in `compensate_delay`.
      learning_rate: As in `compensate_delay`.

    Returns:
      A transformation with `update(updates, state, params)`; extra arguments are ignored.

    Raises:
      ValueError: As `compensate_delay`; also for a delay that is negative or no prefix of the
        parameters.

    Source: Zheng et al., ICML 2017, Algorithm 2, for a constant delay.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     dc.compensate_fixed_delay(2.0, delay={"first": 3, "last": 0}), optax.sgd(0.1))
      >>> state = tx.init({"first": jnp.ones(2), "last": jnp.ones(2)})
    """
    if not callable(delay):
        check_delays(delay)
    inner = explicit.compensate_delay(
        lambda0,
        curvature=curvature,
        ms_decay=ms_decay,
        eps=eps,
        bias_correction=bias_correction,
        max_pull=max_pull,
        learning_rate=learning_rate,
    )

    def init_fn(params: PyTree) -> Any:
        return CompensateFixedDelayState(
            past_params=rows.init_ring(params, delay_of_each_leaf(delay, params)),
            compensation=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args) -> Any:
        extra_args.pop("stale_params", None)  # the simulator offers them; the ring is ours
        checks.check_params(params, "compensate_fixed_delay")
        stale_params, past_params = rows.rotate_ring(state.past_params, params)
        updates, compensation = inner.update(
            updates, state.compensation, params, stale_params=stale_params, **extra_args
        )
        return updates, CompensateFixedDelayState(past_params, compensation)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_delays(delays: PyTree) -> None:
    """Raises ValueError, naming the leaf, unless every leaf is an int >= 0."""
    for path, delay in jax.tree_util.tree_leaves_with_path(delays):
        where = f"delay{jax.tree_util.keystr(path)}"
        try:
            value = operator.index(delay)
        except TypeError:
            raise ValueError(f"{where} must be a Python int, got {delay!r}.") from None
        if value < 0:
            raise ValueError(f"{where} must be >= 0 updates, got {value}.")


def delay_of_each_leaf(delay: Delay, params: PyTree) -> PyTree:
    """A tree like `params` of Python ints."""
    if not jax.tree.leaves(params):  # an empty tree, or optax.tree.map_params' placeholder
        return params
    if callable(delay):
        delay = delay(params)
        check_delays(delay)
    try:
        delays = jax.tree.broadcast(delay, params)
    except ValueError as error:
        raise ValueError(f"delay is not a prefix of the parameter tree: {error}") from None
    return jax.tree.map(operator.index, delays)
