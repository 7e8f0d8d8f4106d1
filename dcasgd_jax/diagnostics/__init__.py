"""How good the approximations behind a compensation are, on a model and data of your own."""

from dcasgd_jax.diagnostics.explanation import CURVATURES, DIRECTIONS, Explanation, explain
from dcasgd_jax.diagnostics.outer_products import (
    OuterProductError,
    OuterProductErrors,
    outer_product_error,
)

__all__ = [
    "CURVATURES",
    "DIRECTIONS",
    "Explanation",
    "OuterProductError",
    "OuterProductErrors",
    "explain",
    "outer_product_error",
]
