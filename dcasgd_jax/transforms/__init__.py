"""Optax transformations that compensate stale gradients, or make gradients stale."""

from dcasgd_jax.transforms.assumed_delay import AssumeDelayState, assume_delay
from dcasgd_jax.transforms.compensating import (
    CompensateUpdatesState,
    compensate_delay,
    compensate_updates,
)
from dcasgd_jax.transforms.compensation_of_push import Arrival, CompensateDelayState, Strength
from dcasgd_jax.transforms.delayed_gradients import DelayGradientsState, delay_gradients
from dcasgd_jax.transforms.measurement import (
    CompensationMetrics,
    CompensationSums,
    compensation_metrics,
    forget_measurement,
)
from dcasgd_jax.transforms.pipeline import pipeline_delays
from dcasgd_jax.transforms.remembered_pulls import RememberPullsState, record_pull, remember_pulls

__all__ = [
    "Arrival",
    "AssumeDelayState",
    "CompensateDelayState",
    "CompensateUpdatesState",
    "CompensationMetrics",
    "CompensationSums",
    "DelayGradientsState",
    "RememberPullsState",
    "Strength",
    "assume_delay",
    "compensate_delay",
    "compensate_updates",
    "compensation_metrics",
    "delay_gradients",
    "forget_measurement",
    "pipeline_delays",
    "record_pull",
    "remember_pulls",
]
