"""Rules that choose the strength λ0 of a compensation at every update."""

from dcasgd_jax.strengths.capped_share import CappedShareState, capped_share
from dcasgd_jax.strengths.least_squares import LeastSquaresState, least_squares
from dcasgd_jax.strengths.ratio import RatioState, ratio
from dcasgd_jax.strengths.rule import Coordinates, Situation, StrengthRule

__all__ = [
    "CappedShareState",
    "Coordinates",
    "LeastSquaresState",
    "RatioState",
    "Situation",
    "StrengthRule",
    "capped_share",
    "least_squares",
    "ratio",
]
