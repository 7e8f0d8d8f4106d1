"""What every `send` needs: to find the velocity and the learning rates, and to move the params."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dcasgd_jax import trees, update_checks
from dcasgd_jax.typing import PyTree


def find_state(opt_state: PyTree, kinds: Sequence[type], whose: str) -> Any:
    """The one state of these kinds, at any depth.

    Args:
      opt_state: The server's optimizer state.
      kinds: Classes of states, at least one.
      whose: What looks for it, for messages.

    Returns:
      The state.

    Raises:
      ValueError: If there is none, or more than one.
    """
    found = trees.find_states(opt_state, *kinds)
    if len(found) != 1:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"{whose} needs one {names} in the server's optimizer state, but there are "
            f"{len(found)}."
        )
    return found[0]


def next_rates(
    learning_rate: optax.ScalarOrSchedule | None, opt_state: PyTree, count: int, whose: str
) -> jax.Array:
    """The learning rates of the server's next updates.

    Args:
      learning_rate: A number, the schedule that `tx` follows, or `None` for the one that
        `optax.inject_hyperparams` keeps in the state.
      opt_state: The server's optimizer state.
      count: Updates to look ahead.
      whose: What asks, for messages.

    Returns:
      An array [count].

    Raises:
      ValueError: If the state does not say what `learning_rate` leaves open.
    """
    if callable(learning_rate):
        steps = _num_updates(opt_state, whose) + jnp.arange(count, dtype=jnp.int32)
        rates = [jnp.asarray(learning_rate(steps[i])) for i in range(count)]
        return jnp.stack(rates)
    if learning_rate is None:
        learning_rate = _injected_rate(opt_state, whose)
    return jnp.full((count,), learning_rate, jnp.result_type(float))


def _num_updates(opt_state: PyTree, whose: str) -> jax.Array:
    """How many updates there were, where a schedule counts them."""
    kinds = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)
    found = trees.find_states(opt_state, *kinds)
    if not found:
        raise ValueError(
            f"{whose} has a schedule as its learning_rate, but nothing in the server's optimizer "
            "state counts updates: give the same schedule to tx, as in "
            "optax.scale_by_learning_rate(schedule)."
        )
    return found[0].count


def _injected_rate(opt_state: PyTree, whose: str) -> jax.Array:
    kinds = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)
    found = trees.find_states(opt_state, *kinds)
    rates = [node for node in found if "learning_rate" in node.hyperparams]
    if len(rates) != 1:
        raise ValueError(
            f"{whose} needs learning_rate=, or tx built with "
            "optax.inject_hyperparams(factory)(learning_rate=...)."
        )
    if "learning_rate" in getattr(rates[0], "hyperparams_states", ()):
        raise ValueError(
            f"{whose} would read the learning rate of the last update, because the injected one "
            "follows a schedule: pass the schedule as learning_rate=."
        )
    return rates[0].hyperparams["learning_rate"]


def move(params: PyTree, direction: PyTree, distance: Any, whose: str) -> PyTree:
    """`params + distance * direction`, computed in float32 or wider, in the params' dtypes."""
    update_checks.check_like_params(f"The state of {whose}", direction, params)

    def move_leaf(param, along):
        param = jnp.asarray(param)
        wide = trees.wide_dtype(param)
        moved = param.astype(wide) + jnp.asarray(distance, wide) * jnp.asarray(along, wide)
        return moved.astype(param.dtype)

    return jax.tree.map(move_leaf, params, direction)
