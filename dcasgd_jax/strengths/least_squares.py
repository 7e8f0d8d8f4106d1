"""λ0 from a running fit of the true change of the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import checks, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.strengths import rule
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class LeastSquaresState(NamedTuple):
    """State of `least_squares`.

    Attributes:
      product: Running mean of <H(w - w_stale), compensation at λ0 = 1>.
      term_square: Running mean of |compensation|² at λ0 = 1.
    """

    product: jax.Array
    term_square: jax.Array


def least_squares(*, decay: Scalar = 0.99) -> rule.StrengthRule:
    r"""Chooses the λ0 whose compensation is closest to the change that the Hessian predicts.

    .. math:: \lambda_0 = \max\left(0,\; \overline{\langle H \Delta,\, c \odot \Delta \rangle}
              \,/\, \overline{\|c \odot \Delta\|^2}\right),\quad \Delta = w - w_{stale}

    where the bars are running means, :math:`\bar x \leftarrow d \bar x + (1 - d) x` from zero. It
    needs one Hessian-vector product per update, about the price of another gradient; the simulator
    offers it.

    Args:
      decay: d in [0, 1) of the running means.

    Returns:
      A rule that goes where `lambda0` goes.

    Raises:
      ValueError: For a `decay` out of range.
      TypeError: If `update` is not given `hessian_vector_product=`.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc, jax, jax.numpy as jnp
      >>> loss = lambda w: jnp.sum(jnp.asarray([1.0, 3.0]) * w**2)
      >>> tx = dc.compensate_delay(
      ...     dc.strengths.least_squares(), curvature=dc.curvatures.squared_gradient())
      >>> params, stale_params = jnp.asarray([1.0, 1.0]), jnp.asarray([0.5, 1.0])
      >>> product = lambda tangent: jax.jvp(jax.grad(loss), (stale_params,), (tangent,))[1]
      >>> compensated, _ = tx.update(
      ...     jax.grad(loss)(stale_params), tx.init(params), params,
      ...     stale_params=stale_params, hessian_vector_product=product)
      >>> print(compensated, jax.grad(loss)(params))  # exact, as only one coordinate moved
      [2. 6.] [2. 6.]
    """
    checks.check_fraction("decay", decay)

    def init_fn(params: PyTree) -> Any:
        del params
        return LeastSquaresState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def update_fn(state: LeastSquaresState, situation: rule.Situation) -> Any:
        if situation.hessian_vector_product is None:
            raise TypeError(
                "dc.strengths.least_squares needs update(..., hessian_vector_product=): a function "
                "of a tangent tree, at the stale parameters and on the gradient's batch. "
                "sim.simulate passes it, except on the LanesEngine."
            )
        change = situation.hessian_vector_product(situation.displacement)
        product = rule.total(rule.inner_products(situation.term, change))
        square = rule.total(rule.inner_products(situation.term, situation.term))
        means = rule.average(decay, state, LeastSquaresState(product, square))
        return jnp.maximum(trees.quotient(means.product, means.term_square), 0.0), means

    return rule.StrengthRule(init_fn, update_fn)
