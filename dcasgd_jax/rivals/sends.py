"""What workers are sent in the place of the params: values for `sim.Server(tx, send=)`."""

from dcasgd_jax.rivals.acceleration import momentum_compensation
from dcasgd_jax.rivals.coordinates import coordinate_compensation
from dcasgd_jax.rivals.dana import dana_look_ahead
from dcasgd_jax.rivals.prediction import (
    multi_step_nesterov,
    roll_forward,
    step_prediction,
    velocity_prediction,
)

__all__ = [
    "coordinate_compensation",
    "dana_look_ahead",
    "momentum_compensation",
    "multi_step_nesterov",
    "roll_forward",
    "step_prediction",
    "velocity_prediction",
]
