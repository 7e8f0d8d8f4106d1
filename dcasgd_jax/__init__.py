"""Delay-compensated asynchronous SGD for JAX.

Optax transformations that correct stale gradients (Zheng et al., ICML 2017), and in
`dcasgd_jax.sim` an exact, compiled simulator of asynchronous training.
"""

from dcasgd_jax import curvatures as curvatures
from dcasgd_jax import diagnostics as diagnostics
from dcasgd_jax import rivals as rivals
from dcasgd_jax import strengths as strengths
from dcasgd_jax.alias import dcasgd as dcasgd
from dcasgd_jax.compensation import adaptive_strength as adaptive_strength
from dcasgd_jax.compensation import compensated_gradient as compensated_gradient
from dcasgd_jax.compensation import update_mean_square as update_mean_square
from dcasgd_jax.transforms import AssumeDelayState as AssumeDelayState
from dcasgd_jax.transforms import CompensateDelayState as CompensateDelayState
from dcasgd_jax.transforms import CompensationMetrics as CompensationMetrics
from dcasgd_jax.transforms import CompensationSums as CompensationSums
from dcasgd_jax.transforms import DelayGradientsState as DelayGradientsState
from dcasgd_jax.transforms import RememberPullsState as RememberPullsState
from dcasgd_jax.transforms import assume_delay as assume_delay
from dcasgd_jax.transforms import compensate_delay as compensate_delay
from dcasgd_jax.transforms import compensation_metrics as compensation_metrics
from dcasgd_jax.transforms import delay_gradients as delay_gradients
from dcasgd_jax.transforms import pipeline_delays as pipeline_delays
from dcasgd_jax.transforms import record_pull as record_pull
from dcasgd_jax.transforms import remember_pulls as remember_pulls

__version__ = "0.1.0"
