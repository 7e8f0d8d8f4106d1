"""The true curvature, where somebody can multiply with it."""

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, trees, update_checks
from dcasgd_jax.curvatures.curvature import Curvature


def hessian() -> Curvature:
    r"""The exact product of the Hessian and the displacement.

    .. math:: \tilde g = g + \lambda_0 \, H (w - w_{stale})

    With λ0 = 1 the compensated gradient is right up to second order, and exact where the loss is
    quadratic. It has no coordinates to be capped.

    Returns:
      A curvature that needs `update(..., hessian_vector_product=)`: a function of a tangent tree,
      at the stale parameters and on the gradient's batch. `sim.simulate` passes it, except on the
      `LanesEngine`.

    Source: Zheng et al., ICML 2017: the first-order Taylor expansion of the gradient, before the
    Hessian in it is approximated.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(1.0, curvature=dc.curvatures.hessian())
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(  # of 3/2 w**2
      ...     3 * stale_params, tx.init(params), params, stale_params=stale_params,
      ...     hessian_vector_product=lambda tangent: 3 * tangent)
      >>> print(updates)
      [3.]
    """

    def init(params):
        del params

    def update(state, grads, hessian_vector_product):
        del grads
        return hessian_vector_product, state

    def term(estimate, grads, displacement, strength, max_curvature):
        del max_curvature
        # A tangent has the dtype of its parameter, and so have gradients.
        like = lambda grad, moved: moved if grad is None else moved.astype(jnp.result_type(grad))
        tangent = jax.tree.map(like, grads, displacement, is_leaf=trees.is_none)
        product = estimate(tangent)
        update_checks.check_like_params("hessian_vector_product(...)", product, tangent)

        def scale(grad, leaf_product, leaf_strength):
            if grad is None:
                return None
            wide = trees.wide_dtype(jnp.asarray(grad))
            scaled = jnp.asarray(leaf_strength, wide) * jnp.asarray(leaf_product, wide)
            # An infinite product at strength 0 is no compensation.
            return jnp.where(jnp.asarray(leaf_strength) == 0, 0, scaled)

        strengths = compensation.for_each_leaf(strength, grads)
        return jax.tree.map(scale, grads, product, strengths, is_leaf=trees.is_none)

    what = (
        "a function of a tangent tree, the product with the Hessian of the loss at the stale "
        "parameters on the gradient's batch. sim.simulate passes it, except on the LanesEngine"
    )
    return Curvature("hessian()", init, update, term, needs=(("hessian_vector_product", what),))
