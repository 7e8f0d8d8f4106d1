"""What makes two calls of `simulate` the same run, and in which respect they are not."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import batches as sources
from dcasgd_jax.sim import engines, leaves, offers, step, worker
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree

Identity = dict[str, dict[str, Any]]

# What to say of a run that differs, in the order in which it is compared.
_DIFFERENCES = {
    "schedule": "another schedule",
    "model": "another model",
    "optimizer": "another optimizer",
    "structure": "another optimizer",
    "key": "another random key",
    "options": "other options",
    "batches": "other batches",
    "layout": "other data",
    "data": "other data",
    "evaluations": "another eval_fn",
    "origin": "another beginning",
    "initial": "other initial values",
    "code": "other code or settings",
}
# Equal values and equal code look different to another version of jax, or on another device.
_COMPARED_WITHIN_AN_ENVIRONMENT = ("initial", "code")


def identify(
    run: engines.Run, state: programs.SimState, batch: PyTree, evaluated: np.ndarray | None
) -> Identity:
    """What a run is, in words that JSON can hold; the same in every process and for every `stop`.

    Args:
      run: The whole run.
      state: Its first state.
      batch: Shapes and dtypes of one event's batch.
      evaluated: Which events of the schedule make a version to evaluate.

    Returns:
      For each respect in which runs may differ, texts by name; a text that begins with # is a
      digest, which can be compared but not read.
    """
    program, data = run.program, _data(run)
    initial = {
        "params": state.params,
        "opt_state": state.opt_state,
        "model_state": state.model_state,
        "worker_state": state.worker_state,
    }
    return {
        "environment": {
            "jax": jax.__version__, "optax": optax.__version__, "backend": jax.default_backend()
        },
        "schedule": _schedule(run.schedule),
        "model": {
            **leaves.describe_tree(state.params, "params"),
            **leaves.describe_tree(state.model_state, "model_state"),
            "model_state_policy": program.model_state,
        },
        "optimizer": {
            **leaves.describe_tree(state.opt_state, "opt_state"),
            **leaves.describe_tree(state.push_state, "push_state"),
            **leaves.describe_tree(state.worker_state, "worker_state"),
        },
        "structure": {
            "the structure of opt_state": _structure(state.opt_state),
            "the structure of push_state": _structure(state.push_state),
        },
        "key": _key(run.shared.key),
        "options": {
            "metrics": list(program.metrics),
            "Recording.every": run.trace_every,
            "Recording.eval_versions": "none" if evaluated is None else leaves.digest([evaluated]),
        },
        "batches": leaves.describe_tree(batch, "batch"),
        "layout": {name: leaves.describe(leaf) for name, leaf in data.items()},
        "data": {name: leaves.digest_rows(leaf) for name, leaf in data.items()},
        "evaluations": leaves.describe_tree(evaluation_shapes(run, state), "eval_fn(...)"),
        "origin": {"the first event": run.span.start},
        "initial": {name: leaves.digest_tree(tree) for name, tree in initial.items()},
        "code": _code(run, state, batch),
    }  # fmt: skip


def find_difference(saved: Identity, present: Identity) -> str | None:
    """In which respect two runs differ, if they do."""
    if saved.keys() != present.keys():
        return f"another kind of run: {saved.get('kind', 'of another release')}"
    for respect, what in _DIFFERENCES.items():
        same_environment = saved["environment"] == present["environment"]
        if respect in _COMPARED_WITHIN_AN_ENVIRONMENT and not same_environment:
            continue
        before, now = saved[respect], present[respect]
        for name in [*before, *(name for name in now if name not in before)]:
            if before.get(name) != now.get(name):
                return f"{what}: {name} {_change(before.get(name), now.get(name))}"
    return None


def _change(before: Any, now: Any) -> str:
    too_long = len(str(before)) + len(str(now)) > 1000
    if too_long or (leaves.is_digest(before) and leaves.is_digest(now)):
        return "differs"
    of = lambda text: "not there" if text is None else text
    return f"was {of(before)} and is {of(now)} now"


def evaluation_shapes(run: engines.Run, state: programs.SimState) -> PyTree:
    """Shapes and dtypes of what `eval_fn` returns; None without one."""
    if run.program.eval_fn is None:
        return None
    return jax.eval_shape(lambda state: step.evaluate(run.program, state), state)


def _schedule(schedule: schedules.Schedule) -> dict[str, Any]:
    arrays = {
        field.name: getattr(schedule, field.name)
        for field in dataclasses.fields(schedule)
        if isinstance(getattr(schedule, field.name), np.ndarray)
        # Younger than many a checkpoint, and nothing that is trained depends on it.
        and field.name != "update_time"
    }
    # The slots follow from the rest, but by rules that another release may change.
    arrays |= {"slots": np.concatenate([schedule.slots.current, schedule.slots.read])}
    return {
        "num_events": len(schedule),
        "num_workers": schedule.num_workers,
        "num_slots": schedule.num_slots,
        **{name: leaves.digest([array]) for name, array in arrays.items()},
    }


def _data(run: engines.Run) -> dict[str, Any]:
    """The arrays that a run trains on, by name; none of an iterator or a `batch_fn`."""
    if not isinstance(run.batches, sources.ArrayBatches):
        return {}
    arrays = run.batches.arrays
    if run.shared.examples is None:
        return _named(arrays, "batches")
    return _named(run.shared.examples, "examples") | _named(arrays, "rows")


def _named(tree: PyTree, root: str) -> dict[str, Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {root + jax.tree_util.keystr(path): leaf for path, leaf in found}


def _structure(tree: PyTree) -> str:
    return _without_addresses(str(jax.tree.structure(tree)))


def _key(key: jax.Array | None) -> dict[str, str]:
    return {} if key is None else {"its kind": leaves.describe(key), "key": leaves.digest_tree(key)}


def _code(run: engines.Run, state: programs.SimState, batch: PyTree) -> dict[str, str]:
    """Fingerprints of what each function that the user gave compiles to."""
    program, params = run.program, state.params
    event = sources.take_rows(run.events, 0)
    pulled = jax.eval_shape(functools.partial(step.read_version, program), state, event)
    index = jnp.int32(0)

    def update(tx: optax.GradientTransformation, averages: bool):
        def one_update(grads, tx_state, params, index):
            nobody = averages and program.flow == "mean"
            about_batch = {} if nobody else _stand_ins(program, params, batch)
            stale = (None, None) if averages and program.mixes else (params, index)
            offered = offers.arguments(index, *stale, about_batch)
            return offers.update(tx, grads, tx_state, params, **offered)

        return one_update

    gradient = lambda *arguments: worker.gradient_on_batch(program, *arguments)
    evaluate = lambda state: step.evaluate(program, state)
    code = {
        "loss_fn": fingerprint(gradient, event, pulled, batch, run.shared.key),
        "tx": fingerprint(update(program.tx, True), params, state.opt_state, params, index),
    }
    if program.per_push is not None:
        function = update(program.per_push, False)
        code["per_push"] = fingerprint(function, params, state.push_state, params, index)
    if program.batch_fn is not None:
        code["batch_fn"] = fingerprint(program.batch_fn, index, index)
    if program.eval_fn is not None:
        code["eval_fn"] = fingerprint(evaluate, state)
    if program.send is not None:
        code["send"] = fingerprint(program.send, params, state.opt_state)
    return code


def _stand_ins(program: programs.Program, params: PyTree, batch: PyTree) -> dict[str, Any]:
    """For `work.Worker.about`: what they compute is the loss's, who asks for them is tx's."""
    stand_ins = {
        "hessian_vector_product": jax.jit(_hessian_vector_product),
        "fisher_diagonal": lambda: jax.jit(_fisher_diagonal)(params),
    }
    known = program.worker.about(_no_loss, programs.Pulled(params), batch, None)
    return {**known, **stand_ins}


def _no_loss(*arguments: Any) -> Any:
    raise TypeError(f"No loss is taken of {arguments}.")


# Operations that are seen in a fingerprint, by these names; what they are does not matter.
def _hessian_vector_product(tangent: PyTree) -> PyTree:
    return jax.tree.map(jnp.sin, tangent)


def _fisher_diagonal(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.square, params)


def fingerprint(function: Callable, *arguments: PyTree) -> str:
    """Of the operations that a function makes, and of the constants in them."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    text = _without_addresses(str(jaxpr))
    constants = [leaves.to_host(jnp.asarray(constant)) for constant in _constants(jaxpr)]
    total = hashlib.sha256(text.encode())
    total.update(leaves.digest(constants).encode())
    return leaves.as_digest(total)


def _constants(jaxpr: Any) -> Iterator[Any]:
    """Arrays that a function has captured, also those inside its inner functions."""
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from _constants(parameter)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr)


def _without_addresses(text: str) -> str:
    """A text that is the same in every process; without spaces, because line breaks vary too."""
    return "".join(re.sub(r"0x[0-9a-fA-F]+", "", text).split())
