"""What stands in for the Hessian in a compensation: values that go where `curvature` goes."""

from dcasgd_jax.curvatures.adaptive import AdaptiveState, adaptive
from dcasgd_jax.curvatures.curvature import Curvature, elementwise
from dcasgd_jax.curvatures.hessian import hessian
from dcasgd_jax.curvatures.memoryless import absolute, fisher, squared_gradient

__all__ = [
    "AdaptiveState",
    "Curvature",
    "absolute",
    "adaptive",
    "elementwise",
    "fisher",
    "hessian",
    "squared_gradient",
]
