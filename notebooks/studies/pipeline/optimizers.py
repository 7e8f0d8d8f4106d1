"""The optimizers that the methods are put around."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import dcasgd_jax as dc
from dcasgd_jax.typing import PyTree


def _adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(schedule)


class Optimizer(NamedTuple):
    """How to make one."""

    make: Callable[[optax.Schedule], optax.GradientTransformation]
    rate_scale: float  # its learning rates are those of the methods times this
    preconditioner: dc.preconditioners.Preconditioner


def make_schedule(learning_rate: Any, warm_up: int) -> optax.Schedule:
    """Grows linearly over `warm_up` updates, then stays."""
    return lambda count: learning_rate * jnp.minimum(1.0, (count + 1) / warm_up)


def _matrices_of_blocks(params: PyTree) -> Any:
    def numbers(path, leaf):
        is_matrix = path[0] == jax.tree_util.DictKey("blocks") and jnp.ndim(leaf) == 2
        return contrib.MuonDimensionNumbers() if is_matrix else None

    return jax.tree_util.tree_map_with_path(numbers, params)


_MUON = {
    "consistent_rms": 0.2,  # steps as long as Adam's
    "muon_weight_dimension_numbers": _matrices_of_blocks,
}


def _muon(schedule: optax.Schedule) -> optax.GradientTransformation:
    """For the matrices of the blocks; Nesterov-Adam, of the same rate, for all other leaves."""
    return contrib.muon(schedule, **_MUON)


OPTIMIZERS = {
    "adam": Optimizer(_adam, 1.0, dc.preconditioners.adam()),
    "muon": Optimizer(_muon, 2.0, dc.preconditioners.muon(**_MUON)),
}
