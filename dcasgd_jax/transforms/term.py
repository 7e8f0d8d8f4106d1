"""The compensation of one update, complete but for its strength λ0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dcasgd_jax import compensation, strengths
from dcasgd_jax.transforms import curvature as curvatures
from dcasgd_jax.typing import PyTree


class Term(NamedTuple):
    """What `make_term` has put together."""

    grads: PyTree
    params: PyTree
    stale_params: PyTree
    mean_square: PyTree | None  # of the adaptive strength
    eps: Any
    stand_in: PyTree | None  # for the squared gradient
    product: PyTree | None  # H(w - w_stale), where that is known as a whole
    max_curvature: Any
    hessian_vector_product: Callable[[PyTree], PyTree] | None

    def compensate(self, lambda0: PyTree) -> PyTree:
        """The compensated gradient for a λ0, a scalar or a tree of scalars."""
        if self.product is not None:
            return compensation.curvature_compensated_gradient(self.grads, self.product, lambda0)
        return compensation.compensated_gradient(
            self.grads,
            self.params,
            self.stale_params,
            self._strength(lambda0),
            curvature=self.stand_in,
            max_curvature=self.max_curvature,
        )

    def situation(self) -> strengths.Situation:
        """What a rule for λ0 is shown."""
        moved = jax.tree.map(
            lambda grad, param, stale: None if grad is None else param - stale,
            self.grads,
            self.params,
            self.stale_params,
            is_leaf=lambda leaf: leaf is None,
        )
        if self.product is None:
            curvature = compensation.scaled_curvature(
                self.grads, self._strength(1.0), self.stand_in
            )
            term = jax.tree.map(lambda c, d: c * d, curvature, moved)
        else:
            curvature, term = None, self.product
        return strengths.Situation(
            self.grads, term, curvature, self.max_curvature, self.hessian_vector_product, moved
        )

    def _strength(self, lambda0: PyTree) -> PyTree:
        if self.mean_square is None:
            return lambda0
        return compensation.adaptive_strength(self.mean_square, lambda0, self.eps)


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
      stale_params: Those that the gradients were taken at.
      mean_square: To use for this update; `None` if the strength is not adaptive.
      max_curvature: The cap, a scalar, or `None`.
      hessian_vector_product: As `update` was given it.
      fisher_diagonal: As `update` was given it.
    """
    product = None
    if settings.kind == "hvp":
        moved = curvatures.displacement(params, stale_params)
        product = curvatures.product(hessian_vector_product, moved)
    return Term(
        grads=grads,
        params=params,
        stale_params=stale_params,
        mean_square=mean_square,
        eps=settings.eps,
        stand_in=curvatures.stand_in(settings, grads, fisher_diagonal),
        product=product,
        max_curvature=max_curvature,
        hessian_vector_product=hessian_vector_product,
    )
