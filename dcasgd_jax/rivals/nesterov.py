"""Nesterov's momentum for a server whose pushes come one at a time, from far away."""

import numbers
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class DelayedNesterovState(NamedTuple):
    """State of `delayed_nesterov`, the learning rate's aside.

    Attributes:
      num_buffered: Int32 scalar in [0, num_steps): pushes since the last milestone.
      total: Like params, at least float32: their sum; outdated if there are none.
      velocity: Like params, at least float32.
    """

    num_buffered: chex.Array
    total: PyTree
    velocity: PyTree


def delayed_nesterov(
    learning_rate: optax.ScalarOrSchedule,
    num_steps: int,
    momentum: Scalar = 0.9,
    *,
    smoothing: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Delayed Nesterov: plain steps, and a momentum that moves at every N-th push only.

    .. math::
        \Delta &\leftarrow \Delta + g, \qquad \text{at every N-th push: }
            m \leftarrow \beta m + \Delta / N, \; \Delta \leftarrow 0 \\
        w &\leftarrow w - \epsilon \, (\kappa \beta m + g / N), \qquad
            \kappa = 1 - c N + c \text{ at every N-th push, else } c

    With N = 1 it is `optax.sgd(..., nesterov=True)`. Every gradient is divided by N, so that N
    pushes move as far as one push of N = 1 would.

    Args:
      learning_rate: ε, a float or a schedule of the number of pushes.
      num_steps: N ≥ 1 pushes per momentum step; the number of workers is a natural choice.
      momentum: β in [0, 1).
      smoothing: c in [0, 1/N]: the share of the momentum that each of the other pushes applies. 0,
        the default, applies all of it at the N-th; 1/N spreads it evenly.

    Returns:
      An optimizer with `update(updates, state, params=None)`; unknown extra arguments are ignored.
      `updates` are gradients, or pseudo-gradients: the parameters that a worker started from minus
      those that its local steps ended at. The other sign ascends.

    Raises:
      ValueError: For a hyperparameter out of range.

    Source: Liu et al., *Asynchronous Local-SGD Training for Language Modeling*, 2024
    (arXiv 2401.09135).

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import rivals
      >>> optimizer = rivals.delayed_nesterov(1.0, num_steps=2, momentum=0.5)
      >>> state = optimizer.init(jnp.ones(()))
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.ones(()), state)
      ...     print(updates)  # the second with half the mean of both gradients
      -0.5
      -1.0
    """
    num_steps = checks.check_count("num_steps", num_steps)
    checks.check_fraction("momentum", momentum)
    if isinstance(smoothing, numbers.Real) and not 0 <= float(smoothing) <= 1 / num_steps:
        raise ValueError(f"smoothing must lie in [0, 1/num_steps], got {smoothing!r}.")
    return optax.chain(
        _scale_by_delayed_nesterov(num_steps, momentum, smoothing),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_delayed_nesterov(num_steps, momentum, smoothing):
    """The direction of `delayed_nesterov`."""

    def init_fn(params: PyTree) -> Any:
        return DelayedNesterovState(
            num_buffered=jnp.zeros((), jnp.int32),
            total=trees.zeros_to_accumulate(params),
            velocity=trees.zeros_to_accumulate(params),
        )

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        is_last = state.num_buffered + 1 >= num_steps
        # Emptied when it is needed again: two passes over it at one push make XLA copy it.
        empty = state.num_buffered == 0
        kept = jax.tree.map(lambda t: jnp.where(empty, jnp.zeros_like(t), t), state.total)
        total = trees.map_accumulators(jnp.add, kept, updates)
        move = lambda v, t: jnp.where(is_last, momentum * v + t / num_steps, v)
        velocity = trees.map_accumulators(move, state.velocity, total)
        share = jnp.where(is_last, 1 - smoothing * num_steps + smoothing, smoothing) * momentum
        direct = lambda g, v: share.astype(g.dtype) * v.astype(g.dtype) + g / num_steps
        direction = trees.map_updates(direct, updates, velocity)
        return direction, DelayedNesterovState(
            num_buffered=jnp.where(is_last, 0, state.num_buffered + 1),
            total=total,
            velocity=velocity,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
