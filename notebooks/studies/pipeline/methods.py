"""The methods, and the configurations that are tried for each: as many for one as for another."""

import dataclasses
from collections.abc import Sequence

from pipeline import optimizers, settings

RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
FEWER_RATES = (0.001, 0.0028, 0.008)  # for methods that have a second number to choose

Strength = tuple[float | None, float | None]  # λ0 and max_pull
NO_STRENGTH: Strength = (None, None)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to live with the delay.

    Args:
      title: For tables.
      rates: Learning rates to try, for Adam; those of other optimizers are multiples of them.
      strengths: To try with each of them.
      predicts: Whether gradients are taken at predicted weights.
    """

    title: str
    rates: Sequence[float] = RATES
    strengths: Sequence[Strength] = (NO_STRENGTH,)
    predicts: bool = False


REFERENCE = "uncorrected"
METHODS = {
    REFERENCE: Method("uncorrected"),
    "dcasgd-a": Method("DC-ASGD-a", FEWER_RATES, ((10.0, None), (60.0, None))),
    # The cap counts in steps of plain SGD. These optimizers divide a gradient by its size, here a
    # root mean square of 0.002 to 0.004, so a cap of 1 would be as good as none.
    "capped": Method("DC-ASGD-a, capped", FEWER_RATES, ((100.0, 0.003), (1000.0, 0.001))),
    "prediction": Method("weight prediction", predicts=True),
}


def rates_of(optimizer: str, method: str) -> list[float]:
    """Learning rates to try, ascending."""
    scale = optimizers.OPTIMIZERS[optimizer].rate_scale
    return [scale * rate for rate in METHODS[method].rates]


def configurations(optimizer: str, delay: str, method: str, seed: int) -> list[settings.Run]:
    """A run of every configuration of a method."""
    return [
        settings.Run(optimizer, delay, method, rate, *strength, seed)
        for rate in rates_of(optimizer, method)
        for strength in METHODS[method].strengths
    ]
