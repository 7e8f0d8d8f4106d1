"""The delay-compensation formula and its adaptive strength, and nothing else.

Every gradient that is multiplied by itself in this package is multiplied here.
"""

import jax
import jax.numpy as jnp

from dcasgd_jax import trees
from dcasgd_jax.typing import PyTree, Scalar


def compensated_gradient(
    grads: PyTree,
    params: PyTree,
    stale_params: PyTree,
    strength: PyTree,
    *,
    curvature: PyTree | None = None,
    max_curvature: Scalar | None = None,
) -> PyTree:
    r"""Corrects gradients taken at `stale_params` to first order towards `params`.

    .. math:: \tilde g = g + q \odot (w - w_{stale}),\quad
              q = \min(\lambda \odot c,\; q_{max}),\quad c = g \odot g

    Where the correction is zero (no displacement, zero strength, zero cap) the gradient comes back
    bit for bit. 16-bit leaves are computed in float32; the result has the dtype of `grads`.

    Args:
      grads: Gradients taken at `stale_params`; a tree of floating-point arrays, or `None` leaves,
        which stay `None`.
      params: Parameters the gradients are about to be applied to; same tree and shapes.
      stale_params: Parameters the gradients were taken at; same tree and shapes.
      strength: λ, a scalar for all leaves or a tree like `grads` of arrays or scalars.
      curvature: c, what stands in for the diagonal of the Hessian: a tree like `grads`. `None` is
        the squared gradient, as in the paper.
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
    scaled = scaled_curvature(grads, strength, curvature)
    return add(grads, pull_back(scaled, displacement(params, stale_params), max_curvature))


def displacement(params: PyTree, stale_params: PyTree) -> PyTree:
    """How far the parameters have moved, w - w_stale, in at least float32."""

    def move(param, stale_param):
        dtype = trees.wide_dtype(param, stale_param)
        return jnp.asarray(param, dtype) - jnp.asarray(stale_param, dtype)

    return jax.tree.map(move, params, stale_params)


def pull_back(scaled: PyTree, moved: PyTree, max_curvature: Scalar | None = None) -> PyTree:
    r"""The compensation of curvatures that act on each coordinate alone.

    .. math:: \min(\lambda \odot c,\; q_{max}) \odot (w - w_{stale})

    Args:
      scaled: λ ⊙ c, as `scaled_curvature` returns it; `None` leaves stay `None`.
      moved: The displacement, as `displacement` returns it.
      max_curvature: Upper bound on λ ⊙ c, a scalar; `None` is no bound.

    Returns:
      A tree like `scaled`; 0, never NaN, where λ ⊙ c is not a number: an infinite gradient at
      strength 0, an infinite strength (eps = 0) of a gradient 0, a gradient that is NaN itself.
    """

    def pull(curvature, displacement):
        if curvature is None:
            return None
        capped = curvature
        if max_curvature is not None:
            capped = jnp.minimum(capped, jnp.asarray(max_curvature, curvature.dtype))
        nothing = jnp.isnan(capped) | (displacement == 0)
        return jnp.where(nothing, 0, capped * displacement)

    return jax.tree.map(pull, scaled, moved, is_leaf=trees.is_none)


def add(grads: PyTree, term: PyTree) -> PyTree:
    """The compensated gradient: bit for bit the gradient where its compensation is 0.

    Args:
      grads: Gradients; a tree of floating-point arrays, or `None` leaves, which stay `None`.
      term: The compensation, a tree like `grads`.

    Returns:
      A tree with the structure, shapes and dtypes of `grads`.
    """

    def add_leaf(grad, leaf_term):
        if grad is None:
            return None
        grad = jnp.asarray(grad)
        wide_grad = grad.astype(trees.wide_dtype(grad, leaf_term))
        # Not the sum: -0 + 0 is +0.
        return jnp.where(leaf_term == 0, wide_grad, wide_grad + leaf_term).astype(grad.dtype)

    return jax.tree.map(add_leaf, grads, term, is_leaf=trees.is_none)


def scaled_curvature(grads: PyTree, strength: PyTree, curvature: PyTree | None = None) -> PyTree:
    r"""What `compensated_gradient` multiplies the displacement with, before its bound.

    .. math:: q = \lambda \odot c,\quad c = g \odot g

    Args:
      grads: Gradients; a tree of floating-point arrays, or `None` leaves, which stay `None`.
      strength: λ, a scalar for all leaves or a tree like `grads` of arrays or scalars.
      curvature: c, a tree like `grads`; `None` is the squared gradient.

    Returns:
      A tree like `grads`, of at least float32.

    Source: Zheng et al., ICML 2017, Algorithm 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from dcasgd_jax import compensation
      >>> print(compensation.scaled_curvature(jnp.asarray([1.0, 3.0]), strength=2.0))
      [ 2. 18.]
    """

    def scale(grad, leaf_strength, leaf_curvature=None):
        if grad is None:
            return None
        wide_grad = jnp.asarray(grad).astype(trees.wide_dtype(jnp.asarray(grad)))
        scaled = jnp.asarray(leaf_strength, wide_grad.dtype)
        if leaf_curvature is None:
            return scaled * wide_grad * wide_grad
        return scaled * jnp.asarray(leaf_curvature, wide_grad.dtype)

    curvatures = () if curvature is None else (curvature,)
    strengths = for_each_leaf(strength, grads)
    return jax.tree.map(scale, grads, strengths, *curvatures, is_leaf=trees.is_none)


def adaptive_strength(mean_square: PyTree, lambda0: PyTree, eps: Scalar) -> PyTree:
    r"""Strength of DC-ASGD-a: λ0 divided by the root mean square of the gradient.

    .. math:: \lambda = \lambda_0 / \sqrt{MS + \epsilon}

    Args:
      mean_square: Running mean of squared gradients, *already updated* with the current gradient
        (see `update_mean_square`); a tree of arrays.
      lambda0: λ0 ≥ 0, a scalar for all leaves or a tree like `mean_square` of scalars.
      eps: ε ≥ 0, inside the root; with 0 a mean square of 0 makes an infinite strength. Where the
        root mean square is far below sqrt(ε) the strength is the constant λ0/sqrt(ε): with 1e-7
        that floor lies at |g| = 3.2e-4.

    Returns:
      A tree like `mean_square`.

    Source: Zheng et al., ICML 2017, DC-ASGD-a (the adaptive λ).

    Example:
      >>> import dcasgd_jax as dc
      >>> float(dc.adaptive_strength(0.25, lambda0=2.0, eps=0.0))
      4.0
    """
    divide = lambda square, numerator: numerator / jnp.sqrt(square + eps)
    return jax.tree.map(divide, mean_square, for_each_leaf(lambda0, mean_square))


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

    return jax.tree.map(update, mean_square, grads, is_leaf=trees.is_none)


def for_each_leaf(value: PyTree, tree: PyTree) -> PyTree:
    """A single value repeated for every leaf; a tree of values as it is."""
    if jax.tree.structure(value) != jax.tree.structure(0):
        return value
    return jax.tree.map(lambda _: value, tree)
