"""Optax transformations that compensate stale gradients, or make gradients stale."""

from dcasgd_jax.transforms.assumed_delay import AssumeDelayState as AssumeDelayState
from dcasgd_jax.transforms.assumed_delay import assume_delay as assume_delay
from dcasgd_jax.transforms.compensating import Arrival as Arrival
from dcasgd_jax.transforms.compensating import CompensateDelayState as CompensateDelayState
from dcasgd_jax.transforms.compensating import Strength as Strength
from dcasgd_jax.transforms.compensating import compensate_delay as compensate_delay
from dcasgd_jax.transforms.delayed_gradients import DelayGradientsState as DelayGradientsState
from dcasgd_jax.transforms.delayed_gradients import delay_gradients as delay_gradients
from dcasgd_jax.transforms.measurement import CompensationMetrics as CompensationMetrics
from dcasgd_jax.transforms.measurement import CompensationSums as CompensationSums
from dcasgd_jax.transforms.measurement import compensation_metrics as compensation_metrics
from dcasgd_jax.transforms.measurement import forget_measurement as forget_measurement
from dcasgd_jax.transforms.pipeline import pipeline_delays as pipeline_delays
from dcasgd_jax.transforms.remembered_pulls import RememberPullsState as RememberPullsState
from dcasgd_jax.transforms.remembered_pulls import record_pull as record_pull
from dcasgd_jax.transforms.remembered_pulls import remember_pulls as remember_pulls
