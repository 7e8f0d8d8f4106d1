"""What workers are sent in the place of the params: values for `sim.simulate(..., send=)`."""

from dcasgd_jax.rivals.acceleration import momentum_compensation as momentum_compensation
from dcasgd_jax.rivals.coordinates import coordinate_compensation as coordinate_compensation
from dcasgd_jax.rivals.dana import dana_look_ahead as dana_look_ahead
from dcasgd_jax.rivals.prediction import multi_step_nesterov as multi_step_nesterov
from dcasgd_jax.rivals.prediction import roll_forward as roll_forward
from dcasgd_jax.rivals.prediction import step_prediction as step_prediction
from dcasgd_jax.rivals.prediction import velocity_prediction as velocity_prediction
