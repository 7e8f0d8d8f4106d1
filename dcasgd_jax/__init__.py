"""Delay-compensated asynchronous SGD for JAX.

Optax transformations that correct stale gradients (Zheng et al., ICML 2017), and in
`dcasgd_jax.sim` an exact, compiled simulator of asynchronous training.
"""

from dcasgd_jax import compressions, curvatures, diagnostics, rivals, strengths
from dcasgd_jax.alias import dcasgd
from dcasgd_jax.compensation import adaptive_strength, compensated_gradient, update_mean_square
from dcasgd_jax.transforms import (
    AssumeDelayState,
    CompensateDelayState,
    CompensateUpdatesState,
    CompensationMetrics,
    CompensationSums,
    DelayGradientsState,
    RememberPullsState,
    assume_delay,
    compensate_delay,
    compensate_updates,
    compensation_metrics,
    delay_gradients,
    pipeline_delays,
    record_pull,
    remember_pulls,
)

__version__ = "0.1.0"

__all__ = [
    "AssumeDelayState",
    "CompensateDelayState",
    "CompensateUpdatesState",
    "CompensationMetrics",
    "CompensationSums",
    "DelayGradientsState",
    "RememberPullsState",
    "adaptive_strength",
    "assume_delay",
    "compensate_delay",
    "compensate_updates",
    "compensated_gradient",
    "compensation_metrics",
    "compressions",
    "curvatures",
    "dcasgd",
    "delay_gradients",
    "diagnostics",
    "pipeline_delays",
    "record_pull",
    "remember_pulls",
    "rivals",
    "strengths",
    "update_mean_square",
]
