"""Learning rates that shrink with the staleness of the gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.typing import PyTree, Scalar

StalenessRule = Callable[[jax.Array], Scalar]


def scale_by_staleness(rule: StalenessRule) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by a function of the staleness of their gradient.

    .. math:: u \leftarrow s(\tau) \, u

    Chain it last: after a momentum it scales the whole step, history included, as the papers on
    plain SGD would have it; before one, only what this gradient adds to the history. Where a
    server averages pushes of several versions (softsync, FedBuff), scale each push: in the
    simulator `sim.Server(tx, per_push=scale_by_staleness(...))` with `sim.Buffered`.

    Args:
      rule: s(τ): takes τ as an int32 scalar, returns a scalar ≥ 0. Ready-made:
        `inverse_staleness`, `inverse_one_plus_staleness`, `delay_adaptive(num_workers)`,
        `polynomial_staleness(exponent)`.

    Returns:
      A transformation with `update(updates, state, params=None, *, staleness)`; `staleness` is an
      int scalar in server versions, or a tree like `updates` of them. Structure, shapes and
      dtypes are kept; unknown extra arguments are ignored. It has no state.

    Raises:
      ValueError: If `rule` cannot be called, or for a plain negative `staleness`.
      TypeError: If `staleness` is not passed or no integer.

    Source: Zhang et al., *Staleness-Aware Async-SGD for Distributed Deep Learning*, IJCAI 2016.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(optax.sgd(0.1), rivals.scale_by_staleness(rivals.inverse_staleness))
      >>> params = jnp.ones(2)
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params, staleness=4)
      >>> print(updates)  # -0.1 / 4
      [-0.025 -0.025]
    """
    checks.check_rule(rule)

    def init_fn(params: PyTree) -> Any:
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *positional, staleness=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        factor = jax.tree.map(rule, update_checks.checked_staleness_of_leaves(staleness))
        scale = lambda update, leaf_factor: update * jnp.asarray(leaf_factor, update.dtype)
        if jax.tree.structure(factor) == jax.tree.structure(0):
            return trees.map_updates(lambda update: scale(update, factor), updates), state
        return trees.map_updates(scale, updates, factor), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def inverse_staleness(staleness: Scalar) -> jax.Array:
    r"""1/τ, and 1 for a fresh gradient.

    .. math:: s(\tau) = 1 / \max(\tau, 1)

    A gradient that missed one version keeps its full weight; compare `inverse_one_plus_staleness`.

    Args:
      staleness: τ ≥ 0 in server versions, an int scalar.

    Returns:
      A float scalar in (0, 1].

    Source: Zhang et al., IJCAI 2016.

    Example:
      >>> from dcasgd_jax import rivals
      >>> print(*(float(rivals.inverse_staleness(tau)) for tau in (0, 1, 2, 4)))
      1.0 1.0 0.5 0.25
    """
    return 1 / jnp.maximum(_as_float(staleness), 1)


def inverse_one_plus_staleness(staleness: Scalar) -> jax.Array:
    r"""1/(1 + τ): half the weight at one version, where `inverse_staleness` has all of it.

    .. math:: s(\tau) = 1 / (1 + \tau)

    Args:
      staleness: τ ≥ 0 in server versions, an int scalar.

    Returns:
      A float scalar in (0, 1].

    Source: A common variant of Zhang et al., IJCAI 2016.

    Example:
      >>> from dcasgd_jax import rivals
      >>> print(*(float(rivals.inverse_one_plus_staleness(tau)) for tau in (0, 1, 3)))
      1.0 0.5 0.25
    """
    return 1 / (1 + _as_float(staleness))


def delay_adaptive(num_workers: int) -> StalenessRule:
    r"""Full weight up to a staleness of the number of workers, then inversely less.

    .. math:: s(\tau) = \min(1, M / \tau)

    Args:
      num_workers: M ≥ 1, the concurrency: how many gradients are in flight.

    Returns:
      A rule for `scale_by_staleness`.

    Raises:
      ValueError: If `num_workers` is less than 1.
      TypeError: If it is no int.

    Source: Mishchenko, Bach, Even and Woodworth, *Asynchronous SGD Beats Minibatch SGD Under
    Arbitrary Delays*, NeurIPS 2022; Koloskova, Stich and Jaggi, *Sharper Convergence Guarantees
    for Asynchronous SGD for Distributed and Federated Learning*, NeurIPS 2022, both up to
    constants in the learning rate.

    Example:
      >>> from dcasgd_jax import rivals
      >>> rule = rivals.delay_adaptive(num_workers=4)
      >>> print(*(float(rule(tau)) for tau in (0, 4, 5, 16)))
      1.0 1.0 0.8... 0.25
    """
    num_workers = checks.check_count("num_workers", num_workers)
    return lambda staleness: num_workers / jnp.maximum(_as_float(staleness), num_workers)


def polynomial_staleness(exponent: Scalar = 0.5) -> StalenessRule:
    r"""A power of 1/(1 + τ), as FedBuff weights late clients.

    .. math:: s(\tau) = (1 + \tau)^{-a}

    Args:
      exponent: a ≥ 0; 0 is no scaling, 1 is `inverse_one_plus_staleness`.

    Returns:
      A rule for `scale_by_staleness` and `fedbuff`.

    Raises:
      ValueError: For a negative `exponent`.

    Source: Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS
    2022.

    Example:
      >>> from dcasgd_jax import rivals
      >>> rule = rivals.polynomial_staleness(exponent=0.5)
      >>> print(*(float(rule(tau)) for tau in (0, 3)))
      1.0 0.5
    """
    checks.check_non_negative("exponent", exponent)
    return lambda staleness: jnp.power(1 + _as_float(staleness), -_as_float(exponent))


def _as_float(number) -> jax.Array:
    return jnp.asarray(number, float)
