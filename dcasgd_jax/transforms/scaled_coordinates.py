r"""Coordinates :math:`z = \sqrt d \odot w`, in which steps that are divided by d are plain SGD.

A gradient is :math:`g / \sqrt d` there, and a Hessian :math:`H_{ij} / \sqrt{d_i d_j}`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, preconditioners, trees, update_checks
from dcasgd_jax.typing import PyTree


class Push(NamedTuple):
    """What a compensation is computed of."""

    grads: PyTree
    params: PyTree
    stale_params: PyTree
    told: dict[str, Any]  # the other extra arguments of the update


def enter(
    preconditioner: preconditioners.Preconditioner | None, state: Any, push: Push
) -> tuple[Push, Callable[[PyTree], PyTree], Any]:
    """A push in the coordinates of a preconditioner, with the stale point as their origin.

    Args:
      preconditioner: Makes d of the gradient; `None`: the coordinates stay as they are.
      state: Of the preconditioner.
      push: As it came.

    Returns:
      The push, what brings a compensation back, and the preconditioner's next state.
    """
    if preconditioner is None:
        return push, lambda term: term, None
    divisors, state = preconditioner.update(state, push.grads)
    if not any(map(trees.is_none, jax.tree.leaves(push.grads, is_leaf=trees.is_none))):
        update_checks.check_like_params(f"what {preconditioner} divides by", divisors, push.params)
    roots = jax.tree.map(jnp.sqrt, divisors)
    # Not √d w and √d w_stale: where the two are equal, their difference need not be 0.
    moved = _stretch(roots, compensation.displacement(push.params, push.stale_params))
    translated = Push(
        _shrink(roots, push.grads),
        moved,
        jax.tree.map(jnp.zeros_like, moved),
        _translate(roots, push.params, push.told),
    )
    return translated, functools.partial(_shrink, roots), state


def _stretch(roots: PyTree, displacement: PyTree) -> PyTree:
    """As it was where there is no root."""
    each = lambda root, moved: moved if root is None else root * moved
    return jax.tree.map(each, roots, displacement, is_leaf=trees.is_none)


def _shrink(roots: PyTree, gradient: PyTree) -> PyTree:
    """A gradient in these coordinates, or a displacement out of them; 0 where the root is 0."""
    each = lambda root, leaf: leaf if root is None or leaf is None else trees.quotient(leaf, root)
    return jax.tree.map(each, roots, gradient, is_leaf=trees.is_none)


def _translate(roots: PyTree, params: PyTree, told: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are derivatives, in these coordinates, and the others."""
    found = dict(told)
    if (product := told.get("hessian_vector_product")) is not None:
        found["hessian_vector_product"] = functools.partial(_multiply, roots, params, product)
    if (squares := told.get("fisher_diagonal")) is not None:
        given = lambda: squares() if trees.is_function(squares) else squares
        found["fisher_diagonal"] = lambda: _shrink(roots, _shrink(roots, given()))
    return found


def _multiply(roots, params, product, tangent: PyTree) -> PyTree:
    """With the Hessian; a tangent has the dtype of its parameter."""
    like = lambda moved, param: jnp.asarray(moved).astype(jnp.result_type(param))
    return _shrink(roots, product(jax.tree.map(like, _shrink(roots, tangent), params)))
