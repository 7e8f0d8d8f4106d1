"""Delay compensation without a server: every worker is one all-reduce behind the others."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, compensation, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class DCS3GDState(NamedTuple):
    """State of `dc_s3gd`; every leaf has a leading axis of workers.

    Attributes:
      last_steps: [num_workers, ...], at least float32: what is being averaged.
      strengths: Float [num_workers]: λ of the last update.
      inner_state: State of the wrapped transformation.
    """

    last_steps: PyTree
    strengths: chex.Array
    inner_state: optax.OptState


def dc_s3gd(
    inner: optax.GradientTransformation, lambda0: Scalar = 0.2
) -> optax.GradientTransformationExtraArgs:
    r"""DC-S3GD: decentralised workers that overlap an all-reduce with their next gradient.

    Every worker has parameters of its own. While its last step is averaged with those of the
    others it takes a gradient, learns the average, and corrects the gradient for the difference:

    .. math::
        D_i &= \tfrac{1}{M} \textstyle\sum_j \Delta w_j - \Delta w_i, \qquad
        \lambda_i = \lambda_0 \, \|g_i\| / \|g_i \odot g_i \odot D_i\| \\
        \Delta w_i &\leftarrow inner(g_i + \lambda_i g_i \odot g_i \odot D_i), \qquad
        w_i \leftarrow w_i + D_i + \Delta w_i

    By its definition the correction is λ0 times as long as the gradient however small the delay
    is; it does not vanish for fresh gradients. Where its direction is zero, or D is no more than
    rounding, there is none.

    Args:
      inner: A worker's optimizer, for example `optax.sgd(0.3)`; each worker has its own state.
      lambda0: λ0 ≥ 0, the length of the correction relative to the gradient.

    Returns:
      A transformation with `update(updates, state, params)`, in which gradients, parameters (from
      `init` on) and updates all have a leading axis `[num_workers, ...]`. Start all workers at the
      same parameters. The mean over that axis is the model. Extra arguments are ignored.

    Raises:
      ValueError: For a negative `lambda0` or complex parameters.

    Source: Rigazzi, *DC-S3GD: Delay-Compensated Stale-Synchronous SGD for Large-Scale
    Decentralized Neural Network Training*, 2019 (arXiv 1911.02516).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = rivals.dc_s3gd(optax.sgd(0.1), lambda0=0.0)
      >>> params = jnp.ones(2)  # of two workers
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.asarray([1.0, 3.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params)
      [0.9 0.7]
      [0.7 0.5]
    """
    checks.check_non_negative("lambda0", lambda0)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> Any:
        update_checks.check_real(params)
        counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
        if len(counts) > 1 or () in counts:
            raise ValueError("dc_s3gd needs parameters with one leading axis of workers each.")
        return DCS3GDState(
            last_steps=trees.zeros_to_accumulate(params),
            strengths=jnp.zeros(next(iter(counts), (0,)), float),
            inner_state=jax.vmap(inner.init)(params) if counts else inner.init(params),
        )

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del extra_args
        update_checks.check_params(params, "dc_s3gd")
        if not jax.tree.leaves(updates):
            return updates, state
        drift = jax.tree.map(_drift, state.last_steps)
        of_worker = lambda grads, drift: _compensate(grads, drift, lambda0)
        compensated, strengths = jax.vmap(of_worker)(updates, drift)
        compensated = trees.fill_missing(compensated, params)
        # Where the worker will be when the average is in: its own step starts there.
        averaged = jax.tree.map(lambda p, d: (p + d).astype(p.dtype), params, drift)
        steps, inner_state = jax.vmap(inner.update)(compensated, state.inner_state, averaged)
        steps = trees.drop_filled(steps, given=updates)
        moves = trees.map_updates(lambda step, d: step + d.astype(step.dtype), steps, drift)
        return moves, DCS3GDState(
            last_steps=trees.map_accumulators(lambda _, s: s, state.last_steps, steps),
            strengths=strengths.astype(state.strengths.dtype),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _drift(steps: jax.Array) -> jax.Array:
    """What each worker's last step differs by from their mean."""
    drift = steps.mean(0, keepdims=True) - steps
    # Equal steps may differ from their mean by rounding, which λ would blow up to full length.
    rounding = len(steps) * jnp.finfo(steps.dtype).eps * jnp.abs(steps)
    return jnp.where(jnp.abs(drift) <= rounding, 0, drift)


def _compensate(grads: PyTree, drift: PyTree, lambda0: Scalar) -> tuple[PyTree, jax.Array]:
    """One worker's compensated gradient, and its strength."""
    curvature = compensation.scaled_curvature(grads, 1.0)
    term = trees.map_updates(lambda c, d: c * d, curvature, drift)
    length = jnp.asarray(optax.tree.norm(term))
    nothing = length == 0
    ratio = optax.tree.norm(optax.tree.cast_like(grads, term)) / jnp.where(nothing, 1, length)
    strength = lambda0 * jnp.where(nothing, 0, ratio)
    origin = jax.tree.map(jnp.zeros_like, drift)
    return compensation.compensated_gradient(grads, drift, origin, strength), jnp.asarray(strength)
