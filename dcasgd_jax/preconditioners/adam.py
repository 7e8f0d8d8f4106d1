"""Adam's divisor: the root of a mean of squared gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.preconditioners.preconditioner import Preconditioner
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class AdamDivisorState(NamedTuple):
    """State of `adam`.

    Attributes:
      num_updates: Int32 scalars, like params: gradients that were finite.
      mean_square: Like params, at least float32; without the bias correction.
    """

    num_updates: Any
    mean_square: Any


def adam(b2: Scalar = 0.999, eps: Scalar = 1e-8) -> Preconditioner:
    r"""What `optax.adam`, `adamw` and others of their kind divide their steps by.

    .. math:: v \leftarrow \beta_2 v + (1 - \beta_2) \, g \odot g, \qquad
              d = \sqrt{v / (1 - \beta_2^t)} + \epsilon

    It keeps a v of its own. Where the gradients that `compensate_updates` gets are those that Adam
    gets, and the numbers are Adam's, this is Adam's.

    Args:
      b2: β₂ in [0, 1), that of the optimizer.
      eps: ε ≥ 0, that of the optimizer.

    Returns:
      A preconditioner. A leaf whose gradient is not finite, or `None`, leaves its state as it is.

    Raises:
      ValueError: For a number out of range.

    Source: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2015, Algorithm 1.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> of_adam = dc.preconditioners.adam(b2=0.5, eps=0.0)
      >>> divisors, _ = of_adam.update(of_adam.init(jnp.zeros(2)), jnp.asarray([3.0, -4.0]))
      >>> print(divisors)
      [3. 4.]
    """
    checks.check_fraction("b2", b2)
    checks.check_non_negative("eps", eps)

    def init(params: PyTree) -> AdamDivisorState:
        return AdamDivisorState(
            jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
            trees.zeros_to_accumulate(params),
        )

    def update(state: AdamDivisorState, grads: PyTree) -> tuple[PyTree, AdamDivisorState]:
        of_leaf = functools.partial(adam_divisor, b2, eps)
        divisors, *new_state = trees.map_columns(of_leaf, grads, *state) or (grads, *state)
        return divisors, AdamDivisorState(*new_state)

    return Preconditioner(f"adam(b2={b2!r}, eps={eps!r})", init, update)


def adam_divisor(b2, eps, grad, count, mean_square) -> tuple[Any, Any, Any]:
    """What a leaf is divided by, and its state after a gradient."""
    if grad is None:
        return None, count, mean_square
    grad = jnp.asarray(grad).astype(mean_square.dtype)
    square = grad * grad
    is_usable = jnp.isfinite(jnp.sum(square))
    averaged = (b2 * mean_square + (1 - b2) * square).astype(mean_square.dtype)
    mean_square = jnp.where(is_usable, averaged, mean_square)
    count = jnp.where(is_usable, jnp.asarray(optax.safe_increment(count)), count)
    weight = 1 - jnp.asarray(b2, mean_square.dtype) ** count
    root = jnp.sqrt(trees.quotient(mean_square, weight))
    return (root + eps).astype(mean_square.dtype), count, mean_square
