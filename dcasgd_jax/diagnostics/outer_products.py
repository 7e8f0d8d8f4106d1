"""The paper's trade: bias against variance when outer products of gradients pass for a Hessian."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import flatten_util
from jax.typing import ArrayLike

from dcasgd_jax import samples, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree

_COLUMNS_AT_ONCE = 64  # of the Hessian: bounds the memory


@document_fields
class OuterProductError(NamedTuple):
    """Errors of λG as an estimate of the Hessian H, relative to |H|²: 1 is the error of λ = 0.

    Attributes:
      mse: [num_strengths], mean over the samples of |λG - H|².
      bias_square: [num_strengths], |λ mean(G) - H|².
      variance: [num_strengths], λ² times the mean of |G - mean(G)|².
      best_strength: The λ with the least mse, a scalar.
      least_mse: At that λ, a scalar.
      hessian_square: |H|², what the errors are divided by.
    """

    mse: jax.Array
    bias_square: jax.Array
    variance: jax.Array
    best_strength: jax.Array
    least_mse: jax.Array
    hessian_square: jax.Array


@document_fields
class OuterProductErrors(NamedTuple):
    """For the whole matrices, and for their diagonals alone, which are what DC-ASGD uses.

    Attributes:
      full: Of the whole matrices.
      diagonal: Of their diagonals.
    """

    full: OuterProductError
    diagonal: OuterProductError


def outer_product_error(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    batch: PyTree,
    strengths: ArrayLike,
    *,
    key: jax.Array | None = None,
) -> OuterProductErrors:
    r"""Compares the outer product of each sample's gradient with the exact Hessian.

    .. math:: MSE(\lambda) = E|\lambda G - H|^2
              = |\lambda E[G] - H|^2 + \lambda^2 E|G - E[G]|^2,\quad G = g g^\top,\quad
              \lambda^* = \langle E[G], H \rangle / E|G|^2

    with the mean over the samples for E and sums over the entries of the matrices for the norm.
    Where G is unbiased (labels that the model itself draws: the Fisher identity) λ* is |H|²/E|G|²,
    which is below 1 unless all G are equal. On other labels it may be anything.

    It builds matrices of P² numbers for P parameters: for small models. Pure: `jax.jit` it.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` if `key` is given; the
        *mean* of the losses of the samples, a scalar.
      params: A tree of floating-point arrays.
      batch: A tree of arrays that share a leading axis of samples.
      strengths: The λ to try, `[num_strengths]`.
      key: PRNG key, the same for all samples.

    Returns:
      Errors for full matrices and for their diagonals. Where H is zero they are nan, as is λ* where
      all G are zero.

    Raises:
      ValueError: If the batch is not made of samples, or `strengths` is not one-dimensional.

    Source: Zheng et al., ICML 2017, section 4 and its supplement.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import diagnostics
      >>> loss = lambda w, x: 0.5 * jnp.mean((w - x) ** 2)  # H = 1, and G = (w - x)²
      >>> errors = diagnostics.outer_product_error(
      ...     loss, jnp.asarray(0.0), jnp.asarray([0.0, 2.0]), strengths=[0.25, 0.5, 1.0])
      >>> print(errors.full.mse, errors.full.best_strength)
      [0.5 1.  5. ] 0.25
    """
    strengths = jnp.asarray(strengths, jnp.result_type(float))
    if strengths.ndim != 1:
        raise ValueError(f"strengths must have one axis, got {strengths.ndim}.")
    flat, unravel = flatten_util.ravel_pytree(trees.widened(params))
    loss = samples.with_key(loss_fn, key)
    flat_loss = lambda vector, samples_of: loss(unravel(vector), samples_of)
    gradients, count = samples.sample_gradients(flat_loss, flat, batch)
    hessian = _hessian(lambda vector: flat_loss(vector, batch), flat)
    squares = samples.squares(gradients)
    full = _errors(
        strengths,
        mean=gradients.T @ gradients / count,
        mean_norm_square=jnp.mean(jnp.sum(squares, axis=1) ** 2),
        inner_product=jnp.mean(jnp.sum((gradients @ hessian) * gradients, axis=1)),
        hessian=hessian,
    )
    diagonal = jnp.diagonal(hessian)
    return OuterProductErrors(
        full,
        _errors(
            strengths,
            mean=squares.mean(axis=0),
            mean_norm_square=jnp.mean(jnp.sum(squares**2, axis=1)),
            inner_product=jnp.mean(squares @ diagonal),
            hessian=diagonal,
        ),
    )


def _hessian(loss: Callable[[jax.Array], jax.Array], at: jax.Array) -> jax.Array:
    product = lambda tangent: jax.jvp(jax.grad(loss), (at,), (tangent,))[1]
    return jax.lax.map(product, jnp.eye(at.size, dtype=at.dtype), batch_size=_COLUMNS_AT_ONCE)


def _errors(
    strengths: jax.Array,
    *,
    mean: jax.Array,
    mean_norm_square: jax.Array,
    inner_product: jax.Array,
    hessian: jax.Array,
) -> OuterProductError:
    """The errors from the moments of G: its mean, E|G|², E<G, H>; and H."""
    scale = jnp.sum(hessian**2)
    mse = lambda strength: strength**2 * mean_norm_square - 2 * strength * inner_product + scale
    best = trees.quotient(inner_product, mean_norm_square, jnp.nan)
    bias_square = jax.lax.map(lambda s: jnp.sum((s * mean - hessian) ** 2), strengths)
    spread = jnp.maximum(mean_norm_square - jnp.sum(mean**2), 0.0)
    relative = lambda error: trees.quotient(error, scale, jnp.nan)
    return OuterProductError(
        mse=relative(mse(strengths)),
        bias_square=relative(bias_square),
        variance=relative(strengths**2 * spread),
        best_strength=best,
        least_mse=relative(mse(best)),
        hessian_square=scale,
    )
