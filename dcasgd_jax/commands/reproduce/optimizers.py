"""The optimizers of the paper's protocol: step decay, and momentum and weight decay if wanted."""

import dataclasses
import functools
from typing import Any

import optax

from dcasgd_jax.commands import methods


def decay_schedule(num_updates: int, decay_at: tuple[float, ...]) -> optax.Schedule:
    """Factor on the learning rate: 1, then a tenth after each of the fractions of the updates."""
    # Rounded first: 2/3 of 3 updates are 2, whatever the last bit says.
    boundaries = {int(round(at * num_updates, 6)): methods.DECAY_FACTOR for at in decay_at}
    return optax.piecewise_constant_schedule(1.0, boundaries)


@functools.cache
def make_tx(
    method: methods.Method,
    num_updates: int,
    momentum: float,
    weight_decay: float,
    decay_at: tuple[float, ...] = methods.DECAY_AT,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a method, with learning rate and λ0 in the state; always the same object.

    Compensation of the raw gradient, weight decay, momentum, learning rate. One object means one
    compiled program for all learning rates, λ0 and seeds; `methods.init_opt_state` sets them.
    """
    decay = decay_schedule(num_updates, decay_at)
    moving = dataclasses.replace(method, momentum=momentum or None)

    def factory(learning_rate: Any, lambda0: Any = 0.0):
        return methods.build_chain(moving, learning_rate, lambda0, decay, weight_decay=weight_decay)

    return optax.inject_hyperparams(factory)(learning_rate=0.0)
