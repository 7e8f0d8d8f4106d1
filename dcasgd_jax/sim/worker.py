"""The worker's part of an event: what it computes, from what it had read."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import work
from dcasgd_jax.typing import PyTree


def keeps_state(worker: work.Worker, params: PyTree) -> bool:
    """Whether a worker keeps something from one push to the next."""
    return _first_state.eval_shape(worker, params) is not None


@functools.partial(jax.jit, static_argnames="worker")
def _first_state(worker, params):
    return worker.init(params)


def batch_of(
    program: programs.Program,
    event: programs.Event,
    row: PyTree,
    shared: programs.Shared,
) -> PyTree:
    """The batch of an event: its row itself, the examples the row points to, or `batch_fn`'s."""
    if program.batch_fn is not None:
        return program.batch_fn(event.batch, event.worker)
    if shared.examples is not None:
        return jax.tree.map(lambda leaf: jnp.take(leaf, row, axis=0), shared.examples)
    return row


def gradient(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    row: PyTree,
    shared: programs.Shared,
) -> programs.Gradient:
    """Loss and gradient at what the worker has pulled; depends on nothing else on the server."""
    batch = batch_of(program, event, row, shared)
    return gradient_on_batch(program, event, pulled, batch, shared.key)


def gradient_on_batch(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    batch: PyTree,
    key: jax.Array | None,
) -> programs.Gradient:
    """Loss and gradient, or pseudo-gradient, on a batch that is there."""
    key = _key_of(event, key)
    computed = program.worker.run(_loss(program), pulled, batch, key, event.worker)
    if not program.corrupts:
        return computed
    spoil = lambda g: jnp.where(event.corrupt, jnp.nan, g).astype(g.dtype)
    return computed._replace(grads=jax.tree.map(spoil, computed.grads))


def about_batch(
    program: programs.Program,
    event: programs.Event,
    pulled: programs.Pulled,
    batch: PyTree,
    key: jax.Array | None,
) -> Mapping[str, Any]:
    """What transformations may ask about the batch of a push; costs nothing unless one does."""
    return program.worker.about(_loss(program), pulled, batch, _key_of(event, key))


def _loss(program: programs.Program) -> work.Loss:
    return as_workers_call(program.loss_fn, has_state=program.model_state != "none")


def as_workers_call(loss_fn: Callable[..., Any], *, has_state: bool) -> work.Loss:
    """A user's loss, with a model state and a random key or without, called as a worker does."""

    def loss(params, model_state, batch, key):
        arguments = {"params": params, "model_state": model_state, "batch": batch, "key": key}
        if not has_state:
            del arguments["model_state"]
        if key is None:
            del arguments["key"]
        _check_fits(loss_fn, arguments)
        value = loss_fn(*arguments.values())
        if isinstance(value, tuple) != has_state:
            wanted = "the loss and the model state" if has_state else "a scalar alone"
            raise TypeError(
                f"loss_fn must return {wanted}, as its Problem has {'a' if has_state else 'no'} "
                f"model state, got {type(value).__name__}."
            )
        return value if has_state else (value, None)

    return loss


def _check_fits(loss_fn: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raises TypeError if a function cannot be called with so many arguments."""
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(*arguments.values())
    except TypeError:
        raise TypeError(
            f"loss_fn is called with ({', '.join(arguments)}), which does not fit its {signature}. "
            "A random key is there if the run is given key=, a model state if the Problem is."
        ) from None


def _key_of(event: programs.Event, key: jax.Array | None) -> jax.Array | None:
    """The event's random key, if there is one: the last argument of the loss."""
    return None if key is None else jax.random.fold_in(key, event.batch)
