"""How good the approximations behind a compensation are, on a model and data of your own."""

from dcasgd_jax.diagnostics.explanation import CURVATURES as CURVATURES
from dcasgd_jax.diagnostics.explanation import Explanation as Explanation
from dcasgd_jax.diagnostics.explanation import explain as explain
from dcasgd_jax.diagnostics.outer_products import OuterProductError as OuterProductError
from dcasgd_jax.diagnostics.outer_products import OuterProductErrors as OuterProductErrors
from dcasgd_jax.diagnostics.outer_products import outer_product_error as outer_product_error
