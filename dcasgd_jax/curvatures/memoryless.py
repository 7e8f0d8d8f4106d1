"""Curvatures that look at the present gradient only."""

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, trees, update_checks
from dcasgd_jax.curvatures.curvature import Curvature, elementwise


def squared_gradient() -> Curvature:
    r"""The square of the gradient: DC-ASGD-c.

    .. math:: c = g \odot g

    Returns:
      A curvature.

    Source: Zheng et al., ICML 2017, Algorithm 2 (constant λ).

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(2.0, curvature=dc.curvatures.squared_gradient())
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.5]), tx.init(params), params, stale_params=stale_params)
      >>> print(updates)  # 0.5 + 2 * 0.5**2 * 0.5
      [0.75]
    """
    diagonal = lambda _, grads, strength: compensation.scaled_curvature(grads, strength)
    return elementwise("squared_gradient()", diagonal)


def absolute() -> Curvature:
    r"""The size of the gradient: the adaptive curvature without memory and without ε.

    .. math:: c = |g|

    Returns:
      A curvature.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc
      >>> tx = dc.compensate_delay(
      ...     8.0, curvature=dc.curvatures.absolute(), max_pull=1.0, learning_rate=0.1)
    """

    def diagonal(_, grads, strength):
        return compensation.scaled_curvature(grads, strength, jax.tree.map(jnp.abs, grads))

    return elementwise("absolute()", diagonal)


def fisher() -> Curvature:
    r"""The mean of the squared gradients of the single samples: the empirical Fisher's diagonal.

    .. math:: c = \frac{1}{B} \sum_{i=1}^{B} g_i \odot g_i

    Returns:
      A curvature that needs `update(..., fisher_diagonal=)`: a tree like `params`, or a function
      without arguments that returns it. `sim.simulate` passes it, except on the `LanesEngine`.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(1.0, curvature=dc.curvatures.fisher())
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params,
      ...     fisher_diagonal=jnp.asarray([0.6]))
      >>> print(updates)  # 0.2 + 0.6 * 0.5
      [0.5]
    """

    def update(state, grads, fisher_diagonal):
        given = fisher_diagonal() if trees.is_function(fisher_diagonal) else fisher_diagonal
        if not any(map(trees.is_none, jax.tree.leaves(grads, is_leaf=trees.is_none))):
            update_checks.check_like_params("fisher_diagonal", given, grads)
        return trees.drop_filled(given, given=grads), state

    def diagonal(estimate, grads, strength):
        return compensation.scaled_curvature(grads, strength, estimate)

    what = (
        "the mean over the samples of the batch of their squared gradients, a tree like params or "
        "a function that returns it. sim.simulate passes it, except on the LanesEngine"
    )
    return elementwise("fisher()", diagonal, update=update, needs=(("fisher_diagonal", what),))
