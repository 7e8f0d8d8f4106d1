"""What stands in for the Hessian in a compensation: values that go where `curvature` goes."""

from dcasgd_jax.curvatures.adaptive import AdaptiveState as AdaptiveState
from dcasgd_jax.curvatures.adaptive import adaptive as adaptive
from dcasgd_jax.curvatures.curvature import Curvature as Curvature
from dcasgd_jax.curvatures.curvature import elementwise as elementwise
from dcasgd_jax.curvatures.hessian import hessian as hessian
from dcasgd_jax.curvatures.memoryless import absolute as absolute
from dcasgd_jax.curvatures.memoryless import fisher as fisher
from dcasgd_jax.curvatures.memoryless import squared_gradient as squared_gradient
