"""Methods that are compared: a protocol, and an optimizer whose numbers can be exchanged."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.schedules import protocols
from dcasgd_jax.transforms import cap
from dcasgd_jax.typing import PyTree

MS_DECAY = 0.95
SQUARED = dc.curvatures.squared_gradient()
ADAPTIVE = dc.curvatures.adaptive(MS_DECAY)
DECAY_FACTOR = 0.1
DECAY_AT = (0.5, 0.75)  # fractions of the server updates


class Hyperparameters(NamedTuple):
    """What is tuned for each method."""

    learning_rate: float
    lambda0: float | None = None  # None: this method does not compensate


Recipe = Callable[[Any, Any, optax.Schedule], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Args:
      name: As on the command line.
      title: One line for the help text.
      protocol: Who waits for whom.
      compensates: Whether it has a λ0.
      curvature: As in `dc.compensate_delay`.
      max_pull: As in `dc.compensate_delay`.
      rule: Makes the strength of the number that stands for λ0 and of the decay of the learning
        rate, a schedule; `None` is the number itself.
      momentum: μ of heavy ball after the compensation; `None` for none.
      recipe: Makes the optimizer of the learning rate before decay, the number that stands for λ0
        and the decay, in the place of everything from `curvature` to `momentum`.
      send: As in `sim.simulate`.
    """

    name: str
    title: str
    protocol: protocols.Protocol
    compensates: bool = False
    curvature: dc.curvatures.Curvature = SQUARED
    max_pull: float | None = None
    rule: Callable[[Any, optax.Schedule], Any] | None = None
    momentum: float | None = None
    recipe: Recipe | None = None
    send: Callable[[PyTree, PyTree], PyTree] | None = None


METHODS = {
    method.name: method
    for method in (
        Method("sgd", "sequential SGD on one worker", sim.Sequential()),
        Method("ssgd", "synchronous SGD: the mean of M pushes per update", sim.Synchronous()),
        Method("asgd", "asynchronous SGD without compensation", sim.Asynchronous()),
        Method(
            "dcasgd-c",
            "delay-compensated, constant strength (the paper)",
            sim.Asynchronous(),
            compensates=True,
        ),
        Method(
            "dcasgd-a",
            f"delay-compensated, adaptive strength, ms_decay={MS_DECAY:g} (the paper)",
            sim.Asynchronous(),
            compensates=True,
            curvature=ADAPTIVE,
        ),
        Method(
            "dcasgd-capped",
            "dcasgd-a with max_pull=1 (this project's addition)",
            sim.Asynchronous(),
            compensates=True,
            curvature=ADAPTIVE,
            max_pull=1.0,
        ),
    )
}


def decay_schedule(num_server_updates: int) -> optax.Schedule:
    """Factor on the learning rate: 1, then 0.1 from half of the updates, 0.01 from 3/4."""
    boundaries = {int(at * num_server_updates): DECAY_FACTOR for at in DECAY_AT}
    return optax.piecewise_constant_schedule(1.0, boundaries)


def build_chain(
    method: Method,
    learning_rate: Any,
    lambda0: Any,
    decay: optax.Schedule,
    *,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The method's optimizer for one learning rate (before decay) and one λ0."""
    if method.recipe is not None:
        return optax.with_extra_args_support(method.recipe(learning_rate, lambda0, decay))
    rate = lambda count: learning_rate * decay(count)
    stages: list[optax.GradientTransformation] = []
    if method.compensates:
        compensate = dc.compensate_delay(
            lambda0 if method.rule is None else method.rule(lambda0, decay),
            curvature=method.curvature,
            max_pull=method.max_pull,
            # The cap must see the rate that is applied, decay and momentum included.
            learning_rate=None
            if method.max_pull is None
            else cap.effective_learning_rate(rate, method.momentum),
        )
        stages.append(compensate)
    if weight_decay:
        stages.append(optax.add_decayed_weights(weight_decay))
    if method.momentum is not None:
        stages.append(optax.trace(method.momentum))
    return optax.chain(*stages, optax.scale_by_learning_rate(rate))


@functools.cache
def make_tx(method: Method, num_server_updates: int) -> optax.GradientTransformationExtraArgs:
    """The method's optimizer with its numbers in the state; always the same object.

    One object means one compiled program for all learning rates, λ0 and seeds.
    """
    decay = decay_schedule(num_server_updates)

    def factory(learning_rate, lambda0=0.0):
        return build_chain(method, learning_rate, lambda0, decay)

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
