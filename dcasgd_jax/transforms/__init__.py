"""Optax transformations that compensate stale gradients, or make gradients stale."""

from dcasgd_jax.transforms.delay import DelayGradientsState as DelayGradientsState
from dcasgd_jax.transforms.delay import delay_gradients as delay_gradients
from dcasgd_jax.transforms.explicit import CompensateDelayState as CompensateDelayState
from dcasgd_jax.transforms.explicit import Strength as Strength
from dcasgd_jax.transforms.explicit import compensate_delay as compensate_delay
from dcasgd_jax.transforms.fixed_delay import CompensateFixedDelayState as CompensateFixedDelayState
from dcasgd_jax.transforms.fixed_delay import compensate_fixed_delay as compensate_fixed_delay
from dcasgd_jax.transforms.measurement import CompensationMetrics as CompensationMetrics
from dcasgd_jax.transforms.measurement import CompensationSums as CompensationSums
from dcasgd_jax.transforms.measurement import compensation_metrics as compensation_metrics
from dcasgd_jax.transforms.measurement import compensation_ratio as compensation_ratio
from dcasgd_jax.transforms.per_worker import (
    CompensateWorkerDelayState as CompensateWorkerDelayState,
)
from dcasgd_jax.transforms.per_worker import compensate_worker_delay as compensate_worker_delay
from dcasgd_jax.transforms.per_worker import record_pull as record_pull
from dcasgd_jax.transforms.pipeline import pipeline_delays as pipeline_delays
