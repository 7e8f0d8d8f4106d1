"""Rules for the strength as a `Method` takes them: of a number and the factor of the rate."""

from typing import Any

import optax

import dcasgd_jax as dc


def ratio(rho: Any, factor: optax.Schedule) -> Any:
    """`dc.strengths.ratio` of the number."""
    del factor
    return dc.strengths.ratio(rho)


def capped_share(share: Any, factor: optax.Schedule) -> Any:
    """`dc.strengths.capped_share` of the number."""
    del factor
    return dc.strengths.capped_share(share)


def least_squares(number: Any, factor: optax.Schedule) -> Any:
    """`dc.strengths.least_squares`, whatever the number."""
    del number, factor
    return dc.strengths.least_squares()


def annealed(lambda0: Any, factor: optax.Schedule) -> Any:
    """The number as λ0 that falls with the learning rate."""
    return lambda count: lambda0 * factor(count)
