"""Flax Linen: a train state that hands extra arguments on, and a module in the simulator."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import core, errors
from flax import linen as nn
from flax.training import train_state

from dcasgd_jax import sim
from dcasgd_jax.integrations import losses
from dcasgd_jax.typing import PyTree

__all__ = ["TrainState", "join_variables", "split_variables"]

# What transformations of ours, the simulator's and optax's ask for by name.
_EXTRA_ARGS = frozenset(
    {
        *("worker", "staleness", "stale_params", "measure_compensation"),
        *("hessian_vector_product", "fisher_diagonal", "batch_size"),
        *("value", "grad", "value_fn", "obj_fn"),
    }
)


class TrainState(train_state.TrainState):
    """Flax's `TrainState`, with extra arguments for the optimizer and a place for `batch_stats`.

    Flax's own takes every keyword of `apply_gradients` for a field, so `worker=` never arrives. A
    chain of your own has the order clipping, `dc.compensate_delay`, weight decay, momentum or Adam,
    learning rate.

    Example:
      >>> import dcasgd_jax as dc, jax, jax.numpy as jnp
      >>> from dcasgd_jax.integrations.linen import TrainState
      >>> from flax import linen as nn
      >>> model = nn.Dense(1)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> state = TrainState.create(
      ...     apply_fn=model.apply, params=variables["params"], tx=dc.dcasgd(0.1, num_workers=4))
      >>> grads = jax.tree.map(jnp.ones_like, state.params)
      >>> state = state.apply_gradients(grads=grads, worker=2)
      >>> print(state.step, state.params["bias"])
      1 [-0.1]
    """

    batch_stats: Any = None

    def apply_gradients(
        self, *, grads: PyTree, extra_args: Mapping[str, Any] | None = None, **kwargs
    ) -> "TrainState":
        """Makes one update; extra arguments go to `tx.update`.

        Args:
          grads: Gradients like `params`.
          extra_args: Extra arguments of `tx.update` by name, whatever they are called.
          **kwargs: New values of fields, such as `batch_stats=` and those that a subclass adds;
            and the usual extra arguments, such as `worker=`, `stale_params=` or `value=`, which a
            `tx` that takes none ignores.

        Returns:
          The next train state.

        Raises:
          TypeError: For a keyword that is neither a field nor an extra argument, such as that of a
            collection that the state has no field for; flax's own raises it, too.
        """
        fields = {name: kwargs.pop(name) for name in self.__dataclass_fields__ if name in kwargs}
        self._check_extra_args(kwargs)
        kwargs |= extra_args or {}
        update = optax.with_extra_args_support(self.tx).update
        bound = optax.GradientTransformation(
            self.tx.init,
            lambda updates, state, params=None: update(updates, state, params, **kwargs),
        )
        # Flax's own method then does the rest, whatever that is in this version of flax.
        state = super(TrainState, self.replace(tx=bound)).apply_gradients(grads=grads, **fields)
        return state.replace(tx=fields.get("tx", self.tx))

    def _check_extra_args(self, names: Mapping[str, Any]) -> None:
        """A misspelt keyword would be handed to `tx`, which may well ignore it."""
        parameters = inspect.signature(self.tx.update).parameters.values()
        named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        unknown = [name for name in names if name not in _EXTRA_ARGS and name not in named]
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.apply_gradients() got an unexpected keyword argument "
                f"{unknown[0]!r}: its fields are {sorted(self.__dataclass_fields__)}. (An extra "
                f"argument of tx.update goes into extra_args={{{unknown[0]!r}: ...}}.)"
            )


class _Structure(NamedTuple):
    """The module, and what state it has; hashable."""

    module: nn.Module
    collections: tuple[str, ...]  # of the model state
    model_state: Any  # a jax tree structure; None if there is no state


def split_variables(
    module: nn.Module,
    variables: Mapping[str, Any],
    loss: Callable[..., jax.Array],
    evaluate: Callable[[Any], PyTree] | None = None,
) -> sim.Problem:
    """Makes of a Linen module, its variables and its loss what `sim.simulate` takes.

    The collection "params" are the parameters, all others, such as "batch_stats", the model state.
    Random numbers, as of `nn.Dropout`, come from the key of the event, whatever the stream.

    Args:
      module: The module.
      variables: Its variables, as `module.init` returns them; not changed.
      loss: `loss(model, batch)`, or `loss(model, batch, key)` for random numbers of its own;
        returns a scalar. `model` is `module.apply` with variables, rngs and mutable collections
        filled in: call it as `model(x, train=True)`. Pass the same function object again to
        reuse the compiled program.
      evaluate: `evaluate(model)`; returns a tree of arrays. Here nothing is mutable and nothing
        random: `model(x, train=False)`. Becomes `eval_fn`.

    Returns:
      A `sim.Problem` for `sim.simulate`; without a model state if the model has none.

    Raises:
      TypeError: If the loss takes other arguments or returns no scalar, or the module cannot be
        hashed.
      ValueError: If there are no parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.integrations import linen as dc_linen
      >>> from flax import linen as nn
      >>> module = nn.Dense(1)
      >>> variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> loss = lambda model, batch: jnp.mean((model(batch) - 3) ** 2)
      >>> problem = dc_linen.split_variables(module, variables, loss)
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=200, seed=0)
      >>> batches = jax.random.normal(jax.random.key(0), (200, 8, 2))
      >>> result = sim.simulate(problem, optax.sgd(0.1), schedule, batches)
      >>> variables = dc_linen.join_variables(result)
      >>> print(jnp.round(module.apply(variables, jnp.ones((1, 2))), 2))
      [[3.]]
    """
    losses.loss_takes_key(loss)  # raises now rather than at the first event
    model_state = core.unfreeze(dict(variables))
    params = model_state.pop("params", {})
    model_state.pop("intermediates", None)  # records of a single call
    if not jax.tree.leaves(params):
        raise ValueError(
            'The variables have no collection "params" with arrays in it: pass what '
            f"module.init returns. (There are {sorted(variables)}.)"
        )
    has_state = bool(jax.tree.leaves(model_state))
    structure = _Structure(
        module=module,
        collections=tuple(sorted(model_state)) if has_state else (),
        model_state=jax.tree.structure(model_state) if has_state else None,
    )
    return sim.Problem(
        loss_fn=_make_loss_fn(structure, loss),
        params=params,
        model_state=model_state if has_state else None,
        eval_fn=None if evaluate is None else _make_eval_fn(structure, evaluate),
    )


def join_variables(result: sim.SimResult) -> dict[str, Any]:
    """The variables of a result, for `module.apply`.

    Args:
      result: What `simulate` returned for a split module. Of statistics that each worker keeps
        for itself it holds the mean.

    Returns:
      Collections by name: "params", and those of the model state. For a `TrainState`:
      `state.replace(params=result.params, batch_stats=result.model_state["batch_stats"])`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.integrations import linen as dc_linen
      >>> from flax import linen as nn
      >>> module = nn.BatchNorm(use_running_average=False)
      >>> variables = module.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> problem = dc_linen.split_variables(
      ...     module, variables, lambda model, batch: jnp.mean(model(batch)))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=4, seed=0)
      >>> result = sim.simulate(problem, optax.sgd(0.1), schedule, jnp.ones((4, 2, 3)))
      >>> sorted(dc_linen.join_variables(result))
      ['batch_stats', 'params']
    """
    return {"params": result.params, **(result.model_state or {})}


@losses.same_function_again
def _make_loss_fn(structure: _Structure, loss: Callable) -> Callable[..., Any]:
    def run(params, model_state, batch, key=None):
        key_of_model, key_of_loss = losses.keys_of_event(key)
        variables = {"params": params, **model_state}
        model = _Model(structure.module, variables, structure.collections, key_of_model)
        value = losses.call_loss(loss, model, batch, key_of_loss)
        return value, {name: model.variables[name] for name in structure.collections}

    return losses.as_loss_fn(run, structure.model_state)


@losses.same_function_again
def _make_eval_fn(structure: _Structure, evaluate: Callable) -> Callable[..., PyTree]:
    def eval_fn(params, model_state=None):
        variables = {"params": params, **(model_state or {})}
        return evaluate(_Model(structure.module, variables, mutable=(), key=None))

    return eval_fn


class _Model:
    """`module.apply` with variables, rngs and mutable collections filled in."""

    def __init__(self, module, variables, mutable, key):
        self.variables = variables
        self._module = module
        self._mutable = list(mutable)
        self._key = key
        self._num_calls = 0

    def __call__(self, *args, **kwargs):
        rngs = None
        if self._key is not None:
            # Linen falls back on the stream "params" for a stream of any other name.
            rngs = {"params": jax.random.fold_in(self._key, self._num_calls)}
            self._num_calls += 1
        try:
            result = self._module.apply(
                self.variables, *args, rngs=rngs, mutable=self._mutable or False, **kwargs
            )
        except errors.InvalidRngError as error:
            raise ValueError(
                "The model draws random numbers, so it needs a key: pass key=jax.random.key(0) to "
                f"simulate; evaluate= must call it without. ({error})"
            ) from error
        if not self._mutable:
            return result
        result, updates = result
        self.variables = {**self.variables, **updates}
        return result
