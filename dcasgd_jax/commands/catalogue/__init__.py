"""Every method that the package has, each with the numbers that are tried for it."""

import functools

from dcasgd_jax.commands import methods
from dcasgd_jax.commands.catalogue import compensations, published, systems


@functools.cache
def methods_for(
    num_workers: int, num_pushes: int, momentum: float | None
) -> dict[str, methods.Method]:
    """By name, all methods for a cluster, always the same objects; one worker has only ours."""
    found = compensations.choices(momentum)
    if num_workers > 1:
        published_ones = published.choices(num_workers, num_pushes, momentum)
        found = [*found, *published_ones, *systems.choices(momentum)]
    return {method.name: method for method in found}


def names() -> tuple[str, ...]:
    """Of all methods, those that only go with momentum included."""
    return tuple(dict.fromkeys(name for m in (None, 0.5) for name in methods_for(2, 100, m)))
