"""Rules that choose the strength λ0 of a compensation at every update."""

from dcasgd_jax.strengths.capped_share import CappedShareState as CappedShareState
from dcasgd_jax.strengths.capped_share import capped_share as capped_share
from dcasgd_jax.strengths.least_squares import LeastSquaresState as LeastSquaresState
from dcasgd_jax.strengths.least_squares import least_squares as least_squares
from dcasgd_jax.strengths.ratio import RatioState as RatioState
from dcasgd_jax.strengths.ratio import ratio as ratio
from dcasgd_jax.strengths.rule import Coordinates as Coordinates
from dcasgd_jax.strengths.rule import Situation as Situation
from dcasgd_jax.strengths.rule import StrengthRule as StrengthRule
