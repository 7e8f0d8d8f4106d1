"""Methods that are compared: a protocol, and an optimizer whose numbers can be exchanged."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dcasgd_jax as dc
from dcasgd_jax import alias, sim
from dcasgd_jax.schedules import protocols
from dcasgd_jax.typing import PyTree

ASYNCHRONOUS = sim.Asynchronous()
MS_DECAY = 0.95
SQUARED = dc.curvatures.squared_gradient()
ADAPTIVE = dc.curvatures.adaptive(MS_DECAY)
WARM_UP = 0.1  # of the server updates, in which the learning rate grows linearly
DECAY_FACTOR = 0.1
DECAY_AT = (0.5, 0.75)  # fractions of the server updates


class Hyperparameters(NamedTuple):
    """What is tuned for each method."""

    learning_rate: float
    lambda0: float | None = None  # or another number that stands for it; None: there is none


Recipe = Callable[[Any, Any, optax.Schedule], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Args:
      name: As on the command line.
      title: One line for the help text.
      protocol: Who waits for whom.
      numbers: Values to try of λ0, or of the number that stands for it; `(None,)`: there is none.
      rate_scale: Of the learning rates to try: larger where a method divides its steps.
      curvature: As in `dc.compensate_delay`.
      max_pull: As in `dc.compensate_delay`.
      rule: Makes the strength of the number and of the factor on the learning rate, a schedule;
        `None` is the number itself.
      momentum: μ of heavy ball after the compensation; `None` for none.
      recipe: Makes the optimizer of the learning rate, the number and the factor on the rate, in
        the place of everything from `curvature` to `momentum`.
      send: As in `sim.Server`.
      train: Trains without `sim.simulate`: of a setting, hyperparameters and a workload, the
        final params and the loss of each gradient.
    """

    name: str
    title: str
    protocol: protocols.Protocol = ASYNCHRONOUS
    numbers: tuple[float | None, ...] = (None,)
    rate_scale: float = 1.0
    curvature: dc.curvatures.Curvature = SQUARED
    max_pull: float | None = None
    rule: Callable[[Any, optax.Schedule], Any] | None = None
    momentum: float | None = None
    recipe: Recipe | None = None
    send: Callable[[PyTree, PyTree], PyTree] | None = None
    train: Callable[..., tuple[PyTree, Any]] | None = None

    @property
    def compensates(self) -> bool:
        """Whether it has a λ0, or a number in its place."""
        return self.numbers != (None,)


METHODS = {
    method.name: method
    for method in (
        Method("sgd", "sequential SGD on one worker", sim.Sequential()),
        Method("ssgd", "synchronous SGD: the mean of M pushes per update", sim.Synchronous()),
        Method("asgd", "asynchronous SGD without compensation"),
        Method(
            "dcasgd-c",
            "delay-compensated, constant strength (the paper)",
            numbers=(1.0, 4.0, 16.0),
        ),
        Method(
            "dcasgd-a",
            f"delay-compensated, adaptive strength, ms_decay={MS_DECAY:g} (the paper)",
            numbers=(1.0, 4.0, 16.0),
            curvature=ADAPTIVE,
        ),
        Method(
            "dcasgd-capped",
            "dcasgd-a with max_pull=1 (this project's addition)",
            numbers=(2.0, 8.0, 32.0),
            curvature=ADAPTIVE,
            max_pull=1.0,
        ),
        Method(
            "rotated",
            "capped in an eigenbasis of the Fisher",
            numbers=(1.0, 2.0, 4.0),
            curvature=dc.curvatures.rotated(),
            max_pull=1.0,
        ),
    )
}


def rate_factor(
    num_server_updates: int, decay_at: tuple[float, ...] = DECAY_AT, warm_up: float = WARM_UP
) -> optax.Schedule:
    """Factor on the learning rate: up to 1, then a tenth after each fraction of the updates.

    The same for every method: at the rates that win, training without the warm-up begins with a
    loss far above the initial one.
    """
    # Rounded first: 2/3 of 3 updates are 2, whatever the last bit says.
    boundaries = {int(round(at * num_server_updates, 6)): DECAY_FACTOR for at in decay_at}
    decay = optax.piecewise_constant_schedule(1.0, boundaries)
    grows_for = max(round(warm_up * num_server_updates), 1)
    return lambda count: decay(count) * jnp.minimum(1.0, (count + 1) / grows_for)


def build_chain(
    method: Method,
    learning_rate: Any,
    lambda0: Any,
    factor: optax.Schedule,
    weight_decay: float,
) -> optax.GradientTransformationExtraArgs:
    """The method's optimizer for one learning rate, the factor on it and one λ0."""
    if method.recipe is not None:
        return optax.with_extra_args_support(method.recipe(learning_rate, lambda0, factor))
    rate = lambda count: learning_rate * factor(count)
    plain = alias.plain_sgd(rate, method.momentum, nesterov=False, weight_decay=weight_decay)
    if not method.compensates:
        return plain
    strength = lambda0 if method.rule is None else method.rule(lambda0, factor)
    return alias.compensated(
        plain, rate, strength, method.curvature, method.momentum, method.max_pull
    )


@functools.cache
def make_tx(
    method: Method,
    num_server_updates: int,
    decay_at: tuple[float, ...] = DECAY_AT,
    warm_up: float = WARM_UP,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The method's optimizer with its numbers in the state; always the same object.

    One object means one compiled program for all learning rates, λ0 and seeds.
    """
    factor = rate_factor(num_server_updates, decay_at, warm_up)

    def factory(learning_rate, lambda0=0.0):
        return build_chain(method, learning_rate, lambda0, factor, weight_decay)

    return optax.inject_hyperparams(factory)(learning_rate=0.0)


def init_opt_state(
    tx: optax.GradientTransformation, params: PyTree, hyperparameters: Hyperparameters
) -> PyTree:
    """State of a `make_tx` optimizer that runs with these hyperparameters."""
    state: Any = tx.init(params)
    numbers = {
        name: value for name, value in hyperparameters._asdict().items() if value is not None
    }
    injected = {
        name: jnp.asarray(numbers.get(name, value), jax.dtypes.result_type(value))
        for name, value in state.hyperparams.items()
    }
    return state._replace(hyperparams=injected)
