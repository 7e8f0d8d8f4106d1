"""What a rule for λ0 is shown of one update."""

from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax import compensation, curvatures, strengths, sums, trees
from dcasgd_jax.transforms import scaled_coordinates
from dcasgd_jax.typing import PyTree


def make(
    curvature: curvatures.Curvature,
    estimate: Any,
    push: scaled_coordinates.Push,
    moved: PyTree,
    max_curvature: Any,
) -> strengths.Situation:
    """The update with strength 1; nothing is computed of what the rule does not look at."""
    grads, params, stale_params, told = push
    at_one = lambda estimate, grads, moved: strengths.Coordinates(
        grads=grads,
        term=curvature.term(estimate, grads, moved, 1.0, None),
        curvature=None if curvature.diagonal is None else curvature.diagonal(estimate, grads, 1.0),
    )
    whole = at_one(estimate, grads, moved)

    structure = jax.tree.structure(grads, is_leaf=trees.is_none)
    if curvature.by_coordinate:
        of_part = lambda grad, param, stale_param, estimate=None: at_one(
            estimate, grad, compensation.displacement(param, stale_param)
        )
        operands = (grads, params, stale_params, estimate)
    else:
        of_part = strengths.Coordinates
        operands = whole
    split = [structure.flatten_up_to(tree) for tree in operands if tree is not None]

    def of_leaves(*functions) -> tuple[PyTree, ...]:
        found = [_sum_leaf(functions, of_part, leaves) for leaves in zip(*split, strict=True)]
        return tuple(structure.unflatten([f[i] for f in found]) for i in range(len(functions)))

    return strengths.Situation(
        grads=grads,
        term=whole.term,
        curvature=whole.curvature,
        max_curvature=max_curvature,
        hessian_vector_product=told.get("hessian_vector_product"),
        # A tangent has the dtype of its parameter.
        displacement=jax.tree.map(lambda m, p: m.astype(jnp.result_type(p)), moved, params),
        sums=of_leaves,
    )


def _sum_leaf(functions, of_part, leaves) -> tuple[jax.Array, ...]:
    """The sums of one leaf, the gradient first; 0 where there is none."""
    if leaves[0] is None:
        return tuple(jnp.zeros((), jnp.float32) for _ in functions)
    each = lambda *parts: tuple(function(of_part(*parts)) for function in functions)
    return sums.sum_coordinates(each, leaves)
