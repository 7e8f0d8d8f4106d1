"""A momentum whose delayed impulses are paid out at once."""

from typing import Any, NamedTuple

import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import delays
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class SpikeCompensationState(NamedTuple):
    """State of `spike_compensation`.

    Attributes:
      velocity: Like params, at least float32.
    """

    velocity: PyTree


def spike_compensation(
    momentum: Scalar, delay: delays.Delay
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum for gradients that are a known number of updates late.

    .. math:: v \leftarrow \mu v + g, \qquad u = a v + b g, \qquad
              a = \mu^D, \; b = (1 - \mu^D) / (1 - \mu)

    A gradient that comes D updates late has missed D decaying repetitions of its impulse; their
    sum, the spike b, is added when it comes, and the velocity is what remains after them. In the
    place of `optax.trace`, before `optax.scale_by_learning_rate`. D = 0 is heavy ball, D = 1 is
    Nesterov's form, of the same delayed gradients.

    Args:
      momentum: μ in [0, 1), of the summing form :math:`v \leftarrow \mu v + g`. The averaging form
        with the factor 1 - μ needs a learning rate 1/(1 - μ) times as large.
      delay: D ≥ 0 in updates: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these.

    Returns:
      A transformation with `update(updates, state, params=None)`; `params` are needed unless
      `delay` is an int. Unknown extra arguments are ignored.

    Raises:
      ValueError: For a hyperparameter out of range, or missing `params`.

    Source: Kosson et al., *Pipelined Backpropagation at Scale: Training Large Models without
    Batches*, MLSys 2021 (spike compensation).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(
      ...     rivals.spike_compensation(momentum=0.5, delay=1), optax.scale_by_learning_rate(0.1))
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      >>> print(updates)  # -0.1 * (0.5 * 1 + 1 * 1)
      [-0.15 -0.15]
    """
    checks.check_fraction("momentum", momentum)
    if not callable(delay):
        delays.check_delays(delay)

    def init_fn(params: PyTree) -> Any:
        return SpikeCompensationState(trees.zeros_to_accumulate(params))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del extra_args
        of_leaf = delays.delay_of_each_update(delay, updates, params, "spike_compensation")
        add = lambda v, g: momentum * v + g
        velocity = trees.map_accumulators(add, state.velocity, updates)

        def spike(g, v, leaf_delay):
            kept = momentum**leaf_delay
            return kept * v.astype(g.dtype) + (1 - kept) / (1 - momentum) * g

        return trees.map_updates(spike, updates, velocity, of_leaf), SpikeCompensationState(
            velocity
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
