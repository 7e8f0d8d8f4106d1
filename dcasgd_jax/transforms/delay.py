"""Injected staleness: an ordinary training loop that behaves like an asynchronous one."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax.transforms import checks, fixed_delay, rows
from dcasgd_jax.typing import PyTree


class DelayGradientsState(NamedTuple):
    """State of `delay_gradients`."""

    num_calls: chex.Array  # int32 scalar
    in_flight: rows.Ring  # gradients on their way, and the parameters each was taken at
    inner_state: optax.OptState


def delay_gradients(
    inner: optax.GradientTransformation, delay: fixed_delay.Delay
) -> optax.GradientTransformationExtraArgs:
    r"""Hands `inner` the gradient of `delay` calls ago: staleness in one line.

    A plain loop with this wrapper is, number for number, asynchronous training with τ+1 workers
    that take turns: call t delivers :math:`\nabla f(w_{t-\tau}; B_{t-\tau})` to `inner`, with
    `stale_params` :math:`= w_{t-\tau}` and `staleness`, as extra arguments. Until the first
    gradient is due the updates are zero and the state of `inner` is left alone.

    Args:
      inner: Any optimizer. A compensating one finds its `stale_params` there. Call `update` inside
        `jax.jit`: one by one, JAX compiles the wait for the first gradient again at every call.
      delay: τ ≥ 0 in calls: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these. With per-leaf
        delays nothing is applied until the slowest leaf's first gradient is due, and `staleness`
        is a tree of scalars. A leaf whose τ > 0 costs τ + 1 gradients and τ + 1 copies of itself.

    Returns:
      A transformation with `update(updates, state, params, **extra_args)`; extra arguments go on
      to `inner` as they are, at the time of the call.

    Raises:
      ValueError: For a delay that is negative or no prefix of the parameters, or missing `params`.
      TypeError: If `update` is given `stale_params`: then something else, such as the simulator,
        already owns the staleness; put the delay into its schedule instead.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = dc.delay_gradients(
      ...     optax.chain(dc.compensate_delay(lambda0=2.0), optax.sgd(0.1)), delay=4)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(params), params)
      >>> print(updates)  # the first gradient is still on its way
      [0. 0. 0.]
    """
    if not callable(delay):
        fixed_delay.check_delays(delay)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        delays = fixed_delay.delay_of_each_leaf(delay, params)
        pair = (optax.tree.zeros_like(params), params)
        return DelayGradientsState(
            num_calls=jnp.zeros((), jnp.int32),
            in_flight=rows.init_ring(pair, (delays, delays)),
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, **extra_args) -> Any:
        checks.check_params(params, "delay_gradients")
        if "stale_params" in extra_args or "staleness" in extra_args:
            raise TypeError(
                "delay_gradients makes the gradients stale itself, but update() was given "
                "stale_params= or staleness=. In the simulator prescribe the delay in the schedule."
            )
        # The ring and the state of `inner` have a place for every parameter: without a gradient it
        # holds zeros, and the parameter gets no update.
        is_none = lambda leaf: leaf is None
        has_gradient = jax.tree.map(lambda g: g is not None, updates, is_leaf=is_none)
        fill = lambda given, g, p: g if given or p is None else jnp.zeros_like(p)
        pushed = jax.tree.map(fill, has_gradient, updates, params)
        delays = rows.ring_delays(state.in_flight, (pushed, params))[1]
        slowest = max(jax.tree.leaves(delays), default=0)
        (grads, stale_params), in_flight = rows.rotate_ring(state.in_flight, (pushed, params))
        applied = state.num_calls - slowest  # updates that `inner` has made
        of_leaf = lambda leaf_delay: jnp.minimum(applied, leaf_delay)
        same = len(set(jax.tree.leaves(delays))) <= 1
        staleness = of_leaf(slowest) if same else jax.tree.map(of_leaf, delays)

        def apply(inner_state):
            return inner.update(
                grads,
                inner_state,
                params,
                stale_params=stale_params,
                staleness=staleness,
                **extra_args,
            )

        def wait(inner_state):
            shapes, _ = jax.eval_shape(apply, inner_state)
            return optax.tree.zeros_like(shapes), inner_state

        if slowest:
            updates, inner_state = jax.lax.cond(applied >= 0, apply, wait, state.inner_state)
        else:
            updates, inner_state = apply(state.inner_state)
        updates = jax.tree.map(lambda given, u: u if given else None, has_gradient, updates)
        num_calls = jnp.asarray(optax.safe_increment(state.num_calls))
        return updates, DelayGradientsState(num_calls, in_flight, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
