"""One outer product for each output: the present gradient as a rank-one curvature."""

from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, matrices, trees
from dcasgd_jax.curvatures import directions
from dcasgd_jax.curvatures.curvature import Curvature
from dcasgd_jax.typing import PyTree


def rows(batch_size: int | None = None) -> Curvature:
    r"""One direction for each output: that of the gradient of its weights. Without memory.

    .. math:: term_j = \min(\lambda_0 B \|g_j\|^2,\; q_{max}) \, \frac{g_j g_j^T}{\|g_j\|^2}
              (w_j - w_{stale, j})

    where :math:`g_j` is column j of a leaf [inputs, outputs]. Leaves with more than two axes are
    matrices [all but the last, last], as convolution kernels [height * width * in, out] are; in a
    vector or a scalar each coordinate stands alone. A column whose square is not finite is not
    compensated.

    Args:
      batch_size: B ≥ 1, the number of terms in the mean that the gradient is: images, or all
        *tokens* (not sequences), without those that are masked. A wrong B is a wrong λ0. `None`:
        it comes with each push, `update(..., batch_size=)`, and may vary. `sim.simulate` passes it
        where the shapes say it: an array of the batch has one entry per example, such as a label,
        and none can be tokens. A number here is used whatever `update` is told.

    Returns:
      A curvature; it is capped along :math:`g_j`.

    Raises:
      ValueError: If `batch_size` is less than 1.
      TypeError: If it is no integer.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(
      ...     curvature=dc.curvatures.rows(16), max_pull=1.0, learning_rate=0.5)
      >>> grads = jnp.asarray([[0.3], [0.4]])  # in the direction (0.6, 0.8)
      >>> params = jnp.ones((2, 1))
      >>> updates, _ = tx.update(grads, tx.init(params), params, stale_params=0 * params)
      >>> print(*(f"{added:.2f}" for added in (updates - grads).ravel()))
      1.68 2.24

    That is min(16 * 0.5**2, 2) * 1.4 * (0.6, 0.8).
    """
    directions.check_batch_size(batch_size)

    def init(params: PyTree) -> None:
        del params

    def update(state: None, grads: PyTree, **told) -> tuple[PyTree, None]:
        num_terms = directions.num_terms(batch_size, **told)

        def scale(grad):
            if grad is None:
                return None
            squares = _squares(grad)
            return jnp.asarray(num_terms, squares.dtype) * squares

        return jax.tree.map(scale, grads, is_leaf=trees.is_none), state

    needs = directions.needs(batch_size)
    return Curvature(f"rows({batch_size})", init, update, _term, _diagonal, needs=needs)


def _matrix(leaf: Any) -> jax.Array:
    return matrices.matrix(trees.widened(leaf))


def _sum_rows(matrix: jax.Array) -> jax.Array:
    return jnp.sum(matrix, axis=0, keepdims=True)


def _squares(grad: Any) -> jax.Array:
    """The square of each column, [1, columns]; 0 where it is not finite."""
    squares = _sum_rows(jnp.square(_matrix(grad)))
    return jnp.where(jnp.isfinite(squares), squares, 0)


def _unit(grad: Any) -> jax.Array:
    """The columns at length 1; 0 where they have no direction."""
    squares = _squares(grad)
    return jnp.where(squares > 0, trees.quotient(_matrix(grad), jnp.sqrt(squares)), 0)


def _diagonal(estimate: PyTree, grads: PyTree, strength: Any) -> PyTree:
    """Of bases whose first direction is the gradient's; there is no curvature in the others."""

    def spread(scaled, grad):
        if scaled is None:
            return None
        matrix = jnp.zeros(matrices.sides(jnp.shape(grad)), scaled.dtype)
        return matrices.like(matrix.at[:1].set(scaled), grad)

    scaled = compensation.scaled_curvature(grads, strength, estimate)
    return jax.tree.map(spread, scaled, grads, is_leaf=trees.is_none)


def _term(estimate: PyTree, grads, displacement, strength, max_curvature) -> PyTree:
    scaled = compensation.scaled_curvature(grads, strength, estimate)
    units = jax.tree.map(lambda g: None if g is None else _unit(g), grads, is_leaf=trees.is_none)
    along = lambda unit, moved: None if unit is None else _sum_rows(unit * _matrix(moved))
    moved = jax.tree.map(along, units, displacement, is_leaf=trees.is_none)
    pulled = compensation.pull_back(scaled, moved, max_curvature)
    back = lambda pull, unit, leaf: None if pull is None else matrices.like(unit * pull, leaf)
    return jax.tree.map(back, pulled, units, displacement, is_leaf=trees.is_none)
