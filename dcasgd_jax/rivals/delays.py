"""The known delay of each leaf."""

import jax

from dcasgd_jax.rivals import leaves
from dcasgd_jax.transforms import checks, fixed_delay
from dcasgd_jax.typing import PyTree


def of_leaves(
    delay: fixed_delay.Delay, updates: PyTree, params: PyTree | None, transformation: str
) -> PyTree:
    """The delay of each leaf of `updates`, as Python ints; `params` must be there to match them."""
    if isinstance(delay, int):
        return jax.tree.map(lambda _: delay, updates, is_leaf=leaves.is_none)
    checks.check_params(params, transformation)
    return fixed_delay.delay_of_each_leaf(delay, params)
