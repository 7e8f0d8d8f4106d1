"""Every method that the package has, each with the numbers that are tried for it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from dcasgd_jax.experiments import methods, runs, settings, tuning
from dcasgd_jax.experiments.every_method import compensations, published, systems

NUM_CONFIGURATIONS = 24
"""Tried for every method: 24 learning rates, or 8 learning rates and 3 values of its number."""

LOWEST_RATE = {"mlp": 0.025, "softmax": 0.2}
HIGHEST_BY_LOWEST = 128.0
MOMENTUM_RATE = 1 / 8  # of the learning rates, with momentum

Train = Callable[
    [
        settings.Setting,
        Sequence[tuple[methods.Hyperparameters, runs.Workload]],
        runs.Progress,
    ],
    list[runs.Outcome],
]


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

    def grid(self, model: str, momentum: float | None) -> tuning.Grid:
        """`NUM_CONFIGURATIONS` combinations, over the same range for all methods."""
        count = NUM_CONFIGURATIONS // len(self.numbers)
        lowest = LOWEST_RATE[model] * self.rate_scale * (1 if momentum is None else MOMENTUM_RATE)
        step = HIGHEST_BY_LOWEST ** (1 / (count - 1))
        rates = tuple(float(f"{lowest * step**i:.4g}") for i in range(count))
        return tuning.Grid(rates, self.numbers)


@functools.cache
def entries(num_workers: int, num_pushes: int, momentum: float | None) -> tuple[Entry, ...]:
    """All methods for a cluster of `num_workers` ≥ 2, always the same objects."""
    swept = [
        *compensations.choices(momentum),
        *published.choices(num_workers, num_pushes, momentum),
    ]
    found = [
        Entry(
            choice.method.name,
            choice.method.title,
            functools.partial(_sweep, choice.method),
            choice.numbers,
            choice.rate_scale,
        )
        for choice in swept
    ]
    found += [
        Entry(system.name, system.title, system.train, system.numbers, system.rate_scale)
        for system in systems.choices(momentum)
    ]
    return tuple(found)


def names() -> tuple[str, ...]:
    """Of all methods, those that only go with momentum included."""
    of_all = [entry.name for m in (None, 0.5) for entry in entries(2, 100, m)]
    return tuple(dict.fromkeys(of_all))


def _sweep(method, setting, members, progress):
    return runs.final_outcomes(setting, method, members, progress)
