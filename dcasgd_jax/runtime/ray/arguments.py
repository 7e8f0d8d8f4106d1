"""What `train` is given, checked before anything starts: each error names the argument."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import protocols
from dcasgd_jax.sim import arguments as sim_arguments
from dcasgd_jax.sim import preconditions
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint
from dcasgd_jax.sim.problem import Server
from dcasgd_jax.typing import PyTree

METRICS = ("compensation_ratio", "cosine", "below_eps")


def check_problem(problem: Any, server: Server) -> None:
    """Raises for what is no problem, and for what `sim.simulate` has and a live server has not."""
    sim_arguments.check_problem_kind(problem)
    sim_arguments.refuse_options("ray.train", problem, server, ("send", "opt_state"))


def check_functions(**functions: Any) -> None:
    """Raises TypeError unless all can be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {_words(function)}.")


def check_values(tx: Any, per_push: Any, protocol: Any, delays: Any) -> None:
    """Raises TypeError unless these are what `train` says; all but `tx` may be None."""
    _check_transformation("tx", tx)
    if per_push is not None:
        _check_transformation("per_push", per_push)
    if protocol is not None:
        is_one = isinstance(protocol, protocols.Protocol)
        _check_value("protocol", protocol, is_one, "sim.Synchronous()")
    if delays is not None:
        is_one = callable(getattr(delays, "times", None))
        _check_value("delays", delays, is_one, "sim.ConstantTime(0.1)")


def _check_transformation(name: str, tx: Any) -> None:
    """Raises TypeError unless `tx` is an optax transformation."""
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)):
        return
    called = f" It is a function: call it, as in {name}=optax.sgd(0.1)." if callable(tx) else ""
    raise TypeError(f"{name} must be an optax transformation, got {_words(tx)}.{called}")


def _check_value(name: str, value: Any, is_one: bool, example: str) -> None:
    """Raises TypeError, if `value` is not what is wanted, and says so of the class itself."""
    if isinstance(value, type):
        raise TypeError(
            f"{name} is the class {value.__name__} itself: pass a value, as in {name}={example}."
        )
    if not is_one:
        raise TypeError(f"{name} must be a value such as {example}, got {_words(value)}.")


def check_types(
    checkpoint: Any, log: Any, progress: Any, address: Any, options: Mapping[str, Any]
) -> None:
    """Raises TypeError for what is neither None nor of its type; `options` by their names."""
    if not isinstance(checkpoint, Checkpoint | None):
        raise TypeError(
            "checkpoint must be a value such as sim.Checkpoint(directory, every=100), got "
            f"{_words(checkpoint)}."
        )
    if not isinstance(log, str | os.PathLike | None):
        raise TypeError(f"log must be the path of a file, got {_words(log)}.")
    if not isinstance(address, str | None):
        raise TypeError(f"address must be a text such as 'host:6379', got {_words(address)}.")
    if progress is not None:
        check_functions(progress=progress)
    for name, given in options.items():
        if not isinstance(given, Mapping | None):
            raise TypeError(f"{name} must be a dict of Ray's options, got {_words(given)}.")
        cpus = (given or {}).get("num_cpus", 1)
        if isinstance(cpus, bool) or not isinstance(cpus, int | float) or not 0 <= cpus < np.inf:
            raise ValueError(f"num_cpus in {name} must be a number >= 0, got {cpus!r}.")


def check_integers(seed: Any, max_restarts: Any, **sizes: Any) -> None:
    """Raises TypeError for what is no integer, ValueError for what is too small."""
    for name, size in sizes.items():
        checks.check_count(name, size, least=1)
    checks.check_count("seed", seed, least=0)
    checks.check_count("max_restarts", max_restarts, least=-1)  # -1: Ray's "for ever"


def check_metrics(metrics: Any) -> None:
    """Raises ValueError for metrics that a live server has not."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a list of names: pass [{metrics!r}].")
    preconditions.check_metrics(metrics)
    if "gap" in metrics:
        raise ValueError(f'A live server does not trace "gap"; there are {list(METRICS)}.')


def check_params(params: PyTree) -> None:
    """Raises, naming the first leaf, for params that are no arrays of finite numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path) or "(the whole tree)"
        try:
            dtype = jax.dtypes.result_type(leaf)
        except TypeError:
            raise TypeError(f"Parameter {name} must be an array, got {_words(leaf)}.") from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"Parameter {name} is {dtype}: only real floats can be trained.")
        values = np.asarray(leaf)  # NumPy does not know all of JAX's kinds of floats
        if not np.isfinite(values if values.dtype.kind == "f" else values.astype(np.float32)).all():
            raise ValueError(f"Parameter {name} is not finite: no gradient could be.")


def _words(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'}, a {type(value).__name__}"
