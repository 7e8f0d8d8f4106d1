"""Arguments of the right kind: what each is called, what it must be, what to write instead."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.sim import preconditions
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim.problem import Problem, Recording, Server
from dcasgd_jax.sim.sweeps.members import PerMember
from dcasgd_jax.typing import PyTree


class _Kind(NamedTuple):
    is_one: Callable[[Any], bool]
    wanted: str


def _is_key(value: Any) -> bool:
    """One PRNG key, of the new kind or the old."""
    dtype, shape = getattr(value, "dtype", None), np.shape(value) if hasattr(value, "shape") else ()
    if dtype is None:
        return False
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return shape == ()
    return dtype == np.uint32 and len(shape) == 1


_TRANSFORMATION = _Kind(
    lambda value: isinstance(value, optax.GradientTransformation),
    "an optax transformation, such as optax.sgd(0.1)",
)
_FUNCTION = _Kind(callable, "a function")
_REQUIRED = {
    "loss_fn": _FUNCTION,
    "batches_fn": _FUNCTION,
    "tx": _TRANSFORMATION,
    "schedule": _Kind(
        lambda value: isinstance(value, Schedule), "a sim.Schedule, as sim.make_schedule makes one"
    ),
}
_OPTIONAL = {
    "per_push": _TRANSFORMATION,
    "eval_fn": _FUNCTION,
    "send": _FUNCTION,
    "progress": _FUNCTION,
    "engine": _Kind(
        checks.has_methods("run"), "an engine, such as sim.ScanEngine() or sim.HostEngine()"
    ),
    "checkpoint": _Kind(
        checks.has_methods("prepare"), 'where to save the run, such as sim.Checkpoint("directory")'
    ),
    "worker": _Kind(
        checks.has_methods("check", "init", "run"),
        "what a worker does, such as sim.LocalSteps(optax.sgd(0.1), num_steps=8)",
    ),
    "key": _Kind(_is_key, "one PRNG key, such as jax.random.key(0)"),
    "state": _Kind(
        lambda value: isinstance(value, programs.SimState), "the state of a result, result.state"
    ),
}
_MULTI_STEPS = (
    "Call its method gradient_transformation(), and compensate before it, where the gradients "
    "still have stale params of their own: optax.chain(dc.compensate_delay(...), "
    "optax.MultiSteps(...).gradient_transformation())."
)


def check_arguments(problem: Any = None, server: Server | None = None, **given: Any) -> None:
    """Raises TypeError for the first argument that is not of its kind; names it."""
    _check_order(problem, server, given)
    if problem is not None:
        _check_problem(problem)
    parts = {} if server is None else server._asdict()
    for name, value in {**parts, **given}.items():
        kind = _REQUIRED.get(name) or _OPTIONAL.get(name)
        if kind is not None and not (name in _OPTIONAL and value is None):
            hint = _MULTI_STEPS if isinstance(value, optax.MultiSteps) else ""
            checks.check_kind(name, value, *kind, hint)
    if "recording" in given:
        check_recording(given["recording"])


def check_problem_kind(problem: Any) -> None:
    """A loss alone is not enough."""
    is_problem = lambda value: isinstance(value, Problem)
    checks.check_kind("problem", problem, is_problem, "a sim.Problem(loss_fn, params)")


def _check_problem(problem: Any) -> None:
    """A loss and params of the right kind, and a policy that there is."""
    check_problem_kind(problem)
    if callable(problem.params) and not callable(problem.loss_fn):
        raise TypeError("loss_fn and params are swapped: the loss comes first, then the params.")
    if isinstance(problem.params, optax.GradientTransformation):
        raise TypeError(
            "params is an optax transformation: simulate(sim.Problem(loss_fn, params), tx, ...)."
        )
    checks.check_kind("loss_fn", problem.loss_fn, *_FUNCTION)
    check_params(problem.params)
    if problem.eval_fn is not None:
        checks.check_kind("eval_fn", problem.eval_fn, *_FUNCTION)
    preconditions.check_policy(problem.model_state_policy)


def refuse_options(
    function: str, problem: Problem, server: Server, of_server: tuple[str, ...]
) -> None:
    """Raises ValueError for what a problem and a server may have, but not in this function."""
    if problem.model_state is not None:
        raise ValueError(f"{function} has no model state: sim.simulate has.")
    refuse_server_options(function, server, of_server)


def refuse_server_options(function: str, server: Server, names: tuple[str, ...]) -> None:
    """Raises ValueError for what a server may have, but not in this function."""
    for name in names:
        if getattr(server, name) is not None:
            raise ValueError(f"sim.Server({name}=) is not for {function}: sim.simulate has it.")


def check_recording(recording: Recording) -> None:
    """Metrics that there are, and a whole number of events."""
    checks.check_kind(
        "recording",
        recording,
        lambda value: isinstance(value, Recording),
        "what to keep of the run, such as sim.Recording(metrics=['gap'])",
    )
    preconditions.check_metrics(recording.metrics)
    checks.check_count("Recording.every", recording.every)
    checks.check_count("Recording.log_every", recording.log_every)
    loggers = recording.logger
    for logger in loggers.values if isinstance(loggers, PerMember) else [loggers]:
        is_one = lambda value: value is None or checks.has_methods("log")(value)
        wanted = "something with log(step, values), such as dc.loggers.JsonLines(path)"
        checks.check_kind("Recording.logger", logger, is_one, wanted)


def check_one_logger(recording: Recording, why: str) -> None:
    """Raises ValueError if there is one for each member."""
    if isinstance(recording.logger, PerMember):
        raise ValueError(f"Recording.logger is one for each member, but {why}: pass one logger.")


def check_params(params: PyTree) -> None:
    """Every parameter must be a number, or an array of them, that has a gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = f"params{jax.tree_util.keystr(path)}"
        checks.check_kind(name, leaf, _is_array, "an array")
        dtype = jax.dtypes.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{name} holds {dtype}, which has no gradient: params are arrays of floats. Keep "
                "the others in model_state, or in the loss."
            )


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, int | float | complex)


def _check_order(problem: Any, server: Server | None, given: dict[str, Any]) -> None:
    """Two arguments that are each of the other's kind have changed places."""
    schedule, batches = given.get("schedule"), given.get("batches")
    if server is not None and isinstance(server.tx, Problem):
        raise TypeError("problem and tx are swapped: simulate(problem, tx, schedule, batches).")
    if isinstance(batches, Schedule):
        swapped = not isinstance(schedule, Schedule)
        raise TypeError(
            "schedule and batches are swapped: simulate(problem, tx, schedule, batches)."
            if swapped
            else "batches is a sim.Schedule: pass a batch for each of its events."
        )
    if inspect.isgeneratorfunction(batches):
        raise TypeError(
            f"batches is the generator function {batches.__name__} itself: call it, "
            f"batches={batches.__name__}(...)."
        )
