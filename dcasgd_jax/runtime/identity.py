"""What makes two live runs the same, so that a checkpoint of another one is refused by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dcasgd_jax.runtime import step
from dcasgd_jax.runtime.bookkeeping import Settings
from dcasgd_jax.runtime.layout import Layout
from dcasgd_jax.runtime.model import make_program
from dcasgd_jax.runtime.shards import Part
from dcasgd_jax.sim import leaves
from dcasgd_jax.sim.checkpoints.identity import fingerprint
from dcasgd_jax.sim.work import Worker
from dcasgd_jax.typing import PyTree

Identity = dict[str, Any]

# Equal values and equal code look different to another version of jax, or on another device.
_ENVIRONMENT = "environment"
_COMPARED_WITHIN_AN_ENVIRONMENT = (
    "initial params", "initial model state", "tx", "per_push", "worker", "loss_fn",
)  # fmt: skip


def of_server(begins: Part, settings: Settings, layout: Layout) -> Identity:
    """What a server's run is, in words that JSON can hold; without the loss, which it has not.

    The transformations are known by the operations that they make and the constants in them, the
    initial params by their values: as digests, which can be compared but not read. The number of
    updates is no part of it: a run may go on.

    Args:
      begins: The initial parameters and model state, of this server alone.
      settings: Of the server.
      layout: Of its messages.
    """
    params, model_state = begins
    program = make_program(params, settings, layout)._replace(metrics=())
    alone = program._replace(per_push=None)
    make = lambda program: lambda params: step.initial_state(program, params, settings.num_workers)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), params)
    state = jax.eval_shape(make(program), shapes)
    event = step.make_event(program, 0, 0, 1, True)
    gradient = [jax.ShapeDtypeStruct(leaf.shape, leaf.wire_dtype) for leaf in layout.leaves]

    def code(program):  # a hyperparameter may be in the first state instead of the update
        receive = lambda *arguments: step.receive(program, layout, *arguments)
        return [
            fingerprint(receive, state, event, gradient),
            fingerprint(make(program), shapes),
        ]

    return {
        "kind": "live run",
        _ENVIRONMENT: [jax.__version__, optax.__version__, jax.default_backend()],
        "num_workers": settings.num_workers,
        "protocol": repr(settings.protocol),
        "metrics": list(settings.metrics),
        "parameters on the wire": layout.describe(),
        **leaves.describe_tree(state.opt_state, "opt_state"),
        **leaves.describe_tree(state.push_state, "push_state"),
        "tx": code(alone),
        "per_push": code(program),  # tells of tx, too, but that is compared before
        "initial params": leaves.digest_tree(params),
        **_of_model_state(model_state, settings),
    }


def _of_model_state(model_state: PyTree | None, settings: Settings) -> Identity:
    if model_state is None:
        return {}
    return {
        **leaves.describe_tree(model_state, "model_state"),
        "model_state_policy": settings.model_state_policy,
        "initial model state": leaves.digest_tree(model_state),
    }


def of_loss(loss_fn: Callable[..., Any], worker: Worker, whole: Part, batch: PyTree) -> Identity:
    """What the workers of a run compute: the operations of a push, and the constants in them.

    The batches are known by their shapes only, as in the simulator: another `batches_fn` that
    returns such batches is not noticed.

    Args:
      loss_fn: As in `step.gradient`.
      worker: What they do with it.
      whole: All parameters, and the model state.
      batch: Any.
    """
    batch = jax.eval_shape(lambda batch: batch, batch)
    begins = jax.eval_shape(functools.partial(step.begin, worker), whole)
    compute = functools.partial(step.compute, loss_fn, worker)
    return {
        **leaves.describe_tree(batch, "batch"),
        **leaves.describe_tree(begins.worker_state, "worker_state"),
        "worker": fingerprint(worker.init, whole.params),
        "loss_fn": fingerprint(compute, begins, batch, np.int32(0)),
    }


def check(saved: Identity, present: Identity, directory: Any) -> None:
    """Raises ValueError, saying in which respect, if a checkpoint is of another run."""
    same_environment = saved.get(_ENVIRONMENT) == present[_ENVIRONMENT]
    for name in dict.fromkeys([*saved, *present]):
        within = name in _COMPARED_WITHIN_AN_ENVIRONMENT
        if name == _ENVIRONMENT or (within and not same_environment):
            continue
        before, now = saved.get(name), present.get(name)
        if before != now:
            change = _change(name, before, now)
            raise ValueError(
                f"{directory} holds a checkpoint of another run: {name} {change}. Pass another "
                "directory, or delete this one to start over."
            )


def _change(name: str, before: Any, now: Any) -> str:
    if name in _COMPARED_WITHIN_AN_ENVIRONMENT and before is not None:
        return "are other ones now" if name == "initial params" else "is another one now"
    of = lambda fact: "not there" if fact is None else fact
    return f"was {of(before)} and is {of(now)} now"
