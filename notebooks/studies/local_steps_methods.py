"""Outer optimizers of the study of local steps, and what is tried for each: as much for all."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim

RATES = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0)
FEWER_RATES = (0.125, 0.35, 1.0)  # for methods that have a strength to choose


class Numbers(NamedTuple):
    """What is tuned."""

    learning_rate: float
    lambda0: float | None = None  # None: nothing is compensated


class Method(NamedTuple):
    """An outer optimizer and its protocol."""

    name: str
    title: str
    server: Any  # a transformation, or a `sim.Server` with one, built with inject_hyperparams
    tried: Sequence[Numbers]
    protocol: sim.Protocol = sim.Asynchronous()

    def pushes_per_update(self, num_workers: int) -> int:
        """That an update is the mean of."""
        return self.protocol.server(num_workers).pushes_per_update


def _injected(make: Callable[[Any], optax.GradientTransformation]) -> Any:
    """An optimizer whose learning rate can be swept."""
    return optax.inject_hyperparams(lambda learning_rate: make(learning_rate))(learning_rate=0.0)


def _compensated(make_curvature: Callable[[], dc.curvatures.Curvature]) -> Any:
    """Plain steps, capped: the pull never goes past where the worker had pulled."""

    @optax.inject_hyperparams
    def make(learning_rate, lambda0):
        compensate = dc.compensate_delay(
            lambda0, curvature=make_curvature(), max_pull=1.0, learning_rate=learning_rate
        )
        return optax.chain(compensate, optax.sgd(learning_rate))

    return make(learning_rate=0.0, lambda0=0.0)


def _looking_ahead(make: Callable[[Any, float], optax.GradientTransformation]) -> Any:
    """Workers are sent where the momentum leads; the rate is that of the state."""
    send = rivals.sends.multi_step_nesterov(1, 0.9)
    return sim.Server(_injected(lambda rate: make(rate, 0.9)), send=send)


def _plain(*rates: float) -> tuple[Numbers, ...]:
    return tuple(map(Numbers, rates))


def _with_strengths(*strengths: float) -> tuple[Numbers, ...]:
    return tuple(Numbers(rate, lambda0) for rate in FEWER_RATES for lambda0 in strengths)


_nesterov = _injected(lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True))
_SYNCHRONOUS = sim.Synchronous()

METHODS = {
    method.name: method
    for method in (
        Method("sync-average", "synchronous, average", _injected(optax.sgd), _plain(*RATES),
               _SYNCHRONOUS),
        Method("sync-diloco", "synchronous DiLoCo (Nesterov)", _nesterov, _plain(*RATES),
               _SYNCHRONOUS),
        Method("async", "asynchronous, plain steps", _injected(optax.sgd), _plain(*RATES)),
        Method("async-nesterov", "asynchronous, Nesterov", _nesterov, _plain(*RATES)),
        Method("delayed-nesterov", "delayed Nesterov",
               _injected(lambda rate: rivals.delayed_nesterov(rate, 8)), _plain(*RATES)),
        Method("mla", "momentum look-ahead (MLA)", _looking_ahead(rivals.momentum_look_ahead),
               _plain(*RATES)),
        Method("heloco", "HeLoCo", _looking_ahead(rivals.heloco), _plain(*RATES)),
        Method("dcasgd-a", "adaptive(), capped", _compensated(dc.curvatures.adaptive),
               _with_strengths(2.0, 8.0)),
        # The scale of a pseudo-gradient is not known beforehand: with a batch size of 1 all of it
        # is in λ0.
        Method("rotated", "rotated(), capped", _compensated(lambda: dc.curvatures.rotated(1)),
               _with_strengths(256.0, 16384.0)),
    )
}  # fmt: skip
