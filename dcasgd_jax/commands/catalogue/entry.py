"""One method of the comparison: how it is trained, and which numbers are tried for it."""

import dataclasses
from collections.abc import Callable, Sequence

from dcasgd_jax.commands import methods, runs, settings, tuning

Train = Callable[[settings.Setting, Sequence[tuning.Member], runs.Progress], list[runs.Outcome]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method of the comparison.

    Args:
      name: For options, files and tables.
      title: What it is, in a few words.
      train: Trains members to the end; `progress` hears of pushes done.
      numbers: Values to try of the number that stands for λ0; `(None,)` for a method without one.
      rate_scale: Of the learning rates to try: larger where a method divides its steps.
    """

    name: str
    title: str
    train: Train
    numbers: tuple[float | None, ...] = (None,)
    rate_scale: float = 1.0


def swept(
    method: methods.Method, numbers: tuple[float | None, ...] = (None,), rate_scale: float = 1.0
) -> Entry:
    """A method that `sim.sweep` trains."""

    def train(setting, members, progress):
        return runs.final_outcomes(setting, method, members, progress)

    return Entry(method.name, method.title, train, numbers, rate_scale)
