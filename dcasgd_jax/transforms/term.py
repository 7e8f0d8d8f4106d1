"""The compensation of one update, complete but for its strength λ0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dcasgd_jax import compensation, strengths
from dcasgd_jax.transforms import curvature as curvatures
from dcasgd_jax.transforms import rows
from dcasgd_jax.transforms import sums as coordinate_sums
from dcasgd_jax.typing import PyTree


class Operands(NamedTuple):
    """The trees that a term is computed from, coordinate by coordinate."""

    grads: PyTree
    params: PyTree
    stale_params: PyTree  # of arrays, or of rows that are not read yet
    mean_square: PyTree | None  # of the adaptive strength
    fisher_diagonal: PyTree | None  # of the curvature "fisher"
    product: PyTree | None  # H(w - w_stale), where that is known as a whole


class Term(NamedTuple):
    """What `make_term` has put together."""

    settings: curvatures.Settings
    operands: Operands
    max_curvature: Any
    hessian_vector_product: Callable[[PyTree], PyTree] | None

    def compensate(self, lambda0: PyTree) -> PyTree:
        """The compensated gradient for a λ0, a scalar or a tree of scalars."""
        grads, params, *_, product = self.operands
        if product is not None:
            return compensation.curvature_compensated_gradient(grads, product, lambda0)
        return compensation.compensated_gradient(
            grads,
            params,
            self._stale_params(),
            self._strength(lambda0),
            curvature=self._stand_in(),
            max_curvature=self.max_curvature,
        )

    def situation(self) -> strengths.Situation:
        """What a rule for λ0 is shown."""
        grads, params, *_, product = self.operands
        moved = jax.tree.map(
            lambda grad, param, stale: None if grad is None else param - stale,
            grads,
            params,
            self._stale_params(),
            is_leaf=_is_none,
        )
        if product is None:
            curvature = compensation.scaled_curvature(grads, self._strength(1.0), self._stand_in())
            term = jax.tree.map(lambda c, d: c * d, curvature, moved)
        else:
            curvature, term = None, product
        return strengths.Situation(
            grads,
            term,
            curvature,
            self.max_curvature,
            self.hessian_vector_product,
            moved,
            self._sums,
        )

    def _sums(self, *functions, block_stride: int = 1, first_block: Any = 0) -> tuple[PyTree, ...]:
        """The `sums` of a `Situation`."""
        given = [tree is not None for tree in self.operands]
        structure = jax.tree.structure(self.operands.grads, is_leaf=_is_none)
        split = [structure.flatten_up_to(tree) for tree in self.operands if tree is not None]

        def of_arrays(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            remaining = iter(arrays)
            operands = Operands(*(next(remaining) if present else None for present in given))
            part = self._replace(operands=operands).situation()
            coordinates = strengths.Coordinates(part.grads, part.term, part.curvature)
            return tuple(function(coordinates) for function in functions)

        sums = [
            (None,) * len(functions)
            if leaves[0] is None
            else coordinate_sums.sum_coordinates(
                of_arrays, leaves, block_stride=block_stride, first_block=first_block
            )
            for leaves in zip(*split, strict=True)
        ]
        return tuple(
            structure.unflatten([of_leaf[i] for of_leaf in sums]) for i in range(len(functions))
        )

    def _stale_params(self) -> PyTree:
        return jax.tree.map(rows.read, self.operands.stale_params, is_leaf=rows.is_row)

    def _stand_in(self) -> PyTree | None:
        operands = self.operands
        return curvatures.stand_in(self.settings, operands.grads, operands.fisher_diagonal)

    def _strength(self, lambda0: PyTree) -> PyTree:
        mean_square = self.operands.mean_square
        if mean_square is None:
            return lambda0
        return compensation.adaptive_strength(mean_square, lambda0, self.settings.eps)


def make_term(
    settings: curvatures.Settings,
    grads: PyTree,
    params: PyTree,
    stale_params: PyTree,
    mean_square: PyTree | None,
    *,
    max_curvature: Any,
    hessian_vector_product: Callable[[PyTree], PyTree] | None,
    fisher_diagonal: PyTree | Callable[[], PyTree] | None,
) -> Term:
    """Puts together what the curvature of the settings needs; nothing else is computed.

    Args:
      settings: Names the curvature.
      grads: Gradients; a tree, with `None` for leaves without one.
      params: The present parameters.
      stale_params: Those that the gradients were taken at; a leaf may be a `rows.Row`.
      mean_square: To use for this update; `None` if the strength is not adaptive.
      max_curvature: The cap, a scalar, or `None`.
      hessian_vector_product: As `update` was given it.
      fisher_diagonal: As `update` was given it.
    """
    product = diagonal = None
    if settings.kind == "hvp":
        read = jax.tree.map(rows.read, stale_params, is_leaf=rows.is_row)
        product = curvatures.product(hessian_vector_product, curvatures.displacement(params, read))
    if settings.kind == "fisher":
        diagonal = curvatures.stand_in(settings, grads, fisher_diagonal)
    operands = Operands(grads, params, stale_params, mean_square, diagonal, product)
    return Term(settings, operands, max_curvature, hessian_vector_product)


def _is_none(leaf) -> bool:
    return leaf is None
