"""How the transformer is trained by workers, with SGD and with Adam, and what is tried for each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim
from dcasgd_jax.commands import methods
from dcasgd_jax.commands.catalogue import compensations

WARM_UP = 0.1  # of the updates, in which the learning rate grows linearly; constant after them
SEQUENTIAL_RATE = {"sgd": 1.0, "adam": 0.005}
"""Chosen on a tuning seed, and what the rows without tuning are trained with."""

HIGHEST_RATE = {"sgd": 2.0, "adam": 0.02}
NUM_CONFIGURATIONS = 12


class Place(NamedTuple):
    """What an optimizer is made for."""

    workers: int
    updates: int
    terms: int  # of the mean that a gradient is: tokens


class Method(NamedTuple):
    """One way to train, with its optimizer."""

    name: str
    title: str
    optimizer: str  # sgd or adam
    make: Callable[[Place, Any, Any], optax.GradientTransformation]  # of a rate and λ0
    numbers: tuple[float | None, ...] = (None,)  # values of λ0 that are tried
    tuned: bool = True  # else: the learning rate of the sequential run, as it is
    protocol: sim.Protocol = sim.Asynchronous()
    send: Callable[[Place], Any] | None = None

    def tried(self) -> Sequence[methods.Hyperparameters]:
        """As many configurations for every method that is tuned."""
        if not self.tuned:
            rates = [SEQUENTIAL_RATE[self.optimizer]]
        else:
            # Twelve, each by the root of 2 above the last, or every other one of them.
            powers = range(NUM_CONFIGURATIONS - len(self.numbers), -1, -len(self.numbers))
            highest = HIGHEST_RATE[self.optimizer]
            rates = [float(f"{highest / 2 ** (power / 2):.3g}") for power in powers]
        return [methods.Hyperparameters(r, number) for r in rates for number in self.numbers]


def _warmed_up(place: Place, learning_rate: Any) -> optax.Schedule:
    factor = methods.rate_factor(place.updates, decay_at=(), warm_up=WARM_UP)
    return lambda count: learning_rate * factor(count)


def _sgd(place, learning_rate, lambda0) -> optax.GradientTransformation:
    del lambda0
    return optax.sgd(_warmed_up(place, learning_rate))


def _adam(place, learning_rate, lambda0) -> optax.GradientTransformation:
    del lambda0
    return optax.adam(_warmed_up(place, learning_rate))


def _predicted(place, learning_rate, lambda0) -> optax.GradientTransformation:
    return optax.chain(_adam(place, learning_rate, lambda0), rivals.remember_step())


def _compensated(optimizer, make_curvature, preconditioner=None) -> Callable[..., Any]:
    """The optimizer, with a pull outside of it."""

    def make(place, learning_rate, lambda0) -> optax.GradientTransformation:
        return dc.compensate_updates(
            optimizer(place, learning_rate, None),
            lambda0,
            learning_rate=_warmed_up(place, learning_rate),
            curvature=make_curvature(place),
            preconditioner=preconditioner,
        )

    return make


def _one_side(place: Place) -> dc.curvatures.Curvature:
    return dc.curvatures.rotated(place.terms)


def _both_sides(place: Place) -> dc.curvatures.Curvature:
    return dc.curvatures.rotated(place.terms, sides="both")


def _rows(place: Place) -> dc.curvatures.Curvature:
    return dc.curvatures.rows(place.terms)


def _absolute(place: Place) -> dc.curvatures.Curvature:
    del place
    return dc.curvatures.absolute()


def _look_ahead(place: Place) -> Any:
    """As far as the mean delay: with equally fast workers M - 1 updates."""
    return rivals.sends.step_prediction(place.workers - 1)


_DIVIDED = dc.preconditioners.adam()
_SEQUENTIAL = sim.Sequential()

METHODS = {
    method.name: method
    for method in (
        Method("sgd", "sequential SGD", "sgd", _sgd, protocol=_SEQUENTIAL),
        Method("asgd", "asynchronous SGD", "sgd", _sgd),
        Method("sgd-absolute", "absolute()", "sgd", _compensated(_sgd, _absolute), (8.0, 32.0)),
        Method("sgd-rotated", "rotated()", "sgd", _compensated(_sgd, _one_side), (4.0, 16.0)),
        Method("sgd-rotated-4", "rotated(), λ0 = 4 *", "sgd", _compensated(_sgd, _one_side),
               (4.0,), tuned=False),
        Method("sgd-both-4", "rotated(sides=both), λ0 = 4 *", "sgd",
               _compensated(_sgd, _both_sides), (4.0,), tuned=False),
        Method("sgd-rows-4", "rows(), λ0 = 4 *", "sgd", _compensated(_sgd, _rows), (4.0,),
               tuned=False),
        Method("adam", "sequential Adam", "adam", _adam, protocol=_SEQUENTIAL),
        Method("async-adam", "asynchronous Adam", "adam", _adam),
        Method("adam-prediction", "weight prediction", "adam", _predicted, send=_look_ahead),
        Method("adam-independent", "pulled back in full everywhere (control)", "adam",
               _compensated(_adam, _absolute, _DIVIDED), (compensations.EVERYWHERE_CAPPED,)),
        Method("adam-absolute", "absolute()", "adam",
               _compensated(_adam, _absolute, _DIVIDED), (16.0, 256.0)),
        Method("adam-rotated-alone", "rotated(), no preconditioner", "adam",
               _compensated(_adam, _one_side), (64.0, 1024.0)),
        Method("adam-rotated", "rotated()", "adam",
               _compensated(_adam, _one_side, _DIVIDED), (4.0, 16.0)),
        Method("adam-both", "rotated(sides=both)", "adam",
               _compensated(_adam, _both_sides, _DIVIDED), (4.0, 16.0)),
        Method("adam-both-16", "rotated(sides=both), λ0 = 16 *", "adam",
               _compensated(_adam, _both_sides, _DIVIDED), (16.0,), tuned=False),
        Method("adam-both-4", "rotated(sides=both), λ0 = 4 *", "adam",
               _compensated(_adam, _both_sides, _DIVIDED), (4.0,), tuned=False),
    )
}  # fmt: skip
