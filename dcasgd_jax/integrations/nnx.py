"""Flax NNX: a module in the simulator, and what was trained there back in the module.

`nnx.Optimizer` takes every transformation of this package as it is, and hands extra arguments on:
`optimizer.update(model, grads, worker=worker)`. Delays per leaf are given as an `nnx.State`, and
what reads an optimizer state gets `nnx.as_pure(optimizer.opt_state)`. A chain of your own has the
order clipping, `dc.compensate_delay`, weight decay, momentum or Adam, learning rate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from dcasgd_jax import sim
from dcasgd_jax.integrations import losses
from dcasgd_jax.sim import leaves
from dcasgd_jax.typing import PyTree

__all__ = ["split_model", "update_model"]

# Everything that training changes besides the parameters, except random streams, which are made
# anew at every event, and records of a single call.
_MODEL_STATE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))


class _Stream(NamedTuple):
    """Where a random stream stands in the model; keys have a shape in stacked layers."""

    path: tuple
    shape: tuple[int, ...]


class _Structure(NamedTuple):
    """All of a model but its arrays; hashable."""

    graphdef: nnx.GraphDef
    streams: tuple[_Stream, ...]
    model_state: Any  # a jax tree structure; None if there is no state


def split_model(
    model: nnx.Module,
    loss: Callable[..., jax.Array],
    evaluate: Callable[[Any], PyTree] | None = None,
) -> sim.Problem:
    """Makes of a module and its loss what `sim.simulate` takes.

    Parameters are the `nnx.Param`s. The statistics of `nnx.BatchNorm` and all other variables are
    the model state. Random streams, as of `nnx.Dropout`, are neither: at every event each of them
    starts from the key of the event, so a mask depends on the event and not on the engine.

    Args:
      model: The module; not changed. Every `nnx.Param` is trained.
      loss: `loss(model, batch)`, or `loss(model, batch, key)` for random numbers of its own, such
        as augmentation; returns a scalar. It gets the model in training mode (`model.train()`).
        Pass the same function object again to reuse the compiled program, also for another model
        of the same structure.
      evaluate: `evaluate(model)` of the model in evaluation mode (`model.eval()`); returns a tree
        of arrays. Becomes `eval_fn`.

    Returns:
      A `sim.Problem` for `sim.simulate`; without a model state if the model has none.

    Raises:
      TypeError: If the model is no module, the loss takes other arguments or returns no scalar,
        or a static attribute of the model cannot be hashed.
      ValueError: If the model has no parameters.

    Example:
      >>> import dcasgd_jax as dc, jax, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.integrations import nnx as dc_nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> loss = lambda model, batch: jnp.mean((model(batch) - 3) ** 2)
      >>> problem = dc_nnx.split_model(model, loss)
      >>> tx = optax.chain(dc.compensate_delay(lambda0=0.1), optax.sgd(0.1))
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=200, seed=0)
      >>> batches = jax.random.normal(jax.random.key(0), (200, 8, 2))
      >>> dc_nnx.update_model(model, sim.simulate(problem, tx, schedule, batches))
      >>> print(jnp.round(model(jnp.ones((1, 2))), 2))
      [[3.]]
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"split_model needs an nnx.Module, got {type(model).__name__}.")
    losses.loss_takes_key(loss)  # raises now rather than at the first event
    copy = nnx.clone(model)
    copy.train()
    nnx.pop(copy, nnx.Intermediate)
    graphdef, params, rng_state, model_state = nnx.split(copy, nnx.Param, nnx.RngState, ...)
    params, model_state = nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)
    if not jax.tree.leaves(params):
        raise ValueError("The model has no nnx.Param, so there is nothing to train.")
    has_state = bool(jax.tree.leaves(model_state))
    structure = _Structure(
        graphdef=graphdef,
        streams=tuple(
            _Stream(path[:-1], variable.shape)
            for path, variable in nnx.to_flat_state(rng_state)
            if isinstance(variable, nnx.RngKey)
        ),
        model_state=jax.tree.structure(model_state) if has_state else None,
    )
    return sim.Problem(
        loss_fn=_make_loss_fn(structure, loss),
        params=params,
        model_state=model_state if has_state else None,
        eval_fn=None if evaluate is None else _make_eval_fn(structure, evaluate),
    )


