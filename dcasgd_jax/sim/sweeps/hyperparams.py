"""Hyperparameters that `optax.inject_hyperparams` keeps in a state: found and set by name."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import rows
from dcasgd_jax.typing import PyTree


def check(states: PyTree, values: Mapping[str, Any]) -> None:
    """Raises ValueError unless every name can be set in `states` to its values [num_members]."""
    found, scheduled = {}, set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        found.setdefault(_name_after(path, "hyperparams"), []).append(leaf)
        scheduled.add(_name_after(path, "hyperparams_states"))
    found.pop(None, None)
    for name, of_members in values.items():
        if name not in found:
            there = f"there are {sorted(found)}" if found else "there are none"
            raise ValueError(
                f"The optimizer's state has no hyperparameter {name!r}; {there}. Build tx with "
                "optax.inject_hyperparams(factory)(name=...). (An inner_tx of sim.LocalSteps that "
                'begins anew with every push, inner_state="reset", keeps none.)'
            )
        if name in scheduled:
            raise ValueError(
                f"The hyperparameter {name!r} follows a schedule, which would overwrite the "
                "members' values: inject a number, and multiply with the schedule in the factory."
            )
        array = np.asarray(of_members)
        for leaf in found[name]:
            if array.shape[1:] != np.shape(leaf):
                raise ValueError(
                    f"hyperparams[{name!r}] must have shape {(len(array), *np.shape(leaf))}, got "
                    f"{array.shape}."
                )
            if not np.can_cast(array.dtype, leaf.dtype, "same_kind"):
                raise ValueError(
                    f"hyperparams[{name!r}] holds {array.dtype}, but the optimizer was built with "
                    f"{leaf.dtype}: build it with a number of the right kind."
                )


def put(states: PyTree, values: Mapping[str, Any], *, repeat: int | None = None) -> PyTree:
    """`states` with the hyperparameters of these names replaced, wherever they occur.

    Args:
      states: Of transformations.
      values: By name.
      repeat: Copies along a leading axis, in states of many. Default: none.
    """

    def replace(path, leaf):
        name = _name_after(path, "hyperparams")
        if name not in values:
            return leaf
        value = jnp.asarray(values[name], leaf.dtype)
        return value if repeat is None else rows.repeat_row(value, repeat)

    return jax.tree_util.tree_map_with_path(replace, states)


def _name_after(path: tuple, field: str) -> Any:
    """The key that a path takes in the dictionary `field` of an optimizer's state."""
    for parent, key in itertools.pairwise(path):
        in_field = isinstance(parent, jax.tree_util.GetAttrKey) and parent.name == field
        if in_field and isinstance(key, jax.tree_util.DictKey):
            return key.key
    return None
