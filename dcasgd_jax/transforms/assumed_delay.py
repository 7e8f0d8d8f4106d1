"""An optimizer that remembers past parameters, for gradients that are equally late."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import rows, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import delays
from dcasgd_jax.typing import PyTree


@document_fields
class AssumeDelayState(NamedTuple):
    """State of `assume_delay`.

    Attributes:
      past_params: Each leaf now and up to `delay` updates ago.
      num_updates: Int32 scalar.
      inner_state: State of the wrapped transformation.
    """

    past_params: rows.Ring
    num_updates: chex.Array
    inner_state: optax.OptState


def assume_delay(
    inner: optax.GradientTransformation, delay: delays.Delay
) -> optax.GradientTransformationExtraArgs:
    r"""Tells `inner` that every gradient was taken at the parameters of `delay` updates ago.

    .. math:: stale\_params = w_{\max(t - \tau, 0)}, \qquad staleness = \min(t, \tau)

    For pipelines and round-robin servers, where the age is known and no worker need be named. It
    changes no gradient: to *make* an ordinary training loop stale use `delay_gradients`. A server
    that knows better passes `stale_params=` or `staleness=` itself, and is believed.

    Args:
      inner: Any transformation, such as a chain. Its order is clipping, `compensate_delay`, weight
        decay, momentum or Adam, learning rate; a loop of your own cannot know if it is another.
      delay: τ ≥ 0 in updates: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these. The state holds
        τ + 1 copies of a leaf whose τ > 0. If the leaves' delays differ, `staleness` is a tree of
        scalars.

    Returns:
      A transformation with `update(updates, state, params, **extra_args)`; extra arguments go on to
      `inner`.

    Raises:
      ValueError: For a delay that is negative or no prefix of the parameters, or missing `params`.
      TypeError: For a delay that is no integer.

    Source: Zheng et al., ICML 2017, Algorithm 2, for a constant delay.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = dc.assume_delay(
      ...     optax.chain(dc.compensate_delay(2.0), optax.sgd(0.1)), delay={"first": 3, "last": 0})
      >>> state = tx.init({"first": jnp.ones(2), "last": jnp.ones(2)})
    """
    delays.check_delays(delay)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        return AssumeDelayState(
            past_params=rows.init_ring(params, delays.delay_of_each_leaf(delay, params)),
            num_updates=jnp.zeros((), jnp.int32),
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        update_checks.check_params(params, "assume_delay")
        of_leaves = rows.ring_delays(state.past_params, params)
        stale_params, past_params = rows.rotate_ring(state.past_params, params)
        told = {"stale_params": stale_params}
        # Only what belongs to these stale params: with others this count would be another's.
        if extra_args.get("stale_params") is None:
            told["staleness"] = delays.staleness(state.num_updates, of_leaves)
        told |= {name: value for name, value in extra_args.items() if value is not None}
        updates, inner_state = inner.update(updates, state.inner_state, params, **told)
        num_updates = jnp.asarray(optax.safe_increment(state.num_updates))
        return updates, AssumeDelayState(past_params, num_updates, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
