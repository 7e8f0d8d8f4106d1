"""Step sizes that fit the delays as they turn out, without a bound known in advance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class AdaptiveStepSizesState(NamedTuple):
    """State of `adaptive_step_sizes`.

    Attributes:
      step_sizes: Float [max(max_delay, 1)]: the last ones, newest first.
    """

    step_sizes: jax.Array

    @property
    def step_size(self) -> jax.Array:
        """γ of the last update, 0 before the first."""
        return self.step_sizes[0]


def adaptive_step_sizes(
    step_bound: Scalar, max_delay: int, *, alpha: Scalar | None = 0.9, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Learning rate of delay-adaptive asynchronous SGD: what the delay window has left over.

    The steps made since the gradient's parameters were read, plus its own, shall not exceed γ':

    .. math::
        r_k &= \gamma' - \sum_{t=k-\tau_k}^{k-1} \gamma_t \\
        \gamma_k &= \alpha \max(r_k, 0) & \text{(Adaptive 1)} \\
        \gamma_k &= \gamma' / (\tau_k + 1) \text{ if that is} \le r_k, \text{ else } 0
        & \text{(Adaptive 2)}

    Steps of size 0 are normal. Chain it last, in place of `optax.scale_by_learning_rate`.

    Args:
      step_bound: γ' > 0, in theory h/L with h < 1 and L the smoothness of the loss.
      max_delay: Static number ≥ 0 of past step sizes to remember. A later gradient gets γ = 0: its
        window is not known to have room.
      alpha: α in (0, 1], Adaptive 1; `None` selects Adaptive 2.
      flip_sign: Multiply by -γ, to descend, as `optax.scale_by_learning_rate` does.

    Returns:
      A transformation with `update(updates, state, params=None, *, staleness)`; `staleness` is an
      int scalar, counted in updates of this transformation, those of size 0 included. The step
      size used is `state.step_size`. Unknown extra arguments are ignored.

    Raises:
      ValueError: For a hyperparameter out of range or a plain negative `staleness`.
      TypeError: If `staleness` is not passed or no integer.

    Source: Wu, Magnússon, Feyzmahdavian and Johansson, *Delay-Adaptive Step-Sizes for
    Asynchronous Learning*, ICML 2022.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.adaptive_step_sizes(1.0, max_delay=8, alpha=None)
      >>> state = tx.init(jnp.ones(2))
      >>> for staleness in (1, 1, 2):
      ...     updates, state = tx.update(jnp.ones(2), state, staleness=staleness)
      ...     print(state.step_size)
      0.5
      0.5
      0.0
    """
    checks.check_positive("step_bound", step_bound)
    length = max(checks.check_count("max_delay", max_delay, least=0), 1)
    if alpha is not None:
        checks.check_positive("alpha", alpha, most=1)

    def init_fn(params: PyTree) -> Any:
        del params
        return AdaptiveStepSizesState(jnp.zeros((length,), float))

    def update_fn(updates, state, params=None, *positional, staleness=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        staleness = update_checks.checked_staleness(staleness)
        past = state.step_sizes
        room = step_bound - jnp.sum(jnp.where(jnp.arange(length) < staleness, past, 0))
        if alpha is None:
            share = step_bound / (staleness + 1).astype(past.dtype)
            # The window is often filled exactly: what rounding takes from a sum must not count.
            rounding = (length + 1) * jnp.finfo(past.dtype).eps * step_bound
            step_size = jnp.where(share <= room + rounding, share, 0)
        else:
            step_size = alpha * jnp.maximum(room, 0)
        step_size = jnp.where(staleness <= max_delay, step_size, 0).astype(past.dtype)
        signed = -step_size if flip_sign else step_size
        updates = trees.map_updates(lambda u: u * signed.astype(u.dtype), updates)
        return updates, AdaptiveStepSizesState(jnp.concatenate([step_size[None], past[:-1]]))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
