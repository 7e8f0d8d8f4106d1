"""What a compensation did to a gradient, in numbers: measured on request, read from the state."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class CompensationSums(NamedTuple):
    """Sums over the coordinates of one update, float32 scalars; those of two trees add up.

    Attributes:
      gradient_square: Of the squares of the gradient.
      compensated_square: Of the squares of the compensated gradient.
      compensation_square: Of the squares of the compensation.
      inner_product: Of the gradient and the compensated gradient.
      below_eps: Coordinates whose mean square is below eps.
      num_adaptive: Coordinates with a mean square.
    """

    gradient_square: chex.Array
    compensated_square: chex.Array
    compensation_square: chex.Array
    inner_product: chex.Array
    below_eps: chex.Array
    num_adaptive: chex.Array


@document_fields
class CompensationMetrics(NamedTuple):
    """What `compensation_metrics` returns; float32 scalars.

    Attributes:
      ratio: |compensation| / |gradient|.
      cosine: Of the angle between the gradient and the compensated gradient.
      below_eps: Share of the coordinates whose mean square is below eps.
    """

    ratio: jax.Array
    cosine: jax.Array
    below_eps: jax.Array


def nothing_measured() -> CompensationSums:
    """Sums that are not numbers, in a buffer each: donated states may share none."""
    return CompensationSums(*(jnp.full((), jnp.nan, jnp.float32) for _ in CompensationSums._fields))


def forget_measurement(opt_state: optax.OptState) -> optax.OptState:
    """The state as if nothing had been measured, so that a skipped update does not repeat it."""
    return trees.map_states(lambda _: nothing_measured(), opt_state, CompensationSums)


def measure(gradient: PyTree, compensated: PyTree, floored: PyTree | None) -> CompensationSums:
    """The sums of one update; `floored` says where `eps` decided, None if there is none."""
    # Of the compensated gradient as it was rounded: what 16 bits lose was not compensated.
    gradient = optax.tree.cast(gradient, jnp.float32)
    compensated = optax.tree.cast(compensated, jnp.float32)
    # Without the barrier XLA computes the compensated gradient again for each of the sums.
    gradient, compensated = jax.lax.optimization_barrier((gradient, compensated))
    added = jax.tree.map(jnp.subtract, compensated, gradient)
    below_eps = num_adaptive = 0
    if floored is not None:
        leaves, structure = jax.tree.flatten(gradient, is_leaf=trees.is_none)
        pairs = zip(leaves, structure.flatten_up_to(floored), strict=True)
        decided = [of_leaf for leaf, of_leaf in pairs if leaf is not None]
        below_eps = sum(jnp.sum(of_leaf, dtype=jnp.float32) for of_leaf in decided)
        num_adaptive = sum(of_leaf.size for of_leaf in decided)
    return CompensationSums(
        gradient_square=_sum_of_products(gradient, gradient),
        compensated_square=_sum_of_products(compensated, compensated),
        compensation_square=_sum_of_products(added, added),
        inner_product=_sum_of_products(gradient, compensated),
        below_eps=jnp.asarray(below_eps, jnp.float32),
        num_adaptive=jnp.asarray(num_adaptive, jnp.float32),
    )


def compensation_metrics(opt_state: optax.OptState) -> CompensationMetrics:
    r"""What the compensation did to the last gradient that was measured.

    .. math:: ratio = \|\tilde g - g\|_2 / \|g\|_2, \quad
              cosine = \langle g, \tilde g \rangle / (\|g\|_2 \|\tilde g\|_2)

    and the share of coordinates whose mean square is below `eps`: there the adaptive strength is
    in effect the constant λ0/sqrt(eps), or at least 0.7 of it.

    Args:
      opt_state: State of any chain that holds a compensating transformation whose last
        `update` was given `measure_compensation=True`. Several of them (`optax.partition`) are
        taken together.

    Returns:
      Three float32 scalars; nan where nothing was measured yet. Where the gradient is zero `ratio`
      is 0 and `cosine` 1; where only the compensated gradient is zero, `cosine` is 0. `below_eps`
      counts the coordinates with an adaptive curvature that had a gradient; nan if there are none.

    Raises:
      ValueError: If the state holds no compensating transformation.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(2.0, curvature=dc.curvatures.squared_gradient())
      >>> params, stale_params = jnp.asarray([1.0, 1.0]), jnp.asarray([0.5, 1.0])
      >>> grads = jnp.asarray([0.3, 0.4])  # compensation: (2 * 0.3**2 * 0.5, 0)
      >>> _, state = tx.update(grads, tx.init(params), params, stale_params=stale_params,
      ...                      measure_compensation=True)
      >>> print(*(f"{metric:.3f}" for metric in dc.compensation_metrics(state)))
      0.180 0.992 nan
    """
    found = trees.find_states(opt_state, CompensationSums)
    if not found:
        raise ValueError(
            "This optimizer state holds no compensating transformation, so there is no "
            "compensation to measure: chain dc.compensate_delay or use dc.dcasgd."
        )
    sums = jax.tree.map(lambda *parts: sum(parts), *found)
    # Roots before the product: a product of two squares leaves the range of float32.
    gradient, compensated = jnp.sqrt(sums.gradient_square), jnp.sqrt(sums.compensated_square)
    cosine = jnp.clip(trees.quotient(sums.inner_product, gradient * compensated, 0.0), -1.0, 1.0)
    return CompensationMetrics(
        ratio=trees.quotient(jnp.sqrt(sums.compensation_square), gradient, 0.0),
        cosine=jnp.where(gradient == 0, 1.0, cosine),
        below_eps=trees.quotient(sums.below_eps, sums.num_adaptive, jnp.nan),
    )


def _sum_of_products(one: PyTree, other: PyTree) -> jax.Array:
    """Inner product of two float32 trees; XLA reduces it while it reads them."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)
    return jnp.asarray(sum(jax.tree.leaves(products)), jnp.float32)
