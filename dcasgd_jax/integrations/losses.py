"""Of a flax model and its loss the functions of a `sim.Problem`; shared by NNX and Linen."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax.sim import leaves
from dcasgd_jax.typing import PyTree


def same_function_again(make: Callable[..., Callable]) -> Callable[..., Callable]:
    """Lets a maker return one function object for equal arguments, so that programs are reused."""
    cached = functools.lru_cache(maxsize=128)(make)

    @functools.wraps(make)
    def find(structure, function):
        for name, value in (("The model", structure), (f"{function!r}", function)):
            try:
                hash(value)
            except TypeError as error:
                raise TypeError(
                    f"{name} cannot be hashed ({error}), so its compiled program could not be "
                    "found again: make its static attributes hashable (tuples instead of lists)."
                ) from None
        return cached(structure, function)

    return find


def loss_takes_key(loss: Callable) -> bool:
    """Whether the loss is `loss(model, batch, key)` rather than `loss(model, batch)`."""
    signature = inspect.signature(loss)
    for count, takes_key in ((2, False), (3, True)):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return takes_key
    raise TypeError(
        f"The loss must be callable as loss(model, batch) or loss(model, batch, key), but its "
        f"signature is {signature}."
    )


def keys_of_event(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """From the key of an event one for the model and one for the loss; both typed."""
    if key is None:
        return None, None
    typed = key if leaves.is_key(key) else jax.random.wrap_key_data(key)
    of_model, of_loss = jax.random.split(typed)
    return of_model, of_loss


def call_loss(loss: Callable, model: Any, batch: PyTree, key: jax.Array | None) -> jax.Array:
    """The loss of a model on a batch, checked to be one."""
    if not loss_takes_key(loss):
        value = loss(model, batch)
    elif key is None:
        raise ValueError("The loss takes a key: pass key= to simulate.")
    else:
        value = loss(model, batch, key)
    if not isinstance(value, jax.Array) or value.shape or not jnp.isrealobj(value):
        got = (
            f"an array {value.dtype}{list(value.shape)}; take its mean"
            if isinstance(value, jax.Array)
            else f"a {type(value).__name__}; return the loss alone, and read what else you want "
            "to know in evaluate="
        )
        raise TypeError(f"The loss must return a real scalar, got {got}.")
    return value


def as_loss_fn(run: Callable, state_structure: Any) -> Callable[..., Any]:
    """`run(params, model_state, batch, key=None)`, with its result, as `sim.simulate` takes it.

    Args:
      run: Returns the loss and the new model state.
      state_structure: Structure of the model state; None if the model has none.
    """

    def without_state(params, batch, key=None):
        return run(params, {}, batch, key)[0]

    def with_state(params, model_state, *batch_and_key):
        if jax.tree.structure(model_state) != state_structure:
            raise ValueError(
                "This model has state besides its parameters (statistics of batch normalisation, "
                "or the like): keep the problem's model_state."
            )
        return run(params, model_state, *batch_and_key)

    return without_state if state_structure is None else with_state
