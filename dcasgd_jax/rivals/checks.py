"""Checks of hyperparameters and of the staleness that `update` is told.

Plain numbers only, as in `dcasgd_jax.transforms.checks`: arrays come from
`optax.inject_hyperparams`.
"""

import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.typing import PyTree


def check_fraction(name: str, value) -> None:
    """Raises ValueError if the plain number `value` lies outside [0, 1)."""
    if isinstance(value, numbers.Real) and not 0 <= float(value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def check_positive(name: str, value, *, most: float = np.inf) -> None:
    """Raises ValueError if the plain number `value` is not finite, not > 0 or above `most`."""
    if not isinstance(value, numbers.Real):
        return
    if not 0 < float(value) <= most or np.isinf(float(value)):
        limit = "" if most == np.inf else f" and <= {most:g}"
        raise ValueError(f"{name} must be a finite number > 0{limit}, got {value!r}.")


def check_count(name: str, value, *, least: int = 1) -> int:
    """Returns `value` as an int, or raises ValueError if it is no Python int >= `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name} must be a Python int, got {value!r}; under optax.inject_hyperparams pass "
            f"static_args=({name!r},)."
        ) from None
    if count < least:
        raise ValueError(f"{name} must be >= {least}, got {count}.")
    return count


def check_rule(rule) -> None:
    """Raises ValueError if `rule` cannot be called with a staleness."""
    if not callable(rule):
        raise ValueError(f"rule must be a function of the staleness, got {rule!r}.")


def checked_staleness(staleness) -> jax.Array:
    """Returns `staleness` as an int32 scalar; a plain negative integer raises ValueError.

    The sign of a traced or device-resident one cannot be checked here.
    """
    _check_told(staleness)
    return _checked_scalar(staleness)


def checked_staleness_of_leaves(staleness: PyTree) -> PyTree:
    """As `checked_staleness`; also a tree of scalars, where every leaf has its own."""
    _check_told(staleness)
    return jax.tree.map(_checked_scalar, staleness)


def _check_told(staleness) -> None:
    if staleness is None:
        raise TypeError(
            "update() needs staleness=: the number of server updates between the read of the "
            "parameters that this gradient was taken at and its application. Pass it as a "
            "keyword: tx.update(grads, state, params, staleness=2)."
        )


def _checked_scalar(staleness) -> jax.Array:
    if jax.tree.structure(staleness) != jax.tree.structure(0):
        raise TypeError(f"staleness must be one integer, got the tree {staleness!r}.")
    scalar = jnp.asarray(staleness)
    if not jnp.issubdtype(scalar.dtype, jnp.integer) or scalar.ndim:
        raise TypeError(
            f"staleness must be one integer, got an array of {scalar.dtype}{scalar.shape}."
        )
    if isinstance(staleness, numbers.Real | np.ndarray) and staleness < 0:
        raise ValueError(f"staleness must be >= 0 versions, got {staleness}.")
    return scalar.astype(jnp.int32)
