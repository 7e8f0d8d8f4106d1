"""What `train` is given, checked before anything starts, where `sim` has no check of it."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.runtime import layout
from dcasgd_jax.schedules import laws, protocols
from dcasgd_jax.sim import arguments as sim_arguments
from dcasgd_jax.sim.problem import Problem, Server
from dcasgd_jax.typing import PyTree

METRICS = ("compensation_ratio", "cosine", "below_eps")


def check_trained(problem: Problem, server: Server, recording: Any, **given: Any) -> None:
    """Raises for what is no problem, server or recording, and for what a live server has not.

    Args:
      problem: As given to `train`.
      server: Likewise.
      recording: Likewise.
      given: Further arguments that `sim` knows, by name.
    """
    given = {"problem": problem, "server": server, "recording": recording, **given}
    sim_arguments.check_arguments(**given)
    sim_arguments.refuse_server_options("ray.train", server, ("send", "opt_state"))
    if recording.every != 1 or recording.eval_versions is not None:
        raise ValueError(
            "A live run traces every push and evaluates nothing: leave Recording.every and "
            "eval_versions out, and ask sim.simulate, or replay, for them."
        )
    sim_arguments.check_one_logger(recording, "a live run has no members")
    if "gap" in recording.metrics:
        raise ValueError(f'A live server does not trace "gap"; there are {list(METRICS)}.')
    if given["worker"].eager:
        raise ValueError(
            "A live worker does not know which of its pushes are in what it pulls: eager= is for "
            "sim.simulate and sim.sweep."
        )
    _check_params(problem.params)
    layout.make_layout_of_model_state(problem.model_state)


def check_protocol(protocol: Any, num_shards: int) -> None:
    """Raises for what is no protocol, or none that so many servers can follow."""
    if protocol is None:
        return
    protocols.check_protocol(protocol)
    if num_shards > 1 and not protocol.runs_sharded:
        raise ValueError(
            f"{protocol!r} cannot be run on several servers: workers might wait for one another, "
            "each at another server. Use num_shards=1."
        )


def check_cluster(delays: Any, log: Any, address: Any, options: Mapping[str, Any]) -> None:
    """Raises TypeError for what is neither None nor of its type; `options` by their names."""
    if delays is not None:
        laws.check_law("delays", delays)
    is_path = lambda value: isinstance(value, str | os.PathLike | None)
    checks.check_kind("log", log, is_path, "the path of a file")
    is_text = lambda value: isinstance(value, str | None)
    checks.check_kind("address", address, is_text, "a text such as 'host:6379'")
    is_dict = lambda value: isinstance(value, Mapping | None)
    for name, given in options.items():
        checks.check_kind(name, given, is_dict, "a dict of Ray's options")
        cpus = (given or {}).get("num_cpus", 1)
        if isinstance(cpus, bool) or not isinstance(cpus, int | float) or not 0 <= cpus < np.inf:
            raise ValueError(f"num_cpus in {name} must be a number >= 0, got {cpus!r}.")


def check_integers(seed: Any, max_restarts: Any, **sizes: Any) -> None:
    """Raises TypeError for what is no integer, ValueError for what is too small."""
    for name, size in sizes.items():
        checks.check_count(name, size, least=1)
    checks.check_count("seed", seed, least=0)
    checks.check_count("max_restarts", max_restarts, least=-1)  # -1: Ray's "for ever"


def _check_params(params: PyTree) -> None:
    """Raises, naming the first leaf, for params that are not real and finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, dtype = f"params{jax.tree_util.keystr(path)}", jax.dtypes.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} is {dtype}: only real floats can be trained.")
        values = np.asarray(leaf)  # NumPy does not know all of JAX's kinds of floats
        if not np.isfinite(values if values.dtype.kind == "f" else values.astype(np.float32)).all():
            raise ValueError(f"{name} is not finite: no gradient could be.")
