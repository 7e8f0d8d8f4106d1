r"""Coordinates :math:`z = \sqrt d \odot w`, in which steps that are divided by d are plain SGD.

A gradient is :math:`g / \sqrt d` there, and a Hessian :math:`H_{ij} / \sqrt{d_i d_j}`. Where d is a
matrix D, the coordinates are :math:`D^{1/2} w` and a gradient is :math:`D^{-1/2} g`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, matrices, preconditioners, trees, update_checks
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
        what = f"what {preconditioner} divides by"
        _check(what, divisors, push.params)
    stretch, shrink = (functools.partial(_scale, power, divisors) for power in (0.5, -0.5))
    # Not √d w and √d w_stale: where the two are equal, their difference need not be 0.
    moved = stretch(compensation.displacement(push.params, push.stale_params))
    translated = Push(
        shrink(push.grads),
        moved,
        jax.tree.map(jnp.zeros_like, moved),
        _translate(preconditioner, divisors, shrink, push.params, push.told),
    )
    return translated, shrink, state


def _is_matrix(node: Any) -> bool:
    return isinstance(node, preconditioners.MatrixDivisor)


def _is_whole(node: Any) -> bool:
    return node is None or _is_matrix(node)


def _check(what: str, divisors: PyTree, params: PyTree) -> None:
    """Raises ValueError where a divisor has not the shape of its parameter, or of its side."""

    def checked(divisor, param):
        if not _is_matrix(divisor):
            return divisor
        sides = matrices.sides(jnp.shape(param))
        if divisor.vectors.shape != (min(sides), min(sides)):
            raise ValueError(
                f"{what} has vectors of shape {divisor.vectors.shape} for a leaf of shape "
                f"{jnp.shape(param)}, whose shorter side is {min(sides)}."
            )
        return param

    if jax.tree.structure(divisors, is_leaf=_is_whole) == jax.tree.structure(params):
        divisors = jax.tree.map(checked, divisors, params, is_leaf=_is_whole)
    update_checks.check_like_params(what, divisors, params)


def _scale(power: float, divisors: PyTree, tree: PyTree) -> PyTree:
    """A tree times a power of what it is divided by; as it was where there is no divisor.

    With 1/2 a displacement comes into these coordinates, with -1/2 a gradient does, or a
    displacement leaves them. What is divided by 0 is 0.
    """

    def each(divisor, leaf):
        if divisor is None or leaf is None:
            return leaf
        if not _is_matrix(divisor):
            return _times_power(leaf, divisor, power)
        matrix = matrices.matrix(jnp.asarray(leaf).astype(divisor.vectors.dtype))
        rows = matrices.lying(matrix)
        turned = matrices.multiply(divisor.vectors.T, rows)
        scaled = _times_power(turned, divisor.values[:, None], power)
        back = matrices.multiply(divisor.vectors, scaled)
        return matrices.like(back if rows is matrix else back.T, leaf)

    return jax.tree.map(each, divisors, tree, is_leaf=_is_whole)


def _times_power(leaf: jax.Array, divisor: jax.Array, power: float) -> jax.Array:
    root = jnp.sqrt(divisor)
    return root * leaf if power > 0 else trees.quotient(leaf, root)


def _translate(preconditioner, divisors, shrink, params: PyTree, told: dict[str, Any]) -> Any:
    """The arguments that are derivatives, in these coordinates, and the others."""
    found = dict(told)
    if (product := told.get("hessian_vector_product")) is not None:
        found["hessian_vector_product"] = functools.partial(_multiply, shrink, params, product)
    if (squares := told.get("fisher_diagonal")) is not None:

        def square():
            if any(map(_is_matrix, jax.tree.leaves(divisors, is_leaf=_is_whole))):
                raise ValueError(
                    f"In the coordinates of {preconditioner} no Fisher matrix's diagonal is known: "
                    "take a curvature that needs no fisher_diagonal=, such as rotated()."
                )
            return shrink(shrink(squares() if trees.is_function(squares) else squares))

        found["fisher_diagonal"] = square
    return found


def _multiply(shrink, params, product, tangent: PyTree) -> PyTree:
    """With the Hessian; a tangent has the dtype of its parameter."""
    like = lambda moved, param: jnp.asarray(moved).astype(jnp.result_type(param))
    return shrink(product(jax.tree.map(like, shrink(tangent), params)))
