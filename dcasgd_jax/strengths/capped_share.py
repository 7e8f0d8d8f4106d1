"""λ0 from the share of the coordinates that shall be at the cap."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import checks, trees
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.strengths import rule
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class CappedShareState(NamedTuple):
    """State of `capped_share`.

    Attributes:
      log_lambda0: Float32 scalar; nan before the first update.
    """

    log_lambda0: jax.Array


def capped_share(share: Scalar, *, gain: Scalar = 0.1) -> rule.StrengthRule:
    r"""Chooses λ0 such that `max_pull` caps about this share of the coordinates.

    .. math:: \log \lambda_0 \leftarrow \log \lambda_0 + gain \cdot (share - capped),\quad
              capped = \frac{1}{P} \left|\{i : \lambda_0 c_i \ge q_{max}\}\right|

    It starts with the λ0 at which a coordinate of average curvature is at the cap. Coordinates
    without a gradient count as not capped.

    Args:
      share: The share aimed at, in (0, 1).
      gain: How fast log λ0 follows, > 0: with 0.1, ten updates that are all off by a share of 1
        change λ0 by a factor e.

    Returns:
      A rule that goes where `lambda0` goes, together with `max_pull`.

    Raises:
      ValueError: For a number out of range, or without `max_pull`.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc
      >>> tx = dc.compensate_delay(dc.strengths.capped_share(0.25), max_pull=1.0, learning_rate=0.1)
    """
    checks.check_non_negative("gain", gain)
    checks.check_non_negative("share", share)
    if isinstance(share, numbers.Real) and not 0 < float(share) < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}.")

    def init_fn(params: PyTree) -> Any:
        del params
        return CappedShareState(jnp.full((), jnp.nan, jnp.float32))

    def update_fn(state: CappedShareState, situation: rule.Situation) -> Any:
        if situation.max_curvature is None or situation.curvature is None:
            raise ValueError(
                "dc.strengths.capped_share counts the coordinates at the cap: pass max_pull= and "
                "learning_rate=, and a curvature that can be capped, which hessian() cannot."
            )
        size = max(sum(leaf.size for leaf in jax.tree.leaves(situation.curvature)), 1)
        cap = jnp.asarray(situation.max_curvature, jnp.float32)

        # Before the first gradient that is not zero there is nothing to start from. Not a
        # lax.cond, whose branches would differ in type where shard_map splits the gradients.
        (curvature,) = situation.sums(lambda coordinates: coordinates.curvature)
        together = rule.total(curvature)
        first = jnp.log(trees.quotient(cap, together / size))
        log_lambda0 = jnp.where(jnp.isfinite(state.log_lambda0), state.log_lambda0, first)
        lambda0 = jnp.where(jnp.isfinite(log_lambda0), jnp.exp(log_lambda0), 0.0)
        (at_cap,) = situation.sums(lambda coordinates: lambda0 * coordinates.curvature >= cap)
        following = log_lambda0 + gain * (share - rule.total(at_cap) / size)
        return lambda0, CappedShareState(following)

    return rule.StrengthRule(init_fn, update_fn)
