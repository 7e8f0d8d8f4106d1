"""The optimizers of the paper's protocol: step decay, and momentum and weight decay if wanted."""

import functools
from typing import Any

import optax

import dcasgd_jax as dc
from dcasgd_jax import alias
from dcasgd_jax.experiments import methods


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
    # Rounded first: 2/3 of 3 updates are 2, whatever the last bit says.
    boundaries = {int(round(at * num_updates, 6)): methods.DECAY_FACTOR for at in decay_at}
    decay = optax.piecewise_constant_schedule(1.0, boundaries)

    def factory(learning_rate: Any, lambda0: Any = 0.0):
        rate = lambda count: learning_rate * decay(count)
        chain = []
        if method.compensates:
            # The cap must see the rate that is applied, decay and momentum included.
            applied = alias.effective_learning_rate(rate, momentum or None)
            capped_by = None if method.max_pull is None else applied
            compensate = dc.compensate_delay(
                lambda0,
                ms_decay=method.ms_decay,
                max_pull=method.max_pull,
                learning_rate=capped_by,
            )
            chain.append(compensate)
        if weight_decay:
            chain.append(optax.add_decayed_weights(weight_decay))
        if momentum:
            chain.append(optax.trace(momentum))
        return optax.chain(*chain, optax.scale_by_learning_rate(rate))

    return optax.inject_hyperparams(factory)(learning_rate=0.0)
