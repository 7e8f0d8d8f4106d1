"""The delay-compensation formula and its adaptive strength, and nothing else.

Every gradient that is multiplied by itself in this package is multiplied here.
"""

import jax
import jax.numpy as jnp

from dcasgd_jax.typing import PyTree, Scalar


def compensated_gradient(
    grads: PyTree,
    params: PyTree,
    stale_params: PyTree,
    strength: PyTree,
    *,
    max_curvature: Scalar | None = None,
) -> PyTree:
    r"""Corrects gradients taken at `stale_params` to first order towards `params`.

    .. math:: \tilde g = g + q \odot (w - w_{stale}),\quad
              q = \min(\lambda \odot g \odot g,\; q_{max})

    Where the correction is zero (no displacement, zero strength, zero cap) the gradient comes back
    bit for bit. 16-bit leaves are computed in float32; the result has the dtype of `grads`.

    Args:
      grads: Gradients taken at `stale_params`; a tree of floating-point arrays, or `None` leaves,
        which stay `None`.
      params: Parameters the gradients are about to be applied to; same tree and shapes.
      stale_params: Parameters the gradients were taken at; same tree and shapes.
      strength: λ, a scalar for all leaves or a tree like `grads` of arrays or scalars.
      max_curvature: Upper bound on the curvature q per coordinate, a scalar; `None` is no bound
        (the paper). The bound is this project's addition.

    Returns:
      Compensated gradients, with the structure, shapes and dtypes of `grads`.

    Raises:
      ValueError: If the trees differ in structure (raised by `jax.tree.map`).

    Source: Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    ICML 2017, Algorithm 2 (parameter server).

    Example:
      >>> import dcasgd_jax as dc
      >>> float(dc.compensated_gradient(0.2, 1.0, 0.5, strength=2.0))  # 0.2 + 2 * 0.2**2 * 0.5
      0.24...
    """

    def compensate(grad, param, stale_param, leaf_strength):
        if grad is None:
            return None
        grad = jnp.asarray(grad)
        dtype = _arithmetic_dtype(grad, param, stale_param)
        wide_grad = grad.astype(dtype)
        displacement = jnp.asarray(param, dtype) - jnp.asarray(stale_param, dtype)
        curvature = jnp.asarray(leaf_strength, dtype) * wide_grad * wide_grad
        if max_curvature is not None:
            curvature = jnp.minimum(curvature, jnp.asarray(max_curvature, dtype))
        compensation = curvature * displacement
        # An infinite curvature (overflow, eps = 0) must not turn "no displacement" into inf * 0.
        unchanged = (displacement == 0) | (wide_grad == 0)
        return jnp.where(unchanged, wide_grad, wide_grad + compensation).astype(grad.dtype)

    if jax.tree.structure(strength) == jax.tree.structure(0):
        scalar = strength
        strength = jax.tree.map(lambda _: scalar, grads)
    return jax.tree.map(
        compensate, grads, params, stale_params, strength, is_leaf=lambda leaf: leaf is None
    )


def adaptive_strength(mean_square: PyTree, lambda0: Scalar, eps: Scalar) -> PyTree:
    r"""Strength of DC-ASGD-a: λ0 divided by the root mean square of the gradient.

    .. math:: \lambda = \lambda_0 / \sqrt{MS + \epsilon}

    Args:
      mean_square: Running mean of squared gradients, *already updated* with the current gradient
        (see `update_mean_square`); a tree of arrays.
      lambda0: λ0 ≥ 0, a scalar.
      eps: ε > 0, inside the root. Where the root mean square is far below sqrt(ε) the strength is
        the constant λ0/sqrt(ε): with 1e-7 that floor lies at |g| = 3.2e-4.

    Returns:
      A tree like `mean_square`.

    Source: Zheng et al., ICML 2017, DC-ASGD-a (the adaptive λ).

    Example:
      >>> import dcasgd_jax as dc
      >>> float(dc.adaptive_strength(0.25, lambda0=2.0, eps=0.0))
      4.0
    """
    return jax.tree.map(lambda square: lambda0 / jnp.sqrt(square + eps), mean_square)


def update_mean_square(mean_square: PyTree, grads: PyTree, ms_decay: Scalar) -> PyTree:
    r"""Running mean of squared gradients, without bias correction.

    .. math:: MS \leftarrow m \, MS + (1 - m) \, g \odot g

    Args:
      mean_square: The mean square so far, zeros at the start; a tree of float32 or float64 arrays.
      grads: Current gradients; same tree and shapes.
      ms_decay: m in [0, 1), a scalar.

    Returns:
      The new mean square, with the structure, shapes and dtypes of `mean_square`.

    Source: Zheng et al., ICML 2017, DC-ASGD-a (MeanSquare).

    Example:
      >>> import dcasgd_jax as dc
      >>> import jax.numpy as jnp
      >>> float(dc.update_mean_square(jnp.zeros(()), jnp.asarray(2.0), ms_decay=0.75))
      1.0
    """

    def update(square, grad):
        if grad is None:
            return square
        wide_grad = jnp.asarray(grad, square.dtype)
        new_square = ms_decay * square + (1 - ms_decay) * (wide_grad * wide_grad)
        return new_square.astype(square.dtype)

    return jax.tree.map(update, mean_square, grads, is_leaf=lambda leaf: leaf is None)


def _arithmetic_dtype(*arrays) -> jnp.dtype:
    """Dtype to compute in: that of the operands, but never less than float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
