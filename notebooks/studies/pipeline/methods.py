"""The methods, and the configurations that are tried for each: as many for one as for another."""

from typing import NamedTuple

from dcasgd_jax import rivals
from dcasgd_jax.commands import methods
from pipeline import optimizers

RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
FEWER_RATES = (0.001, 0.0028, 0.008)  # for methods that have other numbers to choose


class Numbers(NamedTuple):
    """What is tuned."""

    learning_rate: float
    lambda0: float | None  # None: nothing is compensated
    max_pull: float | None  # None: no cap


REFERENCE = "uncorrected"
PULL = "pull"
"""It stands outside the optimizer and is measured in its steps; all others come before it."""

STRENGTHS = {
    "dcasgd-a": ((10.0, None), (60.0, None)),
    # The cap counts in steps of plain SGD. These optimizers divide a gradient by its size, here a
    # root mean square of 0.002 to 0.004, so a cap of 1 would be as good as none.
    "capped": ((100.0, 0.003), (1000.0, 0.001)),
    PULL: ((4.0, 1.0), (16.0, 1.0)),
}
"""Pairs of λ0 and max_pull to try of the methods that compensate."""

METHODS = {
    method.name: method
    for method in (
        methods.Method(REFERENCE, "uncorrected"),
        methods.Method("dcasgd-a", "DC-ASGD-a", curvature=methods.ADAPTIVE),
        methods.Method("capped", "DC-ASGD-a, capped", curvature=methods.ADAPTIVE),
        methods.Method("prediction", "weight prediction", send=rivals.sends.step_prediction(1)),
        methods.Method(PULL, "pull, rotated(sides=both)"),
    )
}
"""A method with `send` takes its gradients at predicted weights, as far ahead as they are late."""


def rates_of(optimizer: str, name: str) -> list[float]:
    """Learning rates to try, ascending."""
    scale = optimizers.OPTIMIZERS[optimizer].rate_scale
    return [scale * rate for rate in (FEWER_RATES if name in STRENGTHS else RATES)]


def configurations(optimizer: str, name: str) -> list[Numbers]:
    """What is tried for a method."""
    return [
        Numbers(rate, *strength)
        for rate in rates_of(optimizer, name)
        for strength in STRENGTHS.get(name, ((None, None),))
    ]
