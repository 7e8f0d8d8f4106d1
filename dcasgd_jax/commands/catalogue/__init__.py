"""Every method that the package has, each with the numbers that are tried for it."""

import functools

from dcasgd_jax.commands import tuning
from dcasgd_jax.commands.catalogue import compensations, published, systems
from dcasgd_jax.commands.catalogue.entry import Entry

NUM_CONFIGURATIONS = 24
"""Tried for every method: 24 learning rates, or 8 learning rates and 3 values of its number."""

LOWEST_RATE = {"mlp": 0.025, "softmax": 0.2}
HIGHEST_BY_LOWEST = 128.0
MOMENTUM_RATE = 1 / 8  # of the learning rates, with momentum


def make_grid(entry: Entry, model: str, momentum: float | None) -> tuning.Grid:
    """`NUM_CONFIGURATIONS` combinations for a method, over the same range as for all others."""
    count = NUM_CONFIGURATIONS // len(entry.numbers)
    lowest = LOWEST_RATE[model] * entry.rate_scale * (1 if momentum is None else MOMENTUM_RATE)
    step = HIGHEST_BY_LOWEST ** (1 / (count - 1))
    rates = tuple(float(f"{lowest * step**i:.4g}") for i in range(count))
    return tuning.Grid(rates, entry.numbers)


@functools.cache
def entries(num_workers: int, num_pushes: int, momentum: float | None) -> tuple[Entry, ...]:
    """All methods for a cluster of `num_workers` ≥ 2, always the same objects."""
    return (
        *compensations.choices(momentum),
        *published.choices(num_workers, num_pushes, momentum),
        *systems.choices(momentum),
    )


def names() -> tuple[str, ...]:
    """Of all methods, those that only go with momentum included."""
    of_all = [entry.name for m in (None, 0.5) for entry in entries(2, 100, m)]
    return tuple(dict.fromkeys(of_all))