def update_model(model: nnx.Module, result: sim.SimResult) -> None:
    """Writes the parameters and the model state of a result into a module.

    Args:
      model: The module that was split, or another of its structure; changed in place. Its mode
        and its random streams stay as they are.
      result: What `simulate` returned. Of statistics that each worker keeps for itself the module
        gets the mean, as `eval_fn` does.

    Returns:
      Nothing; like `nnx.update`.

    Raises:
      ValueError: If the result is of another model; names the first leaf that differs.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.integrations import nnx as dc_nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> problem = dc_nnx.split_model(model, lambda model, x: jnp.mean((model(x) - 2 * x) ** 2))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=20, seed=0)
      >>> result = sim.simulate(problem, optax.sgd(0.2), schedule, jnp.ones((20, 4, 1)))
      >>> dc_nnx.update_model(model, result)
      >>> print(jnp.round(model.kernel[...], 2))
      [[2.]]
    """
    fits = (
        ("params", nnx.state(model, nnx.Param), result.params),
        ("model_state", nnx.state(model, _MODEL_STATE), result.model_state or {}),
    )
    for root, state, given in fits:
        expected = leaves.describe_tree(nnx.to_pure_dict(state), root)
        got = leaves.describe_tree(given, root)
        for name in [*expected, *(name for name in got if name not in expected)]:
            if expected.get(name) != got.get(name):
                raise ValueError(
                    f"The result is of another model: result.{name} is "
                    f"{got.get(name, 'not there')}, in the module it is "
                    f"{expected.get(name, 'not there')}."
                )
    for _, _, given in fits:
        nnx.update(model, given)


@losses.same_function_again
def _make_loss_fn(structure: _Structure, loss: Callable) -> Callable[..., Any]:
    def run(params, model_state, batch, key=None):
        key_of_model, key_of_loss = losses.keys_of_event(key)
        model, counts = _make_model(structure, params, model_state, key_of_model)
        value = losses.call_loss(loss, model, batch, key_of_loss)
        if key is None:
            _check_nothing_was_drawn(model, counts)
        return value, nnx.to_pure_dict(nnx.state(model, _MODEL_STATE))

    return losses.as_loss_fn(run, structure.model_state)


@losses.same_function_again
def _make_eval_fn(structure: _Structure, evaluate: Callable) -> Callable[..., PyTree]:
    def eval_fn(params, model_state=None):
        model, _ = _make_model(structure, params, model_state or {}, None)
        model.eval()
        return evaluate(model)

    return eval_fn


def _make_model(structure, params, model_state, key) -> tuple[Any, dict]:
    """The module with these arrays, and the counts that its random streams start from."""
    key = jax.random.key(0) if key is None else key
    keys, counts = {}, {}
    for index, (path, shape) in enumerate(structure.streams):
        of_stream = jax.random.fold_in(key, index)
        keys[*path, "key"] = jax.random.split(of_stream, shape) if shape else of_stream
        counts[*path, "count"] = jnp.zeros(shape, jnp.uint32)
    rng_state = traverse_util.unflatten_dict(keys | counts)
    return nnx.merge(structure.graphdef, params, rng_state, model_state), counts


def _check_nothing_was_drawn(model: nnx.Module, counts: dict) -> None:
    """Without a key every event would draw the same numbers."""
    now = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.RngCount)))
    for path, count in counts.items():
        if now[path] is not count:
            where = ".".join(map(str, path[:-1]))
            raise ValueError(
                f"The model draws random numbers (model.{where}), so it needs a key: pass "
                "key=jax.random.key(0) to simulate."
            )
