"""Other published ways of living with stale gradients, as optax transformations."""

from dcasgd_jax.rivals import sends
from dcasgd_jax.rivals.acceleration import AccelerateState, accelerate, nesterov_coefficient
from dcasgd_jax.rivals.adaptive_steps import AdaptiveStepSizesState, adaptive_step_sizes
from dcasgd_jax.rivals.buffering import FedBuffState, fedbuff
from dcasgd_jax.rivals.coordinates import AccelerateCoordinatesState, accelerate_coordinates
from dcasgd_jax.rivals.dana import Dana, PerWorkerMomentumState, dana, per_worker_momentum
from dcasgd_jax.rivals.decentralized import DCS3GDState, dc_s3gd
from dcasgd_jax.rivals.dropping import DropStaleState, drop_stale
from dcasgd_jax.rivals.nesterov import DelayedNesterovState, delayed_nesterov
from dcasgd_jax.rivals.ordered import OrderedMomentumState, ordered_momentum
from dcasgd_jax.rivals.outer import heloco, momentum_look_ahead
from dcasgd_jax.rivals.pipemare import PipeMareRescaleState, pipemare_rescale
from dcasgd_jax.rivals.prediction import RememberStepState, remember_step
from dcasgd_jax.rivals.spikes import SpikeCompensationState, spike_compensation
from dcasgd_jax.rivals.staleness import (
    delay_adaptive,
    inverse_one_plus_staleness,
    inverse_staleness,
    polynomial_staleness,
    scale_by_staleness,
)
from dcasgd_jax.rivals.synchronous import DCSSGDState, dc_ssgd
from dcasgd_jax.rivals.table import LastGradientsState, last_gradients

__all__ = [
    "AccelerateCoordinatesState",
    "AccelerateState",
    "AdaptiveStepSizesState",
    "DCS3GDState",
    "DCSSGDState",
    "Dana",
    "DelayedNesterovState",
    "DropStaleState",
    "FedBuffState",
    "LastGradientsState",
    "OrderedMomentumState",
    "PerWorkerMomentumState",
    "PipeMareRescaleState",
    "RememberStepState",
    "SpikeCompensationState",
    "accelerate",
    "accelerate_coordinates",
    "adaptive_step_sizes",
    "dana",
    "dc_s3gd",
    "dc_ssgd",
    "delay_adaptive",
    "delayed_nesterov",
    "drop_stale",
    "fedbuff",
    "heloco",
    "inverse_one_plus_staleness",
    "inverse_staleness",
    "last_gradients",
    "momentum_look_ahead",
    "nesterov_coefficient",
    "ordered_momentum",
    "per_worker_momentum",
    "pipemare_rescale",
    "polynomial_staleness",
    "remember_step",
    "scale_by_staleness",
    "sends",
    "spike_compensation",
]
