"""What stands in for the Hessian in a compensation: values that go where `curvature` goes."""

from dcasgd_jax.curvatures.adaptive import AdaptiveState, adaptive
from dcasgd_jax.curvatures.curvature import Curvature, elementwise
from dcasgd_jax.curvatures.hessian import hessian
from dcasgd_jax.curvatures.memoryless import absolute, fisher, squared_gradient
from dcasgd_jax.curvatures.outer_rows import rows
from dcasgd_jax.curvatures.rotated import RotatedState, rotated

__all__ = [
    "AdaptiveState",
    "Curvature",
    "RotatedState",
    "absolute",
    "adaptive",
    "elementwise",
    "fisher",
    "hessian",
    "rotated",
    "rows",
    "squared_gradient",
]
