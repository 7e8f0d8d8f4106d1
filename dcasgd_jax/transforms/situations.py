"""What a rule for λ0 is shown of one update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, curvatures, strengths, sums, trees
from dcasgd_jax.typing import PyTree


def make(
    curvature: curvatures.Curvature,
    estimate: Any,
    grads: PyTree,
    params: PyTree,
    stale_params: PyTree,
    moved: PyTree,
    max_curvature: Any,
    hessian_vector_product: Callable[[PyTree], PyTree] | None,
) -> strengths.Situation:
    """The update with strength 1; nothing is computed of what the rule does not look at."""
    at_one = lambda estimate, grads, moved: strengths.Coordinates(
        grads=grads,
        term=curvature.term(estimate, grads, moved, 1.0, None),
        curvature=None if curvature.diagonal is None else curvature.diagonal(estimate, grads, 1.0),
    )
    whole = at_one(estimate, grads, moved)

    def of_leaves(*functions) -> tuple[PyTree, ...]:
        structure = jax.tree.structure(grads, is_leaf=trees.is_none)
        leaves = _leaves(curvature, estimate, grads, params, stale_params)
        if leaves is None:
            of_whole = zip(*map(structure.flatten_up_to, _present(whole)), strict=True)
            found = [_sum_whole(functions, *of_leaf) for of_leaf in of_whole]
        else:
            found = [_sum_parts(functions, at_one, *of_leaf) for of_leaf in leaves]
        return tuple(structure.unflatten([f[i] for f in found]) for i in range(len(functions)))

    return strengths.Situation(
        grads=grads,
        term=whole.term,
        curvature=whole.curvature,
        max_curvature=max_curvature,
        hessian_vector_product=hessian_vector_product,
        # A tangent has the dtype of its parameter.
        displacement=jax.tree.map(lambda m, p: m.astype(jnp.result_type(p)), moved, params),
        sums=of_leaves,
    )


def _leaves(curvature, estimate, grads, *where) -> list[tuple] | None:
    """The leaves of estimate, gradient, params and stale params; None if parts make no sense."""
    structure = jax.tree.structure(grads, is_leaf=trees.is_none)
    alike = estimate is None or jax.tree.structure(estimate, is_leaf=trees.is_none) == structure
    if not (curvature.by_coordinate and alike):
        return None
    estimates = [None] * structure.num_leaves
    if estimate is not None:
        estimates = structure.flatten_up_to(estimate)
    return list(zip(estimates, *map(structure.flatten_up_to, (grads, *where)), strict=True))


def _sum_parts(functions, at_one, estimate, grad, param, stale_param) -> tuple:
    """The sums of one leaf, a part at a time; 0 where there is no gradient."""
    if grad is None:
        return _nothing(functions)
    given = [grad, param, stale_param, *([] if estimate is None else [estimate])]

    def of_part(grad, param, stale_param, estimate=None):
        moved = compensation.displacement(param, stale_param)
        part = at_one(estimate, grad, moved)
        return tuple(function(part) for function in functions)

    return sums.sum_coordinates(of_part, given)


def _present(whole: strengths.Coordinates) -> strengths.Coordinates:
    return whole if whole.curvature is not None else whole._replace(curvature=whole.grads)


def _sum_whole(functions, grad, term, curvature) -> tuple:
    if grad is None:
        return _nothing(functions)
    coordinates = strengths.Coordinates(grad, term, curvature)
    return tuple(jnp.sum(function(coordinates), dtype=jnp.float32) for function in functions)


def _nothing(functions) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros((), jnp.float32) for _ in functions)
