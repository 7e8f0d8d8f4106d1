"""λ0 from the size that the compensation shall have, relative to the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.strengths import rule
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class RatioState(NamedTuple):
    """State of `ratio`.

    Attributes:
      num_updates: Int32 scalar: what a schedule is read at.
      gradient_square: Running mean of |g|², a scalar, or one for each leaf.
      term_square: Running mean of |compensation|² at λ0 = 1.
    """

    num_updates: jax.Array
    gradient_square: PyTree
    term_square: PyTree


def ratio(
    rho: optax.ScalarOrSchedule,
    *,
    decay: Scalar = 0.99,
    per_leaf: bool = False,
) -> rule.StrengthRule:
    r"""Chooses λ0 such that the compensation is about ρ times as long as the gradient.

    .. math:: \lambda_0 = \rho \sqrt{\overline{\|g\|^2} \,/\, \overline{\|c \odot \Delta\|^2}},
              \quad \Delta = w - w_{stale}

    where the bars are running means, :math:`\bar x \leftarrow d \bar x + (1 - d) x` from zero. They
    make λ0 change slowly, so that a gradient that happens to be less stale than usual is
    compensated less. With `decay=0` every compensation has the length ρ|g|, however small the
    delay: λ0 has no limit then as the delay vanishes. No displacement is no compensation, exactly.

    Published values of λ0 depend on the model, the batch size and the learning rate; a ratio
    depends on them less. A `max_pull` still caps what this rule chooses.

    Args:
      rho: ρ ≥ 0, or a schedule of the number of updates so far. Above 1 the compensation outweighs
        the gradient.
      decay: d in [0, 1) of the running means.
      per_leaf: One λ0 for each leaf instead of one for the whole tree.

    Returns:
      A rule that goes where `lambda0` goes.

    Raises:
      ValueError: For a number out of range.

    Source: this project. Rigazzi, *DC-S3GD*, 2019 (arXiv 1911.02516), has the case `decay=0`.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(dc.strengths.ratio(0.5))
      >>> params, stale_params = jnp.asarray([1.0, 1.0]), jnp.asarray([0.5, 1.0])
      >>> grads = jnp.asarray([0.3, 0.4])  # of length 0.5
      >>> compensated, _ = tx.update(grads, tx.init(params), params, stale_params=stale_params)
      >>> print(compensated)
      [0.55 0.4 ]
    """
    if not callable(rho):
        checks.check_non_negative("rho", rho)
    checks.check_fraction("decay", decay)

    def init_fn(params: PyTree) -> Any:
        nothing = lambda _: jnp.zeros((), jnp.float32)
        zeros = jax.tree.map(nothing, params, is_leaf=trees.is_none)
        zero = lambda: zeros if per_leaf else jnp.zeros((), jnp.float32)
        return RatioState(jnp.zeros((), jnp.int32), zero(), jax.tree.map(jnp.copy, zero()))

    def update_fn(state: RatioState, situation: rule.Situation) -> Any:
        squares = situation.sums(
            lambda coordinates: jnp.square(coordinates.grads.astype(jnp.float32)),
            lambda coordinates: jnp.square(coordinates.term.astype(jnp.float32)),
        )
        if not per_leaf:
            squares = tuple(rule.total(square) for square in squares)
        old = (state.gradient_square, state.term_square)
        gradient_square, term_square = rule.average(decay, old, squares)
        rho_now = rho(state.num_updates) if callable(rho) else rho
        # Roots before the quotient: a quotient of two squares leaves the range of float32.
        lambda0 = jax.tree.map(
            lambda g, t: rho_now * trees.quotient(jnp.sqrt(g), jnp.sqrt(t)),
            gradient_square,
            term_square,
        )
        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return lambda0, RatioState(count, gradient_square, term_square)

    return rule.StrengthRule(init_fn, update_fn)
