"""A method that `sim.sweep` can train, with the values of its number to try."""

from typing import NamedTuple

from dcasgd_jax.experiments import methods


class Choice(NamedTuple):
    """A method, and what is tried for it."""

    method: methods.Method
    numbers: tuple[float | None, ...] = (None,)
    rate_scale: float = 1.0
