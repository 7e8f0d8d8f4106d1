"""Injected staleness: an ordinary training loop that behaves like an asynchronous one."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import rows, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import delays
from dcasgd_jax.typing import PyTree


@document_fields
class DelayGradientsState(NamedTuple):
    """State of `delay_gradients`.

    Attributes:
      num_calls: Int32 scalar.
      in_flight: Gradients on their way, and the parameters each was taken at.
      workers: Int32 [delay + 1]: whose gradients these are, if somebody says so.
      inner_state: State of the wrapped transformation.
    """

    num_calls: chex.Array
    in_flight: rows.Ring
    workers: chex.Array
    inner_state: optax.OptState


def delay_gradients(
    inner: optax.GradientTransformation, delay: delays.Delay
) -> optax.GradientTransformationExtraArgs:
    r"""Hands `inner` the gradient of `delay` calls ago: staleness in one line.

    A plain loop with this wrapper is, number for number, asynchronous training with τ+1 workers
    that take turns: call t delivers :math:`\nabla f(w_{t-\tau}; B_{t-\tau})` to `inner`, with
    `stale_params` :math:`= w_{t-\tau}` and `staleness`, as extra arguments. Until the first
    gradient is due the updates are zero and the state of `inner` is left alone.

    Args:
      inner: Any optimizer. A compensating one finds its `stale_params` there; the order of a chain
        is clipping, `compensate_delay`, weight decay, momentum or Adam, learning rate. Call
        `update` inside `jax.jit`: one by one, JAX compiles the wait for the first gradient again at
        every call.
      delay: τ ≥ 0 in calls: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these. With per-leaf
        delays nothing is applied until the slowest leaf's first gradient is due, and `staleness`
        is a tree of scalars. A leaf whose τ > 0 costs τ + 1 gradients, of at least float32, and
        τ + 1 copies of itself.

    Returns:
      A transformation with `update(updates, state, params, *, worker=None, **extra_args)`. A
      `worker` goes on to `inner` together with its gradient, later; other extra arguments at once,
      as they are.

    Raises:
      ValueError: For a delay that is negative or no prefix of the parameters, missing `params`, or
        a `worker` where the leaves' delays differ: one call then hands over gradients of several.
      TypeError: For a delay that is no integer, and if `update` is given `stale_params`: then
        something else, such as the simulator, already owns the staleness; put the delay into its
        schedule instead.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> tx = dc.delay_gradients(
      ...     optax.chain(dc.compensate_delay(lambda0=2.0), optax.sgd(0.1)), delay=4)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(params), params)
      >>> print(updates)  # the first gradient is still on its way
      [0. 0. 0.]
    """
    delays.check_delays(delay)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        of_leaves = delays.delay_of_each_leaf(delay, params)
        # Gradients may be wider than 16-bit parameters, and come out as they went in.
        pair = (trees.zeros_to_accumulate(params), params)
        slowest = max(filter(_is_int, jax.tree.leaves(of_leaves)), default=0)
        return DelayGradientsState(
            num_calls=jnp.zeros((), jnp.int32),
            in_flight=rows.init_ring(pair, (of_leaves, of_leaves)),
            workers=jnp.zeros((slowest + 1,), jnp.int32),
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, *positional, worker=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        update_checks.check_params(params, "delay_gradients")
        update_checks.check_gradients(updates, params)
        if "stale_params" in extra_args or "staleness" in extra_args:
            raise TypeError(
                "delay_gradients makes the gradients stale itself, but update() was given "
                "stale_params= or staleness=. In the simulator prescribe the delay in the schedule."
            )
        # The ring and the state of `inner` have a place for every parameter: without a gradient it
        # holds zeros, and the parameter gets no update.
        pushed = trees.fill_missing(updates, params)
        of_leaves = rows.ring_delays(state.in_flight, (pushed, params))[1]
        slowest = max(jax.tree.leaves(of_leaves), default=0)
        (grads, stale_params), in_flight = rows.rotate_ring(state.in_flight, (pushed, params))
        applied = state.num_calls - slowest  # updates that `inner` has made
        told = {"stale_params": stale_params, "staleness": delays.staleness(applied, of_leaves)}
        workers = state.workers
        if worker is not None:
            _check_one_worker(of_leaves)
            number = jnp.asarray(update_checks.integer_scalar("worker", worker), jnp.int32)
            workers = rows.write_row(workers, number, state.num_calls % (slowest + 1))
            told["worker"] = rows.read_row(workers, (state.num_calls + 1) % (slowest + 1))
        told |= extra_args

        def apply(inner_state):
            return inner.update(grads, inner_state, params, **told)

        def wait(inner_state):
            shapes, _ = jax.eval_shape(apply, inner_state)
            return optax.tree.zeros_like(shapes), inner_state

        if slowest:
            stepped, inner_state = jax.lax.cond(applied >= 0, apply, wait, state.inner_state)
        else:
            stepped, inner_state = apply(state.inner_state)
        num_calls = jnp.asarray(optax.safe_increment(state.num_calls))
        state = DelayGradientsState(num_calls, in_flight, workers, inner_state)
        return trees.drop_filled(stepped, given=updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_int(leaf: Any) -> bool:
    return isinstance(leaf, int)


def _check_one_worker(of_leaves: PyTree) -> None:
    if len(set(jax.tree.leaves(of_leaves))) > 1:
        raise ValueError(
            "delay_gradients delays the leaves differently, so what it hands over at once comes "
            "from the gradients of several workers: leave worker= out."
        )
