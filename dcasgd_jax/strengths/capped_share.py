"""λ0 from the share of the coordinates that shall be at the cap."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax.strengths import rule
from dcasgd_jax.typing import PyTree, Scalar


class CappedShareState(NamedTuple):
    """State of `capped_share`."""

    num_updates: jax.Array  # int32 scalar
    log_lambda0: jax.Array  # float32 scalar; nan before the first update


def capped_share(share: Scalar, *, gain: Scalar = 0.1, block_stride: int = 1) -> rule.StrengthRule:
    r"""Chooses λ0 such that `max_pull` caps about this share of the coordinates.

    .. math:: \log \lambda_0 \leftarrow \log \lambda_0 + gain \cdot (share - capped),\quad
              capped = \frac{1}{P} \left|\{i : \lambda_0 c_i \ge q_{max}\}\right|

    It starts with the λ0 at which a coordinate of average curvature is at the cap. Coordinates
    without a gradient count as not capped.

    Args:
      share: The share aimed at, in (0, 1).
      gain: How fast log λ0 follows, > 0: with 0.1, ten updates that are all off by a share of 1
        change λ0 by a factor e.
      block_stride: k ≥ 1: count in every k-th block of a large leaf, as in `dc.ratio`.

    Returns:
      A rule that goes where `lambda0` goes, together with `max_pull`.

    Raises:
      ValueError: For a number out of range, or without `max_pull`.

    Source: this project.

    Example:
      >>> import dcasgd_jax as dc
      >>> tx = dc.compensate_delay(dc.capped_share(0.25), max_pull=1.0, learning_rate=0.1)
    """
    rule.check_numbers(share=share, gain=gain)
    rule.check_block_stride(block_stride)
    if isinstance(share, float | int) and not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share!r}.")

    def init_fn(params: PyTree) -> Any:
        del params
        return CappedShareState(jnp.zeros((), jnp.int32), jnp.full((), jnp.nan, jnp.float32))

    def update_fn(state: CappedShareState, situation: rule.Situation) -> Any:
        if situation.max_curvature is None or situation.curvature is None:
            raise ValueError(
                "dc.capped_share counts the coordinates at the cap: pass max_pull= and "
                "learning_rate=, and a curvature that is not 'hvp'."
            )
        size = max(sum(leaf.size for leaf in jax.tree.leaves(situation.curvature)), 1)
        cap = jnp.asarray(situation.max_curvature, jnp.float32)

        def first() -> jax.Array:
            (curvature,) = situation.sums(lambda coordinates: coordinates.curvature)
            return jnp.log(rule.quotient(cap, rule.total(curvature) / size))

        # Before the first gradient that is not zero there is nothing to start from.
        started = jnp.isfinite(state.log_lambda0)
        log_lambda0 = jax.lax.cond(started, lambda: state.log_lambda0, first)
        lambda0 = jnp.where(jnp.isfinite(log_lambda0), jnp.exp(log_lambda0), 0.0)
        (at_cap,) = situation.sums(
            lambda coordinates: lambda0 * coordinates.curvature >= cap,
            block_stride=block_stride,
            first_block=state.num_updates % block_stride,
        )
        following = log_lambda0 + gain * (share - rule.total(at_cap) / size)
        count = jnp.asarray(optax.safe_increment(state.num_updates))
        return lambda0, CappedShareState(count, following)

    return rule.StrengthRule(init_fn, update_fn)
