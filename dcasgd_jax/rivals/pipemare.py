"""Learning rates for the stages of an asynchronous pipeline, each with a delay of its own."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.transforms import delays
from dcasgd_jax.typing import PyTree


@document_fields
class PipeMareRescaleState(NamedTuple):
    """State of `pipemare_rescale`.

    Attributes:
      num_updates: Int32 scalar.
    """

    num_updates: chex.Array


def pipemare_rescale(delay: delays.Delay, num_steps: int) -> optax.GradientTransformationExtraArgs:
    r"""PipeMare's T1: early on, a leaf that is τ updates late gets 1/τ of the learning rate.

    .. math:: u \leftarrow u / \tau^{p_k}, \qquad p_k = 1 - \min(k / K, 1)

    From update K on nothing is rescaled. Leaves without delay never are. Chain it last. T2, which
    extrapolates the weights of the backward pass, needs a pipeline with two sets of weights and is
    not in this package.

    Args:
      delay: τ ≥ 0 in updates: an int, a prefix of the parameter tree with ints as leaves (stages
        of a pipeline), or a function of the parameters that returns one of these.
      num_steps: K ≥ 1 updates until the full learning rate.

    Returns:
      A transformation with `update(updates, state, params=None)`; `params` are needed unless
      `delay` is an int. Unknown extra arguments are ignored.

    Raises:
      ValueError: For a hyperparameter out of range, or missing `params`.

    Source: Yang et al., *PipeMare: Asynchronous Pipeline Parallel DNN Training*, MLSys 2021, T1.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(
      ...     optax.sgd(1.0), rivals.pipemare_rescale({"first": 4, "last": 0}, num_steps=2))
      >>> params = {"first": jnp.ones(()), "last": jnp.ones(())}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(params, state, params)
      ...     print(updates["first"], updates["last"])
      -0.25 -1.0
      -0.5 -1.0
      -1.0 -1.0
    """
    if not callable(delay):
        delays.check_delays(delay)
    num_steps = checks.check_count("num_steps", num_steps)

    def init_fn(params: PyTree) -> Any:
        del params
        return PipeMareRescaleState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del extra_args
        of_leaf = delays.delay_of_each_update(delay, updates, params, "pipemare_rescale")
        power = 1 - jnp.minimum(jnp.asarray(state.num_updates, float) / num_steps, 1)

        def rescale(u, leaf_delay):
            return u if leaf_delay == 0 else u * (leaf_delay**-power).astype(u.dtype)

        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return trees.map_updates(rescale, updates, of_leaf), PipeMareRescaleState(count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
